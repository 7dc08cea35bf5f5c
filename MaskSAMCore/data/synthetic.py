"""Synthetic patches without end: shapes of all kinds, each region with its own grey value, texture and gradient.

Only the idea is that of SynthSeg, AnyStar and anatomix: borders and shapes are learned where nobody labelled any.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from MaskSAMCore.data.click_patches import ClickPatch, rotation
from MaskSAMCore.preprocessing.zoom_windows import patch_size
from MaskSAMCore.volume import Shape, triple

SHAPES = ("ellipsoid", "ellipsoid", "tube", "blob", "nested", "tree")
COUNT = (3, 14)
ANISOTROPY = (0.0, 3.0)
"""Binary logarithm of the voxels' anisotropy, at least and at most; half of the patches have cubic voxels."""
FEWEST = 12
ANYWHERE = 0.3
"""Share of the targets that need not be near the patch's centre, where the user clicks first."""


def synthetic_patch(rng: np.random.Generator) -> ClickPatch | None:
    """A patch with one target among its regions; None where too little of it is visible.

    Args:
        rng: Source of chance.
    """
    anisotropy = 1.0 if rng.random() < 0.5 else float(2 ** rng.uniform(*ANISOTROPY))
    size = patch_size(anisotropy, rng)
    labels, tops = _label_map(size, anisotropy, rng)
    wanted = int(rng.choice(tops)) if rng.random() < ANYWHERE else _central(labels, tops)
    inside = np.isin(labels, _nested(wanted)) if rng.random() < 0.5 else labels == wanted
    if inside.sum() < FEWEST or inside.mean() > 0.6:
        return None
    image = _painted(labels, rng)
    side = float(np.exp(rng.uniform(-1.2, 1.6)))
    finest = side / float(2 ** rng.uniform(0, 2.5))
    return ClickPatch(image=image, target=inside, spacing=(side * anisotropy, side, side), finest=finest)


def _central(labels: np.ndarray, names: list[int]) -> int:
    """The region whose middle is nearest to the patch's."""
    middles = np.array(ndimage.center_of_mass(np.ones_like(labels), labels, names))
    gaps = (middles / np.array(labels.shape) - 0.5) ** 2
    return names[int(np.nan_to_num(gaps.sum(1), nan=np.inf).argmin())]


def _nested(label: int) -> list[int]:
    """A region and the one inside it; the numbers of shells and their cores are neighbours, the shell's is even."""
    return [label, label + 1] if label % 2 == 0 else [label]


def _label_map(size: Shape, anisotropy: float, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """Regions (D, H, W), and the numbers of those that may be meant."""
    places = _places(size, anisotropy, rng)
    labels = 1 + (_smooth(size, rng, 3) > rng.uniform(-0.5, 0.5)).astype(np.int32)
    labels += 2 * (_smooth(size, rng, 5) > 0.8)
    tops = []
    for number in range(int(rng.integers(*COUNT))):
        name = 10 + 2 * number
        kind = str(rng.choice(SHAPES))
        distance = _distance(kind, places, size, rng)
        inside = distance < 1
        if inside.sum() < FEWEST:
            continue
        labels[inside] = name
        if kind == "nested":
            labels[distance < rng.uniform(0.4, 0.8)] = name + 1
        tops.append(name)
    return labels, tops or [1]


def _places(size: Shape, anisotropy: float, rng: np.random.Generator) -> np.ndarray:
    """Warped coordinates (D, H, W, 3) in pixels."""
    axes = [np.arange(n, dtype=np.float32) * (anisotropy if axis == 0 else 1) for axis, n in enumerate(size)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    strength = float(rng.uniform(0, 4))
    return places + strength * np.stack([_smooth(size, rng, 4) for _ in range(3)], axis=-1)


def _distance(kind: str, places: np.ndarray, size: Shape, rng: np.random.Generator) -> np.ndarray:
    """A field (D, H, W) that is below 1 inside of a shape."""
    extent = places[-1, -1, -1] - places[0, 0, 0]
    centre = places[0, 0, 0] + extent * rng.uniform(0.1, 0.9, 3)
    if kind in ("tube", "tree"):
        return _tubes(places, centre, extent, rng, branches=1 if kind == "tube" else int(rng.integers(2, 5)))
    radii = np.exp(rng.uniform(np.log(2.5), np.log(26), 3))
    turned = (places - centre) @ rotation(rng.uniform(-np.pi, np.pi, 3)).T / radii
    distance = np.sqrt((turned**2).sum(-1))
    if kind == "blob":
        distance = distance * np.exp(0.6 * _smooth(size, rng, int(rng.integers(3, 9))))
    return distance


def _tubes(
    places: np.ndarray, start: np.ndarray, extent: np.ndarray, rng: np.random.Generator, *, branches: int
) -> np.ndarray:
    """Tubes along random walks that begin where an earlier one passed."""
    best = np.full(places.shape[:-1], np.inf, np.float32)
    knots = [start]
    for _ in range(branches):
        at = knots[int(rng.integers(len(knots)))]
        radius = float(np.exp(rng.uniform(np.log(1.2), np.log(7))))
        heading = rng.normal(size=3)
        for _ in range(int(rng.integers(3, 8))):
            heading = heading / np.linalg.norm(heading) + 0.5 * rng.normal(size=3)
            to = at + heading / np.linalg.norm(heading) * float(max(extent)) * 0.14
            best = np.minimum(best, _to_segment(places, at, to) / radius)
            at = to
            knots.append(at)
    return best


def _to_segment(places: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    line = b - a
    along = (((places - a) @ line) / max(float(line @ line), 1e-6)).clip(0, 1)
    gap = places - a - along[..., None] * line
    return np.sqrt((gap**2).sum(-1))


def _painted(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image of the regions: a mean, a texture and a gradient each, blurred at the borders."""
    count = int(labels.max()) + 1
    means, grain = rng.uniform(0, 1, count), rng.uniform(0, 0.12, count) * (rng.random(count) < 0.6)
    image = means[labels]
    shape = triple(labels.shape)
    image = image + grain[labels] * _smooth(shape, rng, int(rng.integers(6, 20)))
    slopes = rng.uniform(-0.15, 0.15, count) * (rng.random(count) < 0.3)
    image = image + slopes[labels] * _smooth(shape, rng, 2)
    return ndimage.gaussian_filter(image, float(rng.uniform(0.3, 0.9))).astype(np.float32)


def _smooth(size: Shape, rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise of deviation about 1, with about so many bumps along the longest side."""
    longest = max(size)
    coarse = rng.normal(size=[max(2, round(cells * n / longest)) for n in size]).astype(np.float32)
    factors = [n / m for n, m in zip(size, coarse.shape, strict=True)]
    return ndimage.zoom(coarse, factors, order=1, grid_mode=True, mode="nearest") * 1.4
