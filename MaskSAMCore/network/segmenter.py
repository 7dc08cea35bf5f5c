"""What training and inference ask of every network, and the networks that take no prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from MaskSAMCore.config.schema import ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.types import Features, QueryOutputs


class Segmenter(nn.Module):
    """A network that turns patches into class scores; build it with `network.build.build_model`.

    Attributes:
        cfg: What it was built from.
        decodes: Whether automatic mode runs all parts; see `set_decoder`.
    """

    decodes = True

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg

    def forward(self, image: Tensor, features: Features | None = None, labels: Tensor | None = None) -> QueryOutputs:
        """One training pass in automatic mode.

        Args:
            image: (B, M, D, H, W), normalised as in preprocessing.
            features: Features of a frozen encoder where they are known already.
            labels: (B, D, H, W) classes, for networks with ground-truth prompts.
        """
        raise NotImplementedError

    def scores(self, outputs: QueryOutputs) -> Tensor:
        """Class scores (B, K, D, H, W) in [0, 1] of a forward pass."""
        raise NotImplementedError

    def segment_patch(self, image: Tensor) -> Tensor:
        """Image (B, M, D, H, W) to class scores (B, K, D, H, W)."""
        return self.scores(self(image))

    def set_adapters(self, enabled: bool) -> None:
        """Switch what the frozen phase leaves out; nothing, unless the network has such a phase."""

    def set_decoder(self, on: bool) -> None:
        """Leave out what is not trained yet; nothing, unless the network learns in two stages (model.md §9.4)."""

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them, where the network can."""

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

    def own_masks(self, features: Features, image: Tensor) -> tuple[Tensor, ...]:
        """Logits of the prompt generator, without the decoder; see `MaskSAM.own_masks`.

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
    """A network with one logit map per class: softmax over the classes, no prompts, nothing to cache for clicks."""

    def forward(self, image: Tensor, features: Features | None = None, labels: Tensor | None = None) -> QueryOutputs:
        """Class logits as `QueryOutputs.masks` (B, K, D, H, W); only `image` (B, M, D, H, W) is read."""
        return QueryOutputs(masks=self.logits(image), cls=None)

    def logits(self, image: Tensor) -> Tensor:
        """Image (B, M, D, H, W) to class logits (B, K, D, H, W)."""
        raise NotImplementedError

    def scores(self, outputs: QueryOutputs) -> Tensor:
        """Probabilities (B, K, D, H, W); they sum to 1, in float32 whatever the precision of the network."""
        return torch.softmax(outputs.masks.float(), dim=1)

    def slab(self, image: Tensor, features: Features | None = None) -> Any:
        """Refused: there is nothing that a prompt could read.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            "this model takes no prompts",
            where=f"model.backbone.arch={self.cfg.backbone.arch}",
            remedy="Segment with it automatically, or use a model that was trained for clicks and boxes.",
        )
