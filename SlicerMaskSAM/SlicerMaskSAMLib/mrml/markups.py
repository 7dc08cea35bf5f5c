"""Points and boxes on the grid of a volume, as markups that look the same everywhere: made, placed and read.

The nodes lie under the volume's own parent transform, so that they follow the volume. Their coordinates are then RAS mm
of the volume's own frame, which its affine maps to voxels; no transform has to be inverted to read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer

from SlicerMaskSAMLib.mrml.volumes import geometry, matrix_array, vtk_matrix

POINTS = "vtkMRMLMarkupsFiducialNode"
BOX = "vtkMRMLMarkupsROINode"
VOLUME = "MaskSAM.volume"
"""Role of the node reference to the volume."""
KIND = "MaskSAM.kind"
"""Attribute of every node that is ours: what it holds."""
GRID = "MaskSAM.grid"
"""Attribute: ijk to RAS of the volume when the node was put under the volume's transform."""
SAME_MM = 1e-3
HANDLE_PERCENT = 1.5
"""Size of a box's handles, of the view; Slicer's own would cover a small structure."""

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class MarkupStyle:
    """How a markup is drawn. Kinds differ in shape as well as in colour, for who cannot tell red from green."""

    color: Triple
    glyph: str


INCLUDE = MarkupStyle(color=(0.2, 0.9, 0.3), glyph="ThickCross2D")
EXCLUDE = MarkupStyle(color=(1.0, 0.25, 0.2), glyph="Diamond2D")
FRAME = MarkupStyle(color=(1.0, 0.85, 0.2), glyph="Square2D")
AUTOMATIC = MarkupStyle(color=(0.3, 0.75, 1.0), glyph="Circle2D")


def nodes(scene: Any, kind: str) -> list[Any]:
    """All nodes of a class, subclasses included, in the order in which they came into the scene."""
    found = scene.GetNodesByClass(kind)
    found.UnRegister(None)
    return [found.GetItemAsObject(index) for index in range(found.GetNumberOfItems())]


def add(
    scene: Any, kind: str, *, name: str, volume: Any, attributes: Mapping[str, str], references: Mapping[str, str]
) -> Any:
    """A node of a class that belongs to a volume, empty yet. It knows whose it is before the scene's observers see it.

    Args:
        references: IDs of other nodes, by role.
    """
    node = scene.CreateNodeByClass(kind)
    node.UnRegister(None)
    node.SetName(name)
    node.SetHideFromEditors(kind == BOX)  # a box that is a prompt is no choice for a region of interest
    for key, value in attributes.items():
        node.SetAttribute(key, value)
    for role, id in {**references, VOLUME: volume.GetID()}.items():
        node.SetNodeReferenceID(role, id)
    return scene.AddNode(node)


def apply_style(node: Any, style: MarkupStyle, *, labels: bool = False) -> None:
    """Give a markup its looks, and handles to drag the sides of a box."""
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    for paint in (display.SetColor, display.SetSelectedColor):
        paint(*style.color)
    display.SetActiveColor(
        *(0.5 + 0.5 * part for part in style.color)
    )  # under the mouse; Slicer's own is green for all
    display.SetGlyphTypeFromString(style.glyph)
    display.SetPointLabelsVisibility(labels)
    display.SetPropertiesLabelVisibility(False)
    if node.IsA(BOX):
        display.SetFillVisibility(False)
        display.SetHandlesInteractive(True)
        display.SetRotationHandleVisibility(False)
        display.SetInteractionHandleScale(HANDLE_PERCENT)


def follow_transform(node: Any, volume: Any) -> None:
    """Put a markup under the volume's transform. Where the volume's was hardened, so is the markup's."""
    transform, grid = volume.GetTransformNodeID(), geometry(volume).affine.ravel()
    former = node.GetAttribute(GRID)
    if former is not None and node.GetTransformNodeID() == transform:
        return
    if (
        former is not None
        and transform is None
        and not np.allclose([float(value) for value in former.split()], grid, atol=SAME_MM)
    ):
        node.HardenTransform()
    node.SetAndObserveTransformNodeID(transform)
    node.SetAttribute(GRID, " ".join(repr(float(value)) for value in grid))


def box_along(volume: Any, low: np.ndarray, high: np.ndarray) -> tuple[tuple[float, ...], Triple]:
    """Matrix and size, for `set_box`, of a box along the volume's axes from its first to its last voxel (i, j, k)."""
    grid = geometry(volume)
    matrix = np.eye(4)
    matrix[:3, :3] = grid.directions
    if np.linalg.det(matrix[:3, :3]) < 0:  # a box is the same when mirrored, and the node wants a rotation
        matrix[:3, 2] *= -1
    matrix[:3, 3] = grid.to_ras((low + high) / 2)
    return tuple(matrix.ravel().tolist()), triple((high - low + 1) * grid.spacing)


def set_box(node: Any, matrix: Sequence[float], size: Sequence[float]) -> None:
    """Set where a box lies: 16 numbers of the box to its node's frame, and its three sides in mm."""
    node.SetSize(*size)
    node.SetAndObserveObjectToNodeMatrix(vtk_matrix(np.reshape(matrix, (4, 4))))


def get_box(node: Any) -> tuple[tuple[float, ...], Triple]:
    """What `set_box` set, or where the user dragged it."""
    return tuple(matrix_array(node.GetObjectToNodeMatrix()).ravel().tolist()), triple(node.GetSize())


def box_corners(volume: Any, matrix: Sequence[float], size: Sequence[float]) -> tuple[Triple, Triple]:
    """The voxels (i, j, k) in the first and the last corner of a box; of one that was turned, of the box around it.

    Along an axis where it is at most one voxel thick both are the same: the box lies in one plane.
    """
    unit = np.array(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij")).reshape(3, 8).T
    to_node: np.ndarray = np.reshape(matrix, (4, 4))
    corners = geometry(volume).to_ijk(unit * size @ to_node[:3, :3].T + to_node[:3, 3])
    low, high = inner(corners.min(axis=0), corners.max(axis=0))
    return triple(low), triple(high)


def inner(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centres of the first and the last voxel between two corners (i, j, k); the same where there is just one."""
    middle = (low + high) / 2
    return np.minimum(low + 0.5, middle), np.maximum(high - 0.5, middle)


def triple(values: Iterable[float]) -> Triple:
    """Three numbers, of an array for instance, as plain ones."""
    first, second, third = (float(value) for value in values)
    return first, second, third


def defined_points(node: Any) -> list[int]:
    """Indices of the points that have been placed; a point that still hangs on the mouse is not."""
    placed = slicer.vtkMRMLMarkupsNode.PositionDefined
    count = node.GetNumberOfControlPoints()
    return [index for index in range(count) if node.GetNthControlPointPositionStatus(index) == placed]


def under_mouse(scene: Any) -> bool:
    """Whether the mouse is on a point or a handle of ours, which a press would take hold of."""
    kinds = slicer.vtkMRMLMarkupsDisplayNode
    handles = kinds.ComponentControlPoint, kinds.ComponentTranslationHandle, kinds.ComponentScaleHandle
    return any(
        display.GetActiveComponentType() in handles and display.GetDisplayableNode().GetAttribute(KIND)
        for display in nodes(scene, "vtkMRMLMarkupsDisplayNode")
        if display.GetDisplayableNode() is not None
    )
