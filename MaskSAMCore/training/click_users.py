"""Simulated users of the click model: they begin with any kind of prompt, and correct large errors with any kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from MaskSAMCore.preprocessing.prompt_maps import draw_points, draw_region, empty_maps
from MaskSAMCore.volume import Shape

STARTS = {"point": 0.55, "box": 0.12, "lasso": 0.08, "scribble": 0.15, "mask": 0.10}
"""How a user begins: with a prompt, or with a mask that is not quite right and a click into its largest error."""
CORRECTIONS = {"point": 0.75, "scribble": 0.17, "lasso": 0.08}
ROUNDS = (0.34, 0.24, 0.19, 0.13, 0.10)
"""Share of the patches with 0, 1, 2, ... corrections before the answer that is trained on."""
INNERMOST = 0.6
MISTAKES = 0.03
"""Share of the corrections that are placed a few voxels beside their error."""
DROPPED, SPOILT = 0.6, 0.04
"""Share of the steps at which the former answer is withheld, or replaced by a damaged one. The engine shows the network
only a mask that the user gave."""
FLAT_BOXES = 0.5
FACE_ON = 0.8
"""Share of the scribbles and lassos that are drawn in a slice of the patch, the others across the slices."""


@dataclass(kw_only=True)
class Drawn:
    """One prompt: the points of a click or scribble, or a region.

    Attributes:
        positive: Whether it marks the structure, or what does not belong to it.
        points: (n, 3) positions (d, h, w); None for a region.
        region: bool (d, h, w); None for points.
        corner: First voxel of the region.
    """

    positive: bool
    points: np.ndarray | None = None
    region: np.ndarray | None = None
    corner: tuple[int, int, int] = (0, 0, 0)


class ClickUser:
    """A user of one target in one patch.

    Args:
        target: bool (D, H, W), not empty.
        spacing: Of the voxels, mm.
        rng: Source of chance.
    """

    def __init__(self, target: np.ndarray, spacing: tuple[float, float, float], rng: np.random.Generator) -> None:
        self.target, self.spacing, self.rng = target, spacing, rng
        self.prompts: list[Drawn] = []
        self.former: np.ndarray | None = None
        self.rounds = int(rng.choice(len(ROUNDS), p=ROUNDS))
        self._begin(str(rng.choice(list(STARTS), p=list(STARTS.values()))))

    def _begin(self, kind: str) -> None:
        if kind == "mask":
            self.former = damaged(self.target, self.rng).astype(np.float32)
            if self.correct(self.former > 0.5):
                return
            kind = "point"
        if kind == "box":
            self.prompts.append(_box(self.target, self.rng))
        else:
            self._mark(self.target, kind, positive=True)

    def correct(self, answer: np.ndarray) -> bool:
        """Mark an error of an answer, bool (D, H, W), the larger the likelier; False if there is none."""
        wrong = answer != self.target
        parts, count = ndimage.label(wrong)
        if not count:
            return False
        sizes = np.bincount(parts.ravel())[1:].astype(float)
        number = 1 + int(self.rng.choice(count, p=sizes**1.5 / (sizes**1.5).sum()))
        error = parts == number
        positive = bool(self.target[error].any())
        kind = str(self.rng.choice(list(CORRECTIONS), p=list(CORRECTIONS.values())))
        self._mark(error, kind if sizes[number - 1] > 20 else "point", positive=positive)
        return True

    def _mark(self, mask: np.ndarray, kind: str, *, positive: bool) -> None:
        if kind == "point":
            point = inner_voxel(mask, self.spacing, self.rng).astype(float)
            if self.prompts and self.rng.random() < MISTAKES:
                point = (point + self.rng.normal(0, 2, 3)).clip(0, np.array(mask.shape) - 1)
            self.prompts.append(Drawn(positive=positive, points=point[None]))
            return
        axis, index, plane = _plane(mask, self.rng)
        if kind == "scribble":
            points = np.insert(scribble(plane, self.rng), axis, index, axis=1)
            self.prompts.append(Drawn(positive=positive, points=points))
            return
        corner = [0, 0, 0]
        corner[axis] = index
        region = np.expand_dims(lasso(plane, self.rng), axis)
        self.prompts.append(Drawn(positive=positive, region=region, corner=(corner[0], corner[1], corner[2])))

    def maps(self) -> np.ndarray:
        """The channels `PROMPT_MAPS`, (5, D, H, W) float32, with the former answer as it is or spoilt."""
        size: Shape = (self.target.shape[0], self.target.shape[1], self.target.shape[2])
        maps = empty_maps(size)
        for prompt in self.prompts:
            if prompt.points is not None:
                draw_points(maps, prompt.points, positive=prompt.positive)
            elif prompt.region is not None:
                draw_region(maps, prompt.region, prompt.corner, positive=prompt.positive)
        if self.former is not None:
            chance = self.rng.random()
            if chance < SPOILT:
                maps[0] = damaged(self.former > 0.5, self.rng)
            elif chance > DROPPED + SPOILT:
                maps[0] = self.former
        return maps

    @property
    def clicked(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxels (n, 3) of all points, and (n,) bool, which are meant to be inside."""
        points = [(p.points, p.positive) for p in self.prompts if p.points is not None]
        if not points:
            return np.zeros((0, 3), int), np.zeros(0, bool)
        places = np.concatenate([each for each, _ in points]).round().astype(int)
        signs = np.concatenate([np.full(len(each), positive) for each, positive in points])
        return places.clip(0, np.array(self.target.shape) - 1), signs


