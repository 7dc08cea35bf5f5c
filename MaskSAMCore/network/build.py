"""The one constructor of the network, for training and inference alike."""

from __future__ import annotations

from torch import nn

from MaskSAMCore.config.check import check_model
from MaskSAMCore.config.schema import ModelConfig
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.network.sources import Family, check_source, family_of
from MaskSAMCore.network.student import SwinStudent
from MaskSAMCore.network.volume_sam import VolumeSAM

NETWORKS: dict[Family, type[Segmenter]] = {"slices": MaskSAM, "volume": VolumeSAM, "student": SwinStudent}
FROZEN = {"encoder.sam.": "image_encoder.", "prompts.sam.": "prompt_encoder.", "decoder.sam.": "mask_decoder."}


def build_model(cfg: ModelConfig) -> Segmenter:
    """Build the network with SAM frozen and everything of ours trainable.

    Raises:
        InputError: The configuration describes no network.
        PackageError: It needs a package that is not installed.
    """
    check_network(cfg)
    model = NETWORKS[family_of(cfg)](cfg)
    freeze(model)
    return model


def check_network(cfg: ModelConfig) -> None:
    """Refuse a configuration that describes no network, before anything is built.

    Raises:
        InputError: Names the value.
    """
    check_source(cfg)
    check_model(cfg)


def is_frozen(name: str) -> bool:
    """Whether a parameter or buffer of that name belongs to the pretrained SAM."""
    return name.startswith(tuple(FROZEN))


def is_for_prompts(name: str) -> bool:
    """Whether a parameter serves a user's prompts alone, so that a model trained without it still fits."""
    return name.startswith(("fine.", "clicks.")) or name == "prompts.offsets" or ".condition." in name


def adapts_encoder(name: str) -> bool:
    """Whether a parameter changes the frozen encoder; untrained ones do not, so a model without them still fits."""
    return name.startswith(("encoder.adapters.", "encoder.depth_branches.", "encoder.depth_pe"))


def freeze(model: nn.Module) -> None:
    """Train exactly what does not belong to the pretrained SAM (model.md §3)."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(name))
