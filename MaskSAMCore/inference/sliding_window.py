"""A volume in overlapping windows: run the network on each, fuse the scores (model.md §13.1)."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from MaskSAMCore.config.schema import ModelConfig
from MaskSAMCore.device import autocast_dtype
from MaskSAMCore.errors import InputError
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.network.types import Slab
from MaskSAMCore.preprocessing.plan import MirrorRule, Shape
from MaskSAMCore.preprocessing.resample import pad_to
from MaskSAMCore.preprocessing.windows import starts
from MaskSAMCore.progress import CancelToken, Progress, no_progress
from MaskSAMCore.volume import Slices

__all__ = [
    "Memory",
    "Network",
    "PatchSegmenter",
    "autocast",
    "gaussian",
    "keeping_network",
    "mirrorings",
    "patch_network",
    "slide",
    "slide_model",
    "starts",
    "window_count",
    "windows",
]

Network = Callable[[Tensor], Tensor]
"""Patches (B, M, D, H, W) to class scores (B, K, D, H, W), on the device of its input."""

LOG = logging.getLogger(__name__)
CPU = torch.device("cpu")


def gaussian(patch: Shape) -> Tensor:
    """Weight of a window's voxels (D, H, W), float32: sigma P/8 per axis, maximum 1, nowhere 0."""
    weight = torch.ones(1, 1, 1)
    for axis, size in enumerate(patch):
        offset = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / (size / 8)
        profile = torch.exp(-0.5 * offset**2)
        weight = weight * profile.reshape([-1 if a == axis else 1 for a in range(3)])
    weight = (weight / weight.max()).float()
    return weight.clamp_(min=float(weight[weight > 0].min()))


def windows(shape: Shape, patch: Shape, *, step: float = 0.5) -> Iterator[Slices]:
    """The windows of a volume of at least one patch, depth slowest.

    Raises:
        InputError: `step` is not above 0 and at most 1.
    """
    if not 0 < step <= 1:
        raise InputError("the step of the windows must be above 0 and at most 1", why=f"found {step}")
    depth, height, width = (starts(size, length, step=step) for size, length in zip(shape, patch, strict=True))
    for z, y, x in itertools.product(depth, height, width):
        yield slice(z, z + patch[0]), slice(y, y + patch[1]), slice(x, x + patch[2])


def window_count(shape: Shape, patch: Shape, *, step: float = 0.5) -> int:
    """How many windows `slide` runs per mirroring; the volume may be smaller than a patch."""
    depth, height, width = (max(n, p) for n, p in zip(shape, patch, strict=True))
    return sum(1 for _ in windows((depth, height, width), patch, step=step))


def mirrorings(rule: MirrorRule | None) -> list[tuple[int, ...]]:
    """Every combination of the axes (0, 1, 2 for D, H, W) that may be mirrored, the identity first."""
    axes = () if rule is None else rule.axes
    return [flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)]


@dataclass
class Memory:
    """Where the work happens, and how it retreats when the GPU's memory is full (faults.md row 47).

    Attributes:
        device: Of the network.
        batch: Patches of one forward pass.
        sums: Device of the summed scores; None for `device`.
        on_cpu: Gives the network on the CPU; None where there is no such retreat.
        announced: What was given up so far, in words.
    """

    device: torch.device = CPU
    batch: int = 1
    sums: torch.device | None = None
    on_cpu: Callable[[], Network] | None = None
    announced: list[str] = field(default_factory=list)

    def retreat(self, network: Network) -> Network | None:
        """One step down: single windows, sums on the CPU, all on the CPU. None at the end of the ladder."""
        if self.device.type == "cpu":
            return None
        if self.batch > 1:
            self.batch = 1
            self._say("one window at a time now")
        elif (self.sums or self.device).type != "cpu":
            self.sums = CPU
            self._say("the scores are summed in the computer's memory now")
        elif self.on_cpu is not None:
            self.device, network = CPU, self.on_cpu()
            self._say("the work goes on, slower, on the CPU")
        else:
            return None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return network

    def _say(self, text: str) -> None:
        message = f"the GPU's memory is full: {text}"
        LOG.warning(message)
        self.announced.append(message)


