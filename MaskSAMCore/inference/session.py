"""Interactive segmentation of one scan with one model: prompts in, changed voxels out (model.md §13.3)."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from MaskSAMCore.config.serialize import from_dict
from MaskSAMCore.errors import InputError
from MaskSAMCore.inference.answer import Draft, WritableSlices, answer_slab, limit, profile, slices_to_write
from MaskSAMCore.inference.automatic import automatic_prompts
from MaskSAMCore.inference.cache import SlabCache
from MaskSAMCore.inference.checks import require_prompts, require_session_memory, scan_warnings
from MaskSAMCore.inference.frame import Frame
from MaskSAMCore.inference.prompts import Placed, Prompt, Scope, check, place
from MaskSAMCore.inference.propagate import propagate
from MaskSAMCore.inference.results import Update
from MaskSAMCore.inference.slabs import NetworkRunner, Slabs
from MaskSAMCore.inference.tiles import State, from_mask
from MaskSAMCore.inference.updates import candidate, update
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.preprocessing.plan import Plan
from MaskSAMCore.preprocessing.preprocess import preprocess
from MaskSAMCore.progress import CancelToken, Progress, no_progress
from MaskSAMCore.volume import Grid, Triple, Volume

if TYPE_CHECKING:
    from MaskSAMCore.zoo.model_folder import ModelCard

SNAPSHOTS = 8
"""Most former states of a structure that are kept, so that undo need not run the network."""
SNAPSHOT_BYTES = 256 << 20
"""Most bytes of these states."""
CONSTANT = "the image is constant; the result is empty"
EMPTY = "the negative click lies where the scan is empty; it changes nothing"
NOTHING = "the structure is still empty; start with a positive click, a box or a mask"


@dataclass(kw_only=True)
class _Structure:
    """The prompts and the state of the last answer, and former states by the keys of the prompts that led to them."""

    prompts: tuple[Prompt, ...] = ()
    shown: State = field(default_factory=State)
    snapshots: dict[tuple[Hashable, ...], State] = field(default_factory=dict)


class Session:
    """One scan that was opened with one model, and its structures. Make one with `open`; not thread-safe.

    Args:
        slabs: Windows of the prepared scan.
        frame: Between the scan and the prepared grid.
        card: Of the model.
        grid: Of the scan.
        warnings: For the user, from the opening of the scan.
        constant: Whether the image has no contrast; every answer is then empty.
    """

    def __init__(
        self, slabs: Slabs, frame: Frame, card: ModelCard, grid: Grid, *, warnings: tuple[str, ...], constant: bool
    ) -> None:
        self.frame, self.card, self.grid, self.warnings = frame, card, grid, warnings
        self._slabs: Slabs | None = slabs
        self._constant = constant
        self._structures: dict[int, _Structure] = {}
        self._former: dict[int, _Structure | None] = {}

    @classmethod
    def open(
        cls,
        network: Segmenter,
        card: ModelCard,
        volume: Volume,
        *,
        device: torch.device | str = "cpu",
        cache: SlabCache | None = None,
        progress: Progress = no_progress,
    ) -> Session:
        """Open a scan: preprocess it, without running the network yet.

        Args:
            network: Of the model; it is moved to `device`.
            card: Of the model.
            volume: (K, J, I) or (C, K, J, I), with as many channels as the model takes.
            device: Where the network runs.
            cache: Of encoded slabs; may be shared with other sessions. None for a new one.
            progress: Called once, at the end.

        Raises:
            InputError: The channels do not fit, or no voxel is finite.
            ResourceError: The scan needs more memory than is free.
        """
        volume.grid.check(where=volume.source)
        plan: Plan = card.plan if isinstance(card.plan, Plan) else from_dict(Plan, card.plan, where="model.plan")
        require_session_memory(volume, plan)
        name = volume.source or "the scan"
        warnings = [*volume.warnings, *(f"{name}: {text}" for text in scan_warnings(volume, card, plan, region=True))]
        prepared = preprocess(volume, plan)
        record = prepared.record
        if record.nonfinite:
            warnings.append(f"{name}: {record.nonfinite} voxels were NaN or Inf")
        if record.constant:
            warnings.append(f"{name}: {CONSTANT}")
        runner = NetworkRunner(
            network, torch.device(device), SlabCache() if cache is None else cache, card.config.train.precision
        )
        slabs = Slabs(prepared.image, plan, card, runner)
        progress(1, 1, "opening")
        unique = tuple(dict.fromkeys(warnings))
        return cls(slabs, Frame(record), card, volume.grid, warnings=unique, constant=record.constant)

    @property
    def axis(self) -> int:
        """The axis of (K, J, I) along which the model's slices are counted."""
        return self.frame.axis

    @property
    def device(self) -> torch.device:
        """The device of the network; the CPU after a GPU's memory was full."""
        return self._open.runner.device

    @property
    def encodes(self) -> int:
        """Runs of the encoder since the scan was opened."""
        return self._open.encodes

    @property
    def structures(self) -> tuple[int, ...]:
        """Numbers of the structures that have an answer."""
        return tuple(self._structures)

    @property
    def _open(self) -> Slabs:
        if self._slabs is None:
            raise InputError("the scan was released", where="session", remedy="Open it again.")
        return self._slabs

    def prompt(
        self,
        structure: int,
        prompts: Sequence[Prompt],
        *,
        multimask: bool = False,
        cancel: CancelToken | None = None,
        progress: Progress = no_progress,
    ) -> Update:
        """Segment a structure from all of its prompts. After an error it is as it was before.

        The result depends on scan, model and prompts alone: the same list again changes nothing, and a list without
        the last prompt undoes that prompt.

        Args:
            structure: A number of the caller's choice.
            prompts: All prompts of the structure, oldest first. A mask replaces everything before it.
            multimask: Return three candidates, if the list is a single positive click.
            cancel: Checked before every slab.
            progress: Called after every slab.

        Returns:
            The voxels that changed since the structure's last answer.

        Raises:
            PromptError: A prompt cannot be answered; names it by number and position.
            ModelError: The model takes no prompts.
            Cancelled: `cancel` was set.
            ResourceError: The memory is full, and no fallback is left.
        """
        require_prompts(self.card)
        begin, slabs = time.monotonic(), self._open
        encodes, messages = slabs.encodes, len(slabs.runner.messages)
        check(prompts, self.grid)
        placed = place(prompts, self.frame)
        single = multimask and len(prompts) == 1 and prompts[0].kind == "point" and prompts[0].positive
        last = replace(prompts[-1], candidate=prompts[-1].candidate or 0) if single else prompts[-1]
        keys = tuple(prompt.key() for prompt in (*prompts[:-1], last))
        held = self._structures.get(structure, _Structure())
        steps = _Steps(placed, slabs, cancel, progress)
        states, new = self._apply(held, keys, placed, single, steps)
        steps.finish()
        chosen = states[(last.candidate or 0) if len(states) > 1 else 0]
        kept = {**{k: v for k, v in held.snapshots.items() if k not in new}, **new, keys: chosen}
        newest = placed[-1]
        result = replace(
            update(self.frame, self.card.labels, structure, held.shown, chosen),
            candidates=tuple(candidate(self.frame, state, newest.z) for state in states) if single and newest else (),
            encoded=slabs.encodes - encodes,
            seconds=time.monotonic() - begin,
            messages=(*chosen.messages, *slabs.runner.messages[messages:]),
        )
        # after all that may fail
        answered = _Structure(prompts=tuple(prompts), shown=chosen, snapshots=_latest(kept))
        self._former[structure], self._structures[structure] = self._structures.get(structure), answered
        return result

    def _apply(
        self,
        held: _Structure,
        keys: tuple[Hashable, ...],
        placed: Sequence[Placed | None],
        single: bool,
        step: _Steps,
    ) -> tuple[list[State], dict[tuple[Hashable, ...], State]]:
        """Apply the prompts that follow the longest known part of the list.

        Args:
            held: The structure so far.
            keys: Of the prompts.
            placed: The prompts on the prepared grid.
            single: Whether the list is one click whose candidates are wanted.
            step: Called before every slab.

        Returns:
            The states after the last prompt, one for each candidate; and all new states by the keys that led to them.
        """
        known = 0 if single else max((n for n in range(len(keys) + 1) if keys[:n] in held.snapshots), default=0)
        states = [held.snapshots[keys[:known]]] if known else [State()]
        new: dict[tuple[Hashable, ...], State] = {}
        for index in range(known, len(placed)):
            wanted = placed[index]
            several = wanted is not None and (single or wanted.candidate is not None)
            states = self._next(states[0], placed[: index + 1], several, step)
            if several and not single and wanted is not None and len(states) > 1:
                states = [states[wanted.candidate or 0]]
            new[keys[: index + 1]] = states[0]
        return states, new

    def _next(self, state: State, placed: Sequence[Placed | None], several: bool, step: _Steps) -> list[State]:
        """Apply the last of these prompts to a state; with `several` one state for each candidate, the best first."""
        new, slabs = placed[-1], self._open
        if new is None:
            return [replace(state, messages=(EMPTY,))]
        if new.mask is not None:
            return [self._start(new.mask)]
        if self._constant:
            return [replace(state, messages=(CONSTANT,))]
        masks = [index for index, each in enumerate(placed) if each is not None and each.kind == "mask"]
        since = [each for each in placed[masks[-1] if masks else 0 :] if each is not None]
        step()
        answers, by_slice = answer_slab(slabs, state, since, multimask=several)
        if not answers:
            return [replace(state, messages=(NOTHING,))]
        own, clip, weight = WritableSlices.of(since), limit(state.clip, new), profile(slabs)
        states = []
        for rank, answer in enumerate(answers):
            draft = Draft(state, clip)
            for z in slices_to_write(answer, own, new):
                draft.write(z, answer, float(weight[z - answer.start]))
            if new.scope == "volume" and rank == (new.candidate or 0):
                propagate(slabs, draft, answer, by_slice, own, step)
            states.append(draft.finish(self.frame, answer, new.z))
        return states

    def _start(self, prompt: Prompt) -> State:
        """The state of an existing mask: its own voxels, and logits on the prepared grid for the network."""
        block = np.asarray(prompt.mask) != 0
        bounds = [(low, low + n) for low, n in zip(prompt.mask_box, block.shape, strict=True)]
        corner = [0, 0, 0]
        for axis, (source, flip) in enumerate(zip(self.frame.record.axes, self.frame.record.flips, strict=True)):
            low, high = bounds[source]
            corner[axis] = self.frame.size[axis] - high if flip else low
        slices, planes = from_mask(self.frame.turned(block), (corner[0], corner[1], corner[2]), self.frame)
        return State(planes=planes, given=frozenset(planes), slices=slices)

    def propagate(
        self,
        structure: int,
        scope: Scope = "volume",
        *,
        cancel: CancelToken | None = None,
        progress: Progress = no_progress,
    ) -> Update:
        """Answer a structure's last list of prompts again, the last prompt with this scope.

        Raises:
            InputError: The structure has no prompts.
            MaskSAMError: As `prompt`.
        """
        held = self._structures.get(structure)
        if held is None:
            raise InputError("nothing to propagate", where=f"structure {structure}", remedy="Prompt it first.")
        *before, last = held.prompts
        return self.prompt(structure, (*before, replace(last, scope=scope)), cancel=cancel, progress=progress)

    def take_back(self, structure: int) -> None:
        """Undo the last `prompt`, `propagate` or `drop` of a structure, whose answer did not reach the user."""
        if structure in self._former:
            former = self._former.pop(structure)
            self._structures.pop(structure, None)
            if former is not None:
                self._structures[structure] = former

    def mask(self, structure: int) -> np.ndarray:
        """A structure as uint8 0/1 (K, J, I) on the whole scan; zeros for one without prompts."""
        held = self._structures.get(structure)
        out: np.ndarray = np.zeros(self.grid.shape, np.uint8)
        turned = self.frame.turned(out)
        for d, tile in held.shown.slices.items() if held else ():
            y0, y1, x0, x1 = tile.rect
            turned[d, y0:y1, x0:x1] = tile.array
        return out

    def drop(self, structure: int) -> Update:
        """Forget a structure. The update clears its voxels; it is empty for a structure without prompts."""
        held = self._structures.get(structure)
        result = update(self.frame, self.card.labels, structure, State() if held is None else held.shown, State())
        self._structures.pop(structure, None)
        self._former[structure] = held
        return result

    def release(self) -> None:
        """Forget the scan and all structures; the encoded slabs stay in the cache."""
        self._slabs = None
        self._structures.clear()
        self._former.clear()

    def encode(
        self,
        position: Triple | None = None,
        *,
        slabs: int | None = None,
        cancel: CancelToken | None = None,
        progress: Progress = no_progress,
    ) -> int:
        """Encode slabs before they are needed, from a position outward; returns the number of encoder runs.

        Nothing is done for a model that takes no prompts.

        Args:
            position: (i, j, k) in the scan; None for its centre.
            slabs: Most slabs, counting those in the cache already; None for as many as the cache keeps.
            cancel: Checked before every slab. Slabs that were encoded by then stay in the cache.
            progress: Called after every slab.

        Raises:
            Cancelled: `cancel` was set.
            ResourceError: The memory is full, and no fallback is left.
        """
        own = self._open
        before, room = own.encodes, own.cache.capacity
        if self._constant or not self.card.config.model.takes_prompts:
            return 0
        middle = [(n - 1) / 2 for n in self.grid.shape[::-1]]
        place = self.frame.prepared(self.frame.turn(middle if position is None else position))
        inside = [min(max(v, 0.0), n - 1.0) for v, n in zip(place, own.size, strict=True)]
        windows = own.around(inside)[:slabs]
        for index, start in enumerate(windows):
            if cancel is not None:
                cancel.check()
            room -= own.encoded(start).nbytes
            progress(index + 1, len(windows), "encoding")
            if slabs is None and room < 0:
                break
        return own.encodes - before

    def automatic(
        self,
        label: int,
        slices: Sequence[int] | None = None,
        *,
        cancel: CancelToken | None = None,
        progress: Progress = no_progress,
    ) -> list[tuple[Prompt, Prompt]]:
        """Automatic prompts of the model for a label: a box and a point for each slice, both of scope "slice".

        Args:
            label: Id in the model's table.
            slices: Indices along `axis`; None for all of the scan.
            cancel: Checked before every slab.
            progress: Called after every slab.

        Raises:
            PromptError: The model has no such label, or a slice lies outside of the scan.
            ModelError: The model takes no prompts, or has no generator of prompts.
            Cancelled: `cancel` was set.
        """
        require_prompts(self.card)
        if self._constant:
            return []
        return automatic_prompts(self._open, self.frame, self.card.labels, label, slices, cancel, progress)


