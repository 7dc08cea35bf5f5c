"""The bridge: volumes as arrays, world coordinates through transforms, regions and views."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util

from MaskSAMCore.errors import InputError
from MaskSAMCore.volume import Roi
from SlicerMaskSAMLib.mrml import bridge
from Testing.slicer import environment

OBLIQUE = environment.affine(spacing=(0.8, 0.9, 2.5), angles=(12, -20, 33), origin=(-40, 17, -333))
SHAPE = (12, 30, 40)
MOVED = environment.affine(angles=(-25, 40, 10), origin=(100, -50, 25))


@pytest.fixture
def volume(scene: Any) -> Any:
    """An oblique, anisotropic volume of 40 x 30 x 12 voxels."""
    array = np.random.default_rng(0).integers(-500, 1500, SHAPE).astype(np.int16)
    return environment.add_volume(array, OBLIQUE, "Scan")


def homogeneous(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def bump() -> tuple[np.ndarray, np.ndarray]:
    """A displacement of up to 3 mm that turns within some 20 mm, around the volume, and its grid."""
    grid = environment.affine(spacing=(5, 5, 5), origin=(-70, -20, -380))
    k, j, i = np.indices((24, 26, 26))
    return 3 * np.stack([np.sin(j / 1.5), np.cos(k / 1.5), np.sin(i / 1.5)], axis=-1), grid


# -- grids and voxels ----------------------------------------------------------------------------------------------


def test_geometry_is_the_volumes_own(volume: Any) -> None:
    environment.add_transform(MOVED, volume)
    found = bridge.geometry(volume)
    assert found.shape == SHAPE
    assert np.allclose(found.affine, OBLIQUE)
    assert found.fits((0, 12, 0, 30, 0, 40))
    assert found.box == (0, 12, 0, 30, 0, 40)
    for box in ((0, 13, 0, 30, 0, 40), (-1, 2, 0, 3, 0, 4), (5, 5, 0, 3, 0, 4), (5, 4, 0, 3, 0, 4)):
        assert not found.fits(box)
    assert found.inside([(-0.5, 0, 0), (39.5, 29.4, 11.4)]).all()
    assert not found.inside([(39.6, 0, 0), (0, 0, -1)]).any()


def test_geometries_are_compared_in_mm(volume: Any) -> None:
    found = bridge.geometry(volume)
    near = bridge.Geometry(shape=SHAPE, affine=environment.affine(origin=(0, 0, 1e-5)) @ OBLIQUE)
    far = bridge.Geometry(shape=SHAPE, affine=environment.affine(origin=(0, 0, 0.1)) @ OBLIQUE)
    assert found.same(near)
    assert not found.same(far)
    assert found.same(far, tolerance_mm=0.2)
    assert not found.same(bridge.Geometry(shape=(12, 30, 41), affine=OBLIQUE), tolerance_mm=1e9)


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_voxels_are_slicers_own_memory(scene: Any, kind: str) -> None:
    array = np.arange(24, dtype=kind).reshape(2, 3, 4)
    volume = environment.add_volume(array, OBLIQUE)
    found = bridge.scalars(volume)
    assert found.dtype == kind
    assert np.array_equal(found, array)
    found[1, 2, 3] = 99
    assert volume.GetImageData().GetScalarComponentAsDouble(3, 2, 1, 0) == 99


def test_what_cannot_be_segmented_is_named(scene: Any) -> None:
    colour = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Photograph")
    slicer.util.updateVolumeFromArray(colour, np.zeros((2, 3, 4, 3), np.uint8))
    with pytest.raises(InputError, match=r"Photograph.*3 components"):
        bridge.scalars(colour)
    bare = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Bare")
    for ask in (bridge.scalars, bridge.geometry, bridge.fingerprint):
        with pytest.raises(InputError, match="Bare"):
            ask(bare)
        with pytest.raises(InputError, match="no volume"):
            ask(None)


# -- the fingerprint -----------------------------------------------------------------------------------------------


def test_fingerprint_changes_with_voxels_and_grid_only(volume: Any, tmp_path: Any) -> None:
    first = bridge.fingerprint(volume)
    volume.SetName("Renamed")
    volume.GetDisplayNode().SetWindow(17)
    environment.add_transform(MOVED, volume)
    environment.save_scene(tmp_path / "a.mrb")
    assert bridge.fingerprint(volume) == first
    bridge.scalars(volume)[0, 0, 0] += 1
    slicer.util.arrayFromVolumeModified(volume)
    edited = bridge.fingerprint(volume)
    volume.SetOrigin(1, 2, 3)
    assert len({first, edited, bridge.fingerprint(volume)}) == 3


def test_fingerprint_follows_an_image_that_is_swapped(volume: Any) -> None:
    first = bridge.fingerprint(volume)
    other = environment.add_volume(bridge.scalars(volume).copy(), OBLIQUE, "Scan")
    assert bridge.fingerprint(other) != first
    volume.SetAndObserveImageData(other.GetImageData())
    assert bridge.fingerprint(volume) not in (first, bridge.fingerprint(other))


def test_fingerprint_is_not_reused_after_the_scene_was_closed(volume: Any) -> None:
    array, before, name = bridge.scalars(volume).copy(), bridge.fingerprint(volume), volume.GetID()
    environment.clear()
    again = environment.add_volume(array, OBLIQUE, "Scan")
    assert again.GetID() == name
    assert bridge.fingerprint(again) != before


def test_drawing_does_not_change_the_fingerprint(volume: Any, views: Any) -> None:
    first = bridge.fingerprint(volume)
    view = views.slice()
    view.show(volume)
    view.picture()
    assert bridge.fingerprint(volume) == first


# -- the world -----------------------------------------------------------------------------------------------------

PLACES = np.array([(0, 0, 0), (39, 29, 11), (12.5, 7.25, 3), (-3, 40, 20)], float)


def test_places_without_a_transform(volume: Any) -> None:
    world = bridge.ijk_to_world(volume, PLACES)
    assert np.allclose(world, homogeneous(OBLIQUE, PLACES))
    assert np.allclose(bridge.world_to_ijk(volume, world), PLACES)


def test_places_under_nested_linear_transforms(volume: Any) -> None:
    inner = environment.add_transform(MOVED, volume)
    outer = environment.affine(spacing=(1.2, 0.8, 1.1), angles=(5, 6, 7), origin=(3, -4, 5))
    environment.add_transform(outer, inner)
    world = bridge.ijk_to_world(volume, PLACES)
    assert np.allclose(world, homogeneous(outer @ MOVED @ OBLIQUE, PLACES))
    assert np.allclose(bridge.world_to_ijk(volume, world), PLACES)


def test_places_under_a_displacement_field(volume: Any) -> None:
    plain = bridge.ijk_to_world(volume, PLACES)
    field, grid = bump()
    transform = environment.add_grid_transform(field, grid, volume)
    world = bridge.ijk_to_world(volume, PLACES)
    assert (np.linalg.norm(world - plain, axis=1)[:3] > 1).all()
    moved = [transform.GetTransformToParent().TransformPoint(place) for place in plain]
    assert np.allclose(world, moved)
    assert np.allclose(bridge.world_to_ijk(volume, world), PLACES, atol=0.01)


def test_no_places_are_no_error(volume: Any) -> None:
    environment.add_transform(MOVED, volume)
    assert bridge.world_to_ijk(volume, np.zeros((0, 3))).shape == (0, 3)


def test_frames_are_told_apart(volume: Any) -> None:
    other = environment.add_volume(np.zeros((2, 3, 4), np.int16))
    assert bridge.same_frame(volume, other)
    transform = environment.add_transform(MOVED, volume)
    assert not bridge.same_frame(volume, other)
    other.SetAndObserveTransformNodeID(transform.GetID())
    assert bridge.same_frame(volume, other)


# -- regions of interest -------------------------------------------------------------------------------------------


def turned_roi(scene: Any, centre: np.ndarray, size: tuple[float, float, float], turn: np.ndarray) -> Any:
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    matrix = turn.copy()
    matrix[:3, 3] = centre
    roi.SetSize(*size)
    roi.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(matrix))
    return roi


def lattice(size: tuple[float, float, float], steps: int) -> np.ndarray:
    axes = [np.linspace(-length / 2, length / 2, steps) for length in size]
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3)


def bounds(region: bridge.RoiMessage) -> tuple[np.ndarray, np.ndarray]:
    half = np.array(region["size"]) / 2
    return np.array(region["center"]) - half, np.array(region["center"]) + half


def test_a_plain_roi_is_its_own_region(scene: Any, volume: Any) -> None:
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    roi.SetCenter([10, 20, -300])
    roi.SetSize(8, 6, 4)
    region = bridge.roi_region(volume, roi)
    assert np.allclose(region["center"], (10, 20, -300))
    assert np.allclose(region["size"], (8, 6, 4))


def test_a_turned_roi_under_transforms_is_enclosed_tightly(scene: Any, volume: Any) -> None:
    environment.add_transform(MOVED, volume)
    roi = turned_roi(scene, np.array([5.0, 8, -3]), (20, 12, 9), environment.affine(angles=(30, 15, 50)))
    over = environment.affine(spacing=(1, 1.5, 1), angles=(0, 0, 70), origin=(60, 10, 9))
    environment.add_transform(over, roi)
    corners = homogeneous(over, homogeneous(slicer_matrix(roi), lattice((20, 12, 9), 2)))
    in_volume = homogeneous(np.linalg.inv(MOVED), corners)
    low, high = bounds(bridge.roi_region(volume, roi))
    assert np.allclose(low, in_volume.min(axis=0))
    assert np.allclose(high, in_volume.max(axis=0))


def slicer_matrix(roi: Any) -> np.ndarray:
    return slicer.util.arrayFromVTKMatrix(roi.GetObjectToNodeMatrix())


def test_a_roi_over_a_bent_volume_is_enclosed(scene: Any, volume: Any) -> None:
    field, grid = bump()
    environment.add_grid_transform(field, grid, volume)
    middle = bridge.ijk_to_world(volume, [(20, 15, 6)])[0]
    roi = turned_roi(scene, middle, (24, 20, 16), environment.affine(angles=(10, 0, 20)))
    world = homogeneous(slicer_matrix(roi), lattice((24, 20, 16), 13))
    places = homogeneous(OBLIQUE, bridge.world_to_ijk(volume, world))
    low, high = bounds(bridge.roi_region(volume, roi))
    assert (places > low - 0.2).all()
    assert (places < high + 0.2).all()
    assert (high - low < places.max(axis=0) - places.min(axis=0) + 0.5).all()


def test_the_engine_finds_the_voxels_of_the_region(scene: Any, volume: Any) -> None:
    environment.add_transform(MOVED, volume)
    inner = bridge.ijk_to_world(volume, [(10, 8, 3)])[0]
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    roi.SetCenterWorld(inner)
    roi.SetSizeWorld([6, 6, 6])
    k, j, i = Roi(**bridge.roi_region(volume, roi)).slices(bridge.geometry(volume))
    assert k.start <= 3 < k.stop
    assert j.start <= 8 < j.stop
    assert i.start <= 10 < i.stop


def test_a_roi_that_is_not_drawn_is_reported(scene: Any, volume: Any) -> None:
    with pytest.raises(InputError, match="no region of interest"):
        bridge.roi_region(volume, None)
    with pytest.raises(InputError, match=r"Region.*empty"):
        bridge.roi_region(volume, scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region"))


# -- slice views ---------------------------------------------------------------------------------------------------


@pytest.fixture
def view(scene: Any, volume: Any) -> Any:
    """The red slice node: 400 x 200 pixels of 0.05 mm, axial, on the middle of the volume."""
    node = slicer.vtkMRMLSliceNode()
    node.SetLayoutName("Red")
    node.SetName("Red")
    scene.AddNode(node)
    node.SetOrientationToAxial()
    node.SetDimensions(400, 200, 1)
    node.SetFieldOfView(20, 10, 1)
    node.JumpSliceByCentering(*bridge.ijk_to_world(volume, [(20, 15, 6)])[0])
    return node


def along(view: Any, volume: Any, axis: int) -> None:
    """Turn the view so that it shows slices along one axis of (K, J, I)."""
    steps = bridge.ijk_to_world(volume, [(1, 0, 0), (0, 1, 0), (0, 0, 1)]) - bridge.ijk_to_world(volume, [(0, 0, 0)])
    units = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    normal, across = units[2 - axis], units[(3 - axis) % 3]
    centre = np.array(view.GetSliceToRAS().MultiplyPoint((0, 0, 0, 1))[:3])
    view.SetSliceToRASByNTP(*normal, *across, *centre, 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_shown_slice_is_found_along_every_axis(view: Any, volume: Any, axis: int) -> None:
    environment.add_transform(MOVED, volume)
    for index in (0, 4, SHAPE[axis] - 1):
        place = np.array([20.0, 15, 6])
        place[2 - axis] = index + 0.3 * (1 if index == 0 else -1)
        view.JumpSliceByCentering(*bridge.ijk_to_world(volume, [place])[0])
        along(view, volume, axis)
        assert bridge.view_plane(volume, view) == (axis, index)


@pytest.mark.parametrize("sense", [1, -1])
@pytest.mark.parametrize(("leaning", "expected"), [((0.3, 0.2, 1), (0, 7)), ((0.87, 0, 0.5), (2, 20))])
def test_an_oblique_view_shows_the_slice_it_leans_to_least(
    view: Any, volume: Any, sense: int, leaning: tuple[float, float, float], expected: tuple[int, int]
) -> None:
    units = OBLIQUE[:3, :3] / np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    centre = bridge.ijk_to_world(volume, [(20, 15, 7)])[0]
    view.SetSliceToRASByNTP(*(sense * units @ leaning), *units[:, 1], *centre, 0)
    assert bridge.view_plane(volume, view) == expected


def test_a_view_that_cuts_a_corner_off_shows_a_slice_of_the_volume(view: Any, volume: Any) -> None:
    view.SetFieldOfView(400, 200, 1)
    units = OBLIQUE[:3, :3] / np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    view.SetSliceToRASByNTP(*(units @ (0.5, 0.5, 0.7)), *units[:, 0], *bridge.ijk_to_world(volume, [(1, 1, 0)])[0], 0)
    assert bridge.view_plane(volume, view) == (0, 0)


def test_a_view_is_a_region_through_the_whole_depth(view: Any, volume: Any) -> None:
    environment.add_transform(MOVED, volume)
    view.JumpSliceByCentering(*bridge.ijk_to_world(volume, [(20, 15, 6)])[0])
    along(view, volume, 0)
    k, _, i = Roi(**bridge.view_region(volume, view)).slices(bridge.geometry(volume))
    assert (k.start, k.stop) == (0, 12)
    assert i.start <= 20 - 5 / 0.8
    assert i.stop > 20 + 5 / 0.8
    to_volume = np.linalg.inv(MOVED) @ slicer.util.arrayFromVTKMatrix(view.GetXYToRAS())
    low, high = bounds(bridge.view_region(volume, view))
    for pixel in ((0, 0), (400, 0), (0, 200), (400, 200)):
        shown = (to_volume @ (*pixel, 0, 1))[:3]
        assert (shown > low - 1e-6).all()
        assert (shown < high + 1e-6).all()


def test_a_straight_view_of_a_straight_volume_is_exact(scene: Any, view: Any) -> None:
    straight = environment.add_volume(np.zeros(SHAPE, np.int16), environment.affine(spacing=(1, 1, 2)))
    view.JumpSliceByCentering(15.0, 11.0, 8.0)
    low, high = bounds(bridge.view_region(straight, view))
    assert np.allclose(low, (5, 6, -1))
    assert np.allclose(high, (25, 16, 23))
    view.JumpSliceByCentering(35.0, 11.0, 8.0)
    low, high = bounds(bridge.view_region(straight, view))
    assert np.allclose(low, (25, 6, -1))
    assert np.allclose(high, (39.5, 16, 23))


def test_a_view_that_shows_something_else_is_reported(view: Any, volume: Any) -> None:
    for place in [(20, 15, 40), (400, 15, 6)]:
        view.JumpSliceByCentering(*bridge.ijk_to_world(volume, [place])[0])
        along(view, volume, 0)
        for ask in (bridge.view_plane, bridge.view_region):
            with pytest.raises(InputError, match="does not show the volume"):
                ask(volume, view)
