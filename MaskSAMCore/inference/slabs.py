"""The windows of an opened scan: choice of the window for a prompt, and its encoding (model.md §13.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import product
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from MaskSAMCore.inference.cache import SlabCache, halved, model_key, slab_key
from MaskSAMCore.inference.memory import CPU, MemoryLadder, clear, spill, to_cpu
from MaskSAMCore.inference.sliding_window import autocast
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.network.types import Slab
from MaskSAMCore.preprocessing.plan import Plan, Shape
from MaskSAMCore.preprocessing.resample import pad_to
from MaskSAMCore.preprocessing.windows import starts

if TYPE_CHECKING:
    from MaskSAMCore.zoo.model_folder import ModelCard

T = TypeVar("T")
Extent = tuple[float, float]
"""Lowest and highest position along one axis."""

MARGIN = 0.125
"""A window stays in use as long as all prompts are this share of its side away from its border."""
_SMALLEST_STD = 1e-6


class NetworkRunner:
    """A network on its device, which moves to the CPU when the GPU's memory stays full (faults.md row 47).

    Args:
        network: Is moved to `device`.
        device: Where it runs first.
        cache: Of encoded slabs, which are given up first.
        precision: Of autocast on a GPU.
    """

    def __init__(self, network: Segmenter, device: torch.device, cache: SlabCache, precision: str) -> None:
        self.network, self.cache, self.precision = network.to(device).eval(), cache, precision
        self._device = device
        self._ladder = MemoryLadder([spill(cache, self._on_gpu), to_cpu(self._to_cpu, self._on_gpu), clear(cache)])

    @property
    def device(self) -> torch.device:
        """Where the network is now; another session may have moved it to the CPU."""
        first = next(self.network.parameters(), None)
        return self._device if first is None else first.device

    @property
    def messages(self) -> list[str]:
        """What was given up so far because memory was full, one line each."""
        return self._ladder.messages

    def run(self, work: Callable[[torch.device], T]) -> T:
        """`work(device)` under autocast and without gradients.

        Raises:
            ResourceError: The memory is full, and no fallback is left.
        """

        def attempt() -> T:
            with torch.inference_mode(), self._autocast():
                return work(self.device)

        return self._ladder.run(attempt)

    def _autocast(self) -> AbstractContextManager:
        return autocast(self.device, self.precision)

    def _on_gpu(self) -> bool:
        return self.device.type != "cpu"

    def _to_cpu(self) -> None:
        self.network.to(CPU)
        self._device = CPU


class Slabs:
    """The prepared image, cut into the windows of automatic mode.

    Where the image is smaller than a patch, its one window starts before the image, whose border is repeated.

    Attributes:
        patch: (D, H, W) of a window.
        size: (D, H, W) of the prepared image.
        starts: Per axis, first prepared indices of the windows, ascending.
        mask_size: (height, width) of mask prompts.
        encodes: Runs of the encoder so far.
    """

    def __init__(self, image: np.ndarray, plan: Plan, card: ModelCard, runner: NetworkRunner) -> None:
        self.plan, self.runner, self.cache = plan, runner, runner.cache
        self.patch: Shape = plan.patch
        depth, height, width = image.shape[1:]
        self.size: Shape = (depth, height, width)
        self.image = image
        self.padded, crop = pad_to(image, plan.patch)
        self.image.flags.writeable = self.padded.flags.writeable = False
        self.before = tuple(part.start for part in crop)
        padded = self.padded.shape[1:]
        self.starts = tuple(
            sorted({s - b for s in starts(n, p)}) for n, p, b in zip(padded, plan.patch, self.before, strict=True)
        )
        self.mask_size = card.config.model.mask_size
        self.encodes = 0
        self._model = model_key(runner.network, card)
        self._keys: dict[Shape, bytes] = {}
        self._last: tuple[Shape, Slab] | None = None

    def deep(self, z: int) -> int:
        """Start along depth of the slab whose centre is nearest to prepared slice `z`; the lower of two."""
        half = (self.patch[0] - 1) / 2
        return min(self.starts[0], key=lambda start: abs(start + half - z))

    def planes(self, extents: Sequence[Extent], former: tuple[int, int] | None = None) -> list[tuple[int, int]]:
        """Starts (y, x) of the windows to run for prompts of that extent.

        Args:
            extents: Of the rows and of the columns, prepared edges.
            former: The window that was used before; it is kept if it still holds everything with a margin.

        Returns:
            The window that holds the prompts with the largest margin, or all windows that they touch.
        """
        axes = [
            self._along(axis, extent, None if former is None else former[axis - 1])
            for axis, extent in zip((1, 2), extents, strict=True)
        ]
        return [(y, x) for y in axes[0] for x in axes[1]]

    def _along(self, axis: int, extent: Extent, former: int | None) -> list[int]:
        length, size = self.patch[axis], self.size[axis]

        def margin(start: int) -> float:
            # nothing is missing beyond the border of the scan
            low = np.inf if start <= 0 else extent[0] - start
            high = np.inf if start + length >= size else start + length - extent[1]
            return min(low, high)

        if former is not None and margin(former) >= MARGIN * length:
            return [former]
        best = max(self.starts[axis], key=lambda start: (margin(start), -abs(start + length / 2 - sum(extent) / 2)))
        if margin(best) >= 0:
            return [best]
        return [s for s in self.starts[axis] if s < extent[1] and s + length > extent[0]] or [best]

    def window(self, start: Shape) -> np.ndarray:
        """A copy of a window, (M, D, H, W) float32, with the intensities that the encoder expects."""
        part = tuple(slice(s + b, s + b + p) for s, b, p in zip(start, self.before, self.patch, strict=True))
        out = np.array(self.padded[(slice(None), *part)])
        around = self._context(start)
        if around is not None:
            for index, kind in enumerate(self.plan.normalisation):
                if kind == "zscore":
                    mean, std = moments(self.image[(index, *around)])
                    out[index] = 0 if std < _SMALLEST_STD else (out[index] - mean) / std
        return out

    def _context(self, start: Shape) -> tuple[slice, slice, slice] | None:
        """The part of the scan around a window that is as large as a training scan; None if that is all of the scan.

        Intensities are standardised by the scan; a larger field of view than in training would shift them.
        """
        out = []
        for s, patch, median, size in zip(start, self.patch, self.plan.median_shape, self.size, strict=True):
            length = min(max(patch, median), size)
            low = min(max(s + (patch - length) // 2, 0), size - length)
            out.append(slice(low, low + length))
        whole = all(part.stop - part.start == n for part, n in zip(out, self.size, strict=True))
        return None if whole else (out[0], out[1], out[2])

    def around(self, place: Sequence[float]) -> list[Shape]:
        """Starts of all windows, ordered by the distance of their centres from a prepared position (d, h, w)."""
        d, h, w = place

        def distance(start: Shape) -> float:
            return float(
                sum((s + (p - 1) / 2 - v) ** 2 / p**2 for s, p, v in zip(start, self.patch, (d, h, w), strict=True))
            )

        return sorted(product(*self.starts), key=distance)

    def known(self, start: Shape) -> bool:
        """Whether the window's encoding is in the cache."""
        return self._key(start) in self.cache

    def encoded(self, start: Shape) -> Slab:
        """The window's encoding, in half precision on the network's device.

        Raises:
            ResourceError: Memory is full and no fallback is left.
        """
        key = self._key(start)

        def work(device: torch.device) -> Slab:
            slab = self.cache.get(key, device)
            if slab is None:
                image = torch.from_numpy(self.window(start))[None].to(device)
                slab = halved(self.runner.network.slab(image))
                self.encodes += 1
                self.cache.put(key, slab)
            return slab

        return self.runner.run(work)

    def ready(self, start: Shape) -> Slab:
        """The window's encoding in single precision. The last one is kept, as the next click is mostly in it.

        Raises:
            ResourceError: Memory is full and no fallback is left.
        """
        last = self._last
        if last is None or last[0] != start or last[1].embed.device != self.runner.device:
            half = self.encoded(start)
            self._last = last = (start, self.runner.run(lambda device: half.to(device, torch.float32)))
        return last[1]

    def _key(self, start: Shape) -> bytes:
        if start not in self._keys:
            self._keys[start] = slab_key(self.window(start), self._model)
        return self._keys[start]


def moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of a volume (D, H, W), in double precision slice by slice, to save memory."""
    mean = float(np.mean([part.mean(dtype=np.float64) for part in values]))
    return mean, float(np.sqrt(np.mean([np.mean((part.astype(np.float64) - mean) ** 2) for part in values])))