class _Steps:
    """Checks for a cancel and reports the progress, before every slab and in the end."""

    def __init__(
        self, placed: Sequence[Placed | None], slabs: Slabs, cancel: CancelToken | None, progress: Progress
    ) -> None:
        far = any(each is not None and each.scope == "volume" for each in placed)
        self.total = len(placed) + (len(slabs.starts[0]) if far else 0)
        self.cancel, self.progress, self.done = cancel, progress, 0

    def __call__(self) -> None:
        if self.cancel is not None:
            self.cancel.check()
        self.progress(min(self.done, self.total - 1), self.total, "segmenting")
        self.done += 1

    def finish(self) -> None:
        self.progress(self.total, self.total, "segmenting")


def _latest(snapshots: dict[tuple[Hashable, ...], State]) -> dict[tuple[Hashable, ...], State]:
    """The newest states within `SNAPSHOTS` and `SNAPSHOT_BYTES`; slices that states share count once."""
    kept: dict[tuple[Hashable, ...], State] = {}
    tiles: dict[int, int] = {}
    for keys, state in reversed(list(snapshots.items())[-SNAPSHOTS:]):
        tiles |= {id(tile): tile.array.nbytes for tile in (*state.planes.values(), *state.slices.values())}
        if kept and sum(tiles.values()) > SNAPSHOT_BYTES:
            break
        kept[keys] = state
    return dict(reversed(kept.items()))
