"""Base classes of all networks: the interface that training and inference use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.types import Features, PromptBatch, Prompted, QueryOutputs, Slab


class Segmenter(nn.Module):
    """A network that maps patches to class scores; built by `network.build.build_model`.

    Attributes:
        cfg: The configuration it was built from.
        decodes: Whether automatic mode runs the mask decoder; see `set_decoder`.
    """

    decodes = True

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg

    def forward(self, image: Tensor, features: Features | None = None, labels: Tensor | None = None) -> QueryOutputs:
        """One training pass in automatic mode.

        Args:
            image: (B, M, D, H, W), normalised as in preprocessing.
            features: Output of the encoder for `image`, if it was computed before.
            labels: (B, D, H, W) classes, for networks that take prompts from the ground truth.
        """
        raise NotImplementedError

    def scores(self, outputs: QueryOutputs) -> Tensor:
        """Class scores (B, K, D, H, W) in [0, 1] from the output of `forward`."""
        raise NotImplementedError

    def segment_patch(self, image: Tensor) -> Tensor:
        """Class scores (B, K, D, H, W) of an image (B, M, D, H, W)."""
        return self.scores(self(image))

    def slab(self, image: Tensor, features: Features | None = None) -> Slab:
        """Encode a patch (B, M, D, H, W) once for all prompts; see `MaskSAM.slab`.

        Raises:
            ModelError: The network takes no prompts.
        """
        raise self._takes_no_prompts()

    def prompted(self, slab: Slab, prompts: PromptBatch, *, multimask: bool = False) -> Prompted:
        """Masks of prompts in an encoded patch; see `MaskSAM.prompted`.

        Raises:
            ModelError: The network takes no prompts.
        """
        raise self._takes_no_prompts()

    def segment_slab(self, image: Tensor) -> tuple[Tensor, Slab]:
        """`segment_patch` and `slab` of the same patch, with one run of the encoder.

        Raises:
            ModelError: The network takes no prompts.
        """
        raise self._takes_no_prompts()

    def _takes_no_prompts(self) -> ModelError:
        return ModelError(
            "this model takes no prompts",
            where=f"model.backbone.arch={self.cfg.backbone.arch}",
            remedy="Segment with it automatically, or use a model that was trained for clicks and boxes.",
        )

    def set_adapters(self, enabled: bool) -> None:
        """Switch the encoder's adapters on or off; does nothing if there are none."""

    def set_decoder(self, on: bool) -> None:
        """Switch the mask decoder of automatic mode on or off (model.md §9.4); does nothing if there is none."""

    def set_checkpointing(self, enabled: bool) -> None:
        """Switch gradient checkpointing on or off; does nothing if the network has none."""

    def encode(self, image: Tensor) -> Features:
        """Features of an image (B, M, D, H, W), which `forward` takes; see `MaskSAM.encode`.

        Raises:
            ModelError: The network has no encoder that can be run alone.
        """
        raise self._lacks("encoder that can be run alone")

    def encode_frozen(self, image: Tensor) -> Features:
        """Features of the pretrained encoder alone; see `MaskSAM.encode_frozen`.

        Raises:
            ModelError: The network has no encoder that can be run alone.
        """
        raise self._lacks("encoder that can be run alone")

    def generator_logits(self, features: Features, image: Tensor) -> tuple[Tensor, ...]:
        """Logits of the prompt generator, without the decoder; see `MaskSAM.generator_logits`.

        Raises:
            ModelError: The network has no prompt generator.
        """
        raise self._lacks("prompt generator")

    def _lacks(self, part: str) -> ModelError:
        return ModelError(
            f"this model has no {part}",
            where=f"model.backbone.arch={self.cfg.backbone.arch}",
            remedy="Use a model whose backbone is SAM's, slice by slice.",
        )


class DirectSegmenter(Segmenter):
    """A network with one logit map per class and no prompts."""

    def forward(self, image: Tensor, features: Features | None = None, labels: Tensor | None = None) -> QueryOutputs:
        """Class logits (B, K, D, H, W) as `QueryOutputs.masks`; only `image` (B, M, D, H, W) is used."""
        return QueryOutputs(masks=self.logits(image), cls=None)

    def logits(self, image: Tensor) -> Tensor:
        """Class logits (B, K, D, H, W) of an image (B, M, D, H, W)."""
        raise NotImplementedError

    def scores(self, outputs: QueryOutputs) -> Tensor:
        """Softmax probabilities (B, K, D, H, W), always float32."""
        return torch.softmax(outputs.masks.float(), dim=1)
