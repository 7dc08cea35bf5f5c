"""Requests that write files: a DICOM SEG, a training case. They need neither an open scan nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from MaskSAMCore import __version__
from MaskSAMCore.errors import InputError
from MaskSAMCore.labels import Code, Label, LabelTable
from MaskSAMCore.progress import CancelToken, Progress
from MaskSAMCore.volume import Grid, LabelMap, Volume

OPERATIONS = ("export_seg", "save_case")


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Voxels that two segments share; they go to `later`, the one that is later in the list."""

    earlier: str
    later: str
    voxels: int

    def __str__(self) -> str:
        return f"{self.earlier} and {self.later} share {self.voxels} voxel{'s' * (self.voxels > 1)}"


def export(op: str, fields: Mapping[str, Any], *, progress: Progress, cancel: CancelToken) -> dict[str, Any]:
    """Do one of `OPERATIONS`; see `protocol.REQUESTS`.

    Raises:
        InputError: A segment does not lie in the volume, or segments of a DICOM SEG overlap.
        MaskSAMError: See `io.dicomseg.write_dicom_seg` and `data.save.save_case`.
    """
    if op == "export_seg":
        return _export_seg(fields, progress, cancel)
    return _save_case(fields, progress, cancel)


def to_label_map(segments: Sequence[Mapping[str, Any]], grid: Grid) -> tuple[LabelMap, tuple[Overlap, ...]]:
    """Segments as a label map with the ids 1, 2, ... in their order, and their overlaps.

    A label map has one structure per voxel; a shared voxel goes to the later segment, as in Slicer's own export.

    Raises:
        InputError: A box lies outside of the grid, or differs in size from its mask; names the segment.
    """
    array: np.ndarray = np.zeros(grid.shape, np.uint8 if len(segments) < 256 else np.uint16)
    labels: list[Label] = []
    overlaps: list[Overlap] = []
    for number, each in zip(count(1), segments):
        place, inside = _place(each, grid), each["mask"] != 0
        view = array[place]
        shared, voxels = np.unique(view[inside], return_counts=True)
        overlaps += [
            Overlap(earlier=labels[other - 1].name, later=each["name"], voxels=int(many))
            for other, many in zip(shared.tolist(), voxels, strict=True)
            if other
        ]
        view[inside] = number
        labels.append(_label(number, each))
    return LabelMap(array=array, grid=grid, labels=LabelTable(labels=tuple(labels))), tuple(overlaps)


def _place(segment: Mapping[str, Any], grid: Grid) -> tuple[slice, ...]:
    box, shape = segment["box"], segment["mask"].shape
    place = tuple(slice(low, high) for low, high in zip(box[::2], box[1::2], strict=True))
    fits = all(0 <= p.start < p.stop <= size for p, size in zip(place, grid.shape, strict=True))
    if not fits or tuple(p.stop - p.start for p in place) != shape:
        why = f"its box (k, j, i) is {list(box)}, its mask {list(shape)}, the volume {list(grid.shape)}"
        raise InputError("the segment does not lie in the volume", where=segment["name"], why=why)
    return place


def _label(number: int, segment: Mapping[str, Any]) -> Label:
    category, kind, modifier = (_code(segment[key]) for key in ("category", "type", "modifier"))
    color = tuple(segment["color"])
    return Label(id=number, name=segment["name"], color=color, category=category, type=kind, modifier=modifier)


def _code(fields: Mapping[str, str] | None) -> Code | None:
    return Code(**fields) if fields else None


def _export_seg(fields: Mapping[str, Any], progress: Progress, cancel: CancelToken) -> dict[str, Any]:
    from MaskSAMCore.io.dicomseg import write_dicom_seg
    from MaskSAMCore.io.segmentations import table_for

    progress(0, 2, "reading the series")
    grid = Grid(shape=fields["shape"], affine=np.array(fields["affine"])).check(where="the segmentation")
    labels, overlaps = to_label_map(fields["segments"], grid)
    if overlaps:
        why = "; ".join(map(str, overlaps))
        remedy = "Assign each voxel to one segment in the Segment Editor."
        raise InputError("a DICOM SEG cannot hold overlapping segments", why=why, remedy=remedy)
    cancel.check()
    progress(1, 2, "writing the DICOM SEG")
    write_dicom_seg(
        labels,
        fields["files"],
        fields["path"],
        model=fields["model"],
        version=__version__,
        allow_uncoded=fields["allow_uncoded"],
        overwrite=True,  # the user was asked when the path was chosen
    )
    written = set(np.unique(labels.array).tolist())
    names = [label.name for label in table_for(labels).labels if label.id in written]
    return {"path": fields["path"], "structures": names}


def _save_case(fields: Mapping[str, Any], progress: Progress, cancel: CancelToken) -> dict[str, Any]:
    from MaskSAMCore.data.save import save_case

    array = fields["volume"]
    grid = Grid(shape=array.shape, affine=np.array(fields["affine"])).check(where=fields["name"])
    volume = Volume(array=array, grid=grid, source=fields["name"], modality=fields["modality"])
    labels, overlaps = to_label_map(fields["segments"], grid)
    saved = save_case(fields["folder"], volume, labels, name=fields["name"], progress=progress, cancel=cancel)
    return {
        "name": saved.name,
        "folder": fields["folder"],
        "labels": dict(saved.labels),
        "replaced": saved.replaced,
        "notes": [f"{each}, saved as {each.later}" for each in overlaps] + list(saved.warnings),
    }
