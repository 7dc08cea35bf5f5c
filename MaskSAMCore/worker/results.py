"""Results of the client's requests, as plain values; nothing here needs torch. See also `inference.results`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from MaskSAMCore.inference.results import Bounds, Candidate, Suggestion, Update


@dataclass(frozen=True, kw_only=True)
class Case:
    """An opened scan.

    Attributes:
        id: Its number in the requests.
        model: Name of its model.
        shape: (K, J, I).
        axis: The axis of (K, J, I) along which the model's slices are counted.
        labels: Structures of the model: dictionaries with id, name and color.
        warnings: For the user, about this scan with this model.
    """

    id: int
    model: str
    shape: tuple[int, int, int]
    axis: int
    labels: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One structure of an automatic segmentation.

    Attributes:
        label: Its id in the model's table.
        name: Its name there.
        box: Its bounding box; None where it is empty.
        mask: uint8 0/1 (k, j, i) inside the box; of shape (0, 0, 0) without one.
    """

    label: int
    name: str
    box: Bounds | None
    mask: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmented:
    """An automatic segmentation.

    Attributes:
        blocks: One for each structure of the model.
        warnings: For the user, one line each.
        device: Where the network ran in the end.
        windows: Number of windows that were run.
        seconds: Duration, in the worker.
    """

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
        replaced: Whether the data set had this scan already, so that its old labels were replaced.
        notes: Messages for the user, one line each.
    """

    name: str
    folder: str
    labels: dict[str, int]
    replaced: bool
    notes: tuple[str, ...]


def typed(op: str, result: dict[str, Any]) -> Any:
    """The result of a reply as the class of its operation; a dictionary for operations without one."""
    if op == "open":
        return Case(**_tuples(result, "shape", "labels", "warnings"))
    if op in ("prompt", "propagate", "drop"):
        candidates = tuple(_masked(Candidate, each) for each in result["candidates"])
        quality = {int(index): float(value) for index, value in result["quality"]}
        suggestion = result["suggestion"] and Suggestion(**result["suggestion"])
        values = {"candidates": candidates, "quality": quality, "suggestion": suggestion}
        return _masked(Update, _tuples(result, "extent", "messages") | values)
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
    """An object with a box and a mask; without a box, the mask is empty."""
    empty: dict[str, Any] = {} if fields["box"] else {"mask": np.zeros((0, 0, 0), np.uint8)}
    return kind(**(_tuples(fields, "box") | empty))
