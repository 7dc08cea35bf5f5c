"""Writes an answer to its segment, and resolves conflicts with other segments.

Only voxels in which the answer differs from the previous one change, so that manual edits are kept. The exception is
the connected component of a new click, which the click decides about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.choices import OverlapPolicy
from SlicerMaskSAMLib.values.history import SegmentChange
from SlicerMaskSAMLib.values.sparse import SparseMask, VoxelBox, box_shape, intersection, slices_in, union, voxel_box


@dataclass(frozen=True, kw_only=True)
class Click:
    """A new point.

    Attributes:
        voxel: (k, j, i).
        positive: Whether it includes.
        axis: Axis of (K, J, I) across the slice that the click is confined to; None if it reaches beyond its slice.
    """

    voxel: tuple[int, int, int]
    positive: bool
    axis: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentEdit:
    """A change of a segment from one mask of the model to the next.

    Attributes:
        segment_id: The segment.
        before, after: The model's previous and new mask of the whole volume.
        clicks: Points that the previous mask did not take into account.
        policy: What happens where other segments are.
        taken: Voxels taken from other segments, by segment ID; returned when the structure leaves them.
        sharing: Segments that it may overlap, whatever the policy.
    """

    segment_id: str
    before: SparseMask
    after: SparseMask
    clicks: tuple[Click, ...] = ()
    policy: OverlapPolicy = OverlapPolicy.PROTECT
    taken: Mapping[str, SparseMask] = field(default_factory=dict)
    sharing: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What to write.

    Attributes:
        box: Box in which voxels change.
        masks: New voxels in the box of every segment that changes, bool (k, j, i).
        changes: The same changes, for the history.
        taken: `SegmentEdit.taken`, updated.
        protected: Names of the protected segments in which an including click lies.
    """

    box: VoxelBox | None = None
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    changes: tuple[SegmentChange, ...] = ()
    taken: Mapping[str, SparseMask] = field(default_factory=dict)
    protected: tuple[str, ...] = ()


def read_mask(segmentation: Any, segment_id: str, geometry: bridge.Geometry) -> SparseMask:
    """The mask of a segment on the grid of a volume."""
    box = bridge.extent(segmentation, segment_id, geometry)
    if box is None:
        return SparseMask()
    return SparseMask.of(box, bridge.read_segment(segmentation, segment_id, geometry, box))


def resolve(segmentation: Any, geometry: bridge.Geometry, edit: SegmentEdit, changed: VoxelBox | None) -> Outcome:
    """Find out what an edit changes in a segmentation; nothing is written.

    Args:
        segmentation: Segmentation node.
        geometry: Grid of the volume.
        edit: The edit.
        changed: Box in which the masks of the edit differ; None if they are equal.
    """
    named = [click for click in edit.clicks if _edited_by_hand(segmentation, geometry, edit, click)]
    box = union(
        edit.before.differing_box(edit.after), *(_component_box(segmentation, geometry, edit, click) for click in named)
    )
    if box is None:
        return Outcome(taken=edit.taken)
    own = bridge.read_segment(segmentation, edit.segment_id, geometry, box) != 0
    found = bridge.other_segments(segmentation, edit.segment_id, geometry, box)
    others = {each: mask != 0 for each, mask in found.items() if each not in edit.sharing}
    held: np.ndarray = np.zeros(box_shape(box), bool)
    for mask in others.values():
        held |= mask
    blocked = held & ~own if edit.policy is OverlapPolicy.PROTECT else np.zeros_like(held)
    new = _new_mask(edit, named, box, own, blocked)
    masks, taken = _distribute(segmentation, edit, box, own, new, others)
    old = {**others, edit.segment_id: own}
    changes = [
        SegmentChange.between(each, box, old.get(each, np.zeros_like(own)), mask) for each, mask in masks.items()
    ]
    return Outcome(
        box=box,
        masks=masks,
        changes=tuple(change for change in changes if change is not None),
        taken=taken,
        protected=_protecting_segments(segmentation, edit.clicks, box, others, blocked),
    )


def write(segmentation: Any, geometry: bridge.Geometry, found: Outcome) -> None:
    """Write an outcome to the segmentation."""
    if found.box is None:
        return
    for change in found.changes:
        mask = found.masks[change.segment_id][slices_in(change.box, found.box)]
        bridge.write_segment(segmentation, change.segment_id, geometry, change.box, mask.astype(np.uint8))