def slide(
    network: Network,
    image: np.ndarray,
    patch: Shape,
    classes: int,
    *,
    step: float = 0.5,
    mirror: MirrorRule | None = None,
    memory: Memory | None = None,
    progress: Progress = no_progress,
    cancel: CancelToken | None = None,
) -> Tensor:
    """Scores of a whole volume.

    Args:
        network: See `Network`.
        image: (M, D, H, W) float32; borders are repeated where it is smaller than a patch.
        patch: (D, H, W) of a window.
        classes: K.
        step: Distance of two windows as a share of the patch.
        mirror: Axes of test-time mirroring; None runs every window once.
        memory: Device, batch and the retreat; by default the CPU, one window at a time.
        progress: Told after every window and mirroring.
        cancel: Asked before every forward pass.

    Returns:
        (K, D, H, W) float32 on the device of the sums.

    Raises:
        Cancelled: `cancel` was set.
        torch.OutOfMemoryError: The ladder of `memory` is at its end.
    """
    padded, crop = pad_to(image, patch)
    run = _Run(network, padded, patch, classes, memory or Memory())
    depth, height, width = padded.shape[1:]
    jobs = list(itertools.product(windows((depth, height, width), patch, step=step), mirrorings(mirror)))
    swap = None if mirror is None or mirror.left_right < 0 else (mirror.left_right, list(mirror.swap))
    done = 0
    with torch.inference_mode():
        while done < len(jobs):
            if cancel is not None:
                cancel.check()
            full = None
            try:
                for _ in run.step(jobs[done : done + run.memory.batch], swap):
                    done += 1
            except torch.OutOfMemoryError as error:
                full = str(error)
            # outside of the handler, whose traceback keeps the failed pass's tensors alive
            if full is not None:
                run.retreat(full)
            progress(done, len(jobs), "segmenting")
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
    """Scores (K, D, H, W) of a prepared image (M, D, H, W), where the model is and without a retreat from there.

    Args:
        model: In evaluation mode.
        image: As `preprocess` gives it.
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
        memory=Memory(device=device, batch=batch),
        cancel=cancel,
    )


class _Run:
    """The sums of one volume; `step` adds windows to them."""

    def __init__(self, network: Network, image: np.ndarray, patch: Shape, classes: int, memory: Memory) -> None:
        self.network, self.image, self.classes, self.memory = network, image, classes, memory
        self.weight = gaussian(patch)
        self.total: Tensor | None = None
        self.norm: Tensor | None = None

    def step(self, jobs: list[tuple[Slices, tuple[int, ...]]], swap: tuple[int, list[int]] | None) -> Iterator[None]:
        """Run one batch; yields after each window that is in the sums, so that none is ever added twice."""
        total, norm = self._sums()
        patches = [
            torch.from_numpy(self.image[(slice(None), *window)]).to(self.memory.device).flip([a + 1 for a in flip])
            for window, flip in jobs
        ]
        scores = self.network(torch.stack(patches))
        for score, (window, flip) in zip(scores, jobs, strict=True):
            score = score.flip([a + 1 for a in flip])
            if swap is not None and swap[0] in flip:
                score = score[swap[1]]
            total[(slice(None), *window)].addcmul_(score.to(total.device, torch.float32), self.weight)
            norm[window] += self.weight
            yield

    def _sums(self) -> tuple[Tensor, Tensor]:
        device = self.memory.sums or self.memory.device
        if self.total is None or self.norm is None:
            shape = self.image.shape[1:]
            total = torch.zeros((self.classes, *shape), device=device)
            self.norm, self.total = torch.zeros(shape, device=device), total
            self.weight = self.weight.to(device)
        return self.total, self.norm

    def retreat(self, why: str) -> None:
        network = self.memory.retreat(self.network)
        if network is None:
            raise torch.OutOfMemoryError(why)
        self.network = network
        if self.total is not None and self.norm is not None and self.memory.sums is not None:
            self.total, self.norm = self.total.to(self.memory.sums), self.norm.to(self.memory.sums)
            self.weight = self.weight.to(self.memory.sums)

    def result(self) -> Tensor:
        total, norm = self._sums()
        return total.div_(norm)
