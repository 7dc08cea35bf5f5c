"""Answers of the click model on a whole scan: which window is looked at, and what of its answer is taken.

A first prompt does not say how large its structure is. Windows of several sizes are asked, and the one whose answer is
surest is kept for the prompts that follow. A window that the structure reaches beyond is
followed by a larger one. Of a later answer only the connected parts that hold its prompt are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from MaskSAMCore.inference.zoom_scan import Answer, Block, Window, ZoomScan
from MaskSAMCore.preprocessing.masks import bounds
from MaskSAMCore.preprocessing.prompt_maps import draw_points, draw_region, empty_maps
from MaskSAMCore.volume import triple

SIZES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Pixel sides of the windows that a first click is asked in, as multiples of the scan's finest voxel side."""
FILL = 0.45
"""Share of the window that the structure so far takes, or at first a box, lasso or scribble."""
GROW, GROWTHS = 1.5, 4
"""Factor by which a window grows, and how often it may for a prompt."""
TOUCHED = 0.04
"""Share of a face of the window that the structure covers when the window is too small."""
CENTRAL = 0.6
"""A prompt lies within this central part of its window."""
NEAR = 1.5
"""A change belongs to a click if it lies this near to it, in pixels of the window."""
STRONG = 0.5
FEWEST = 8
UNSURE, MOST_UNSURE = (0.2, 0.8), 3.0
"""Voxels with such probabilities are unsure; their share of the answer, up to so much, counts against a window."""
USUAL_SIDE, UNUSUAL = 3.0, 0.3
"""Width of the pixels in mm that most structures of a body need, and what each doubling from it counts against a
window. Chosen on 15 structures of ACDC's training patients and 25 of headneck_ct's folds 1 to 4, where the agreement of
a window's answer with its neighbours' told nothing beyond these."""

