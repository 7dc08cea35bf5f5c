"""Points and boxes on a volume's grid as markups: creation, style, position.

The nodes are children of the volume's parent transform, so that they follow the volume. Their coordinates are then RAS
mm in the volume's own frame, which its affine maps to voxels; reading them inverts no transform.
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
"""Attribute of every node of this module: what it contains."""
GRID = "MaskSAM.grid"
"""Attribute: IJK-to-RAS matrix of the volume when the node was put under the volume's transform."""
SAME_MM = 1e-3
HANDLE_PERCENT = 1.5
"""Size of a box's handles, in percent of the view; Slicer's default would hide a small structure."""

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class MarkupStyle:
    """Colour and glyph of a markup.

    Kinds differ in both, for users who cannot tell red from green.
    """

    color: Triple
    glyph: str


INCLUDE_STYLE = MarkupStyle(color=(0.2, 0.9, 0.3), glyph="ThickCross2D")
EXCLUDE_STYLE = MarkupStyle(color=(1.0, 0.25, 0.2), glyph="Diamond2D")
BOX_STYLE = MarkupStyle(color=(1.0, 0.85, 0.2), glyph="Square2D")
AUTOMATIC_STYLE = MarkupStyle(color=(0.3, 0.75, 1.0), glyph="Circle2D")


def nodes(scene: Any, kind: str) -> list[Any]:
    """All nodes of a class and its subclasses, in the order they were added."""
    found = scene.GetNodesByClass(kind)
    found.UnRegister(None)
    return [found.GetItemAsObject(index) for index in range(found.GetNumberOfItems())]


def add(
    scene: Any, kind: str, *, name: str, volume: Any, attributes: Mapping[str, str], references: Mapping[str, str]
) -> Any:
    """A new, empty node that belongs to a volume.

    Attributes and references are set before it enters the scene, and so before observers see it.

    Args:
        references: IDs of other nodes, by role.
    """
    node = scene.CreateNodeByClass(kind)
    node.UnRegister(None)
    node.SetName(name)
    node.SetHideFromEditors(kind == BOX)  # a box prompt must not be offered as a region of interest
    for key, value in attributes.items():
        node.SetAttribute(key, value)
    for role, node_id in {**references, VOLUME: volume.GetID()}.items():
        node.SetNodeReferenceID(role, node_id)
    return scene.AddNode(node)


def apply_style(node: Any, style: MarkupStyle, *, labels: bool = False) -> None:
    """Set colour and glyph of a markup, and handles to drag the sides of a box."""
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    for paint in (display.SetColor, display.SetSelectedColor):
        paint(*style.color)
    # Under the mouse; Slicer's default is green for all.
    display.SetActiveColor(*(0.5 + 0.5 * part for part in style.color))
    display.SetGlyphTypeFromString(style.glyph)
    display.SetPointLabelsVisibility(labels)
    display.SetPropertiesLabelVisibility(False)
    if node.IsA(BOX):
        display.SetFillVisibility(False)
        display.SetHandlesInteractive(True)
        display.SetRotationHandleVisibility(False)
        display.SetInteractionHandleScale(HANDLE_PERCENT)


def follow_transform(node: Any, volume: Any) -> None:
    """Put a markup under the volume's transform, hardened if the volume's was."""
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
    """Matrix and size of a box along the volume's axes, for `set_box`.

    Args:
        low, high: First and last voxel (i, j, k).
    """
    grid = geometry(volume)
    matrix = np.eye(4)
    matrix[:3, :3] = grid.directions
    if np.linalg.det(matrix[:3, :3]) < 0:  # the node needs a rotation; a mirrored box is the same
        matrix[:3, 2] *= -1
    matrix[:3, 3] = grid.to_ras((low + high) / 2)
    return tuple(matrix.ravel().tolist()), triple((high - low + 1) * grid.spacing)


def set_box(node: Any, matrix: Sequence[float], size: Sequence[float]) -> None:
    """Place a box.

    Args:
        matrix: 16 numbers from the box's to the node's frame.
        size: Its three sides in mm.
    """
    node.SetSize(*size)
    node.SetAndObserveObjectToNodeMatrix(vtk_matrix(np.reshape(matrix, (4, 4))))


def get_box(node: Any) -> tuple[tuple[float, ...], Triple]:
    """Matrix and size of a box as `set_box` takes them, after any dragging."""
    return tuple(matrix_array(node.GetObjectToNodeMatrix()).ravel().tolist()), triple(node.GetSize())


def box_corners(volume: Any, matrix: Sequence[float], size: Sequence[float]) -> tuple[Triple, Triple]:
    """First and last voxel (i, j, k) of a box, or of a rotated box's bounding box.

    Along an axis where the box is at most one voxel thick both are equal: the box lies in one plane.
    """
    unit = np.array(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij")).reshape(3, 8).T
    to_node: np.ndarray = np.reshape(matrix, (4, 4))
    corners = geometry(volume).to_ijk(unit * size @ to_node[:3, :3].T + to_node[:3, 3])
    low, high = inner(corners.min(axis=0), corners.max(axis=0))
    return triple(low), triple(high)


def inner(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the first and last voxel between two corners (i, j, k)."""
    middle = (low + high) / 2
    return np.minimum(low + 0.5, middle), np.maximum(high - 0.5, middle)


def triple(values: Iterable[float]) -> Triple:
    """Three numbers, for instance of an array, as a tuple of floats."""
    first, second, third = (float(value) for value in values)
    return first, second, third


def defined_points(node: Any) -> list[int]:
    """Indices of the placed points, without one that is still being placed."""
    placed = slicer.vtkMRMLMarkupsNode.PositionDefined
    count = node.GetNumberOfControlPoints()
    return [index for index in range(count) if node.GetNthControlPointPositionStatus(index) == placed]


def under_mouse(scene: Any) -> bool:
    """Whether the mouse is over one of our points or handles."""
    kinds = slicer.vtkMRMLMarkupsDisplayNode
    handles = kinds.ComponentControlPoint, kinds.ComponentTranslationHandle, kinds.ComponentScaleHandle
    return any(
        display.GetActiveComponentType() in handles and display.GetDisplayableNode().GetAttribute(KIND)
        for display in nodes(scene, "vtkMRMLMarkupsDisplayNode")
        if display.GetDisplayableNode() is not None
    )
