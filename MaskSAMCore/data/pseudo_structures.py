"""Structures that nobody labelled, found once in every volume of a collection and kept in its cache.

There are three kinds: masks that MobileSAM finds at points of some slices, followed from slice to slice; supervoxels
that look alike; and what a threshold connects. Only those are kept whose border can be seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from MaskSAMCore.data.click_patches import clarity
from MaskSAMCore.data.collection import PSEUDO, SMALLEST, CollectedVolume, Collection
from MaskSAMCore.data.targets import Target, flood_target, supervoxel_target
from MaskSAMCore.io.atomic import atomic_path
from MaskSAMCore.preprocessing.masks import tight_box
from MaskSAMCore.preprocessing.zoom_windows import THIN
from MaskSAMCore.progress import CancelToken, Progress, no_progress

CLEAR = 1.1
"""Least `clarity` of what is kept."""
MARGIN = 8
"""Voxels around a structure in which its border is judged."""
TRIES = 50
"""Supervoxels and thresholds that are tried in a volume, each."""
RUN, SIDE = 20, 160
"""SAM sees so many neighbouring slices of a volume that was averaged until its slices have at most so many pixels."""
STARTS, POINTS = 2, 28
"""Slices in which structures are looked for, and points in each of them."""
AIR = 0.03
WINDOW = (2, 98)
"""Percentiles of what is no air that SAM sees as black and white, so that it sees soft tissue in CT."""
QUALITY, STABILITY, OFFSET = 0.8, 0.9, 1.0
"""Least IoU that SAM expects of a mask, and least IoU of the masks at logits so far above and below 0."""
AREA = (30, 0.35)
"""Fewest pixels of a mask, and its largest share of the slice."""
DOUBLE = 0.75
"""IoU from which two masks of a slice are one."""
JOINED = 0.55
"""Least IoU of the masks of neighbouring slices."""
FEWEST_SLICES = 3
MOST = 80


class Proposer(Protocol):
    """What is needed of plain SAM; see `inference.zeroshot.ZeroShot`."""

    features: torch.Tensor

    def show(self, image: np.ndarray, low: float, high: float) -> None:
        """Encode a slice."""
        ...

    def propose(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masks of many points, and SAM's estimates of their IoU."""
        ...

    def predict(self, *, box: np.ndarray) -> Any:
        """Logits and quality of what lies in a box."""
        ...


def add_pseudo_structures(
    collection: Collection,
    sam: Proposer,
    *,
    overwrite: bool = False,
    progress: Progress = no_progress,
    cancel: CancelToken | None = None,
) -> None:
    """Find the pseudo-structures of every volume that has none in the cache yet; an interrupted run goes on.

    Volumes of a data set of a single anatomy are left out: their structures are labelled.

    Args:
        collection: Its cache gets a file for each volume.
        sam: Plain MobileSAM.
        overwrite: Find those of every volume again.
        progress: Called before every volume.
        cancel: Checked before every slice.
    """
    volumes = [each for each in collection.volumes.values() if not each.entry.single]
    for number, volume in enumerate(volumes):
        progress(number, len(volumes), volume.entry.name)
        path = collection.folder / f"{volume.entry.name}.{PSEUDO}.npz"
        if path.is_file() and not overwrite:
            continue
        found: list[Target] = []
        for target in _candidates(volume, sam, cancel):
            if len(found) == MOST:
                break
            if target.mask.sum() >= SMALLEST and _seen(volume, target):
                found.append(target)
        _save(path, found)
    progress(len(volumes), len(volumes), "pseudo-structures")


def _save(path: Path, found: list[Target]) -> None:
    bits = [np.packbits(target.mask) for target in found]
    with atomic_path(path, overwrite=True) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            corners=np.array([target.corner for target in found], np.int32).reshape(-1, 3),
            shapes=np.array([target.mask.shape for target in found], np.int32).reshape(-1, 3),
            ends=np.cumsum([len(each) for each in bits], dtype=np.int64),
            bits=np.concatenate([*bits, np.zeros(0, np.uint8)]),
        )


def _seen(volume: CollectedVolume, target: Target) -> bool:
    """Whether the border of a structure can be seen in its volume."""
    low = [max(0, c - MARGIN) for c in target.corner]
    high = [
        min(n, c + m + MARGIN) for c, m, n in zip(target.corner, target.mask.shape, volume.image.shape, strict=True)
    ]
    around = np.zeros([b - a for a, b in zip(low, high, strict=True)], bool)
    inner = tuple(slice(c - a, c - a + m) for c, a, m in zip(target.corner, low, target.mask.shape, strict=True))
    around[inner] = target.mask
    image = np.asarray(volume.image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], np.float32)
    return clarity(image, around) >= CLEAR


def _candidates(volume: CollectedVolume, sam: Proposer, cancel: CancelToken | None) -> Iterator[Target]:
    rng = np.random.default_rng(zlib.crc32(volume.entry.name.encode()))
    yield from sam_structures(volume, sam, rng, cancel)
    for make in (supervoxel_target, flood_target):
        for _ in range(TRIES):
            if cancel is not None:
                cancel.check()
            target = make(volume, rng)
            if target is not None:
                yield target


