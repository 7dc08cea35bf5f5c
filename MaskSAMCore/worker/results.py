"""What the client's calls answer with; light enough for an interpreter without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Box = tuple[int, int, int, int, int, int]
"""(k0, k1, j0, j1, i0, i1) of the scan's array, each upper one exclusive."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An opened scan.

    Attributes:
        id: Its number in the requests.
        model: Name of its model.
        shape: (K, J, I).
        axis: Which axis of (K, J, I) the model's slices are counted along.
        labels: What the model segments: dictionaries with id, name and color.
        warnings: What the user should know about this scan with this model.
    """

    id: int
    model: str
    shape: tuple[int, int, int]
    axis: int
    labels: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One of the masks that a single click may mean; `quality` is the model's estimate of its IoU."""

    box: Box | None
    mask: np.ndarray
    quality: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Update:
    """What a call changed in one structure; see `inference.session.Update`.

    Attributes:
        box: Bounding box of the voxels that differ from the structure's last answer; None where none does.
        mask: uint8 0/1 (k, j, i), the structure inside `box`; of shape (0, 0, 0) without one.
        extent: Bounding box of the whole structure; None where it is empty.
        voxels: Of the whole structure.
        quality: Per slice along `axis` the model's estimate of the IoU, 0 to 1.
        worst: The slice with the lowest estimate.
        candidates: With `multimask`, the three meanings of a single click, the best first.
        suggestion: The label that fits: dictionary with label (its id), name and probability; None without one.
        encoded: Runs of the encoder in this call.
        seconds: Of this call, in the worker.
        messages: What the user should be told, one line each.
    """

    structure: int
    box: Box | None
    mask: np.ndarray
    extent: Box | None = None
    voxels: int = 0
    axis: int = 0
    quality: dict[int, float] = field(default_factory=dict)
    worst: int | None = None
    candidates: tuple[Candidate, ...] = ()
    suggestion: dict[str, Any] | None = None
    encoded: int = 0
    seconds: float = 0.0
    messages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One structure of an automatic segmentation: uint8 0/1 (k, j, i) inside `box`, which is None where it is empty."""

    label: int
    name: str
    box: Box | None
    mask: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmented:
    """An automatic segmentation: a block for every structure of the model, and what has to be said about it."""

    blocks: tuple[Block, ...]
    warnings: tuple[str, ...]
    device: str
    windows: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A DICOM SEG that was written: its path, and the names of its segments."""

    path: str
    structures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SavedCase:
    """A training case that was saved.

    Attributes:
        name: Of the case in its data set.
        folder: The data set.
        labels: Ids of its structures by name.
        replaced: The data set had this scan already, and its old labels are gone.
        notes: What the user should know, one line each.
    """

    name: str
    folder: str
    labels: dict[str, int]
    replaced: bool
    notes: tuple[str, ...]


def typed(op: str, result: dict[str, Any]) -> Any:
    """The result of a reply as the type of its operation; a plain dictionary for those without one."""
    if op == "open":
        return Case(**_tuples(result, "shape", "labels", "warnings"))
    if op in ("prompt", "propagate", "drop"):
        candidates = tuple(_masked(Candidate, each) for each in result["candidates"])
        quality = {int(index): float(value) for index, value in result["quality"]}
        return _masked(Update, _tuples(result, "extent", "messages") | {"candidates": candidates, "quality": quality})
    if op == "segment":
        blocks = tuple(_masked(Block, each) for each in result["blocks"])
        return Segmented(**(_tuples(result, "warnings") | {"blocks": blocks}))
    if op == "export_seg":
        return Exported(**_tuples(result, "structures"))
    if op == "save_case":
        return SavedCase(**_tuples(result, "notes"))
    return result


def _tuples(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return fields | {name: None if fields[name] is None else tuple(fields[name]) for name in names}


def _masked(kind: type, fields: dict[str, Any]) -> Any:
    """Without a mask's box there is no file; an empty mask stands for it."""
    empty: dict[str, Any] = {} if fields["box"] else {"mask": np.zeros((0, 0, 0), np.uint8)}
    return kind(**(_tuples(fields, "box") | empty))
