"""An engine in this process whose answers are cubes: what `EngineClient.submit` would bring, without a worker.

Prompts are answered in their order, as a session does it. A click is a cube of 5 voxels a side; with scope "slice" only
the one slice of it, with "volume" all slices. With candidates it is 7, 5 or 3 wide. An excluding click clears the same
voxels, a box fills itself, a mask takes the place of all before it. An update tells what differs from the structure's
last answer, and a structure's last answer is forgotten with its case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from MaskSAMCore.errors import MaskSAMError, PromptError
from MaskSAMCore.inference.results import Candidate, Suggestion, Update
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker.results import Case

HALVES = (3, 2, 1)
"""Half the side of a click's cube for each of its candidates."""
PLAIN = 2
Mask = np.ndarray


def answer(shape: Sequence[int], prompts: Sequence[Mapping[str, Any]]) -> Mask:
    """The engine's rule: bool (K, J, I)."""
    mask: Mask = np.zeros(shape, bool)
    for prompt in prompts:
        if prompt["kind"] == "mask":
            mask[:] = False
            block = prompt["mask"]
            place = tuple(slice(low, low + n) for low, n in zip(prompt["mask_box"], block.shape, strict=True))
            mask[place] = block != 0
        elif prompt["kind"] == "box":
            ends = [[round(v) for v in corner[::-1]] for corner in prompt["corners"]]
            mask[tuple(slice(low, high + 1) for low, high in zip(*ends, strict=True))] = True
        else:
            mask[_cube(prompt)] = prompt["positive"]
    return mask


def _cube(prompt: Mapping[str, Any]) -> tuple[slice, slice, slice]:
    candidate = prompt.get("candidate")
    half = PLAIN if candidate is None else HALVES[candidate]
    k, j, i = (round(v) for v in prompt["position"][::-1])
    deep = {"slice": slice(k, k + 1), "slab": slice(max(k - half, 0), k + half + 1), "volume": slice(None)}
    return deep[prompt["scope"]], slice(max(j - half, 0), j + half + 1), slice(max(i - half, 0), i + half + 1)


def block(mask: Mask) -> tuple[tuple[int, ...] | None, Mask]:
    """The box of what is set, and the mask inside of it."""
    places = np.argwhere(mask)
    if not len(places):
        return None, np.zeros((0, 0, 0), np.uint8)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    box = tuple(int(v) for pair in zip(low, high, strict=True) for v in pair)
    return box, mask[tuple(map(slice, low, high))].astype(np.uint8)


class ToyJob:
    """A request; it is done at once, or when the engine is let go on."""

    progress: tuple[int, int, str] | None = None

    def __init__(self, work: Callable[[], Any], *, deaf: bool = False) -> None:
        self._work, self._deaf = work, deaf
        self._done = False
        self._result: Any = None
        self._error: MaskSAMError | None = None

    def done(self) -> bool:
        return self._done

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> None:
        if not self._deaf:
            self._finish(self._raise_cancelled)

    def go_on(self) -> None:
        self._finish(self._work)

    @staticmethod
    def _raise_cancelled() -> None:
        raise Cancelled

    def _finish(self, work: Callable[[], Any]) -> None:
        if self._done:
            return
        self._done = True
        try:
            self._result = work()
        except MaskSAMError as error:
            self._error = error


class ToyEngine:
    """In place of `EngineClient`.

    Attributes:
        held: Whether prompts stay unanswered until `go_on`.
        deaf: Whether a prompt that was cancelled is answered all the same.
        failing: What the next prompts fail with; None for nothing.
        bad: Voxels (i, j, k) that cannot be prompted.
        messages: What comes with every answer for the user.
        suggested: The suggestion that comes with every answer.
        asked: The operations and fields of all requests.
    """

    def __init__(self) -> None:
        self.held = self.deaf = False
        self.failing: MaskSAMError | None = None
        self.bad: set[tuple[int, int, int]] = set()
        self.messages: tuple[str, ...] = ()
        self.suggested: Suggestion | None = None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._waiting: list[ToyJob] = []
        self._cases: dict[int, tuple[int, ...]] = {}
        self._last: dict[tuple[int, int], Mask] = {}

    def submit(self, op: str, **fields: Any) -> ToyJob:
        """As `EngineClient.submit`, for the requests that refining needs."""
        fields["case"] = getattr(fields["case"], "id", fields["case"])
        self.asked.append((op, fields))
        job = ToyJob(lambda: getattr(self, f"_{op}")(**fields), deaf=self.deaf)
        if self.held and op == "prompt":
            self._waiting.append(job)
        else:
            job.go_on()
        return job

    def go_on(self) -> None:
        """Answer what waits."""
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            job.go_on()

    def prompted(self) -> list[list[dict[str, Any]]]:
        """The lists of prompts that were asked so far."""
        return [fields["prompts"] for op, fields in self.asked if op == "prompt"]

    def poll(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _open(self, *, case: int, volume: np.ndarray, model: str, **_: Any) -> Case:
        self._cases[case] = volume.shape
        return Case(id=case, model=model, shape=volume.shape, axis=0, labels=())

    def _release(self, *, case: int) -> dict[str, Any]:
        del self._cases[case]
        self._last = {key: mask for key, mask in self._last.items() if key[0] != case}
        return {}

    def _drop(self, *, case: int, structure: int) -> Update:
        self._last.pop((case, structure), None)
        return Update(structure=structure, box=None, mask=np.zeros((0, 0, 0), np.uint8))

    def _automatic(self, *, case: int, label: int, slices: Sequence[int]) -> dict[str, Any]:
        box = {"kind": "box", "corners": ((4, 2 * label, slices[0]), (8, 2 * label + 1, slices[0])), "scope": "slice"}
        point = {"kind": "point", "position": (6, 2 * label, slices[0]), "positive": True, "scope": "slice"}
        return {"prompts": [[box, point]]}

    def _prompt(self, *, case: int, structure: int, prompts: list[dict[str, Any]], multimask: bool = False) -> Update:
        if self.failing is not None:
            raise self.failing
        for number, prompt in enumerate(prompts, start=1):
            if tuple(round(v) for v in prompt.get("position", ())) in self.bad:
                raise PromptError("there is no image", where=f"prompt {number} of {len(prompts)}")
        shape = self._cases[case]
        new, old = answer(shape, prompts), self._last.get((case, structure), np.zeros(shape, bool))
        self._last[case, structure] = new
        box, _ = block(new != old)
        extent, _ = block(new)
        candidates = [answer(shape, [prompts[0] | {"candidate": each}]) for each in range(3)] if multimask else []
        slices = np.flatnonzero(new.any(axis=(1, 2)))
        quality = {int(k): 0.9 - 0.01 * int(k) for k in slices}
        return Update(
            structure=structure,
            box=box,
            mask=new[tuple(slice(a, b) for a, b in zip(box[::2], box[1::2], strict=True))].astype(np.uint8)
            if box
            else np.zeros((0, 0, 0), np.uint8),
            extent=extent,
            voxels=int(new.sum()),
            quality=quality,
            worst=min(quality, key=quality.__getitem__) if quality else None,
            candidates=tuple(Candidate(box=place, mask=mask, quality=0.5) for place, mask in map(block, candidates)),
            suggestion=self.suggested,
            messages=self.messages,
        )