def inner_voxel(mask: np.ndarray, spacing: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """A voxel (d, h, w) of a mask: the innermost one, or any, the deeper the likelier."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    part = mask[box]
    depth = ndimage.distance_transform_edt(np.pad(part, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    if rng.random() < INNERMOST:
        place = np.unravel_index(int(depth.argmax()), part.shape)
    else:
        weight = depth.ravel()
        place = np.unravel_index(int(rng.choice(weight.size, p=weight / weight.sum())), part.shape)
    return np.array([int(p) + s.start for p, s in zip(place, box, strict=True)])


def _plane(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int, np.ndarray]:
    """Axis, index and content (a, b) of a slice of a mask, the more of it the likelier."""
    axis = 0 if rng.random() < FACE_ON else int(rng.integers(1, 3))
    counts = mask.sum(axis=tuple(a for a in range(3) if a != axis)).astype(float)
    index = int(rng.choice(len(counts), p=counts / counts.sum()))
    return axis, index, mask.take(index, axis=axis)


def scribble(plane: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points (n, 2) along a bent line through a mask (a, b), at most a voxel apart; those inside of it."""
    places = np.argwhere(plane)
    ends = places[rng.integers(len(places), size=int(rng.integers(2, 4)))].astype(float)
    steps = max(2, int(2 * np.abs(np.diff(ends, axis=0)).max(initial=1)))
    along = np.linspace(0, len(ends) - 1, steps)
    line = np.stack([np.interp(along, np.arange(len(ends)), ends[:, n]) for n in (0, 1)], axis=1)
    line += np.outer(np.sin(along * np.pi), rng.normal(0, 1.5, 2))
    voxels = line.round().astype(int).clip(0, np.array(plane.shape) - 1)
    inside = plane[tuple(voxels.T)]
    return line[inside] if inside.any() else places[:1].astype(float)


def lasso(plane: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a rough outline around a mask (a, b) encloses, bool."""
    reach = float(rng.uniform(0, 3))
    distance = ndimage.distance_transform_edt(~plane) - ndimage.distance_transform_edt(plane)
    wobble = ndimage.gaussian_filter(rng.normal(size=plane.shape), 3)
    wobble *= float(rng.uniform(0, 2)) / max(float(wobble.std()), 1e-6)
    outline = ndimage.binary_fill_holes(distance < reach + wobble)
    return np.asarray(outline) | (ndimage.binary_erosion(plane) if rng.random() < 0.5 else False)


def _box(target: np.ndarray, rng: np.random.Generator) -> Drawn:
    """A box around the target, or around its part in a slice, with the inaccuracy of a hand."""
    mask, shift = target, 0
    if rng.random() < FLAT_BOXES:
        counts = target.sum(axis=(1, 2)).astype(float)
        shift = int(rng.choice(len(counts), p=counts / counts.sum()))
        mask = target[shift : shift + 1]
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    low, high = [], []
    for axis, (part, size) in enumerate(zip(box, mask.shape, strict=True)):
        loose = 0.0 if axis == 0 and len(mask) == 1 else 0.1 * (part.stop - part.start)
        a, b = (round(edge + float(rng.normal(0, loose))) for edge in (part.start, part.stop))
        a = min(max(a, 0), size - 1)
        low.append(a)
        high.append(min(max(b, a + 1), size))
    region: np.ndarray = np.ones([b - a for a, b in zip(low, high, strict=True)], bool)
    return Drawn(positive=True, region=region, corner=(low[0] + shift, low[1], low[2]))


def damaged(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask with the errors of an earlier attempt: swollen, thin, shifted, cut, or with a piece too many."""
    made = mask
    for _ in range(int(rng.integers(1, 3))):
        kind = int(rng.integers(5))
        if kind == 0:
            made = ndimage.binary_dilation(made, iterations=int(rng.integers(1, 4)))
        elif kind == 1:
            thin = ndimage.binary_erosion(made, iterations=int(rng.integers(1, 3)))
            made = thin if thin.any() else made
        elif kind == 2:
            made = np.roll(made, rng.integers(-4, 5, 3), axis=(0, 1, 2))
        elif kind == 3:
            at, axis = int(rng.integers(made.shape[1])), int(rng.integers(1, 3))
            index = np.arange(made.shape[axis]) < at
            made = made & np.expand_dims(index, tuple(n for n in range(3) if n != axis))
        else:
            field = ndimage.gaussian_filter(rng.normal(size=made.shape), (1, 4, 4))
            made = made | ((field > 2.2 * field.std()) & ndimage.binary_dilation(made, iterations=6))
    return np.asarray(made)
