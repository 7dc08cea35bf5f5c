"""Batches as pure functions of the step: from patches, or from cached features of the frozen encoder."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import Tensor, device

from MaskSAMCore.network.types import Features


@dataclass
class Batch:
    """One training batch.

    Attributes:
        image: (B, M, D, H, W) float32, normalised.
        label: (B, D, H, W) int64 classes.
        valid: (B, D) bool; False for slices that only pad a short volume.
        features: The frozen encoder's features in the first phase, else None.
        soft_labels: (B, K, D, H, W) probabilities of a teacher that were computed beforehand, else None.
        voxel: (B, 4), voxel sides (d, h, w) of the patch and the finest one of the scan, mm; for the click model only.
    """

    image: Tensor
    label: Tensor
    valid: Tensor
    features: Features | None = None
    soft_labels: Tensor | None = None
    voxel: Tensor | None = None

    def to(self, target: device) -> Batch:
        """The batch on `target`; features become float32 there."""
        features = self.features
        if features is not None:
            levels = tuple(level.to(target).float() for level in features.levels)
            features = Features(levels=levels, embed=features.embed.to(target).float())
        soft_labels = None if self.soft_labels is None else self.soft_labels.to(target)
        return Batch(
            self.image.to(target), self.label.to(target), self.valid.to(target), features, soft_labels, self.voxel
        )


def prefetch(batch: Callable[[int], Batch], steps: range, *, ahead: int = 3) -> Generator[Batch, None, None]:
    """Yield `batch(step)` for every step, made ahead of use by a thread.

    An exception of the thread is raised here, in the consumer, with its own traceback (faults.md row 44).
    """
    ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(item: Batch | BaseException) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for step in steps:
                if not put(batch(step)):
                    return
        except BaseException as error:  # noqa: BLE001 - handed over to the consumer, whatever it is
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        for _ in steps:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
