"""Draws what a simulated user wants: labelled structures and what is made of them, and pseudo-structures.

A target is a mask on a box of its volume, so that large volumes cost no more than their structures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from MaskSAMCore.data.collection import SMALLEST, CollectedVolume
from MaskSAMCore.volume import Shape, triple

PART, UNION, CUT, SHELL, CORE = "part", "union", "cut", "shell", "core"
CHANGES = {PART: 0.15, UNION: 0.10, CUT: 0.02, SHELL: 0.02, CORE: 0.03}
"""What is made of a labelled structure, and how often; else it is taken as it is."""
GROWN = (1, 14)
"""Fewest and most supervoxels of a pseudo-structure; drawn log-uniformly."""
ALIKE = 0.35
"""Largest difference of two supervoxels that are merged, in units of the deviation around them."""
MERGED_SIDE, FLOOD_SIDE = 64, 64
"""Sides of the box in which a pseudo-structure lies, in voxels."""
TRIES = 8
AIR = 0.03
"""What is darker than this is the air around the patient in most scans, which is rarely meant."""
IN_AIR = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A structure of a volume.

    Attributes:
        mask: bool (k, j, i) on a box.
        corner: First voxel (k, j, i) of the box in the volume.
    """

    mask: np.ndarray
    corner: Shape

    def trimmed(self) -> Target:
        """The same on its smallest box.

        Raises:
            ValueError: It is empty.
        """
        found = ndimage.find_objects(self.mask.astype(np.uint8))
        if not found or found[0] is None:
            raise ValueError("the target is empty")
        box = found[0]
        corner = triple(int(c + s.start) for c, s in zip(self.corner, box, strict=True))
        return Target(mask=np.ascontiguousarray(self.mask[box]), corner=corner)


def labelled_target(volume: CollectedVolume, rng: np.random.Generator) -> Target:
    """A labelled structure, or what is made of one: a connected part, a union of neighbours, a shell, a core, a cut.

    Args:
        volume: With structures.
        rng: Source of chance.
    """
    if volume.labels is None:
        raise ValueError("the volume has no labels")
    label = int(rng.choice(list(volume.structures)))
    box = _wider(volume.structures[label], volume.labels.shape, 2)
    labels = np.asarray(volume.labels[box])
    mask = labels == label
    drawn = rng.random()
    for change, share in CHANGES.items():
        if drawn < share:
            mask = _changed(mask, labels, change, rng)
            break
        drawn -= share
    return Target(mask=mask, corner=triple(s.start for s in box)).trimmed()


def _changed(mask: np.ndarray, labels: np.ndarray, change: str, rng: np.random.Generator) -> np.ndarray:
    """A mask changed as `CHANGES` names it; itself where that would leave too little."""
    if change == PART:
        parts, count = ndimage.label(mask)
        sizes = np.bincount(parts.ravel())[1:]
        large = np.flatnonzero(sizes >= SMALLEST) + 1
        return parts == int(rng.choice(large)) if count > 1 and len(large) else mask
    if change == UNION:
        touching = np.unique(labels[ndimage.binary_dilation(mask) & ~mask])
        touching = touching[touching > 0]
        more = rng.permutation(touching)[: int(rng.integers(1, 4))]
        return mask | np.isin(labels, more)
    if change == CUT:
        places = np.argwhere(mask)
        normal = rng.normal(size=3)
        side = (places - places[int(rng.integers(len(places)))]) @ normal > 0
        kept = np.zeros_like(mask)
        kept[tuple(places[side].T)] = True
        return kept if kept.sum() >= SMALLEST else mask
    core = ndimage.binary_erosion(mask, iterations=int(rng.integers(1, 4)))
    made = core if change == CORE else mask & ~core
    return made if made.sum() >= SMALLEST else mask


def pseudo_target(volume: CollectedVolume, rng: np.random.Generator) -> Target:
    """One of the volume's pseudo-structures; it has some."""
    corner, mask = volume.pseudo[int(rng.integers(len(volume.pseudo)))]
    return Target(mask=mask, corner=triple(corner))