Check = Callable[[], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Hint:
    """A prompt on the axes (d, h, w) of the scan.

    Attributes:
        positive: Whether it marks the structure, or what does not belong to it.
        points: (n, 3) voxels of a click or scribble; None for a region.
        region: bool (d, h, w), what a box or lasso encloses; None for points.
        corner: First voxel of the region.
        excluded: Whether the region, a negative one, holds other structures, so that no voxel of it is ever taken.
    """

    positive: bool = True
    excluded: bool = False
    points: np.ndarray | None = None
    region: np.ndarray | None = None
    corner: np.ndarray = field(default_factory=lambda: np.zeros(3, int))

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last position."""
        if self.points is not None:
            return self.points.min(0), self.points.max(0)
        assert self.region is not None
        return self.corner.astype(float), self.corner + np.array(self.region.shape) - 1.0

    @property
    def middle(self) -> np.ndarray:
        """The position that a window is placed by: of points the middle one."""
        if self.points is not None:
            return self.points[len(self.points) // 2]
        low, high = self.bounds
        return (low + high) / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape3D:
    """A structure in the scan: bool on a box, its first voxel at `corner`."""

    block: np.ndarray
    corner: np.ndarray

    @classmethod
    def empty(cls) -> Shape3D:
        """Without a voxel."""
        return cls(block=np.zeros((0, 0, 0), bool), corner=np.zeros(3, int))

    @property
    def end(self) -> np.ndarray:
        """Behind the last voxel of the box."""
        return self.corner + np.array(self.block.shape)

    def cut(self, block: Block) -> np.ndarray:
        """The structure on another box, bool."""
        out: np.ndarray = np.zeros([s.stop - s.start for s in block], bool)
        here, there = [], []
        for s, low, n in zip(block, self.corner.tolist(), self.block.shape, strict=True):
            a, b = max(s.start, low), min(s.stop, low + n)
            here.append(slice(a - s.start, max(b, a) - s.start))
            there.append(slice(a - low, max(b, a) - low))
        out[tuple(here)] = self.block[tuple(there)]
        return out

    def pasted(self, mask: np.ndarray, block: Block) -> Shape3D:
        """The structure with other voxels in a block."""
        low = np.array([s.start for s in block])
        high = np.array([s.stop for s in block])
        if self.block.size:
            low, high = np.minimum(low, self.corner), np.maximum(high, self.end)
        whole = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        found = self.cut((whole[0], whole[1], whole[2]))
        found[tuple(slice(s.start - int(a), s.stop - int(a)) for s, a in zip(block, low, strict=True))] = mask
        return Shape3D(block=found, corner=low).trimmed()

    def trimmed(self) -> Shape3D:
        """The same on its smallest box."""
        boxes = ndimage.find_objects(self.block.astype(np.uint8)) if self.block.size else []
        if not boxes or boxes[0] is None:
            return Shape3D.empty()
        box = boxes[0]
        return Shape3D(block=self.block[box].copy(), corner=self.corner + [s.start for s in box])


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What is known of a structure after its prompts.

    Attributes:
        shape: Its voxels.
        given: The mask that the user gave before the prompts. The network sees this one alone: shown its own former
            answers as well, it corrected them less than when it answered all prompts anew.
        side: Width of the window's pixels, mm; None before the first answer.
    """

    shape: Shape3D = field(default_factory=Shape3D.empty)
    given: Shape3D = field(default_factory=Shape3D.empty)
    side: float | None = None


class Autozoom:
    """Answers the prompts of structures of one scan.

    Args:
        scan: Of any modality.
        check: Called before every window; raises to stop.
    """

    def __init__(self, scan: ZoomScan, check: Check = lambda: None) -> None:
        self.scan, self.check = scan, check

    def answer(self, known: Known, hints: Sequence[Hint]) -> Known:
        """What is known after the last of these prompts.

        Args:
            known: After the prompts before.
            hints: All prompts since the last mask, oldest first.
        """
        new = hints[-1]
        if known.side is None and not new.positive and not known.shape.block.size:
            return known  # nothing is there that could be taken away
        if known.side is None and new.positive:
            found = self._first(known, hints)
        else:
            found = self._ask(self._window(known, new, known.side or self._fitting(known.shape)), known, hints)
        if found is None:
            return self._obeyed(known, hints)
        found = self._grown(found, known, hints)
        return self._taken(known, hints, found)

    def _first(self, known: Known, hints: Sequence[Hint]) -> Answer | None:
        """The answer to a first prompt: of several sizes for a click, of the fitting one for what has a size."""
        new = hints[-1]
        low, high = new.bounds
        if new.region is not None or (new.points is not None and len(new.points) > 1):
            extent = float(((high - low + 1) * self.scan.voxel)[1:].max())
            side = max(extent / (FILL * 64), SIZES[0] * self.scan.finest)
            return self._ask(self.scan.window(new.middle, side), known, hints)
        sides = dict.fromkeys(min(size * self.scan.finest, self.scan.coarsest) for size in SIZES)
        answers = [self._ask(self.scan.window(new.middle, side), known, hints) for side in sides]
        usual = min(max(USUAL_SIDE, self.scan.finest), self.scan.coarsest)
        return best_size([answer for answer in answers if answer is not None], usual)

    def _fitting(self, shape: Shape3D) -> float:
        extent = float((np.array(shape.block.shape) * self.scan.voxel)[1:].max())
        return max(extent / (FILL * 64), self.scan.finest)

    def _window(self, known: Known, new: Hint, side: float) -> Window:
        """A window that sees as much of the structure as it can, with the new prompt in its central part."""
        if not known.shape.block.size:
            return self.scan.window(new.middle, side)
        low, high = new.bounds
        low, high = np.minimum(low, known.shape.corner), np.maximum(high + 1, known.shape.end)
        wanted = float(((high - low) * self.scan.voxel)[1:].max()) / (FILL * 64)
        side = float(np.clip(wanted, side, side * GROW))
        window = self.scan.window(new.middle, side)
        reach = np.array(window.size) * window.steps / 2 * CENTRAL
        middle = (known.shape.corner + known.shape.end - 1) / 2
        return replace(window, centre=np.clip(middle, new.middle - reach, new.middle + reach))

    def _ask(self, window: Window, known: Known, hints: Sequence[Hint]) -> Answer | None:
        self.check()
        image = self.scan.image(window)
        return None if image is None else self.scan.answer(window, image, self._maps(window, known, hints))

    def _maps(self, window: Window, known: Known, hints: Sequence[Hint]) -> np.ndarray:
        maps = empty_maps(window.size)
        if known.given.block.size:
            maps[0] = self.scan.read_mask(known.given.block, known.given.corner, window)
        for hint in hints:
            if hint.points is not None:
                draw_points(maps, window.to_patch(hint.points), positive=hint.positive)
            elif hint.region is not None:
                seen = region_in(hint, window)
                draw_region(maps, seen, (0, 0, 0), positive=hint.positive)
        return maps

    def _grown(self, found: Answer, known: Known, hints: Sequence[Hint]) -> Answer:
        """The answer of a larger window, as long as the structure reaches a face of it that is not the scan's."""
        for _ in range(GROWTHS):
            larger = found.window.side * GROW
            if not self._touches(found) or larger > self.scan.coarsest:
                break
            wider = self._ask(self.scan.window(found.window.centre, larger), known, hints)
            if wider is None or (wider.probability > STRONG).sum() < FEWEST:
                break
            found = wider
        return found

    def _touches(self, answer: Answer) -> bool:
        mask, window = answer.probability > STRONG, answer.window
        reach = np.array(window.size) * window.steps / 2
        for axis in range(3):
            for index, edge in ((0, window.centre[axis] - reach[axis]), (-1, window.centre[axis] + reach[axis])):
                inside = 0 < edge < self.scan.shape[axis] - 1
                if inside and mask.take(index, axis=axis).mean() > TOUCHED:
                    return True
        return False

    def _taken(self, known: Known, hints: Sequence[Hint], answer: Answer) -> Known:
        """The structure with those parts of the change that hold the new prompt; clicked voxels obey always."""
        window = answer.window
        found, block = self.scan.paste(answer.probability, window)
        mask, before = found > STRONG, known.shape.cut(block)
        low = np.array([s.start for s in block])
        if before.any():  # a positive prompt takes nothing away, a negative one adds nothing
            mask = mask | before if hints[-1].positive else mask & before
        different = mask != before
        here = bounds(different)
        if here is not None:
            corner = low + [s.start for s in here]
            parts, _ = ndimage.label(different[here], structure=np.ones((3, 3, 3)))
            marks = _marks(hints[-1], window, self.scan.voxel, corner, parts.shape)
            held = np.unique(parts[marks])
            changed = np.isin(parts, held[held > 0])
            mask[here] = np.where(changed, mask[here], before[here])
        return self._obeyed(replace(known, shape=known.shape.pasted(mask, block), side=window.side), hints)

    def _obeyed(self, known: Known, hints: Sequence[Hint]) -> Known:
        """The structure with every clicked voxel as it was clicked, but no voxel of another structure."""
        last = np.array(self.scan.shape) - 1
        marked = [(np.rint(h.points).astype(int).clip(0, last), h.positive) for h in hints if h.points is not None]
        if marked:
            every = np.concatenate([places for places, _ in marked])
            low, high = every.min(0), every.max(0) + 1
            block = triple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
            mask = known.shape.cut(block)
            for places, positive in marked:
                mask[tuple((places - low).T)] = positive
            known = replace(known, shape=known.shape.pasted(mask, block))
        for hint in hints:
            if hint.excluded and hint.region is not None and known.shape.block.size:
                here = triple(slice(int(a), int(b)) for a, b in zip(known.shape.corner, known.shape.end, strict=True))
                others = Shape3D(block=hint.region, corner=hint.corner).cut(here)
                known = replace(known, shape=known.shape.pasted(known.shape.block & ~others, here))
        return known


def best_size(answers: Sequence[Answer], usual: float) -> Answer | None:
    """Of the answers of windows around one place the surest one, with some preference for windows of a usual size.

    Args:
        answers: From the finest window to the coarsest.
        usual: Width of the pixels in mm that most structures need.
    """
    if not answers:
        return None
    return max(answers, key=lambda answer: -_doubt(answer) - UNUSUAL * abs(math.log2(answer.window.side / usual)))


def _doubt(answer: Answer) -> float:
    """Share of unsure voxels, compared with those of the structure; infinite where there is next to no structure."""
    found = int((answer.probability > STRONG).sum())
    if found < FEWEST:
        return math.inf
    low, high = UNSURE
    unsure = int(((answer.probability > low) & (answer.probability < high)).sum())
    return min(unsure / found, MOST_UNSURE)


def region_in(hint: Hint, window: Window) -> np.ndarray:
    """What a region encloses, on the voxels of a window, bool (D, H, W)."""
    assert hint.region is not None
    low, high = (window.to_patch(end[None])[0] for end in hint.bounds)
    half = 0.5 / window.steps
    points = np.rint(window.points() - hint.corner).astype(int)
    # A flat region is as thick as a voxel of the window, so that no zoom loses it.
    found: np.ndarray = np.ones(window.size, bool)
    for axis, (a, b) in enumerate(zip(low, high, strict=True)):
        line = np.arange(window.size[axis])
        inside = (line >= a - max(half[axis], 0.5)) & (line <= b + max(half[axis], 0.5))
        found &= np.expand_dims(inside, tuple(n for n in range(3) if n != axis))
    points = points.clip(0, np.array(hint.region.shape) - 1)
    return found & hint.region[tuple(np.moveaxis(points, -1, 0))]


def _marks(hint: Hint, window: Window, voxel: np.ndarray, low: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels of a block that the prompt marks, bool: around its points, or in its region."""
    marks: np.ndarray = np.zeros(shape, bool)
    if hint.region is not None:
        shown = Shape3D(block=hint.region, corner=hint.corner)
        return shown.cut(triple(slice(int(a), int(a) + n) for a, n in zip(low, shape, strict=True)))
    assert hint.points is not None
    reach = np.maximum(np.floor(NEAR * window.side / voxel), 1).astype(int)
    for place in np.rint(hint.points).astype(int) - low:
        marks[tuple(slice(max(p - r, 0), max(p + r + 1, 0)) for p, r in zip(place, reach, strict=True))] = True
    return marks
