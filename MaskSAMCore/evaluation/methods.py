"""What simulated users prompt: a model of ours in its session, and plain SAM in a slice or from slice to slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.inference.zeroshot import ZeroShot, grey_values, picture
from MaskSAMCore.preprocessing.masks import tight_box
from MaskSAMCore.progress import CancelToken

if TYPE_CHECKING:
    from torch import Tensor

    from MaskSAMCore.data.simulate import Click
    from MaskSAMCore.inference.sessions import AnySession
    from MaskSAMCore.preprocessing.masks import Box2D
    from MaskSAMCore.volume import Grid, Volume

STRUCTURE = 1
SHRUNK, SWOLLEN = 0.5, 2.0
"""Plain SAM goes on to the next slice while the mask there is at least and at most so large, compared with the last."""


class Method(Protocol):
    """A method that segments one structure from prompts; its masks are bool, of the target's shape."""

    name: str

    def reset(self) -> None:
        """Forget all prompts."""
        ...

    def clicks(self, clicks: Sequence[Click]) -> np.ndarray:
        """The mask after these clicks, of which only the last is new."""
        ...


class SliceMethod(Method, Protocol):
    """A method that takes boxes in a slice as well."""

    def box(self, box: Box2D) -> np.ndarray:
        """The mask of this box alone, (x0, y0, x1, y1) in pixels of the slice."""
        ...


class ModelMethod:
    """Our model, in a `Session`.

    Args:
        name: Of the method, for the tables.
        session: Of the scan.
        grid: Of the scan.
        plane: (axis of (K, J, I), index) of the slice that the user sees; None for the whole volume.
        cancel: Checked before every answer.
    """

    def __init__(
        self,
        name: str,
        session: AnySession,
        grid: Grid,
        plane: tuple[int, int] | None,
        cancel: CancelToken | None = None,
    ) -> None:
        self.name, self.session, self.grid, self.plane, self.cancel = name, session, grid, plane, cancel
        self.found: np.ndarray = np.zeros(grid.shape, bool)

    def reset(self) -> None:
        """See `Method`."""
        self.session.drop(STRUCTURE)
        self.found[...] = False

    def clicks(self, clicks: Sequence[Click]) -> np.ndarray:
        """See `Method`."""
        return self._answer(
            [
                Prompt(
                    kind="point",
                    position=self._ijk(click.position),
                    positive=click.positive,
                    scope="volume" if self.plane is None else "slice",
                )
                for click in clicks
            ]
        )

    def box(self, box: Box2D) -> np.ndarray:
        """See `SliceMethod`."""
        x0, y0, x1, y1 = box  # edges; the corners of a prompt are voxel centres
        corners = (self._ijk((y0, x0)), self._ijk((max(y1 - 1, y0), max(x1 - 1, x0))))
        return self._answer([Prompt(kind="box", corners=corners, scope="slice")])

    def drawing(self, prompt: Prompt) -> np.ndarray:
        """The mask of a scribble or lasso alone."""
        return self._answer([prompt])

    def _answer(self, prompts: Sequence[Prompt]) -> np.ndarray:
        update = self.session.prompt(STRUCTURE, prompts, cancel=self.cancel)
        if update.box is not None:
            k0, k1, j0, j1, i0, i1 = update.box
            self.found[k0:k1, j0:j1, i0:i1] = update.mask
        return self.found.copy() if self.plane is None else self.found.take(self.plane[1], axis=self.plane[0])

    def _ijk(self, position: Sequence[float]) -> tuple[float, float, float]:
        kji = [float(p) for p in position]
        if self.plane is not None:
            kji.insert(*self.plane)
        k, j, i = kji
        return i, j, k


class SamMethod:
    """Plain SAM on one slice; its last logits are a prompt of the next click.

    Its single mask is used from the first click on. On medical slices it was better than the one of its three
    candidates that SAM itself estimates to be best.
    """

    def __init__(self, name: str, sam: ZeroShot) -> None:
        self.name, self.sam = name, sam
        self.low_res: np.ndarray | None = None

    def reset(self) -> None:
        """See `Method`."""
        self.low_res = None

    def clicks(self, clicks: Sequence[Click]) -> np.ndarray:
        """See `Method`."""
        points = np.array([click.position[::-1] for click in clicks], float) + 0.5
        answer = self.sam.predict(points, np.array([int(c.positive) for c in clicks]), mask_input=self.low_res)
        self.low_res = answer.low_res[0]
        return answer.logits[0] > 0

    def box(self, box: Box2D) -> np.ndarray:
        """See `SliceMethod`."""
        return self.sam.predict(box=np.array(box)).logits[0] > 0


