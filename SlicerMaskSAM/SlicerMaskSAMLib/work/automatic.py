"""Automatic segmentation of a volume, and writing of its structures to the scene.

The user goes on working while the engine computes, possibly for minutes. Before anything is written, the scene is
compared with the request: what was changed in the meantime is left alone.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.labels import Label
from MaskSAMCore.worker.jobs import Job
from MaskSAMCore.worker.results import Block, Segmented
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.history import SegmentChange, UndoStep
from SlicerMaskSAMLib.values.sparse import SparseMask, VoxelBox, box_shape, intersection, union
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.segment_request import SegmentRequest, segment_ids

VOXELS_PER_STEP = 4_000_000
"""Voxels written before control returns to the GUI."""


class SliceProgress:
    """A job whose progress is counted in slices instead of the engine's windows."""

    def __init__(self, job: Job, slices: int) -> None:
        self._job, self._slices = job, slices
        self.done, self.result, self.cancel = job.done, job.result, job.cancel

    @property
    def progress(self) -> tuple[int, int, str] | None:
        """Number of finished slices, of how many."""
        progress = self._job.progress
        if progress is None or progress[1] <= 0:
            return progress
        done, total, _ = progress
        return done * self._slices // total, self._slices, "Slices"


class AutomaticRun:
    """One automatic segmentation, from the request to the segments in the scene."""

    def __init__(self, context: Context, request: SegmentRequest) -> None:
        self._context, self._request = context, request
        self._changes: list[SegmentChange] = []
        self._created: list[tuple[str, Label]] = []
        self._segmentation: Any = None
        self._new_segmentation = False

    def steps(self) -> Steps:
        """Segment the scan, write its structures, and add a step to the history.

        Raises:
            MaskSAMError: The engine failed, or the run was cancelled; the scene is as before.
        """
        request, link = self._request, self._context.engine_link
        case = yield from link.case(request.volume, request.model)
        job = link.client.submit("segment", case=case, roi=list(request.regions), step=request.step)
        found: Segmented = yield (job if request.regions else SliceProgress(job, case.shape[case.axis]))
        for line in found.warnings:
            if line not in case.warnings:  # those were logged when it was opened
                self._context.log(line)
        blocks = [block for block in found.blocks if block.label in request.labels]
        self._check(blocks)
        try:
            while not (yield from self._write_all(blocks)):
                self._context.log("The segmentation was deleted while structures were written; they go to a new one.")
        except MaskSAMError:
            self._roll_back()
            raise
        self._finish()
        for segment_id in bridge.outdated_surfaces(self._segmentation):
            yield None
            if segment_id in segment_ids(self._segmentation):
                bridge.refresh_surface(self._segmentation, segment_id, request.geometry)

    def _check(self, blocks: Sequence[Block]) -> None:
        """Raise MaskSAMError for blocks that do not fit the volume."""
        for block in blocks:
            if block.box is not None and not (
                self._request.geometry.fits(block.box) and block.mask.shape == box_shape(block.box)
            ):
                why = f"{block.mask.shape} voxels in {block.box} of {self._request.geometry.shape}"
                raise MaskSAMError("the engine's answer is malformed", where=f"label {block.label}", why=why)

    # -- target ------------------------------------------------------------------------------------------------------

    def _target(self) -> Any:
        """The segmentation to write to: the chosen one, or a new one after changes."""
        request, doubt, chosen = self._request, self._volume_change(), self._chosen()
        if chosen is not None and not doubt and bridge.same_frame(chosen, request.volume):
            return chosen
        self._new_segmentation = True
        name, scene = f"{request.name} segmentation", self._context.scene
        if doubt:
            transform = scene.GetNodeByID(request.transform) if request.transform else None
            made = bridge.new_segmentation(scene, name, geometry=request.geometry, transform=transform)
            why = f"{request.name} {doubt} during the segmentation; this is the result for the earlier state"
        else:
            made = bridge.new_segmentation(scene, name, volume=request.volume)
            why = (
                "the chosen segmentation was deleted"
                if chosen is None
                else "the chosen one has another parent transform"
            )
        if doubt or request.segmentation:
            self._context.log(f"{made.GetName()} is new: {why}.")
        return made

    def _chosen(self) -> Any:
        """The segmentation of the request, or else the one chosen in the meantime."""
        request, parameters = self._request, self._context.parameters
        if request.segmentation:
            return self._context.scene.GetNodeByID(request.segmentation)
        return parameters.segmentation if parameters.inputVolume is request.volume else None

    def _volume_change(self) -> str:
        """What happened to the volume since the request; "" if it is unchanged."""
        request = self._request
        if not self._context.scene.IsNodePresent(request.volume):
            return "was deleted"
        return "" if bridge.fingerprint(request.volume) == request.fingerprint else "was changed"

    def _replaceable_segment(self, target: Any, label: Label) -> str:
        """ID of the segment of this name, if nobody edited it since the request; else ""."""
        of_that_name = [each for each in segment_ids(target) if bridge.segment_label(target, each).name == label.name]
        if of_that_name:
            segment_id = of_that_name[0]
            if bridge.stamp(target, segment_id) == self._request.stamps.get(segment_id):
                return segment_id
            self._context.log(f"{label.name} was edited during the segmentation; both versions are kept.")
        return ""

    # -- writing -----------------------------------------------------------------------------------------------------

    def _write_all(self, blocks: Sequence[Block]) -> Generator[None, None, bool]:
        """Write all structures; returns whether the segmentation still exists."""
        self._changes, self._created, self._new_segmentation = [], [], False
        self._segmentation = self._target()
        for block in blocks:
            yield from self._write(self._segmentation, block)
            if not self._context.scene.IsNodePresent(self._segmentation):
                return False
        return True

    def _write(self, target: Any, block: Block) -> Generator[None, None, None]:
        label, geometry = self._request.labels[block.label], self._request.geometry
        segment_id = self._replaceable_segment(target, label)
        if block.box is None:
            self._context.log(f"{label.name} was not found.")
        elif not segment_id:
            segment_id = bridge.add_segment(target, label)
            self._created.append((segment_id, bridge.segment_label(target, segment_id, label.id)))
        if not segment_id:
            return
        for box, mask in _slabs(block, intersection(bridge.extent(target, segment_id, geometry), self._request.reach)):
            before = bridge.read_segment(target, segment_id, geometry, box)
            change = SegmentChange.between(segment_id, box, before, mask)
            if change is not None:
                bridge.write_segment(target, segment_id, geometry, box, mask)
                self._changes.append(change)
            yield None

    def _roll_back(self) -> None:
        """Restore the scene as it was before the run."""
        scene, target, geometry = self._context.scene, self._segmentation, self._request.geometry
        if not scene.IsNodePresent(target):
            return
        if self._new_segmentation:
            scene.RemoveNode(target)
            return
        created = {segment_id for segment_id, _ in self._created}
        for change in reversed(self._changes):
            if change.segment_id in segment_ids(target) and change.segment_id not in created:
                now = bridge.read_segment(target, change.segment_id, geometry, change.box)
                bridge.write_segment(target, change.segment_id, geometry, change.box, change.undone(now))
        for segment_id in created & set(segment_ids(target)):
            bridge.remove_segment(target, segment_id)

    def _finish(self) -> None:
        request, parameters, target = self._request, self._context.parameters, self._segmentation
        if self._changes:
            changes, created = tuple(self._changes), tuple(self._created)
            self._context.history.push(
                UndoStep(
                    text=f"Segmentation of {request.name}",
                    changes=changes,
                    created=created,
                    segmentation=target.GetID(),
                    geometry=request.geometry,
                )
            )
        current = parameters.segmentation
        meant = current is None or current.GetID() == request.segmentation
        if meant and parameters.inputVolume is request.volume and not self._volume_change():
            parameters.segmentation = target


def _slabs(block: Block, extent: VoxelBox | None) -> Iterator[tuple[VoxelBox, np.ndarray]]:
    """Boxes and masks to write, slab by slab: the block, zeros around it."""
    whole = union(block.box, extent)
    if whole is None:
        return
    mask = SparseMask.of(block.box, block.mask)
    k0, k1, *plane = whole
    j0, j1, i0, i1 = plane
    slices = max(1, VOXELS_PER_STEP // ((j1 - j0) * (i1 - i0)))
    for low in range(k0, k1, slices):
        box = (low, min(low + slices, k1), j0, j1, i0, i1)
        yield box, mask.read(box).view(np.uint8)
