"""A refined segment: the prompts its voxels show, and the engine's last answer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.labels import Label
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker.jobs import Job
from MaskSAMCore.worker.results import Update
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
    """What the engine reported with its last answer; see `worker.results.Update`.

    Attributes:
        candidates: Number of candidate masks of the click.
    """

    quality: Mapping[int, float] = field(default_factory=dict)
    axis: int = 0
    worst: int | None = None
    candidates: int = 0
    suggestion: Mapping[str, Any] | None = None
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
        self._case, self._number = -1, 0  # number 0: the engine's last answer is unknown
        self._answered_key: tuple[Hashable, ...] = ()
        self._mask = SparseMask()
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
        self._applied, self._applied_key = snapshot, self._key(snapshot)

    @property
    def pending(self) -> bool:
        """Whether the markups differ from the applied prompts."""
        now, count = self.prompts.snapshot(), len(self.applied)
        if now == self.applied:
            return False
        key = self._key(now)
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
        now = self._key(self.prompts.snapshot())
        key = self._key(wanted)
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

    def _key(self, snapshot: Snapshot) -> tuple[Hashable, ...]:
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
        case = yield from link.case(self.prompts.volume, model)
        if self._case != case.id:
            self._case, self._number = case.id, 0
        key = self._key(snapshot)
        if not self._number or self._answered_key != key:
            yield from self._request(link, key, snapshot)
        return self._mask

    def _request(
        self, link: EngineLink, key: tuple[Hashable, ...], snapshot: Snapshot
    ) -> Generator[Waitable | None, Any, None]:
        volume, known = self.prompts.volume, self._number
        number = known or next(STRUCTURE_IDS)  # the first update of a structure is its whole mask
        messages = prompt_values.to_messages(volume, snapshot)
        self._job = job = link.client.submit(
            "prompt", case=self._case, structure=number, prompts=messages, multimask=is_single_click(snapshot)
        )
        self.withdrawn = False
        self._number = 0  # until the answer arrives, the engine's state is unknown
        try:
            update: Update = yield job
        except Cancelled:
            with contextlib.suppress(MaskSAMError):  # an engine that has ended needs no drop
                link.client.submit("drop", case=self._case, structure=number)
            raise
        except MaskSAMError:
            self._number = known  # a failed request changes nothing in the engine
            raise
        finally:
            self._job = None
        self.withdrawn = False  # the answer arrived before the cancellation
        self._number, self._answered_key, self.details = number, key, AnswerDetails.of(update)
        self._mask = self._mask.put(update.box, update.mask, reach=update.extent) if update.extent else SparseMask()

    def withdraw(self) -> None:
        """Cancel the request on the way, because its prompts changed."""
        if self._job is not None and not self._job.done():
            self.withdrawn = True
            self._job.cancel()
