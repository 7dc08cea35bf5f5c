"""A scan that is looked at through windows of any zoom, and answers of the click model in such windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MaskSAMCore.network.click_unet import ClickUNet
from MaskSAMCore.preprocessing.region_growing import grown_maps
from MaskSAMCore.preprocessing.zoom_windows import (
    THIN,
    facts,
    flat_levels,
    normalised,
    patch_size,
    pool_factors,
    read_points,
    seen_part,
)
from MaskSAMCore.volume import Grid, Shape, Triple, triple

Block = tuple[slice, slice, slice]
WHOLE = 48
"""Pixels of the coarsest window that the scan's longer side takes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Where a patch lies in the scan; axes are (d, h, w), see `ZoomScan.axes`.

    Attributes:
        centre: In voxels of the scan.
        spacing: Of the patch's voxels, mm.
        steps: The same in voxels of the scan.
        size: (D, H, W) of the patch.
    """

    centre: np.ndarray
    spacing: Triple
    steps: np.ndarray
    size: Shape

    @property
    def side(self) -> float:
        """Width of the pixels, mm."""
        return self.spacing[1]

    def points(self) -> np.ndarray:
        """Positions (D, H, W, 3) of the patch's voxels in the scan."""
        lines = [
            c + (np.arange(n) - (n - 1) / 2) * s for c, n, s in zip(self.centre, self.size, self.steps, strict=True)
        ]
        return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)

    def to_patch(self, places: np.ndarray) -> np.ndarray:
        """Positions (n, 3) in the scan as positions in the patch."""
        return (places - self.centre) / self.steps + (np.array(self.size) - 1) / 2

    def block(self, shape: tuple[int, ...]) -> Block:
        """The scan's voxels whose centres lie in the window."""
        reach = np.array(self.size) * self.steps / 2
        low = np.ceil(self.centre - reach).astype(int).clip(0, shape)
        high = (np.floor(self.centre + reach).astype(int) + 1).clip(0, shape)
        return triple(slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """The network's answer in a window.

    Attributes:
        window: Where.
        probability: (D, H, W) of the structure that the prompts mean.
    """

    window: Window
    probability: np.ndarray


class ZoomScan:
    """A scan's voxels with depth first, coarser copies of them, and the network that looks at them.

    Args:
        array: (K, J, I).
        grid: Of the scan.
        network: The click model, in evaluation mode, on `device`.
        device: Where it runs.
        precision: Context in which it runs.
    """

    def __init__(
        self,
        array: np.ndarray,
        grid: Grid,
        network: ClickUNet,
        device: torch.device,
        autocast: Callable[[], torch.autocast],
    ) -> None:
        spacing = np.array(grid.spacing[::-1])
        first = int(spacing.argmax()) if spacing.max() > THIN * np.sort(spacing)[1] else 0
        self.axes = triple([first, *(axis for axis in range(3) if axis != first)])
        self.voxel = spacing[list(self.axes)]
        self.finest = float(spacing.min())
        across = max(n * s for n, s in zip(np.array(array.shape)[list(self.axes)][1:], self.voxel[1:], strict=True))
        self.coarsest = max(float(across) / WHOLE, self.finest)
        turned = array.transpose(self.axes)
        self.lowest = float(array.min())
        self.array: np.ndarray = np.ascontiguousarray(turned, np.float32) - np.float32(self.lowest)
        self.network, self.device, self.autocast = network, device, autocast
        self.passes = 0
        self._coarse: dict[tuple[int, ...], np.ndarray] = {}

    @property
    def shape(self) -> Shape:
        """(d, h, w) of the scan."""
        d, h, w = self.array.shape
        return d, h, w

    def turn(self, kji: np.ndarray) -> np.ndarray:
        """Positions (n, 3) along (k, j, i) as positions along (d, h, w)."""
        return kji[..., list(self.axes)]

    def window(self, centre: np.ndarray, side: float) -> Window:
        """A window with pixels of so many mm around a position (d, h, w); no larger than the scan needs."""
        side = min(side, self.coarsest)
        spacing = (max(float(self.voxel[0]), side), side, side)
        size = patch_size(spacing[0] / side)
        return Window(
            centre=np.asarray(centre, float), spacing=spacing, steps=np.array(spacing) / self.voxel, size=size
        )

    def image(self, window: Window) -> Tensor | None:
        """The scan in a window, normalised, (1, 1, D, H, W); None where the window sees hardly any of it."""
        points = window.points()
        part = seen_part(points, self.shape, window.steps)
        if part is None:
            return None
        pool = pool_factors(window.steps, self.shape)
        if max(pool) == 1:
            low, high = part
            place = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            found = read_points(torch.from_numpy(self.array[place]), points - low, pool)
        else:
            found = read_points(torch.from_numpy(self._pooled(pool)), points, pool)
        return normalised(found)[None, None]

    def _pooled(self, pool: tuple[int, ...]) -> np.ndarray:
        if pool not in self._coarse:
            x = torch.from_numpy(self.array)[None, None]
            self._coarse[pool] = F.avg_pool3d(x, pool, ceil_mode=True, count_include_pad=False)[0, 0].numpy()
        return self._coarse[pool]

    def read_mask(self, block: np.ndarray, corner: np.ndarray, window: Window) -> np.ndarray:
        """A mask on a box of the scan, as probabilities (D, H, W) in a window."""
        pool = pool_factors(window.steps, block.shape)
        x = torch.from_numpy(np.ascontiguousarray(block, np.float32))
        if max(pool) > 1:
            x = F.avg_pool3d(x[None, None], pool, ceil_mode=True, count_include_pad=False)[0, 0]
        return read_points(x, window.points() - corner, pool).numpy()

    @torch.inference_mode()
    def answer(self, window: Window, image: Tensor, maps: np.ndarray) -> Answer:
        """What the network finds in a window.

        Args:
            window: Where.
            image: From `image`.
            maps: (5, D, H, W), the channels `PROMPT_MAPS`.
        """
        told = torch.tensor([facts(window.spacing, self.finest, bool(maps[0].any()))], device=self.device)
        every = np.concatenate([maps, grown_maps(image[0, 0].numpy(), maps)])
        given = torch.from_numpy(every)[None].to(self.device)
        flat = flat_levels(window.spacing, self.network.levels)
        self.passes += 1
        with self.autocast():
            logits = self.network.answer(image.to(self.device), given, told, flat=flat)
        inside = logits[0, 0].float().sigmoid().cpu().numpy()
        return Answer(window=window, probability=inside)

    def paste(self, probability: np.ndarray, window: Window) -> tuple[np.ndarray, Block]:
        """Probabilities of a window on the scan's own voxels, and the block of voxels that it covers."""
        block = window.block(self.shape)
        found = torch.from_numpy(probability)
        # One axis after the other, since both grids have the same axes: many times as fast as point by point.
        for axis, s in enumerate(block):
            last = window.size[axis] - 1
            at = (np.arange(s.start, s.stop) - window.centre[axis]) / window.steps[axis] + last / 2
            at = torch.from_numpy(at.clip(0, last)).float()
            low = at.floor().long().clamp(max=max(last - 1, 0))
            share = (at - low).view([-1 if n == axis else 1 for n in range(3)])
            found = torch.lerp(
                found.index_select(axis, low), found.index_select(axis, (low + 1).clamp(max=last)), share
            )
        return found.numpy(), block