class PropagatedSam:
    """Plain SAM on a whole volume: its mask of a clicked slice is the box of the next slice, and so on.

    A clicked slice gets all of its clicks; one that has none inside of the structure gets the box of its former mask
    too. From every clicked slice SAM goes on in both directions until it reaches the next clicked slice, or the mask
    there has less than `SHRUNK` or more than `SWOLLEN` times the pixels of the one before. Slices are encoded once, and
    the same question is asked once.

    Args:
        name: Of the method, for the tables.
        sam: Plain SAM.
        volume: The scan; its first channel is used.
        axis: Of (K, J, I), along which slices are counted.
        cancel: Checked before every slice.
    """

    def __init__(self, name: str, sam: ZeroShot, volume: Volume, axis: int, cancel: CancelToken | None = None) -> None:
        self.name, self.sam, self.axis, self.cancel = name, sam, axis, cancel
        self.array = np.moveaxis(volume.as_channels()[0], axis, 0)
        self.window = grey_values(self.array)
        self.features: dict[int, Tensor] = {}
        self.answers: dict[tuple[object, ...], np.ndarray] = {}
        self.found: np.ndarray = np.zeros(self.array.shape, bool)

    def reset(self) -> None:
        """See `Method`."""
        self.found = np.zeros(self.array.shape, bool)

    def clicks(self, clicks: Sequence[Click]) -> np.ndarray:
        """See `Method`."""
        given: dict[int, list[Click]] = {}
        for click in clicks:
            given.setdefault(int(click.position[self.axis]), []).append(click)
        former, self.found = self.found, np.zeros(self.array.shape, bool)
        for index, some in given.items():
            self.found[index] = self._clicked(index, some, former[index])
        for index in given:
            for step in (-1, 1):
                self._walk(index, step, given)
        return np.moveaxis(self.found, 0, self.axis)

    def _clicked(self, index: int, clicks: Sequence[Click], former: np.ndarray) -> np.ndarray:
        """The mask (H, W) of a clicked slice."""
        box = None if any(click.positive for click in clicks) else tight_box(former)
        if box is None and not any(click.positive for click in clicks):
            return np.zeros(former.shape, bool)
        places = [[p for axis, p in enumerate(click.position) if axis != self.axis] for click in clicks]
        points = np.array(places, float)[:, ::-1] + 0.5
        signs = np.array([int(click.positive) for click in clicks])
        return self._asked(index, points, signs, None if box is None else np.array(box))

    def _walk(self, index: int, step: int, clicked: dict[int, list[Click]]) -> None:
        mask = self.found[index]
        while 0 <= index + step < len(self.array) and index + step not in clicked:
            box = tight_box(mask)
            if box is None:
                break
            index += step
            following = self._asked(index, None, None, np.array(box))
            if not SHRUNK <= following.sum() / mask.sum() <= SWOLLEN:
                break
            mask = following
            self.found[index] |= mask

    def _asked(
        self, index: int, points: np.ndarray | None, signs: np.ndarray | None, box: np.ndarray | None
    ) -> np.ndarray:
        key = (index, *(None if each is None else each.tobytes() for each in (points, signs, box)))
        if key not in self.answers:
            self.answers[key] = self._answer(index, points, signs, box)
        return self.answers[key]

    def _answer(
        self, index: int, points: np.ndarray | None, signs: np.ndarray | None, box: np.ndarray | None
    ) -> np.ndarray:
        if self.cancel is not None:
            self.cancel.check()
        if index not in self.features:
            self.sam.set_image(picture(self.array[index], *self.window))
            self.features[index] = self.sam.features
        self.sam.features = self.features[index]
        return self.sam.predict(points, signs, box).logits[0] > 0