def _edited_by_hand(segmentation: Any, geometry: bridge.Geometry, edit: SegmentEdit, click: Click) -> bool:
    """Whether the voxel of a click was edited by hand.

    The click then differs from the segment, but not from the model's mask.
    """
    box = voxel_box(click.voxel)
    if edit.before.read(box).any() != edit.after.read(box).any():
        return False
    return bool(bridge.read_segment(segmentation, edit.segment_id, geometry, box).any()) != click.positive


def _component_box(segmentation: Any, geometry: bridge.Geometry, edit: SegmentEdit, click: Click) -> VoxelBox | None:
    """A box that contains the connected component of a click."""
    own = bridge.extent(segmentation, edit.segment_id, geometry)
    return union(edit.after.box if click.positive else own, voxel_box(click.voxel))


def _new_mask(
    edit: SegmentEdit, named: Sequence[Click], box: VoxelBox, own: np.ndarray, blocked: np.ndarray
) -> np.ndarray:
    """The structure's new voxels, bool (k, j, i)."""
    before, after = edit.before.read(box), edit.after.read(box)
    new = (own & ~(before ^ after)) | (after & ~before & ~blocked)
    for click in named:
        at = tuple(index - low for index, low in zip(click.voxel, box[::2], strict=True))
        free = (after & ~new & ~blocked) if click.positive else (new & ~after)
        if click.axis is not None:
            elsewhere = np.ones(free.shape[click.axis], bool)
            elsewhere[at[click.axis]] = False
            np.moveaxis(free, click.axis, 0)[elsewhere] = False
        new ^= connected_component(free, at)
    return new


def connected_component(mask: np.ndarray, at: tuple[int, ...]) -> np.ndarray:
    """The face-connected component of a mask, bool (k, j, i), at a voxel.

    It is empty if the voxel is not set.
    """
    if not mask[at]:
        return np.zeros_like(mask)
    image = vtk.vtkImageData()
    image.SetDimensions(mask.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(mask, np.uint8).ravel()))
    seeds = vtk.vtkPoints()
    seeds.InsertNextPoint(*at[::-1])
    flood = vtk.vtkImageThresholdConnectivity()
    flood.SetInputData(image)
    flood.SetSeedPoints(seeds)
    flood.ThresholdByUpper(1)
    flood.ReplaceInOn()
    flood.SetInValue(1)
    flood.ReplaceOutOn()
    flood.SetOutValue(0)
    flood.Update()
    return vtk_to_numpy(flood.GetOutput().GetPointData().GetScalars()).reshape(mask.shape) != 0


def _distribute(
    segmentation: Any,
    edit: SegmentEdit,
    box: VoxelBox,
    own: np.ndarray,
    new: np.ndarray,
    others: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, SparseMask]]:
    """New masks of all segments in writing order, and voxels taken from each."""
    gained, lost = new & ~own, own & ~new
    free = lost.copy()
    for mask in others.values():
        free &= ~mask
    nothing = np.zeros_like(own)
    first: dict[str, np.ndarray] = {}
    last: dict[str, np.ndarray] = {}
    taken = dict(edit.taken)
    replacing = edit.policy is OverlapPolicy.REPLACE
    took = {each: mask & gained for each, mask in others.items() if replacing and (mask & gained).any()}
    for each in {**took, **edit.taken}:
        if segmentation.GetSegmentation().GetSegment(each) is None:
            continue
        was, less = taken.get(each, SparseMask()), took.get(each, nothing)
        back = was.read(box) & free
        taken[each] = was.put(box, (was.read(box) | less) & ~lost)
        # Segments that lose voxels are written before the structure, those that regain some after it: no overlap.
        (last if back.any() else first)[each] = (others.get(each, nothing) & ~less) | back
    return {**first, edit.segment_id: new, **last}, taken


def _protecting_segments(
    segmentation: Any, clicks: Sequence[Click], box: VoxelBox, others: Mapping[str, np.ndarray], blocked: np.ndarray
) -> tuple[str, ...]:
    """Names of the segments that contain the voxels of including clicks."""
    names: dict[str, None] = {}
    for click in clicks:
        at = tuple(index - low for index, low in zip(click.voxel, box[::2], strict=True))
        if click.positive and intersection(voxel_box(click.voxel), box) is not None and blocked[at]:
            for each, mask in others.items():
                if mask[at]:
                    names[segmentation.GetSegmentation().GetSegment(each).GetName()] = None
    return tuple(names)
