"""Self-Prompt-SAM's prompt generator: one prompt per class and slice, from class logits (model.md §6.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.errors import InputError
from MaskSAMCore.network.boxes import hard_box
from MaskSAMCore.network.distance import innermost
from MaskSAMCore.network.generator import resize
from MaskSAMCore.network.prompt_source import PromptSource, Proposal
from MaskSAMCore.network.trunk import Trunk
from MaskSAMCore.network.types import Features, Level, PromptBatch


class ClassGenerator(PromptSource):
    """A trunk with a 1x1x1 convolution to K class logits on its last stage (with deep supervision, on every stage).

    Prompt c of a slice belongs to class c, background included. Box and point come from the pixels where class c has
    the highest logit: their bounding box, and the pixel furthest from their border. Both are zero for a class without
    such pixels, as in the paper, and carry no gradient. The mask prompt is the logit of c against all other classes,
    because SAM was trained with logits; through it the decoder's loss reaches the generator.

    Args:
        cfg: Configuration of the whole model.
        levels: The encoder's feature levels.
    """

    HAS_TRUNK = True
    trunk: Trunk

    def __init__(self, cfg: ModelConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(cfg, levels)
        self.cfg, self.classes, self.mask_size = cfg.source, cfg.classes, cfg.mask_size
        supervised = self.trunk.channels if self.cfg.deep_supervision else self.trunk.channels[-1:]
        self.heads = nn.ModuleList(nn.Conv3d(width, cfg.classes, 1) for width in supervised)

    @classmethod
    def check(cls, cfg: ModelConfig) -> None:
        """Check that the configuration suits class prompts (model.md §6.4, §7.5).

        Raises:
            InputError: Names the key.
        """
        if cfg.decoder.class_head or cfg.decoder.upsampler:
            raise InputError(
                "class prompts need neither class head nor upsampler, because prompt k belongs to class k",
                where="model.decoder",
                remedy="Set model.decoder.class_head=false and model.decoder.upsampler=false.",
            )
        source = cfg.source
        if source.points == "none" and not source.box and source.mask_prompt == "none":
            raise InputError(
                "the generator makes neither points, boxes nor masks",
                where="model.source",
                remedy="Set model.source.points=edt, model.source.box=true or model.source.mask_prompt=logits.",
            )

    def forward(self, features: Features, stages: list[Tensor], labels: Tensor | None = None) -> Proposal:
        """Make the prompts of all classes in all slices, and the class logits for the loss."""
        logits = self.logits(stages)
        prompts = self.prompts(logits[-1])
        return Proposal(prompts=prompts, masks=logits[-1], fused_boxes=prompts.boxes, stages=logits)

    def logits(self, stages: list[Tensor]) -> tuple[Tensor, ...]:
        """Class logits (B, K, D, h_i, w_i) of the supervised stages, the last at the size of the patch."""
        last = stages[-len(self.heads) :]
        return tuple(head(stage) for head, stage in zip(self.heads, last, strict=True))

    def prompts(self, logits: Tensor) -> PromptBatch:
        """Prompts (B, K, D, ...) from class logits (B, K, D, H, W)."""
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
    """Logit of each class against all others: z_c - logsumexp(z of the others).

    Args:
        logits: (B, K, ...), K >= 2.

    Returns:
        (B, K, ...); the sigmoid of it is the softmax of `logits`.
    """
    # log p - log(1 - p) of the softmax p would lose all digits where p is close to 1.
    rest = [torch.cat([logits[:, :c], logits[:, c + 1 :]], dim=1).logsumexp(1) for c in range(logits.shape[1])]
    return logits - torch.stack(rest, dim=1)


def _points(masks: Tensor) -> Tensor:
    """Centres (..., 1, 2) of the innermost pixels of masks (..., H, W), as fractions x, y; zero where empty."""
    place, empty = innermost(masks)
    height, width = masks.shape[-2:]
    centres = (place.flip(-1) + 0.5) / torch.tensor([width, height], device=masks.device)
    return centres.masked_fill(empty[..., None], 0.0)[..., None, :]
