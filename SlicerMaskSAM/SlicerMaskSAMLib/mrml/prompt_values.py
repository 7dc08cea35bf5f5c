"""Prompts as values, and their conversion to messages, text and MRML nodes."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from MaskSAMCore.errors import PromptError
from SlicerMaskSAMLib.mrml import markups
from SlicerMaskSAMLib.mrml.markups import Triple
from SlicerMaskSAMLib.mrml.volumes import geometry
from SlicerMaskSAMLib.values.choices import Scope
from SlicerMaskSAMLib.values.sparse import VoxelBox


@dataclass(frozen=True, kw_only=True)
class PointPrompt:
    """A click; `position` in RAS mm of the volume's own frame."""

    order: int
    position: Triple
    positive: bool
    scope: Scope
    candidate: int | None = None


@dataclass(frozen=True, kw_only=True)
class BoxPrompt:
    """A box.

    Attributes:
        matrix: 16 numbers from the box's to the volume's own frame.
        size: Its sides in mm.
    """

    order: int
    matrix: tuple[float, ...]
    size: Triple
    scope: Scope


@dataclass(frozen=True, kw_only=True)
class StartMask:
    """The segment that the prompts start from.

    Attributes:
        mask: Bits of `box`, packed, compressed and base64-encoded.
    """

    mask: str
    box: VoxelBox
    order: int = 0


Prompt = PointPrompt | BoxPrompt | StartMask
KINDS = {PointPrompt: "point", BoxPrompt: "box", StartMask: "start"}
"""Kind of a row in the panel."""
Snapshot = tuple[Prompt, ...]
"""All prompts of a list in the order given. Equal if no prompt differs."""
PROPERTIES = "MaskSAM.prompt"
"""Attribute of a box's node with its properties. Those of a click are in the description of its control point."""
PromptRef = tuple[str, str]
"""IDs of a prompt's node and, for a click, of its control point."""
SAME_VOXELS = 1e-3
FOREIGN_PROPERTIES = (-1, Scope.SLAB, None)
"""Order, scope and candidate of a point that was not placed by this module."""


def pack_start(mask: np.ndarray, box: VoxelBox) -> StartMask:
    """A start from an array (k, j, i) on `box`, nonzero inside."""
    bits = np.packbits(mask != 0).tobytes()
    return StartMask(mask=base64.b64encode(zlib.compress(bits, 1)).decode("ascii"), box=box)


def unpack_start(start: StartMask) -> np.ndarray:
    """The voxels of a start, (k, j, i), uint8 0/1.

    Raises:
        PromptError: The data is damaged.
    """
    k0, k1, j0, j1, i0, i1 = start.box
    shape = k1 - k0, j1 - j0, i1 - i0
    try:
        bits = np.frombuffer(zlib.decompress(base64.b64decode(start.mask)), np.uint8)
        return np.unpackbits(bits, count=shape[0] * shape[1] * shape[2]).reshape(shape)
    except (ValueError, binascii.Error, zlib.error) as error:
        remedy = "Delete it from the list of prompts."
        raise PromptError(
            "the segment that the prompts start from is damaged", where=start.box, why=str(error), remedy=remedy
        ) from error


def encode_properties(prompt: PointPrompt | BoxPrompt) -> str:
    """Order, scope and candidate as JSON; a markup has no field for them."""
    properties = {"order": prompt.order, "scope": prompt.scope.value}
    if isinstance(prompt, PointPrompt) and prompt.candidate is not None:
        properties["candidate"] = prompt.candidate
    return json.dumps(properties)


def decode_properties(text: str | None) -> tuple[int, Scope, int | None] | None:
    """Order, scope and candidate from JSON; None for any other text."""
    try:
        properties = json.loads(text or "")
        candidate = properties.get("candidate")
        return int(properties["order"]), Scope(properties["scope"]), None if candidate is None else int(candidate)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def to_message(volume: Any, prompt: Prompt, *, first: bool) -> dict[str, Any]:
    """A prompt in voxels, as the worker's protocol defines it.

    Only the `first` of a list has candidates.
    """
    if isinstance(prompt, StartMask):
        return {"kind": "mask", "mask": unpack_start(prompt), "mask_box": prompt.box[::2]}
    if isinstance(prompt, BoxPrompt):
        corners = markups.box_corners(volume, prompt.matrix, prompt.size)
        return {"kind": "box", "corners": corners, "scope": prompt.scope.value}
    position = markups.triple(geometry(volume).to_ijk(prompt.position))
    out = {"kind": "point", "position": position, "positive": prompt.positive, "scope": prompt.scope.value}
    return out | {"candidate": prompt.candidate} if first and prompt.positive else out


