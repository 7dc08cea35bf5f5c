"""What the client's calls answer with; light enough for an interpreter without torch."""

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
class Block:
    """One structure of an automatic segmentation: uint8 0/1 (k, j, i) inside `box`, which is None where it is empty."""

    label: int
    name: str
    box: Bounds | None
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
    """Without a mask's box there is no file; an empty mask stands for it."""
    empty: dict[str, Any] = {} if fields["box"] else {"mask": np.zeros((0, 0, 0), np.uint8)}
    return kind(**(_tuples(fields, "box") | empty))
