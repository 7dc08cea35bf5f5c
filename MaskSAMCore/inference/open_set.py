"""Interactive segmentation of structures of any kind: a session of the click model `any`.

It has the methods of `session.Session`. A structure is answered on the scan's own voxels through windows of any zoom
(`autozoom`); the answer depends on scan, model, precision and the list of prompts alone.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from MaskSAMCore import device as devices
from MaskSAMCore.errors import InputError, PromptError
from MaskSAMCore.inference.autozoom import SIZES, Autozoom, Hint, Known, Shape3D
from MaskSAMCore.inference.drawings import hint_of
from MaskSAMCore.inference.prompts import Prompt, Scope, check
from MaskSAMCore.inference.results import Bounds, Update
from MaskSAMCore.inference.zoom_scan import ZoomScan
from MaskSAMCore.network.click_unet import ClickUNet
from MaskSAMCore.progress import CancelToken, Progress, no_progress
from MaskSAMCore.volume import Grid, Triple, Volume

if TYPE_CHECKING:
    from MaskSAMCore.zoo.model_folder import ModelCard

SNAPSHOTS = 24
"""Most former states of a structure that are kept, so that undo need not run the network."""
CONSTANT = "the image is constant; the result is empty"
NOTHING = "the structure is still empty; start with a positive prompt or a mask"
BYTES_PER_VOXEL = 8
"""Of an open scan: its voxels as float32, coarser copies, and masks."""


@dataclass(kw_only=True)
class _Structure:
    """The prompts and the state of the last answer, and former states by the keys of the prompts that led to them."""

    prompts: tuple[Prompt, ...] = ()
    shown: Known = field(default_factory=Known)
    snapshots: dict[tuple[Hashable, ...], Known] = field(default_factory=dict)


class OpenSetSession:
    """One scan that was opened with a model without labels, and its structures. Make one with `open`; not thread-safe.

    Args:
        scan: The scan and the network.
        card: Of the model.
        grid: Of the scan.
        warnings: For the user, from the opening of the scan.
        constant: Whether the image has no contrast; every answer is then empty.
    """

    def __init__(
        self, scan: ZoomScan, card: ModelCard, grid: Grid, *, warnings: tuple[str, ...], constant: bool
    ) -> None:
        self.card, self.grid, self.warnings = card, grid, warnings
        self._scan: ZoomScan | None = scan
        self._constant = constant
        self._structures: dict[int, _Structure] = {}
        self._former: dict[int, _Structure | None] = {}

    @classmethod
    def open(
        cls,
        network: ClickUNet,
        card: ModelCard,
        volume: Volume,
        *,
        device: torch.device | str = "cpu",
        progress: Progress = no_progress,
    ) -> OpenSetSession:
        """Open a scan, without running the network yet.

        Args:
            network: Of the model; it is moved to `device`.
            card: Of the model.
            volume: (K, J, I), of one channel.
            device: Where the network runs.
            progress: Called once, at the end.

        Raises:
            InputError: The scan has several channels, or no voxel is finite.
            ResourceError: The scan needs more memory than is free.
        """
        volume.grid.check(where=volume.source)
        if volume.channels != 1:
            why = f"it has {volume.channels}"
            raise InputError("the scan has another number of channels than the model", where=volume.source, why=why)
        name = volume.source or "the scan"
        needed = BYTES_PER_VOXEL * float(np.prod(volume.grid.shape))
        devices.require_ram(int(needed), what=name, remedy="Close other programs, or open a smaller part of it.")
        array, warnings = volume.as_channels()[0], list(volume.warnings)
        finite = np.isfinite(array)
        if not finite.all():
            if not finite.any():
                raise InputError("no voxel is a finite number", where=volume.source)
            warnings.append(f"{name}: {int((~finite).sum())} voxels were NaN or Inf")
            array = np.where(finite, array, array[finite].min())
        constant = bool(array.max() == array.min())
        if constant:
            warnings.append(f"{name}: {CONSTANT}")
        place = torch.device(device)
        dtype = devices.inference_dtype(place)
        autocast = partial(torch.autocast, place.type, dtype=dtype, enabled=dtype is not None)
        scan = ZoomScan(array, volume.grid, network.to(place).eval(), place, autocast)
        progress(1, 1, "opening")
        return cls(scan, card, volume.grid, warnings=tuple(dict.fromkeys(warnings)), constant=constant)

    @property
    def axis(self) -> int:
        """The axis of (K, J, I) along which slices are counted."""
        return self._open.axes[0]

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self._open.device

    @property
    def encodes(self) -> int:
        """Passes of the network since the scan was opened."""
        return self._open.passes

    @property
    def structures(self) -> tuple[int, ...]:
        """Numbers of the structures that have an answer."""
        return tuple(self._structures)

    @property
    def _open(self) -> ZoomScan:
        if self._scan is None:
            raise InputError("the scan was released", where="session", remedy="Open it again.")
        return self._scan

    def prompt(
        self,
        structure: int,
        prompts: Sequence[Prompt],
        *,
        multimask: bool = False,
        cancel: CancelToken | None = None,
        progress: Progress = no_progress,
    ) -> Update:
        """Segment a structure from all of its prompts; see `Session.prompt`. There are no candidates.

        Raises:
            PromptError: A prompt cannot be answered; names it by number and position.
            Cancelled: `cancel` was set; the structure is as it was.
        """
        begin, scan = time.monotonic(), self._open
        passes = scan.passes
        check(prompts, self.grid)
        keys = tuple(prompt.key() for prompt in prompts)
        held = self._structures.get(structure, _Structure())
        known = max((n for n in range(len(keys) + 1) if keys[:n] in held.snapshots), default=0)
        state = held.snapshots[keys[:known]] if known else Known()
        new: dict[tuple[Hashable, ...], Known] = {}
        zoom = Autozoom(scan, _Steps(cancel, progress))
        for index in range(known, len(prompts)):
            state = self._next(zoom, state, prompts[: index + 1])
            new[keys[: index + 1]] = state
        progress(1, 1, "segmenting")
        messages = (CONSTANT,) if self._constant else () if state.shape.block.size else (NOTHING,)
        result = replace(
            self._update(structure, held.shown.shape, state.shape),
            encoded=scan.passes - passes,
            seconds=time.monotonic() - begin,
            messages=messages,
        )
        kept = {**{k: v for k, v in held.snapshots.items() if k not in new}, **new, keys: state}
        answered = _Structure(prompts=tuple(prompts), shown=state, snapshots=dict(list(kept.items())[-SNAPSHOTS:]))
        self._former[structure], self._structures[structure] = self._structures.get(structure), answered
        return result

    def _next(self, zoom: Autozoom, state: Known, prompts: Sequence[Prompt]) -> Known:
        """The state after the last of these prompts."""
        last = prompts[-1]
        if last.kind == "mask" and last.positive:
            mask = self._given(last)
            return Known(shape=mask, given=mask)
        if self._constant:
            return state
        given = max((n for n, each in enumerate(prompts) if each.kind == "mask" and each.positive), default=-1)
        others = [each for each in prompts[: max(given, 0)] if each.kind == "mask" and not each.positive]
        return zoom.answer(state, [self._hint(each) for each in (*others, *prompts[given + 1 :])])

    def _hint(self, prompt: Prompt) -> Hint:
        if prompt.kind == "mask":
            others = self._given(prompt)
            return Hint(positive=False, region=others.block, corner=others.corner, excluded=True)
        return hint_of(prompt, self._open.axes, self._open.voxel, self._open.shape)

    def _given(self, prompt: Prompt) -> Shape3D:
        block = np.asarray(prompt.mask) != 0
        corner = np.array(prompt.mask_box)[list(self._open.axes)]
        return Shape3D(block=block.transpose(self._open.axes), corner=corner).trimmed()

    def propagate(
        self,
        structure: int,
        scope: Scope = "volume",
        *,
        cancel: CancelToken | None = None,
        progress: Progress = no_progress,
    ) -> Update:
        """Answer a structure's last list of prompts again; every answer reaches through the volume already.

        Raises:
            InputError: The structure has no prompts.
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
        if held is not None:
            turned = out.transpose(self._open.axes)
            shape = held.shown.shape
            turned[tuple(slice(int(a), int(b)) for a, b in zip(shape.corner, shape.end, strict=True))] = shape.block
        return out

    def drop(self, structure: int) -> Update:
        """Forget a structure. The update clears its voxels; it is empty for a structure without prompts."""
        held = self._structures.pop(structure, None)
        self._former[structure] = held
        return self._update(structure, Shape3D.empty() if held is None else held.shown.shape, Shape3D.empty())

    def release(self) -> None:
        """Forget the scan and all structures."""
        self._scan = None
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
        """Average the scan for the windows of a first click, before there is one; nothing is encoded."""
        scan = self._open
        for number, size in enumerate(SIZES):
            if cancel is not None:
                cancel.check()
            scan.image(scan.window((np.array(scan.shape) - 1) / 2, size * scan.finest))
            progress(number + 1, len(SIZES), "encoding")
        return 0

    def automatic(
        self,
        label: int,
        slices: Sequence[int] | None = None,
        *,
        cancel: CancelToken | None = None,
        progress: Progress = no_progress,
    ) -> list[tuple[Prompt, Prompt]]:
        """Not possible: the model has no labels.

        Raises:
            PromptError: Always.
        """
        remedy = "Click on the structure, or choose a model that knows it."
        raise PromptError("the model finds nothing by itself", where=self.card.name, remedy=remedy)

    def _update(self, structure: int, old: Shape3D, new: Shape3D) -> Update:
        box, block = _change(old, new)
        return Update(
            structure=structure,
            box=None if box is None else self._bounds(box),
            mask=np.zeros((0, 0, 0), np.uint8) if block is None else self._unturned(block),
            extent=None if not new.block.size else self._bounds(_box(new)),
            voxels=int(new.block.sum()),
            axis=self.axis,
        )

    def _unturned(self, block: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(block.transpose(np.argsort(self._open.axes)), np.uint8)

    def _bounds(self, box: Bounds) -> Bounds:
        order = np.argsort(self._open.axes)
        low, high = np.array(box[::2])[order], np.array(box[1::2])[order]
        k0, k1, j0, j1, i0, i1 = (int(v) for pair in zip(low, high, strict=True) for v in pair)
        return k0, k1, j0, j1, i0, i1


class _Steps:
    """Checks for a cancel and reports progress before every window."""

    def __init__(self, cancel: CancelToken | None, progress: Progress) -> None:
        self.cancel, self.progress, self.done = cancel, progress, 0

    def __call__(self) -> None:
        if self.cancel is not None:
            self.cancel.check()
        self.done += 1
        self.progress(min(self.done, len(SIZES)), len(SIZES) + 1, "segmenting")


def _box(shape: Shape3D) -> Bounds:
    a, b = shape.corner.tolist(), shape.end.tolist()
    return a[0], b[0], a[1], b[1], a[2], b[2]


def _change(old: Shape3D, new: Shape3D) -> tuple[Bounds | None, np.ndarray | None]:
    """Box of the voxels that differ, and the new structure on it; (None, None) if none do."""
    boxes = [_box(each) for each in (old, new) if each.block.size]
    if not boxes:
        return None, None
    low = [min(box[n] for box in boxes) for n in (0, 2, 4)]
    high = [max(box[n] for box in boxes) for n in (1, 3, 5)]
    whole = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    differs = Shape3D(block=old.cut(whole) != new.cut(whole), corner=np.array(low)).trimmed()
    if not differs.block.size:
        return None, None
    box = _box(differs)
    return box, new.cut((slice(box[0], box[1]), slice(box[2], box[3]), slice(box[4], box[5])))
