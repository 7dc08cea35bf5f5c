"""The innermost pixel of binary masks, by an exact Euclidean distance transform in torch (model.md §6.4).

Written as two passes of plain tensor operations, many masks at once: it runs where the masks are, so training on a GPU
does not wait for the CPU, and the network needs no further library.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 128
"""Longest side, in pixels, of the grid that the transform runs on."""
AT_ONCE = 1 << 25
"""Distances that are held in memory together."""


# An operator of its own: what counts or traces a network need not follow sizes that depend on the masks.
@torch.library.custom_op("masksam::innermost", mutates_args=(), schema="(Tensor masks) -> (Tensor, Tensor)")
def innermost(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The pixel of every mask that is furthest from the background, which also begins behind the picture's edge.

    Pictures larger than `GRID` are looked at on every n-th pixel; where such a grid misses all of a thin mask, its
    first pixel is taken. So the point always lies inside the mask.

    Args:
        masks: (..., H, W) bool.

    Returns:
        (..., 2) int64 y, x, the first in row-major order among equals and zero for an empty mask; (...) bool, which
        masks are empty.
    """
    *lead, height, width = masks.shape
    flat = masks.reshape(-1, height, width)
    step = -(-max(height, width) // GRID)
    coarse = flat[:, step // 2 :: step, step // 2 :: step]
    # Most structures are in few slices.
    present = coarse.flatten(1).any(1).nonzero()[:, 0]
    place = flat.flatten(1).byte().argmax(1)
    if len(present):
        found = squared_distance(coarse[present]).flatten(1).argmax(1)
        columns = coarse.shape[2]
        y, x = found // columns * step + step // 2, found % columns * step + step // 2
        place = place.index_copy(0, present, y * width + x)
    empty = ~flat.flatten(1).any(1)
    return torch.stack([place // width, place % width], dim=-1).reshape(*lead, 2), empty.reshape(lead)


@innermost.register_fake
def _sizes(masks: Tensor) -> tuple[Tensor, Tensor]:
    lead = masks.shape[:-2]
    return masks.new_empty((*lead, 2), dtype=torch.int64), masks.new_empty(lead, dtype=torch.bool)


def squared_distance(masks: Tensor) -> Tensor:
    """Squared distance of every pixel to the nearest background pixel, or the nearest one outside of the picture.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, H, W) float32 whole numbers, zero in the background.
    """
    _, height, width = masks.shape
    columns = torch.arange(-1, width + 1, device=masks.device, dtype=torch.float32)
    across = (columns[1:-1, None] - columns) ** 2
    # What is behind the left and right edge is background, at distance zero from itself.
    down = F.pad(_along_columns(masks).square(), (1, 1))
    size = max(1, AT_ONCE // (height * width * (width + 2)))
    return torch.cat([(part[:, :, None] + across).amin(-1) for part in down.split(size)])


def _along_columns(masks: Tensor) -> Tensor:
    """Distance (N, H, W) to the nearest background in the same column."""
    height = masks.shape[1]
    row = torch.arange(height, device=masks.device, dtype=torch.float32)[:, None]
    above = torch.where(masks, -1.0, row).cummax(1).values
    below = torch.where(masks, float(height), row).flip(1).cummin(1).values.flip(1)
    return torch.minimum(row - above, below - row)
