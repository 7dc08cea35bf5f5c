"""Sliding window: run the network on overlapping windows of a volume and fuse the scores (model.md §13.1)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.device import autocast_dtype
from MaskSAMCore.errors import InputError
from MaskSAMCore.inference.memory import CPU, GPU_FULL, Fallback, MemoryLadder, clear, spill, to_cpu
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.network.types import Slab
from MaskSAMCore.preprocessing.plan import MirrorRule, Shape
from MaskSAMCore.preprocessing.resample import pad_to
from MaskSAMCore.preprocessing.windows import starts
from MaskSAMCore.progress import CancelToken, Progress, no_progress
from MaskSAMCore.volume import Slices

if TYPE_CHECKING:
    from MaskSAMCore.inference.cache import SlabCache

Network = Callable[[Tensor], Tensor]
"""A function of patches (B, M, D, H, W) to class scores (B, K, D, H, W), on the device of its input."""


def gaussian(patch: Shape) -> Tensor:
    """Gaussian weights (D, H, W) of a window, float32: sigma P/8 per axis, maximum 1, nowhere 0."""
    weight = torch.ones(1, 1, 1)
    for axis, size in enumerate(patch):
        offset = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / (size / 8)
        profile = torch.exp(-0.5 * offset**2)
        weight = weight * profile.reshape([-1 if a == axis else 1 for a in range(3)])
    weight = (weight / weight.max()).float()
    return weight.clamp_(min=float(weight[weight > 0].min()))


def windows(shape: Shape, patch: Shape, *, step: float = 0.5) -> Iterator[Slices]:
    """The windows of a volume (D, H, W) that is at least one patch large; the depth index varies slowest.

    Raises:
        InputError: `step` is not above 0 and at most 1.
    """
    if not 0 < step <= 1:
        raise InputError("the step of the windows must be above 0 and at most 1", why=f"found {step}")
    depth, height, width = (starts(size, length, step=step) for size, length in zip(shape, patch, strict=True))
    for z, y, x in itertools.product(depth, height, width):
        yield slice(z, z + patch[0]), slice(y, y + patch[1]), slice(x, x + patch[2])


def window_count(shape: Shape, patch: Shape, *, step: float = 0.5) -> int:
    """Number of windows that `slide` runs for each mirroring; the volume may be smaller than a patch."""
    depth, height, width = (max(n, p) for n, p in zip(shape, patch, strict=True))
    return sum(1 for _ in windows((depth, height, width), patch, step=step))


def mirrorings(rule: MirrorRule | None) -> list[tuple[int, ...]]:
    """All combinations of the axes (0, 1, 2 for D, H, W) that may be mirrored, the empty one first."""
    axes = () if rule is None else rule.axes
    return [flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)]


@dataclass
class Placement:
    """Where windows are computed and how many at once; less of a GPU after each fallback (faults.md row 47).

    Attributes:
        device: Of the network.
        batch: Windows of one forward pass.
        sums: Device of the summed scores; None for `device`.
        on_cpu: Moves the network to the CPU and returns it; None where it has to stay.
        cache: Encoded slabs that share the memory with the windows, and are given up for them.
        messages: What was given up so far, one line each.
    """

    device: torch.device = CPU
    batch: int = 1
    sums: torch.device | None = None
    on_cpu: Callable[[], Network] | None = None
    cache: SlabCache | None = None
    messages: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        """Whether the network runs on a GPU."""
        return self.device.type != "cpu"


def slide(
    network: Network,
    image: np.ndarray,
    patch: Shape,
    classes: int,
    *,
    step: float = 0.5,
    mirror: MirrorRule | None = None,
    placement: Placement | None = None,
    progress: Progress = no_progress,
    cancel: CancelToken | None = None,
) -> Tensor:
    """Class scores of a whole volume.

    Args:
        network: See `Network`.
        image: (M, D, H, W) float32; borders are repeated where it is smaller than a patch.
        patch: (D, H, W) of a window.
        classes: K.
        step: Distance of two windows as a share of the patch.
        mirror: Axes of test-time mirroring; None to run every window once.
        placement: Device, batch and fallbacks; by default the CPU, one window at a time. What was given up stays given
            up for the next volume.
        progress: Called after every forward pass.
        cancel: Checked before every forward pass.

    Returns:
        (K, D, H, W) float32 on the device of the sums.

    Raises:
        Cancelled: `cancel` was set.
        ResourceError: The memory is full, and no fallback is left.
    """
    padded, crop = pad_to(image, patch)
    run = _Run(network, padded, patch, classes, placement or Placement())
    depth, height, width = padded.shape[1:]
    jobs = list(itertools.product(windows((depth, height, width), patch, step=step), mirrorings(mirror)))
    swap = None if mirror is None or mirror.left_right < 0 else (mirror.left_right, list(mirror.swap))
    with torch.inference_mode():
        while run.done < len(jobs):
            if cancel is not None:
                cancel.check()
            run.ladder.run(lambda: run.step(jobs, swap))
            progress(run.done, len(jobs), "segmenting")
        return run.result()[(slice(None), *crop)]


class PatchSegmenter(Protocol):
    """What automatic segmentation needs of a network: `Segmenter`, or a wrapper of one."""

    cfg: ModelConfig

    def segment_patch(self, patches: Tensor, /) -> Tensor:
        """Patches (B, M, D, H, W) to class scores (B, K, D, H, W)."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of `torch.nn.Module`."""


