"""One segment that is refined: which of its prompts its voxels show, and what the engine said of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.inference.results import Suggestion, Update
from MaskSAMCore.labels import Label
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker.jobs import Job
from SlicerMaskSAMLib.engine.engine_link import EngineLink
from SlicerMaskSAMLib.mrml import bridge, prompt_values
from SlicerMaskSAMLib.mrml.prompt_values import Point, Snapshot, Start
from SlicerMaskSAMLib.mrml.prompts import PromptList
from SlicerMaskSAMLib.values.choices import Scope
from SlicerMaskSAMLib.values.sparse import Sparse
from SlicerMaskSAMLib.work.segment_conflicts import Click

SAME_VOXELS = 1e-3
"""Positions that differ by less, in voxels, are the same."""
NUMBERS = itertools.count(1)
"""Of structures in the engine; none is used twice, so that none has a past."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the engine told with its last answer; see `inference.results.Update`.

    Attributes:
        candidates: How many meanings the click has.
    """

    quality: Mapping[int, float] = field(default_factory=dict)
    axis: int = 0
    worst: int | None = None
    candidates: int = 0
    suggestion: Suggestion | None = None
    messages: tuple[str, ...] = ()

    @classmethod
    def of(cls, update: Update) -> Facts:
        """Those of an update."""
        return cls(
            quality=update.quality,
            axis=update.axis,
            worst=update.worst,
            candidates=len(update.candidates),
            suggestion=update.suggestion,
            messages=update.messages,
        )


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A structure at one end of a step of the history, apart from its voxels.

    Attributes:
        volume: ID of the node that the prompts lie on.
        taken: See `Structure.taken`.
        label: Name, colour and codes, where the step changed them.
    """

    segment_id: str
    volume: str
    prompts: Snapshot
    taken: Mapping[str, Sparse]
    label: Label | None = None


def said(volume: Any, snapshot: Snapshot) -> tuple[Hashable, ...]:
    """What prompts say to the engine; equal where it would answer the same."""
    return tuple(_said(volume, prompt, first=index == 0) for index, prompt in enumerate(snapshot))


def _said(volume: Any, prompt: prompt_values.Prompt, *, first: bool) -> Hashable:
    if isinstance(prompt, Start):
        return prompt.mask, prompt.box
    plain = prompt_values.plain(volume, prompt, first=first)
    ends = plain["corners"] if "corners" in plain else [plain["position"]]
    places = tuple(round(float(value) / SAME_VOXELS) for end in ends for value in end)
    return plain["kind"], places, plain.get("positive"), plain["scope"], plain.get("candidate")


def start_of(snapshot: Snapshot) -> Snapshot:
    """The segment that prompts start from, alone; nothing where they start from nothing."""
    return tuple(prompt for prompt in snapshot if isinstance(prompt, Start))


def has_segment(segmentation: Any, segment_id: str) -> bool:
    """Whether a segmentation node, or None, has a segment of this ID."""
    return segmentation is not None and bool(segmentation.GetSegmentation().GetSegmentIndex(segment_id) >= 0)


def single(snapshot: Snapshot) -> bool:
    """Whether it is one click that includes, which may mean several things."""
    return len(snapshot) == 1 and isinstance(snapshot[0], Point) and snapshot[0].positive


