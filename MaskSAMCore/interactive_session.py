"""A scan that is open for prompts, in Python; see docs/python.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from MaskSAMCore.errors import PromptError

if TYPE_CHECKING:
    from MaskSAMCore.inference.prompts import Prompt
    from MaskSAMCore.inference.sessions import AnySession

Scope = Literal["slice", "slab", "volume"]


class InteractiveSession:
    """A scan that is open for clicks and boxes; made by `Model.open`.

    Each prompt belongs to a structure, which you call by a name or a number; a name or label of the model means the
    model's structure. A prompt without one belongs to the structure of the prompt before.

    Attributes:
        shape: (I, J, K) of the scan.
        affine: 4x4, voxel (i, j, k, 1) to RAS mm.
        warnings: What a reader should know of the scan.
    """

    def __init__(self, session: AnySession, known: dict[str, int]) -> None:
        self._session = session
        self._numbers = dict(known)
        self._history: list[tuple[int, Prompt]] = []
        self.shape: tuple[int, int, int] = session.grid.shape[::-1]
        self.affine = session.grid.affine
        self.warnings = session.warnings

    def click(
        self,
        ijk: Sequence[float],
        structure: str | int | None = None,
        positive: bool = True,
        *,
        scope: Scope = "volume",
    ) -> np.ndarray:
        """Click on a voxel: it belongs to the structure, or does not.

        Args:
            ijk: Voxel (i, j, k) as nibabel indexes it, from 0; fractions are allowed.
            structure: Name or number of the structure; None for that of the last prompt.
            positive: Whether the voxel belongs to the structure.
            scope: How far the click reaches: its "slice", the "slab" of slices around it, or the whole "volume".

        Returns:
            The structure after this click, booleans (I, J, K).

        Raises:
            PromptError: The voxel lies outside of the scan, or contradicts another click; nothing changes.
        """
        from MaskSAMCore.inference.prompts import Prompt

        i, j, k = _position(ijk)
        return self._add(structure, Prompt(kind="point", position=(i, j, k), positive=positive, scope=scope))

    def box(
        self,
        first: Sequence[float],
        last: Sequence[float],
        structure: str | int | None = None,
        positive: bool = True,
        *,
        scope: Scope = "volume",
    ) -> np.ndarray:
        """Draw a box around the structure, or around what does not belong to it, in a slice or in three dimensions.

        Args:
            first: Voxel (i, j, k) of one corner.
            last: Voxel of the opposite corner, included. Corners that share an index lie in that slice.
            structure: As for `click`.
            positive: Whether the box is around the structure.
            scope: As for `click`; a box in three dimensions reaches over its own slices.

        Returns:
            The structure after this box, booleans (I, J, K).

        Raises:
            PromptError: The box lies outside of the scan; nothing changes.
        """
        from MaskSAMCore.inference.prompts import Prompt

        pairs = [sorted(pair) for pair in zip(_position(first), _position(last), strict=True)]
        (i0, i1), (j0, j1), (k0, k1) = pairs
        corners = (i0, j0, k0), (i1, j1, k1)
        return self._add(structure, Prompt(kind="box", corners=corners, positive=positive, scope=scope))

    def scribble(
        self,
        points: Sequence[Sequence[float]],
        structure: str | int | None = None,
        positive: bool = True,
        *,
        thickness_mm: float = 0.0,
    ) -> np.ndarray:
        """Draw a line through the structure, or through what does not belong to it.

        A model without scribbles takes its middle as a click.

        Args:
            points: Voxels (i, j, k) along the line, in any plane.
            structure: As for `click`.
            positive: Whether the line lies in the structure.
            thickness_mm: Of the line.

        Returns:
            The structure after this line, booleans (I, J, K).

        Raises:
            PromptError: The line lies outside of the scan; nothing changes.
        """
        from MaskSAMCore.inference.prompts import Prompt

        line = tuple(_position(point) for point in points)
        drawn = Prompt(kind="scribble", points=line, thickness=thickness_mm, positive=positive, scope="volume")
        return self._add(structure, drawn)

    def lasso(
        self, points: Sequence[Sequence[float]], structure: str | int | None = None, positive: bool = True
    ) -> np.ndarray:
        """Draw an outline in a slice, roughly around all of the structure in it, or around what does not belong to it.

        A model without lassos takes the box around it.

        Args:
            points: Voxels (i, j, k) along the outline, three or more, which share an index; it closes by itself.
            structure: As for `click`.
            positive: Whether the outline is around the structure.

        Returns:
            The structure after this outline, booleans (I, J, K).

        Raises:
            PromptError: The outline lies outside of the scan, or in no slice; nothing changes.
        """
        from MaskSAMCore.inference.prompts import Prompt

        outline = tuple(_position(point) for point in points)
        return self._add(structure, Prompt(kind="lasso", points=outline, positive=positive, scope="volume"))

    def exclude(self, mask: np.ndarray, structure: str | int | None = None) -> np.ndarray:
        """Tell that voxels belong to other structures, which this one must leave alone.

        Args:
            mask: Booleans (I, J, K).
            structure: As for `click`.

        Returns:
            The structure after it, booleans (I, J, K).

        Raises:
            PromptError: The mask has another shape than the scan, or no voxel, or the model is not one for structures
                of any kind; nothing changes.
        """
        from MaskSAMCore.inference.prompts import Prompt

        shape = self._session.grid.shape[::-1]
        if np.shape(mask) != shape:
            raise PromptError("the mask has another shape than the scan", why=f"{np.shape(mask)} and {shape}")
        block = np.ascontiguousarray(np.asarray(mask, bool).T, np.uint8)
        return self._add(structure, Prompt(kind="mask", mask=block, positive=False, scope="volume"))

    def undo(self) -> np.ndarray:
        """Take back the last prompt.

        Returns:
            Its structure as it was before, booleans (I, J, K).

        Raises:
            PromptError: There is nothing to undo.
        """
        if not self._history:
            raise PromptError("there is nothing to undo")
        number, _ = self._history.pop()
        return self._answer(number)

    def mask(self, structure: str | int | None = None) -> np.ndarray:
        """A structure as it is now, booleans (I, J, K); None for that of the last prompt."""
        return self._mask(self._number(structure))

    def _number(self, structure: str | int | None) -> int:
        if structure is None:
            return self._history[-1][0] if self._history else 1
        if isinstance(structure, str):
            used = [*self._numbers.values(), *(number for number, _ in self._history)]
            return self._numbers.setdefault(structure, max(used, default=0) + 1)
        return structure

    def _add(self, structure: str | int | None, prompt: Prompt) -> np.ndarray:
        number = self._number(structure)
        self._history.append((number, prompt))
        try:
            return self._answer(number)
        except BaseException:
            self._history.pop()
            raise

    def _answer(self, number: int) -> np.ndarray:
        prompts = [prompt for owner, prompt in self._history if owner == number]
        if prompts:
            self._session.prompt(number, prompts)
        else:
            self._session.drop(number)
        return self._mask(number)

    def _mask(self, number: int) -> np.ndarray:
        return self._session.mask(number).T.astype(bool)


def _position(values: Sequence[float]) -> tuple[float, float, float]:
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3:
        raise PromptError("a position is three numbers (i, j, k)", why=f"found {values!r}")
    return numbers
