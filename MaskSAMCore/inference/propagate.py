"""Propagation of a mask from one slab to the whole structure, slab by slab in both directions (model.md §13.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from MaskSAMCore.inference.answer import Answer, Draft, WritableSlices, decode, profile
from MaskSAMCore.inference.slabs import Slabs
from MaskSAMCore.inference.slice_prompts import joined
from MaskSAMCore.inference.tiles import Tile
from MaskSAMCore.network.prompt_broadcast import SlicePrompts
from MaskSAMCore.preprocessing.masks import dilate_box, interior_point, tight_box

SMALLEST = 0.01
"""The structure ends where its area falls below this share of the area in the prompt's slice."""
DOUBTFUL = 0.5
"""It ends as well where the estimated IoU falls below this."""
DILATION = 0.05
"""Share by which the box of the last mask is enlarged for the next slab."""

Step = Callable[[], None]


def propagate(
    slabs: Slabs, draft: Draft, first: Answer, prompts: Mapping[int, SlicePrompts], own: WritableSlices, step: Step
) -> None:
    """Extend a draft from the slab of its prompt, upward and downward, until the structure ends.

    The next slab overlaps the one before. Its prompts are the masks in the slices that both share, and box and
    innermost point of the outermost mask. Slices with prompts of their own stay as they are.

    Args:
        slabs: Windows of the scan.
        draft: Holds the first slab's answer; changed in place.
        first: That answer.
        prompts: The user's, by prepared slice.
        own: The slices that may be changed.
        step: Called before every slab; may raise Cancelled.

    Raises:
        ResourceError: The memory is full, and no fallback is left.
    """
    area = draft.area(own.z) or max(draft.area(z) for z in first.slices)
    for direction in (1, -1):
        _Direction(slabs, draft, prompts, own, direction, area).run(first, step)


class _Direction:
    """The propagation in one direction, 1 or -1.

    Attributes:
        least: Area in pixels below which the structure ends.
        weight: (D,) of the slices of a slab, for the mean of overlapping slabs.
    """

    def __init__(
        self,
        slabs: Slabs,
        draft: Draft,
        prompts: Mapping[int, SlicePrompts],
        own: WritableSlices,
        direction: int,
        area: int,
    ) -> None:
        self.slabs, self.draft, self.prompts, self.own, self.direction = slabs, draft, prompts, own, direction
        self.least = max(SMALLEST * area, 1)
        self.weight = profile(slabs)

    def run(self, first: Answer, step: Step) -> None:
        starts = self.slabs.starts[0]
        ahead = [s for s in starts if (s - first.start) * self.direction > 0][:: self.direction]
        edge = first.slices[-1 if self.direction > 0 else 0]
        if not self._continues(edge, self.draft.area(edge), self.draft.quality.get(edge)):
            self._end(edge + self.direction)
            return
        for start in ahead:
            slices = range(max(start, 0), min(start + self.slabs.patch[0], self.slabs.size[0]))
            new = [z for z in slices if (z - edge) * self.direction > 0][:: self.direction]
            if not any(self._allowed(z) for z in new):
                return
            step()
            answer = self._answer(start, slices, edge)
            if answer is None:
                self._end(new[0])
                return
            for z in slices:
                if z not in new and z in self.draft.weights and self._allowed(z) and z not in self.own.direct:
                    self.draft.write(z, answer, float(self.weight[z - start]))
            for z in new:
                if not self._enter(z, start, answer):
                    self._end(z)
                    return
            edge = new[-1]

    def _enter(self, z: int, start: int, answer: Answer) -> bool:
        """Write a new slice; False where the structure ends."""
        if not self._allowed(z):
            return self._continues(z, self.draft.area(z), None)
        area = int((answer.tile(z, self.draft.clip).array > 0).sum())
        if not self._continues(z, area, float(answer.quality[0, z - answer.slices.start])):
            if z not in self.draft.given:
                self.draft.empty(z, answer.rect)
            return False
        self.draft.write(z, answer, float(self.weight[z - start]))
        return True

    def _allowed(self, z: int) -> bool:
        clip = self.draft.clip
        return z in self.own and (clip is None or bool(clip.allows(0, z)))

    def _continues(self, z: int, area: int, quality: float | None) -> bool:
        trusted = z in self.own.direct or quality is None
        return area >= self.least and (trusted or float(quality or 0) >= DOUBTFUL)

    def _answer(self, start: int, slices: range, edge: int) -> Answer | None:
        """The answer of the slab at `start`, prompted with the mask of the slice `edge`; None for an empty mask."""
        plane = self.draft.planes[edge]
        mask = plane.array > 0
        box, inner = tight_box(mask), interior_point(mask)
        if box is None or inner is None:
            return None
        size = self.slabs.size[1:]
        moved = (box[0] + plane.x, box[1] + plane.y, box[2] + plane.x, box[3] + plane.y)
        x0, y0, x1, y1 = dilate_box(moved, DILATION, size)
        here = {z: each for z, each in self.prompts.items() if z in slices}
        place = min(max(edge, slices[0]), slices[-1])
        own = here.get(place, SlicePrompts())
        click = (inner[1] + plane.x + 0.5, inner[0] + plane.y + 0.5)
        here[place] = joined(SlicePrompts(box=(x0, y0, x1, y1)), own)
        here[place] = joined(here[place], SlicePrompts(points=(click,), labels=(1,)))
        windows = self.slabs.planes(((y0, y1), (x0, x1)))
        return decode(self.slabs, start, windows, here, self._known(), user=self.prompts)

    def _known(self) -> dict[int, Tile]:
        """Mask prompts of the next slab: all known masks but those that are about to be replaced."""
        draft = self.draft
        return {
            z: plane
            for z, plane in draft.planes.items()
            if z in draft.weights or z in draft.given or z not in self.own or z in self.own.direct
        }

    def _end(self, z: int) -> None:
        """Clear the structure from slice `z` on, except where the user prompted it or gave a mask."""
        for other, plane in list(self.draft.planes.items()):
            lasting = other in self.own.direct or other in self.draft.given
            if (other - z) * self.direction >= 0 and other in self.own and not lasting:
                self.draft.empty(other, plane.rect)