def patch_network(model: PatchSegmenter, device: torch.device, precision: str = "auto") -> Network:
    """`model.segment_patch` under autocast; plain float32 on the CPU, whatever `precision` says.

    Args:
        model: On `device`.
        device: Where it computes.
        precision: Of autocast on a GPU.
    """

    def network(patches: Tensor) -> Tensor:
        with autocast(device, precision):
            return model.segment_patch(patches)

    return network


def keeping_network(
    model: Segmenter, device: torch.device, precision: str, keep: Callable[[Tensor, Slab], None]
) -> Network:
    """As `patch_network`; `keep` gets every batch of patches and what prompts read of them."""

    def network(patches: Tensor) -> Tensor:
        with autocast(device, precision):
            scores, slab = model.segment_slab(patches)
        keep(patches, slab)
        return scores

    return network


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """`torch.autocast` in that precision on a GPU; on the CPU nothing, which computes in float32."""
    dtype = autocast_dtype(device, precision) if device.type == "cuda" else None
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def slide_model(
    model: PatchSegmenter,
    image: np.ndarray | Tensor,
    *,
    step: float = 0.5,
    mirror: MirrorRule | None = None,
    batch: int = 1,
    cancel: CancelToken | None = None,
) -> Tensor:
    """Class scores (K, D, H, W) of a prepared image (M, D, H, W), on the model's device alone.

    Args:
        model: In evaluation mode.
        image: As `preprocess` returns it.
        step, mirror, cancel: As for `slide`.
        batch: Windows of one forward pass.
    """
    device = next(model.parameters()).device
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    return slide(
        patch_network(model, device),
        np.ascontiguousarray(array, np.float32),
        model.cfg.patch,
        model.cfg.classes,
        step=step,
        mirror=mirror,
        placement=Placement(device=device, batch=batch),
        cancel=cancel,
    )


class _Run:
    """The sums of one volume; `step` adds windows to them."""

    def __init__(self, network: Network, image: np.ndarray, patch: Shape, classes: int, placement: Placement) -> None:
        self.network, self.image, self.classes, self.placement = network, image, classes, placement
        self.weight = gaussian(patch)
        self.total: Tensor | None = None
        self.norm: Tensor | None = None
        self.done = 0
        self.ladder = MemoryLadder(self._fallbacks(), placement.messages)

    def step(self, jobs: list[tuple[Slices, tuple[int, ...]]], swap: tuple[int, list[int]] | None) -> None:
        """Run the next batch; counts each window in `done` as soon as it is summed, so that none is summed twice."""
        total, norm = self._sums()
        batch = jobs[self.done : self.done + self.placement.batch]
        patches = [
            torch.from_numpy(self.image[(slice(None), *window)]).to(self.placement.device).flip([a + 1 for a in flip])
            for window, flip in batch
        ]
        scores = self.network(torch.stack(patches))
        for score, (window, flip) in zip(scores, batch, strict=True):
            score = score.flip([a + 1 for a in flip])
            if swap is not None and swap[0] in flip:
                score = score[swap[1]]
            total[(slice(None), *window)].addcmul_(score.to(total.device, torch.float32), self.weight)
            norm[window] += self.weight
            self.done += 1

    def _fallbacks(self) -> list[Fallback]:
        placement = self.placement

        def on_gpu() -> bool:
            return placement.on_gpu

        cache = placement.cache
        return [
            *([] if cache is None else [spill(cache, on_gpu)]),
            Fallback(
                message=f"{GPU_FULL}one window at a time now",
                possible=lambda: placement.on_gpu and placement.batch > 1,
                apply=self._single_windows,
            ),
            Fallback(
                message=f"{GPU_FULL}the scores are summed in the computer's memory now",
                possible=lambda: placement.on_gpu and placement.sums is None,
                apply=self._sum_on_cpu,
            ),
            to_cpu(self._to_cpu, lambda: placement.on_gpu and placement.on_cpu is not None),
            *([] if cache is None else [clear(cache)]),
        ]

    def _single_windows(self) -> None:
        self.placement.batch = 1

    def _sum_on_cpu(self) -> None:
        self.placement.sums = CPU
        if self.total is not None and self.norm is not None:
            self.total, self.norm, self.weight = self.total.to(CPU), self.norm.to(CPU), self.weight.to(CPU)

    def _to_cpu(self) -> None:
        if self.placement.on_cpu is not None:
            self.placement.device, self.network = CPU, self.placement.on_cpu()

    def _sums(self) -> tuple[Tensor, Tensor]:
        device = self.placement.sums or self.placement.device
        if self.total is None or self.norm is None:
            shape = self.image.shape[1:]
            total = torch.zeros((self.classes, *shape), device=device)
            self.norm, self.total = torch.zeros(shape, device=device), total
            self.weight = self.weight.to(device)
        return self.total, self.norm

    def result(self) -> Tensor:
        total, norm = self._sums()
        return total.div_(norm)