class Structure:
    """A segment that is refined on a volume.

    The markups of the scene say what is wanted; `applied` are the prompts whose answer is in the voxels. The engine
    tells what differs from its own last answer, which is kept for that; where it is not known, because a scene was
    read, another model was chosen or an answer did not arrive, the engine is told all prompts again.

    Attributes:
        prompts: The markups.
        taken: Voxels that it took from other segments, by their IDs.
        facts: What is known of the answer that is shown.
        stale: Whether `facts` are not about the prompts that are applied.
        withdrawn: Whether the answer that was on its way was cancelled by `withdraw`.
        accepted: Whether it shall be accepted as soon as all is answered.
    """

    def __init__(self, prompts: PromptList, applied: Snapshot) -> None:
        self.prompts, self.applied = prompts, applied
        self.taken: Mapping[str, Sparse] = {}
        self.facts = Facts()
        self.stale = self.accepted = self.withdrawn = False
        self._steps: list[Snapshot] = []
        self._case, self._number = -1, 0  # no number: the engine's last answer is not known
        self._said: tuple[Hashable, ...] = ()
        self._raw = Sparse()
        self._job: Job | None = None

    @property
    def name(self) -> str:
        """The segment's, as it is now."""
        segment = self.prompts.segmentation.GetSegmentation().GetSegment(self.prompts.segment_id)
        return segment.GetName() if segment is not None else ""

    @property
    def applied(self) -> Snapshot:
        """Prompts whose answer the voxels show."""
        return self._applied

    @applied.setter
    def applied(self, snapshot: Snapshot) -> None:
        self._applied, self._applied_words = snapshot, self._words(snapshot)

    @property
    def pending(self) -> bool:
        """Whether the markups say something else than what was answered."""
        now, count = self.prompts.snapshot(), len(self.applied)
        if now == self.applied:
            return False
        words = self._words(now)
        if words[:count] == self._applied_words:  # the same voxels, though a transform was hardened for instance
            self._applied = now[:count]
        return words != self._applied_words

    def begin_anew(self, applied: Snapshot, taken: Mapping[str, Sparse]) -> None:
        """The voxels now show these prompts, whatever was asked for before; nothing more is known of them."""
        self.withdraw()
        self.applied, self.taken, self.facts, self.stale = applied, taken, Facts(), True

    def added(self) -> None:
        """What was added to the prompts up to now is one step, and what comes next another one."""
        self._steps.append(self.prompts.snapshot())

    def wanted(self) -> Snapshot:
        """The prompts to be answered next: those of the next step where some were only added, else all."""
        now = self.prompts.snapshot()
        self._steps = self._open_steps(now)
        return self._steps[0] if self._steps else now

    def without_last(self) -> Snapshot:
        """The prompts without the last of those that were not answered yet."""
        now = self.prompts.snapshot()
        shorter = [step for step in self._open_steps(now) if step != now]
        return shorter[-1] if shorter else self.applied

    def _open_steps(self, now: Snapshot) -> list[Snapshot]:
        """The steps on the way from the applied prompts to these."""
        return [step for step in self._steps if len(step) > len(self.applied) and now[: len(step)] == step]

    def without(self, wanted: Snapshot) -> Snapshot:
        """The prompts without those that `wanted` has more than the applied ones."""
        now = self.prompts.snapshot()
        rest = now[len(wanted) :]
        return (self.applied or (start_of(now) if rest else ())) + rest

    def wants(self, wanted: Snapshot) -> bool:
        """Whether the markups still say that, and maybe more."""
        now = self._words(self.prompts.snapshot())
        words = self._words(wanted)
        return now == words if wanted == start_of(wanted) else now[: len(words)] == words

    def news(self, wanted: Snapshot, axis: int) -> tuple[Click, ...]:
        """The points among `wanted` that were not applied yet; `axis` runs across the slices of the model."""
        known = {(click.voxel, click.positive) for click in self._clicks(self.applied, axis)}
        return tuple(click for click in self._clicks(wanted, axis) if (click.voxel, click.positive) not in known)

    def _clicks(self, snapshot: Snapshot, axis: int) -> list[Click]:
        volume, clicks = self.prompts.volume, []
        shape = bridge.geometry(volume).shape
        for prompt in snapshot:
            if isinstance(prompt, Point):
                ijk = prompt_values.plain(volume, prompt, first=False)["position"]
                k, j, i = (min(max(int(np.floor(v + 0.5)), 0), n - 1) for v, n in zip(ijk[::-1], shape, strict=True))
                alone = axis if prompt.scope is Scope.SLICE else None
                clicks.append(Click(voxel=(k, j, i), positive=prompt.positive, axis=alone))
        return clicks

    def _words(self, snapshot: Snapshot) -> tuple[Hashable, ...]:
        return said(self.prompts.volume, snapshot)

    # -- the engine --------------------------------------------------------------------------------------------------

    def effect(self, link: EngineLink, model: str, snapshot: Snapshot) -> Generator[Any, Any, Sparse]:
        """Steps to what these prompts mean; those that only start from a segment need no engine.

        Raises:
            PromptError: One of them cannot be answered.
            Cancelled: Somebody ended it; `withdrawn` tells whether that was `withdraw`.
            MaskSAMError: The engine failed.
        """
        if snapshot == start_of(snapshot):
            masks = [
                Sparse.of(start.box, prompt_values.unpacked(start)) for start in snapshot if isinstance(start, Start)
            ]
            return masks[-1] if masks else Sparse()
        case = yield from link.case(self.prompts.volume, model)
        if self._case != case.id:
            self._case, self._number = case.id, 0
        words = self._words(snapshot)
        if not self._number or self._said != words:
            yield from self._ask(link, words, snapshot)
        return self._raw

    def _ask(self, link: EngineLink, words: tuple[Hashable, ...], snapshot: Snapshot) -> Generator[Any, Any, None]:
        volume, known = self.prompts.volume, self._number
        number = known or next(NUMBERS)  # the update of a new one holds all of it
        plain = [prompt_values.plain(volume, prompt, first=index == 0) for index, prompt in enumerate(snapshot)]
        self._job = job = link.client.submit(
            "prompt", case=self._case, structure=number, prompts=plain, multimask=single(snapshot)
        )
        self.withdrawn = False
        self._number = 0  # as long as there is no answer, nobody knows what the engine holds
        try:
            update: Update = yield job
        except Cancelled:
            with contextlib.suppress(MaskSAMError):  # an engine that is gone has forgotten it
                link.client.submit("drop", case=self._case, structure=number)
            raise
        except MaskSAMError:
            self._number = known  # a request that failed changes nothing
            raise
        finally:
            self._job = None
        self.withdrawn = False  # the answer came all the same
        self._number, self._said, self.facts = number, words, Facts.of(update)
        self._raw = self._raw.put(update.box, update.mask, reach=update.extent) if update.extent else Sparse()

    def withdraw(self) -> None:
        """The answer that is on its way is of no use any more."""
        if self._job is not None and not self._job.done():
            self.withdrawn = True
            self._job.cancel()
