"""The memory ladder: work that runs out of GPU memory is done again with less of it (faults.md row 47)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from MaskSAMCore.errors import gpu_memory_full

if TYPE_CHECKING:
    from MaskSAMCore.inference.cache import SlabCache

T = TypeVar("T")
LOG = logging.getLogger(__name__)
CPU = torch.device("cpu")
GPU_FULL = "the GPU's memory is full: "


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """One step of the ladder.

    Attributes:
        message: What is given up, for the log and for the user.
        possible: Whether the step would help now.
        apply: Does it.
    """

    message: str
    possible: Callable[[], bool]
    apply: Callable[[], None]


class MemoryLadder:
    """Does work again after a fallback, as often as the memory is full and there is one left.

    Args:
        fallbacks: Cheapest first. Each is applied at most once in a `run`.
        messages: Gets those of the fallbacks that were applied; None for a list of its own.
    """

    def __init__(self, fallbacks: Sequence[Fallback], messages: list[str] | None = None) -> None:
        self.fallbacks = fallbacks
        self.messages: list[str] = [] if messages is None else messages

    def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work()`, which must be repeatable after it raised `torch.OutOfMemoryError`.

        Raises:
            ResourceError: The memory is full, and no fallback is left.
        """
        left = list(self.fallbacks)
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                full = gpu_memory_full(error)
            # outside of the handler, whose traceback keeps the failed pass's tensors alive
            fallback = next((each for each in left if each.possible()), None)
            if fallback is None:
                raise full
            left.remove(fallback)
            fallback.apply()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            LOG.warning(fallback.message)
            self.messages.append(fallback.message)


def spill(cache: SlabCache, on_gpu: Callable[[], bool]) -> Fallback:
    """Move the encoded slabs from the GPU to the computer's memory."""
    message = f"{GPU_FULL}encoded slabs moved to the computer's memory"
    return Fallback(message=message, possible=on_gpu, apply=cache.spill)


def to_cpu(apply: Callable[[], None], on_gpu: Callable[[], bool]) -> Fallback:
    """Compute on the CPU; `apply` moves the network there."""
    message = f"{GPU_FULL}the work goes on, slower, on the CPU"
    return Fallback(message=message, possible=on_gpu, apply=apply)


def clear(cache: SlabCache) -> Fallback:
    """Forget the encoded slabs; they are encoded again when they are needed."""
    message = "the computer's memory is full: encoded slabs were given up"
    return Fallback(message=message, possible=lambda: True, apply=cache.clear)