def to_messages(volume: Any, prompts: Snapshot) -> list[dict[str, Any]]:
    """A list of prompts in voxels (i, j, k), as the worker's protocol defines it.

    Raises:
        PromptError: A start is damaged.
    """
    return [to_message(volume, prompt, first=index == 0) for index, prompt in enumerate(prompts)]


def describe(volume: Any, prompt: Prompt) -> str:
    """A prompt as text, with voxels (i, j, k) as in Slicer's data probe."""
    if isinstance(prompt, StartMask):
        return "Segment at the start"
    if isinstance(prompt, BoxPrompt):
        low, high = np.array(markups.box_corners(volume, prompt.matrix, prompt.size))
        sides = " × ".join(str(round(float(side))) for side in high - low + 1)
        return f"Box of {sides} voxels around {_voxel_text((low + high) / 2)}, {prompt.scope.value}"
    word = "Include" if prompt.positive else "Exclude"
    return f"{word} {_voxel_text(geometry(volume).to_ijk(prompt.position))}, {prompt.scope.value}"


def _voxel_text(ijk: Iterable[float]) -> str:
    return "({}, {}, {})".format(*(round(float(value)) for value in ijk))


# -- storage in nodes ----------------------------------------------------------------------------------------------


def write_properties(node: Any, point_id: str, prompt: PointPrompt | BoxPrompt) -> None:
    """Store a prompt's properties in its node or, for a click, in its control point."""
    if point_id:
        node.SetNthControlPointDescription(node.GetNthControlPointIndexByID(point_id), encode_properties(prompt))
    else:
        node.SetAttribute(PROPERTIES, encode_properties(prompt))


def read_points(node: Any, *, positive: bool) -> list[tuple[PromptRef, PointPrompt]]:
    """The clicks of a node of points; those of others with FOREIGN_PROPERTIES."""
    found = []
    for index in markups.defined_points(node):
        order, scope, candidate = decode_properties(node.GetNthControlPointDescription(index)) or FOREIGN_PROPERTIES
        point = PointPrompt(
            order=order,
            position=markups.triple(node.GetNthControlPointPosition(index)),
            positive=positive,
            scope=scope,
            candidate=candidate,
        )
        found.append(((node.GetID(), node.GetNthControlPointID(index)), point))
    return found


def read_box(node: Any) -> BoxPrompt:
    """The box of an ROI node."""
    order, scope, _ = decode_properties(node.GetAttribute(PROPERTIES)) or FOREIGN_PROPERTIES
    matrix, size = markups.get_box(node)
    return BoxPrompt(order=order, matrix=matrix, size=size, scope=scope)


def write_start(node: Any, start: StartMask, volume: Any) -> None:
    """Store a start and its volume's grid in a scripted module node."""
    node.SetParameter("mask", start.mask)
    node.SetParameter("box", json.dumps(start.box))
    node.SetParameter("affine", json.dumps(geometry(volume).affine.tolist()))


def read_start(node: Any, volume: Any) -> StartMask:
    """The start stored in a scripted module node, in present voxels of the volume.

    Slicer stores the slices of a left-handed volume in reverse order. After loading, the same anatomy has other voxel
    indices; the start is flipped accordingly.
    """
    start = StartMask(mask=node.GetParameter("mask"), box=tuple(json.loads(node.GetParameter("box"))))
    to_now = np.linalg.inv(geometry(volume).affine) @ np.array(json.loads(node.GetParameter("affine")))
    signs = np.diag(to_now)[:3]
    if (signs > 0).all() or not np.allclose(to_now[:3, :3], np.diag(np.sign(signs)), atol=SAME_VOXELS):
        return start
    ends = np.array([start.box[::2], np.subtract(start.box[1::2], 1)])[:, ::-1] @ to_now[:3, :3].T + to_now[:3, 3]
    low, high = np.rint(np.sort(ends, axis=0)).astype(int)[:, ::-1].tolist()
    box = low[0], high[0] + 1, low[1], high[1] + 1, low[2], high[2] + 1
    start = pack_start(np.flip(unpack_start(start), tuple(np.flatnonzero(signs[::-1] < 0).tolist())), box)
    write_start(node, start, volume)
    return start