def sam_structures(
    volume: CollectedVolume, sam: Proposer, rng: np.random.Generator, cancel: CancelToken | None = None
) -> Iterator[Target]:
    """What SAM finds at random points of some slices, followed through the neighbouring slices by its boxes.

    Args:
        volume: Of any size.
        sam: Plain MobileSAM.
        rng: Chooses slices and points.
        cancel: Checked before every slice.
    """
    spacing = np.array(volume.entry.spacing)
    thick = int(spacing.argmax())
    uneven = spacing.max() > THIN * np.sort(spacing)[1]
    axis = thick if uneven else int(rng.integers(3))
    order = [axis, *(a for a in range(3) if a != axis)]
    native = np.asarray(volume.image.transpose(order), np.float32)
    pool = max(1, round(max(native.shape[1:]) / SIDE))
    factors = (1 if uneven else min(pool, native.shape[0]), min(pool, native.shape[1]), min(pool, native.shape[2]))
    coarse = F.avg_pool3d(torch.from_numpy(native)[None, None], factors)[0, 0].numpy()
    first = int(rng.integers(max(1, len(coarse) - RUN + 1)))
    slices = _Slices(sam, coarse[first : first + RUN], rng, cancel)
    for start, masks in slices.structures():
        mask = torch.from_numpy(np.stack(masks).astype(np.float32))[None, None]
        whole = F.interpolate(mask, scale_factor=[float(f) for f in factors], mode="trilinear")[0, 0].numpy() > 0.5
        if whole.any():
            back = np.argsort(order)
            corner = np.array([(first + start) * factors[0], 0, 0])[back]
            yield Target(mask=whole.transpose(back), corner=(int(corner[0]), int(corner[1]), int(corner[2]))).trimmed()


class _Slices:
    """SAM's masks of neighbouring slices (n, H, W), values from 0 to 1; a slice is encoded when it is needed."""

    def __init__(self, sam: Proposer, images: np.ndarray, rng: np.random.Generator, cancel: CancelToken | None) -> None:
        self.sam, self.images, self.rng, self.cancel = sam, images, rng, cancel
        self.features: dict[int, torch.Tensor] = {}
        tissue = images[images > AIR]
        low, high = np.percentile(tissue, WINDOW) if tissue.size else (0.0, 1.0)
        self.window = float(low), max(float(high), float(low) + 1e-3)

    def _show(self, index: int) -> None:
        if self.cancel is not None:
            self.cancel.check()
        if index not in self.features:
            self.sam.show(self.images[index], *self.window)
            self.features[index] = self.sam.features
        self.sam.features = self.features[index]

    def structures(self) -> Iterator[tuple[int, list[np.ndarray]]]:
        """First slice and masks of everything that is found in some slices and followed through the others."""
        known: dict[int, list[np.ndarray]] = {}
        count = len(self.images)
        for place in range(min(STARTS, count)):
            index = (2 * place + 1) * count // (2 * min(STARTS, count))
            for mask in self._found(index):
                if any(_iou(mask, other) >= DOUBLE for other in known.get(index, [])):
                    continue
                below = list(self._followed(index, mask, -1))
                masks = [*below[::-1], mask, *self._followed(index, mask, 1)]
                for offset, each in enumerate(masks):
                    known.setdefault(index - len(below) + offset, []).append(each)
                if len(masks) >= min(FEWEST_SLICES, count):
                    yield index - len(below), masks

    def _found(self, index: int) -> list[np.ndarray]:
        """The different masks of a slice, the surest first."""
        places = np.argwhere(self.images[index] > AIR)
        if not len(places):
            return []
        self._show(index)
        points = places[self.rng.integers(len(places), size=POINTS)][:, ::-1] + 0.5
        logits, quality = self.sam.propose(points)
        inner, outer = ((logits > OFFSET).sum((1, 2)), (logits > -OFFSET).sum((1, 2)))
        stable, area = inner / np.maximum(outer, 1), (logits > 0).sum((1, 2))
        good = (quality > QUALITY) & (stable > STABILITY)
        good &= (area >= AREA[0]) & (area <= AREA[1] * self.images[index].size)
        kept: list[np.ndarray] = []
        for n in sorted(np.flatnonzero(good), key=lambda n: -float(quality[n] * stable[n])):
            mask = logits[n] > 0
            if all(_iou(mask, other) < DOUBLE for other in kept):
                kept.append(mask)
        return kept

    def _followed(self, index: int, mask: np.ndarray, step: int) -> Iterator[np.ndarray]:
        """The masks of the following slices: of each what SAM finds in the box of the one before."""
        while 0 <= index + step < len(self.images):
            index += step
            self._show(index)
            box = tight_box(mask)
            assert box is not None
            answer = self.sam.predict(box=np.array(box))
            found: np.ndarray = answer.logits[0] > 0
            if answer.quality[0] <= QUALITY or _iou(mask, found) < JOINED:
                return
            mask = found
            yield mask


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(int((a | b).sum()), 1))
