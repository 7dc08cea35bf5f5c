"""What training and inference ask of every network, and the networks that take no prompts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MaskSAMCore.config.schema import ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.types import Features, PromptBatch, Prompted, QueryOutputs, Slab


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
        """Switch what the frozen phase leaves out; nothing, unless the network has such a phase."""

    def set_decoder(self, on: bool) -> None:
        """Leave out what is not trained yet; nothing, unless the network learns in two stages (model.md §9.4)."""

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them, where the network can."""


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
