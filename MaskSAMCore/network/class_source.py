"""Self-Prompt-SAM's generator: class logits at several scales, and one prompt per class and slice (model.md §6.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MaskSAMCore.config.schema import ModelConfig
from MaskSAMCore.errors import InputError
from MaskSAMCore.network.boxes import hard_box
from MaskSAMCore.network.distance import innermost
from MaskSAMCore.network.generator import resize
from MaskSAMCore.network.prompt_source import PromptSource, Proposal
from MaskSAMCore.network.trunk import Trunk
from MaskSAMCore.network.types import Features, Level, PromptBatch


class ClassGenerator(PromptSource):
    """The trunk, and a 1x1x1 convolution to K logits on its last stage (deep supervision: on every stage).

    Prompt c of a slice is class c, background included: the decoded masks compete for every voxel later on. It is
    made of the classes that win, pixel by pixel: the box of where class c does, and the innermost pixel of that. Both
    are zero where it does not (the paper's word), have no gradient, and stand before the decoder as point, corner,
    corner. The mask prompt is the logit of c against all others, since SAM learned with logits; through it the
    decoder's loss reaches the generator.

    Args:
        cfg: Of the whole model.
        levels: The encoder's feature levels.
    """

    LIFTS = True
    trunk: Trunk

    def __init__(self, cfg: ModelConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(cfg, levels)
        self.cfg, self.classes, self.mask_size = cfg.source, cfg.classes, cfg.mask_size
        supervised = self.trunk.channels if self.cfg.deep_supervision else self.trunk.channels[-1:]
        self.heads = nn.ModuleList(nn.Conv3d(width, cfg.classes, 1) for width in supervised)

    @classmethod
    def check(cls, cfg: ModelConfig) -> None:
        """What class prompts need (model.md §6.4, §7.5).

        Raises:
            InputError: Names the value.
        """
        if cfg.decoder.class_head or cfg.decoder.upsampler:
            raise InputError(
                "prompt k is of class k: nothing has to be classified, and no queries are mixed",
                where="model.decoder",
                remedy="Set model.decoder.class_head=false and model.decoder.upsampler=false.",
            )
        source = cfg.source
        if source.points == "none" and not source.box and source.mask_prompt == "none":
            raise InputError(
                "the generator has no prompt to give",
                where="model.source",
                remedy="Set model.source.points=edt, model.source.box=true or model.source.mask_prompt=logits.",
            )

    def forward(self, features: Features, stages: list[Tensor], labels: Tensor | None = None) -> Proposal:
        """Prompts of all classes in all slices, and the logits that are compared with the labels."""
        logits = self.logits(stages)
        prompts = self.prompts(logits[-1])
        return Proposal(prompts=prompts, masks=logits[-1], fused_boxes=prompts.boxes, stages=logits)

    def logits(self, stages: list[Tensor]) -> tuple[Tensor, ...]:
        """Class logits (B, K, D, h_i, w_i) of the supervised stages, the last at the patch's own size."""
        last = stages[-len(self.heads) :]
        return tuple(head(stage) for head, stage in zip(self.heads, last, strict=True))

    def prompts(self, logits: Tensor) -> PromptBatch:
        """Prompts (B, K, D, ...) of class logits (B, K, D, H, W)."""
        with torch.no_grad():
            ids = torch.arange(self.classes, device=logits.device)
            won = logits.argmax(1, keepdim=True) == ids[:, None, None, None]
            boxes = hard_box(won)[0] if self.cfg.box else None
            points = _points(won) if self.cfg.points == "edt" else None
        return PromptBatch(
            points=points,
            labels=None if points is None else torch.ones_like(points[..., 0], dtype=torch.long),
            boxes=boxes,
            masks=self._mask_prompt(logits, won),
            complete=True,
        )

    def _mask_prompt(self, logits: Tensor, won: Tensor) -> Tensor | None:
        if self.cfg.mask_prompt == "none":
            return None
        if self.cfg.mask_prompt == "binary":
            return resize(won.to(logits.dtype), self.mask_size, "nearest")
        return one_versus_rest(resize(logits, self.mask_size, "bilinear"))


def one_versus_rest(logits: Tensor) -> Tensor:
    """The logit of each class against all others together: z_c - logsumexp of the others.

    Args:
        logits: (B, K, ...), K >= 2.

    Returns:
        The same shape; its sigmoid is the softmax of `logits`.
    """
    # In terms of the softmax, log p - log(1 - p), a sure class would lose all its digits.
    rest = [torch.cat([logits[:, :c], logits[:, c + 1 :]], dim=1).logsumexp(1) for c in range(logits.shape[1])]
    return logits - torch.stack(rest, dim=1)


def _points(masks: Tensor) -> Tensor:
    """Centres (..., 1, 2), fractions x, y, of the innermost pixels of masks (..., H, W); zero where empty."""
    place, empty = innermost(masks)
    height, width = masks.shape[-2:]
    centres = (place.flip(-1) + 0.5) / torch.tensor([width, height], device=masks.device)
    return centres.masked_fill(empty[..., None], 0.0)[..., None, :]
