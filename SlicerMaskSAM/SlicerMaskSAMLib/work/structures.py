"""A refined segment: the prompts its voxels show, and the engine's last answer."""

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
from MaskSAMCore.worker.results import Case
from SlicerMaskSAMLib.engine.engine_link import EngineLink
from SlicerMaskSAMLib.mrml import bridge, prompt_values
from SlicerMaskSAMLib.mrml.prompt_values import PointPrompt, Snapshot, StartMask
from SlicerMaskSAMLib.mrml.prompts import PromptList
from SlicerMaskSAMLib.values.choices import Scope
from SlicerMaskSAMLib.values.sparse import SparseMask
from SlicerMaskSAMLib.values.tasks import Waitable
from SlicerMaskSAMLib.work.segment_conflicts import Click

SAME_VOXELS = 1e-3
"""Positions that differ by less than this, in voxels, are equal."""
STRUCTURE_IDS = itertools.count(1)
"""Structure numbers in the engine; each is used once, so that a new structure has no earlier answer."""


@dataclass(frozen=True, kw_only=True)
class AnswerDetails:
    """What the engine reported with its last answer; see `inference.results.Update`.

    Attributes:
        candidates: Number of candidate masks of the click.
    """

    quality: Mapping[int, float] = field(default_factory=dict)
    axis: int = 0
    worst: int | None = None
    candidates: int = 0
    suggestion: Suggestion | None = None
    messages: tuple[str, ...] = ()

    @classmethod
    def of(cls, update: Update) -> AnswerDetails:
        """The details of an update."""
        return cls(
            quality=update.quality,
            axis=update.axis,
            worst=update.worst,
            candidates=len(update.candidates),
            suggestion=update.suggestion,
            messages=update.messages,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineAnswer:
    """The last answer that the engine holds for a structure; its next update is the difference to it.

    Attributes:
        case: Number of the scan in the engine.
        number: Number of the structure in the engine.
        key: `engine_key` of the answered prompts.
        mask: Mask of the whole volume.
    """

    case: int
    number: int
    key: tuple[Hashable, ...]
    mask: SparseMask


@dataclass(frozen=True, kw_only=True)
class StructureState:
    """A structure before or after a step of the history, without its voxels.

    Attributes:
        volume: ID of the volume node of the prompts.
        taken: See `Structure.taken`.
        label: Name, colour and codes, if the step changed them.
    """

    segment_id: str
    volume: str
    prompts: Snapshot
    taken: Mapping[str, SparseMask]
    label: Label | None = None


def engine_key(volume: Any, snapshot: Snapshot) -> tuple[Hashable, ...]:
    """Prompts in voxels as a value; equal if the engine would answer the same."""
    return tuple(_prompt_key(volume, prompt, first=index == 0) for index, prompt in enumerate(snapshot))


def _prompt_key(volume: Any, prompt: prompt_values.Prompt, *, first: bool) -> Hashable:
    if isinstance(prompt, StartMask):
        return prompt.mask, prompt.box
    plain = prompt_values.to_message(volume, prompt, first=first)
    ends = plain["corners"] if "corners" in plain else [plain["position"]]
    places = tuple(round(float(value) / SAME_VOXELS) for end in ends for value in end)
    return plain["kind"], places, plain.get("positive"), plain["scope"], plain.get("candidate")


def start_of(snapshot: Snapshot) -> Snapshot:
    """The start of a list of prompts alone; empty if it has none."""
    return tuple(prompt for prompt in snapshot if isinstance(prompt, StartMask))


def has_segment(segmentation: Any, segment_id: str) -> bool:
    """Whether a segmentation node, or None, has a segment with this ID."""
    return segmentation is not None and bool(segmentation.GetSegmentation().GetSegmentIndex(segment_id) >= 0)


def is_single_click(snapshot: Snapshot) -> bool:
    """Whether the list is one including click, which may have candidates."""
    return len(snapshot) == 1 and isinstance(snapshot[0], PointPrompt) and snapshot[0].positive


class Structure:
    """A segment that is refined on a volume.

    The markups in the scene say what is wanted; `applied` are the prompts whose answer the voxels show. The engine
    sends the difference to its own last answer, which is therefore kept here. If that answer is unknown, because a
    scene was loaded, another model was chosen or an answer got lost, all prompts are sent again.

    Attributes:
        prompts: The markups.
        taken: Voxels that it took from other segments, by segment ID.
        details: Details of the answer that is shown.
        stale: Whether `details` belong to other prompts than the applied ones.
        withdrawn: Whether the last request was cancelled by `withdraw`.
        accepted: Whether to accept the structure as soon as all prompts are answered.
    """

    def __init__(self, prompts: PromptList, applied: Snapshot) -> None:
        self.prompts, self.applied = prompts, applied
        self.taken: Mapping[str, SparseMask] = {}
        self.details = AnswerDetails()
        self.stale = self.accepted = self.withdrawn = False
        self._steps: list[Snapshot] = []
        self._answer: EngineAnswer | None = None  # None: what the engine holds is unknown
        self._job: Job | None = None

    @property
    def name(self) -> str:
        """Present name of the segment."""
        segment = self.prompts.segmentation.GetSegmentation().GetSegment(self.prompts.segment_id)
        return segment.GetName() if segment is not None else ""

    @property
    def applied(self) -> Snapshot:
        """The prompts whose answer the voxels show."""
        return self._applied

    @applied.setter
    def applied(self, snapshot: Snapshot) -> None:
        self._applied, self._applied_key = snapshot, self._engine_key(snapshot)

    @property
    def pending(self) -> bool:
        """Whether the markups differ from the applied prompts."""
        now, count = self.prompts.snapshot(), len(self.applied)
        if now == self.applied:
            return False
        key = self._engine_key(now)
        if key[:count] == self._applied_key:  # same voxels, for instance after hardening
            self._applied = now[:count]
        return key != self._applied_key

    def reset(self, applied: Snapshot, taken: Mapping[str, SparseMask]) -> None:
        """Declare that the voxels show these prompts.

        The request on the way is cancelled; details of the answer are unknown.
        """
        self.withdraw()
        self.applied, self.taken, self.details, self.stale = applied, taken, AnswerDetails(), True

    def mark_step(self) -> None:
        """End a step: the prompts added so far are answered before later ones."""
        self._steps.append(self.prompts.snapshot())

    def next_prompts(self) -> Snapshot:
        """The prompts to answer next: up to the next step, or all after a change."""
        now = self.prompts.snapshot()
        self._steps = self._open_steps(now)
        return self._steps[0] if self._steps else now

    def without_last(self) -> Snapshot:
        """The prompts without the last step that is not answered yet."""
        now = self.prompts.snapshot()
        shorter = [step for step in self._open_steps(now) if step != now]
        return shorter[-1] if shorter else self.applied

    def _open_steps(self, now: Snapshot) -> list[Snapshot]:
        """The steps that lead from the applied prompts to `now`."""
        return [step for step in self._steps if len(step) > len(self.applied) and now[: len(step)] == step]

    def without(self, wanted: Snapshot) -> Snapshot:
        """The present prompts without those that `wanted` added to the applied ones."""
        now = self.prompts.snapshot()
        rest = now[len(wanted) :]
        return (self.applied or (start_of(now) if rest else ())) + rest

    def still_wanted(self, wanted: Snapshot) -> bool:
        """Whether the markups still begin with these prompts."""
        now = self._engine_key(self.prompts.snapshot())
        key = self._engine_key(wanted)
        return now == key if wanted == start_of(wanted) else now[: len(key)] == key

    def new_clicks(self, wanted: Snapshot, axis: int) -> tuple[Click, ...]:
        """The points in `wanted` that are not applied yet.

        Args:
            axis: Axis of (K, J, I) across the slices of the model.
        """
        known = {(click.voxel, click.positive) for click in self._clicks(self.applied, axis)}
        return tuple(click for click in self._clicks(wanted, axis) if (click.voxel, click.positive) not in known)

    def _clicks(self, snapshot: Snapshot, axis: int) -> list[Click]:
        volume, clicks = self.prompts.volume, []
        shape = bridge.geometry(volume).shape
        for prompt in snapshot:
            if isinstance(prompt, PointPrompt):
                ijk = prompt_values.to_message(volume, prompt, first=False)["position"]
                k, j, i = (min(max(int(np.floor(v + 0.5)), 0), n - 1) for v, n in zip(ijk[::-1], shape, strict=True))
                alone = axis if prompt.scope is Scope.SLICE else None
                clicks.append(Click(voxel=(k, j, i), positive=prompt.positive, axis=alone))
        return clicks

    def _engine_key(self, snapshot: Snapshot) -> tuple[Hashable, ...]:
        return engine_key(self.prompts.volume, snapshot)

    # -- the engine --------------------------------------------------------------------------------------------------

    def mask_for(self, link: EngineLink, model: str, snapshot: Snapshot) -> Generator[Waitable | None, Any, SparseMask]:
        """Steps to the mask of these prompts. A start alone needs no engine.

        Raises:
            PromptError: A prompt cannot be answered.
            Cancelled: The request was cancelled; by `withdraw` if `withdrawn` is set.
            MaskSAMError: The engine failed.
        """
        if snapshot == start_of(snapshot):
            masks = [
                SparseMask.of(start.box, prompt_values.unpack_start(start))
                for start in snapshot
                if isinstance(start, StartMask)
            ]
            return masks[-1] if masks else SparseMask()
        case: Case = yield from link.case(self.prompts.volume, model)
        answer, key = self._answer, self._engine_key(snapshot)
        if answer is not None and answer.case != case.id:
            answer = None
        if answer is None or answer.key != key:
            answer = yield from self._request(link, case, key, snapshot, answer)
        return answer.mask

    def _request(
        self, link: EngineLink, case: Case, key: tuple[Hashable, ...], snapshot: Snapshot, known: EngineAnswer | None
    ) -> Generator[Waitable | None, Any, EngineAnswer]:
        """Steps to the engine's answer; `known` is the one that it holds now."""
        number = known.number if known is not None else next(STRUCTURE_IDS)
        messages = prompt_values.to_messages(self.prompts.volume, snapshot)
        self._job = job = link.client.submit(
            "prompt", case=case.id, structure=number, prompts=messages, multimask=is_single_click(snapshot)
        )
        self.withdrawn = False
        self._answer = None  # until the answer arrives
        try:
            update: Update = yield job
        except Cancelled:
            with contextlib.suppress(MaskSAMError):  # an engine that has ended needs no drop
                link.client.submit("drop", case=case.id, structure=number)
            raise
        except MaskSAMError:
            self._answer = known  # a failed request changes nothing in the engine
            raise
        finally:
            self._job = None
        self.withdrawn = False  # the answer arrived before the cancellation
        self.details = AnswerDetails.of(update)
        mask = SparseMask()
        if update.extent:  # without a known answer, the update is the whole mask
            before = known.mask if known is not None else mask
            mask = before.put(update.box, update.mask, reach=update.extent)
        self._answer = EngineAnswer(case=case.id, number=number, key=key, mask=mask)
        return self._answer

    def withdraw(self) -> None:
        """Cancel the request on the way, because its prompts changed."""
        if self._job is not None and not self._job.done():
            self.withdrawn = True
            self._job.cancel()