def supervoxel_target(volume: CollectedVolume, rng: np.random.Generator) -> Target:
    """A supervoxel and neighbours that look like it, as far as a random size."""
    ids, image = volume.supervoxels, volume.image
    seed = _seed(volume, rng)
    start = int(ids[seed])
    box = _around(seed, ids.shape, MERGED_SIDE)
    here = np.asarray(ids[box])
    names, index = np.unique(here, return_inverse=True)
    index = index.reshape(here.shape)
    values = np.asarray(image[box], np.float32)
    counts = np.bincount(index.ravel())
    means = np.bincount(index.ravel(), values.ravel()) / counts
    spread = max(float(values.std()), 1e-3)
    pairs = _neighbours(index)
    limit = float(rng.uniform(0.05, ALIKE)) * spread
    most = int(np.exp(rng.uniform(*np.log(GROWN))))
    taken = [int(np.searchsorted(names, start))]
    mean = float(means[taken[0]])
    while len(taken) < most:
        border = np.setdiff1d(pairs[np.isin(pairs[:, 0], taken), 1], taken)
        difference = np.abs(means[border] - mean)
        if not len(border) or difference.min() >= limit:
            break
        taken.append(int(border[difference.argmin()]))
        mean = float(np.average(means[taken], weights=counts[taken]))
    mask = np.isin(index, taken)
    return Target(mask=_closed(mask), corner=triple(s.start for s in box)).trimmed()


def flood_target(volume: CollectedVolume, rng: np.random.Generator) -> Target | None:
    """What a threshold around a random voxel connects with it; None where that is next to nothing or goes on."""
    image = volume.image
    seed = _seed(volume, rng)
    box = _around(seed, image.shape, FLOOD_SIDE)
    values = ndimage.gaussian_filter(np.asarray(image[box], np.float32), float(rng.uniform(0.4, 1.5)))
    place = tuple(v - s.start for v, s in zip(seed, box, strict=True))
    width = float(rng.uniform(0.15, 0.8)) * float(values.std())
    inside = np.abs(values - values[place]) < width
    if rng.random() < 0.7:
        inside = ndimage.binary_opening(inside)
    parts, _ = ndimage.label(inside)
    number = int(parts[place])
    if not number:
        return None
    mask = parts == number
    if mask.sum() < SMALLEST or mask.mean() > 0.35 or _cut_off(mask, box, image.shape):
        return None
    return Target(mask=_closed(mask), corner=triple(s.start for s in box)).trimmed()


def _cut_off(mask: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
    """Whether a mask goes on beyond its box, within the volume."""
    for axis, (part, size) in enumerate(zip(box, shape, strict=True)):
        for index, end in ((0, part.start == 0), (-1, part.stop == size)):
            if not end and mask.take(index, axis=axis).any():
                return True
    return False


def _seed(volume: CollectedVolume, rng: np.random.Generator) -> tuple[int, int, int]:
    """A random voxel, rarely in the air around the patient."""
    for _ in range(TRIES):
        seed = triple(int(rng.integers(n)) for n in volume.image.shape)
        if volume.image[seed] > AIR or rng.random() < IN_AIR:
            break
    return seed


def _closed(mask: np.ndarray) -> np.ndarray:
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(mask, 1)))
    return np.asarray(filled[1:-1, 1:-1, 1:-1]) | mask


def _neighbours(index: np.ndarray) -> np.ndarray:
    """Pairs (n, 2) of numbers that touch along an axis, in both orders."""
    pairs = []
    for axis in range(3):
        a, b = index[_cut(axis, slice(None, -1))], index[_cut(axis, slice(1, None))]
        different = a != b
        pairs.append(np.stack([a[different], b[different]], axis=1))
    found = np.unique(np.concatenate(pairs), axis=0)
    return np.unique(np.concatenate([found, found[:, ::-1]]), axis=0)


def _cut(axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if n == axis else slice(None) for n in range(3))


def _around(seed: tuple[int, ...], shape: tuple[int, ...], side: int) -> tuple[slice, slice, slice]:
    return triple(
        slice(max(0, min(v - side // 2, n - side)), min(n, max(0, min(v - side // 2, n - side)) + side))
        for v, n in zip(seed, shape, strict=True)
    )


def _wider(box: tuple[slice, ...], shape: tuple[int, ...], margin: int) -> tuple[slice, slice, slice]:
    return triple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, shape, strict=True))
