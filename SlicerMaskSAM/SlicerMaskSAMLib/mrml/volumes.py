"""Volume nodes as arrays with a grid, and world coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from MaskSAMCore.errors import InputError
from MaskSAMCore.volume import SAME_GRID_MM, Grid, Triple
from SlicerMaskSAMLib.values.sparse import VoxelBox

WorldPoint = np.ndarray | Sequence[float]
"""A position in the world, (3,) mm RAS."""
BENT = 9
"""Points along each edge of a box that are transformed by a transform that is not linear."""


class RoiMessage(TypedDict):
    """A part of a volume as the engine takes it.

    Centre and full size along RAS, mm, in the volume's own frame.
    """

    center: Triple
    size: Triple


class Geometry(Grid):
    """The grid of a volume node, without parent transforms.

    `shape` is (K, J, I), `affine` maps ijk to RAS mm.
    """

    def same(self, other: Grid, tolerance_mm: float = SAME_GRID_MM) -> bool:
        """Whether shapes are equal and no voxel moves by more than `tolerance_mm`."""
        return self.same_as(other, tolerance_mm)

    @property
    def box(self) -> VoxelBox:
        """The box of the whole grid."""
        k, j, i = self.shape
        return 0, k, 0, j, 0, i

    def fits(self, box: VoxelBox) -> bool:
        """Whether a box is not empty and lies inside the grid."""
        return all(0 <= a < b <= n for a, b, n in zip(box[::2], box[1::2], self.shape, strict=True))

    def inside(self, ijk: np.ndarray | Sequence) -> np.ndarray:
        """Whether ijk positions (..., 3) lie inside a voxel: bool (...).

        Positions up to half a voxel beyond the outer centres count as inside.
        """
        place = np.asarray(ijk, dtype=np.float64)
        return np.all((place >= -0.5) & (place <= np.array(self.shape[::-1]) - 0.5), axis=-1)


def matrix_array(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """A VTK matrix as (4, 4) float64."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def vtk_matrix(array: np.ndarray) -> vtk.vtkMatrix4x4:
    """A (4, 4) array as a VTK matrix."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy([float(value) for value in np.asarray(array).ravel()])
    return matrix


def _image(volume: Any) -> Any:
    if volume is None:
        raise InputError("no volume is chosen")
    image = volume.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or image.GetNumberOfPoints() == 0:
        raise InputError("the volume holds no image", where=volume.GetName(), remedy="Load it again.")
    return image


def geometry(volume: Any) -> Geometry:
    """The volume's grid in its own frame.

    Raises:
        InputError: No volume, or one without an image.
    """
    i, j, k = _image(volume).GetDimensions()
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return Geometry(shape=(k, j, i), affine=matrix_array(matrix))


def scalars(volume: Any) -> np.ndarray:
    """The voxels (K, J, I), as a view into Slicer's memory.

    Raises:
        InputError: No volume, one without an image, or one with several components.
    """
    image = _image(volume)
    components = image.GetNumberOfScalarComponents()
    if components != 1:
        raise InputError(
            "only volumes with one value per voxel can be segmented",
            where=volume.GetName(),
            why=f"it has {components} components per voxel",
            remedy="Convert it to a scalar volume (module Vector to Scalar Volume).",
        )
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def fingerprint(volume: Any) -> str:
    """A text that changes whenever the voxels or the grid of a volume do.

    It differs between volumes, and it is cheap: VTK counts every modification in the process, so the node's ID and its
    image's modification time identify the voxels. An array that is changed in place counts after
    `slicer.util.arrayFromVolumeModified`.
    """
    image = _image(volume)
    place = geometry(volume)
    numbers = " ".join(repr(float(value)) for value in place.affine.ravel())
    return f"{volume.GetID()} {image.GetMTime()} {place.shape} {numbers}"


# -- world coordinates ---------------------------------------------------------------------------------------------


def _parent(node: Any) -> Any:
    return node.GetParentTransformNode()


def _between(source: Any, target: Any, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) from the frame of one transform node to another; None: world."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    if source is target:
        return points
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    return np.array([transform.TransformPoint(point) for point in points]).reshape(-1, 3)


def _bends(*parents: Any) -> bool:
    """Whether any of these parent transforms is not linear."""
    return any(parent is not None and not parent.IsTransformToWorldLinear() for parent in parents)


def world_to_ijk(volume: Any, points: np.ndarray | Sequence) -> np.ndarray:
    """World points (N, 3), mm RAS, as voxel positions (N, 3) of the volume.

    All parent transforms are applied.
    """
    return geometry(volume).to_ijk(_between(None, _parent(volume), np.asarray(points)))


def ijk_to_world(volume: Any, ijk: np.ndarray | Sequence) -> np.ndarray:
    """Voxel positions (N, 3) of the volume as world points (N, 3), mm RAS.

    All parent transforms are applied.
    """
    return _between(_parent(volume), None, geometry(volume).to_ras(np.asarray(ijk).reshape(-1, 3)))


def same_frame(first: Any, second: Any) -> bool:
    """Whether two nodes have the same parent transform."""
    return _parent(first) is _parent(second)


def _corners(low: np.ndarray, high: np.ndarray, bent: bool) -> np.ndarray:
    """Points (N, 3) of a box whose images enclose its image.

    The corners, or a lattice for a nonlinear transform.
    """
    axes = [np.linspace(a, b, BENT if bent else 2) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _region(points: np.ndarray) -> RoiMessage:
    low, high = points.min(axis=0), points.max(axis=0)
    r, a, s = ((low + high) / 2).tolist()
    wide, deep, tall = (high - low).tolist()
    return {"center": (r, a, s), "size": (wide, deep, tall)}


def roi_region(volume: Any, roi: Any) -> RoiMessage:
    """Bounding box, along the volume's own RAS axes in mm, of a markups ROI.

    Args:
        volume: Scalar volume node, under any transforms.
        roi: ROI node, rotated in any way and under any transforms.

    Raises:
        InputError: No ROI, or one that has not been drawn yet.
    """
    if roi is None:
        raise InputError("no region of interest is chosen", remedy="Choose or draw one.")
    size = np.array(roi.GetSize())
    if roi.GetNumberOfDefinedControlPoints() == 0 or (size <= 0).any():
        raise InputError("the region of interest is empty", where=roi.GetName(), remedy="Draw it in a slice view.")
    bent = _bends(_parent(roi), _parent(volume))
    points = _corners(-size / 2, size / 2, bent)
    to_node = matrix_array(roi.GetObjectToNodeMatrix())
    points = points @ to_node[:3, :3].T + to_node[:3, 3]
    return _region(_between(_parent(roi), _parent(volume), points))


def _shown(volume: Any, view: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the visible part of the volume, mm along the view's axes.

    The axes are right, up and normal. Along the normal it is the whole volume.

    Raises:
        InputError: The volume is not visible in the view.
    """
    shape = np.array(geometry(volume).shape[::-1])
    places = ijk_to_world(volume, _corners(np.full(3, -0.5), shape - 0.5, _bends(_parent(volume))))
    back = np.linalg.inv(matrix_array(view.GetSliceToRAS()))
    places = places @ back[:3, :3].T + back[:3, 3]
    to_slice = matrix_array(view.GetXYToSlice())
    width, height, _ = view.GetDimensions()
    frame = np.array([to_slice @ (0, 0, 0, 1), to_slice @ (width, height, 0, 1)])[:, :2]
    low, high = places.min(axis=0), places.max(axis=0)
    low[:2] = np.maximum(low[:2], frame.min(axis=0))
    high[:2] = np.minimum(high[:2], frame.max(axis=0))
    if (low >= high).any() or not low[2] <= 0 <= high[2]:
        remedy = "Fit the view to the volume."
        raise InputError("the view does not show the volume", where=view.GetName(), why=volume.GetName(), remedy=remedy)
    return low, high


