"""Innermost pixel of binary masks, by an exact Euclidean distance transform in PyTorch (model.md §6.4).

Two passes of plain tensor operations over many masks at once. It runs on the device of the masks, so that training on
a GPU does not wait for the CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 128
"""Longest side, in pixels, of the grid on which the transform is computed."""
AT_ONCE = 1 << 25
"""Largest number of distances in memory at once."""


# A custom operator, because tracing cannot follow shapes that depend on the values of the masks.
@torch.library.custom_op("masksam::innermost", mutates_args=(), schema="(Tensor masks) -> (Tensor, Tensor)")
def innermost(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The pixel of every mask that is furthest from the background; outside the image is background too.

    In images larger than `GRID` only every n-th pixel is considered. If these miss a thin mask, its first pixel is
    taken, so that the point is always inside the mask.

    Args:
        masks: (..., H, W) bool.

    Returns:
        (..., 2) int64 y, x, the first one in row-major order among equals, zero for an empty mask; and (...) bool,
        which masks are empty.
    """
    *lead, height, width = masks.shape
    flat = masks.reshape(-1, height, width)
    step = -(-max(height, width) // GRID)
    coarse = flat[:, step // 2 :: step, step // 2 :: step]
    # Most structures are absent from most slices.
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
    """Squared distance of every pixel to the nearest pixel that is background or outside the image.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, H, W) float32, whole numbers, zero in the background.
    """
    _, height, width = masks.shape
    columns = torch.arange(-1, width + 1, device=masks.device, dtype=torch.float32)
    across = (columns[1:-1, None] - columns) ** 2
    # The columns beyond the left and right edge are background, at distance zero.
    down = F.pad(_along_columns(masks).square(), (1, 1))
    size = max(1, AT_ONCE // (height * width * (width + 2)))
    return torch.cat([(part[:, :, None] + across).amin(-1) for part in down.split(size)])


def _along_columns(masks: Tensor) -> Tensor:
    """Distance (N, H, W) to the nearest background pixel in the same column."""
    height = masks.shape[1]
    row = torch.arange(height, device=masks.device, dtype=torch.float32)[:, None]
    above = torch.where(masks, -1.0, row).cummax(1).values
    below = torch.where(masks, float(height), row).flip(1).cummin(1).values.flip(1)
    return torch.minimum(row - above, below - row)
