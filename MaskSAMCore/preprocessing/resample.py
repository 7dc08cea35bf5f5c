"""Resampling between two grids that cover the same extent, and patches that reach over the border.

Voxel *extents* coincide (half-pixel centres), so going to another shape and back never shifts anything.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MaskSAMCore.volume import Shape, Slices, triple

SHRINK = 2.0
"""Masks and scores are antialiased where an axis shrinks by more than this."""

Depth = Literal["same", "nearest"]


def resample(x: Tensor, shape: Shape, *, mode: Literal["cubic", "linear"], depth: Depth = "same") -> Tensor:
    """Resample one channel to another shape (model.md §12.1).

    Two separable passes, in-plane and along depth. Images are antialiased where they shrink; masks and scores only
    beyond `SHRINK`, since that was seen to cost them accuracy on the way back (real labels, Dice 0.984 for 0.995).
    The same shape returns `x` itself, so a volume already at its target spacing stays voxel-exact.

    Args:
        x: (D, H, W) float32.
        shape: Target (D, H, W).
        mode: In-plane kernel.
        depth: `nearest` along depth for strongly anisotropic data, else the in-plane kernel.
    """
    if tuple(x.shape) == tuple(shape):
        return x
    if shape[0] < x.shape[0]:
        x = _along_depth(x, shape[0], mode, depth)
    if tuple(x.shape[1:]) != tuple(shape[1:]):
        x = _plane(x[:, None], (shape[1], shape[2]), mode)[:, 0]
    return _along_depth(x, shape[0], mode, depth)


def _plane(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    shrinks = any(n > SHRINK * m for n, m in zip(x.shape[-2:], size, strict=True))
    kernel, smooth = ("bicubic", True) if mode == "cubic" else ("bilinear", shrinks)
    return F.interpolate(x, size=size, mode=kernel, antialias=smooth, align_corners=False)


def _along_depth(x: Tensor, size: int, mode: str, depth: Depth) -> Tensor:
    if size == x.shape[0]:
        return x
    if depth == "nearest":
        centres = (torch.arange(size, dtype=torch.float64) + 0.5) * (x.shape[0] / size)
        return x[centres.long().clamp_(max=x.shape[0] - 1)]
    flat = x.reshape(1, 1, x.shape[0], -1)
    return _plane(flat, (size, flat.shape[-1]), mode).reshape(size, *x.shape[1:])


def resample_labels(classes: np.ndarray, shape: Shape, *, depth: Depth = "same") -> np.ndarray:
    """Linear resampling of the one-hot classes, argmax last, one class in memory at a time.

    Args:
        classes: (D, H, W) integers.
        shape: Target (D, H, W).
    """
    if tuple(classes.shape) == tuple(shape):
        return classes
    best = torch.full(shape, -1.0)
    out = np.zeros(shape, classes.dtype)
    for value in np.unique(classes):
        score = resample(torch.from_numpy((classes == value).astype(np.float32)), shape, mode="linear", depth=depth)
        # a background that ties with a structure wins only if it comes first, as in any argmax
        better = score > best
        np.copyto(out, value, where=better.numpy())
        torch.maximum(best, score, out=best)
    return out


def take(array: np.ndarray, start: Shape, size: Shape) -> np.ndarray:
    """A copy of a patch that may reach over the border, where the nearest voxel is repeated.

    This is the one padding rule of training and inference, for images and labels alike: what lies behind the
    border of a crop looks most like its border, in tissue and in air, and `grid_sample` clamps the same way.

    Args:
        array: (..., D, H, W), memory-mapped or not.
        start: First voxel (d, h, w); may be negative or end beyond the array.
        size: (D, H, W) of the patch.
    """
    shape = array.shape[-3:]
    lower = [min(max(s, 0), n - 1) for s, n in zip(start, shape, strict=True)]
    upper = [max(min(s + p, n), 1) for s, p, n in zip(start, size, shape, strict=True)]
    lower = [min(a, b - 1) for a, b in zip(lower, upper, strict=True)]
    d, h, w = (slice(a, b) for a, b in zip(lower, upper, strict=True))
    inside = np.array(array[..., d, h, w])
    for axis in range(3):
        index = np.arange(start[axis], start[axis] + size[axis]).clip(lower[axis], upper[axis] - 1) - lower[axis]
        if len(index) != inside.shape[axis - 3] or index[0] != 0 or index[-1] != len(index) - 1:
            inside = np.take(inside, index, axis=axis - 3)
    return inside


def pad_to(array: np.ndarray, size: Shape) -> tuple[np.ndarray, Slices]:
    """Centre a volume in at least `size`, borders repeated, and the slices that cut it out again.

    Args:
        array: (..., D, H, W).
        size: Least (D, H, W); an axis that is long enough keeps its length.
    """
    shape = array.shape[-3:]
    full = triple(max(n, p) for n, p in zip(shape, size, strict=True))
    before = triple((f - n) // 2 for f, n in zip(full, shape, strict=True))
    crop = triple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
    if full == tuple(shape):
        return array, crop
    return take(array, triple(-b for b in before), full), crop