def view_region(volume: Any, view: Any) -> RoiMessage:
    """The part of the volume that a slice view shows, along the volume's RAS, mm.

    It has the whole depth of the volume.

    Args:
        volume: Scalar volume node, under any transforms.
        view: Slice node.

    Raises:
        InputError: The volume is not visible in the view.
    """
    low, high = _shown(volume, view)
    points = _corners(low, high, _bends(_parent(volume)))
    to_world = matrix_array(view.GetSliceToRAS())
    return _region(_between(None, _parent(volume), points @ to_world[:3, :3].T + to_world[:3, 3]))


def view_plane(volume: Any, view: Any) -> tuple[int, int]:
    """Axis of (K, J, I) and index of the slice of the volume that a view shows.

    The axis is the one nearest to the view's normal. In an oblique view it is the slice in the middle of the visible
    part.

    Raises:
        InputError: The volume is not visible in the view.
    """
    low, high = _shown(volume, view)
    middle = (low + high) / 2
    to_world = matrix_array(view.GetSliceToRAS())
    centre = to_world[:3, :3] @ (middle[0], middle[1], 0) + to_world[:3, 3]
    place = world_to_ijk(volume, [centre])[0]
    steps = ijk_to_world(volume, place + np.eye(3)) - ijk_to_world(volume, [place])
    along = np.abs(steps @ to_world[:3, 2]) / np.linalg.norm(steps, axis=1)
    axis = 2 - int(along.argmax())
    return axis, int(np.clip(np.rint(place[2 - axis]), 0, geometry(volume).shape[axis] - 1))


# -- source files --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files that a volume was read from.

    Attributes:
        kind: "file", "dicom", or "" if there are none.
        paths: One file, or those of the series in slice order.
        problem: Why there are none, in plain words.
    """

    kind: str = ""
    paths: tuple[str, ...] = ()
    problem: str = ""


def _dicom_database(instance: str) -> str:
    database = getattr(slicer, "dicomDatabase", None)
    return database.fileForInstance(instance) if database is not None else ""


def source(volume: Any, dicom_files: Callable[[str], str] | None = None) -> Source:
    """The files that contain exactly this volume.

    Args:
        volume: Scalar volume node.
        dicom_files: Returns the file of an instance UID, "" if unknown; None for Slicer's DICOM database.
    """
    storage = volume.GetStorageNode()
    saved = storage is not None and bool(storage.GetFileName())
    if saved and volume.GetModifiedSinceRead():
        return Source(problem="it was changed since it was read; save it first")
    problem = "it was never saved to a file"
    instances = (volume.GetAttribute("DICOM.instanceUIDs") or "").split()
    if len(instances) in (1, geometry(volume).shape[0]):
        paths = tuple(path for path in map(dicom_files or _dicom_database, instances) if path and Path(path).is_file())
        if len(paths) == len(instances):
            return Source(kind="dicom", paths=paths)
        problem = f"{len(paths)} of its {len(instances)} DICOM files are in Slicer's database; import the series again"
    if not saved:
        return Source(problem=problem)
    names = [storage.GetFullNameFromNthFileName(n) for n in range(storage.GetNumberOfFileNames())]
    paths = tuple(dict.fromkeys(names or [storage.GetFullNameFromFileName()]))
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        return Source(problem=f"its file {missing[0]} no longer exists; save it again")
    return Source(kind="file", paths=paths)
