"""Builds the network of a configuration, for training and inference."""

from __future__ import annotations

from torch import nn

from MaskSAMCore.config.check import check_model
from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.network.click_unet import ClickUNet
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.network.sources import Family, check_source, family_of
from MaskSAMCore.network.student import SwinStudent
from MaskSAMCore.network.volume_sam import VolumeSAM

NETWORKS: dict[Family, type[Segmenter]] = {
    "slices": MaskSAM,
    "volume": VolumeSAM,
    "student": SwinStudent,
    "clicks": ClickUNet,
}
FROZEN = {"encoder.sam.": "image_encoder.", "prompts.sam.": "prompt_encoder.", "decoder.sam.": "mask_decoder."}


def build_model(cfg: ModelConfig) -> Segmenter:
    """Build the network of a configuration, with SAM frozen and all other parameters trainable.

    Raises:
        InputError: The configuration does not describe a network.
        PackageError: A package that it needs is not installed.
    """
    check_network(cfg)
    model = NETWORKS[family_of(cfg)](cfg)
    freeze(model)
    return model


def check_network(cfg: ModelConfig) -> None:
    """Check that a configuration describes a network, without building it.

    Raises:
        InputError: Names the key and its value.
    """
    check_source(cfg)
    check_model(cfg)


def is_frozen(name: str) -> bool:
    """Whether the parameter or buffer of that name belongs to the pretrained SAM."""
    return name.startswith(tuple(FROZEN))


def is_for_prompts(name: str) -> bool:
    """Whether the parameter of that name is used by a user's prompts only; a checkpoint may lack it."""
    return name.startswith(("fine.", "clicks.")) or name == "prompts.offsets" or ".condition." in name


def adapts_encoder(name: str) -> bool:
    """Whether the parameter of that name adapts the encoder; it starts without effect, so a checkpoint may lack it."""
    return name.startswith(("encoder.adapters.", "encoder.depth_branches.", "encoder.depth_pe"))


def freeze(model: nn.Module) -> None:
    """Set `requires_grad` of all parameters: false for those of the pretrained SAM, else true (model.md §3)."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(name))
