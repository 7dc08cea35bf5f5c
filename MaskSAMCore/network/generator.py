"""MaskSAM's prompt generator: masks, boxes and class tokens of N queries per slice (model.md §6.1-6.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.errors import InputError
from MaskSAMCore.network.boxes import fuse_boxes, hard_box
from MaskSAMCore.network.convolution import Conv3d
from MaskSAMCore.network.prompt_source import PromptSource, Proposal
from MaskSAMCore.network.trunk import Trunk
from MaskSAMCore.network.types import Features, Level, PromptBatch

BOX_CELLS = 2
TOKEN_CELLS = 16


class BoxHead(nn.Module):
    """Predicts boxes from 2x2 cells of all stages; they are ordered and inside the patch (model.md §6.2).

    The release normalises the numbers before the sigmoid, which removes the mean of the regressed values. Here only
    the scale and shift per query are kept, without the normalisation.
    """

    def __init__(self, channels: int, queries: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, queries, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(queries))
        self.shift = nn.Parameter(torch.zeros(queries))

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Boxes (B, N, D, 4) float32 from stages (B, C_i, D, h_i, w_i)."""
        z = self.conv(pool_stages(stages, BOX_CELLS)).float()
        z = z * self.scale[:, None, None, None] + self.shift[:, None, None, None]
        low, share = z.sigmoid().unbind(-2)
        return torch.cat([low, low + (1 - low) * share], dim=-1)


class TokenHead(nn.Module):
    """Predicts auxiliary class tokens from 16x16 cells of all stages; 16 * 16 is the decoder's width (§6.2)."""

    def __init__(self, channels: int, queries: int) -> None:
        super().__init__()
        self.conv = Conv3d(channels, queries, 3, padding=1)
        self.norm = nn.InstanceNorm3d(queries, affine=True)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Tokens (B, N, D, 256) from stages (B, C_i, D, h_i, w_i)."""
        return F.gelu(self.norm(self.conv(pool_stages(stages, TOKEN_CELLS)))).flatten(-2)


class QueryGenerator(PromptSource):
    """A trunk with heads for masks, boxes and class tokens; each head can be left out.

    If query k belongs to class k (`ModelConfig.owns_masks`), its masks are class logits too.

    Args:
        cfg: Configuration of the whole model.
        levels: The encoder's feature levels.
    """

    HAS_TRUNK = True
    trunk: Trunk

    def __init__(self, cfg: ModelConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(cfg, levels)
        self.cfg = cfg.source
        self.owned = cfg.classes if cfg.owns_masks else None
        self.mask_size = cfg.mask_size
        self.input_size = cfg.input_size
        queries, total = self.cfg.queries, sum(self.trunk.channels)
        self.mask_head = nn.Conv3d(self.trunk.channels[-1], queries, 1) if self.cfg.mask else None
        self.box_head = BoxHead(total, queries) if self.cfg.box else None
        self.token_head = TokenHead(total, queries) if self.cfg.class_tokens else None

    @classmethod
    def check(cls, cfg: ModelConfig) -> None:
        """Check that there are enough queries, and that every mask gets a class.

        Raises:
            InputError: Names the key.
        """
        queries = cfg.source.queries
        if queries < cfg.classes:
            why = f"{queries} < {cfg.classes}"
            remedy = f"Set model.source.queries={cfg.classes} or more."
            raise InputError("fewer queries than classes", where="model.source.queries", why=why, remedy=remedy)
        if cfg.decoder.kind == "none" and not cfg.owns_masks:
            raise InputError(
                "without the decoder query k must belong to class k",
                where="model.decoder.kind",
                remedy="Set model.loss.assignment=own and model.source.mask=true, or model.decoder.kind=sam.",
            )
        if not cfg.decoder.class_head:
            raise InputError(
                "the queries need a class head",
                where="model.decoder.class_head",
                remedy="Set model.decoder.class_head=true.",
            )

    def logits(self, stages: list[Tensor]) -> tuple[Tensor, ...]:
        """Mask logits (B, N, D, H, W), or (B, K, D, H, W) if query k belongs to class k; () without a mask head."""
        return () if self.mask_head is None else (self.mask_head(stages[-1])[:, : self.owned],)

    def forward(self, features: Features, stages: list[Tensor], labels: Tensor | None = None) -> Proposal:
        """Make the prompts of all queries in all slices."""
        masks = None if self.mask_head is None else self.mask_head(stages[-1])
        learned = None if self.box_head is None else self.box_head(stages)
        tokens = None if self.token_head is None else self.token_head(stages)
        extents, empty = (None, None) if masks is None else hard_box(masks.detach() > 0)
        fused = fuse_boxes(self.cfg.fusion, learned=learned, extents=extents, empty=empty)
        prompts = PromptBatch(boxes=self._floor(fused), masks=self._mask_prompt(masks), class_tokens=tokens)
        return Proposal(prompts=prompts, masks=masks, boxes=learned, fused_boxes=fused)

    def _floor(self, boxes: Tensor | None) -> Tensor | None:
        if boxes is None or not self.cfg.floor_boxes:
            return boxes
        height, width = self.input_size
        size = boxes.new_tensor([width, height, width, height])
        return (boxes * size).floor() / size

    def _mask_prompt(self, masks: Tensor | None) -> Tensor | None:
        """Masks at the size that SAM's prompt encoder takes, (B, N, D, 4g_h, 4g_w)."""
        if masks is None or self.cfg.mask_prompt == "none":
            return None
        if self.cfg.mask_prompt == "binary":
            hard = (masks.detach() > 0).to(masks.dtype)
            return resize(hard, self.mask_size, "nearest")
        return resize(masks, self.mask_size, "bilinear")


def pool_stages(stages: list[Tensor], cells: int) -> Tensor:
    """Average every slice of every stage over `cells` x `cells` bins: (B, sum of C_i, D, cells, cells).

    The bins are those of adaptive average pooling. As two matrix products, its gradient is deterministic on a GPU too.
    """
    return torch.cat([_pool(stage, cells) for stage in stages], dim=1)


def _pool(x: Tensor, cells: int) -> Tensor:
    rows, columns = (_bins(size, cells).to(x) for size in x.shape[-2:])
    return rows @ x @ columns.T


def _bins(size: int, cells: int) -> Tensor:
    """Matrix (cells, size) whose rows average one bin each."""
    index = torch.arange(cells)
    start, stop = index * size // cells, ((index + 1) * size + cells - 1) // cells
    position = torch.arange(size)
    inside = (position >= start[:, None]) & (position < stop[:, None])
    return inside.float() / (stop - start)[:, None]


def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize masks (B, N, D, H, W) to `size`; `mode` is "bilinear" for logits or "nearest"."""
    if tuple(x.shape[-2:]) == size:
        return x
    align = None if mode == "nearest" else False
    # Antialiasing keeps thin structures that plain sampling would miss.
    smooth = mode == "bilinear" and x.shape[-1] > size[1]
    # Antialiasing does not support bfloat16 on a CPU.
    y = F.interpolate(x.flatten(0, 1).float(), size=size, mode=mode, align_corners=align, antialias=smooth)
    return y.to(x.dtype).unflatten(0, x.shape[:2])
