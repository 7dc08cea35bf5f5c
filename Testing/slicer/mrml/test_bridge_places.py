"""The bridge: one body on many grids and under many transforms lies on the same points of the world, in mm.

Slicer itself puts the segments onto a fixed grid of the world, so nothing here trusts the bridge's own geometry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util

from MaskSAMCore.io.images import read_labels
from MaskSAMCore.labels import Label
from MaskSAMCore.terminology import lookup
from SlicerMaskSAMLib.mrml import bridge
from Testing.faults.test_axis_orders import ORDERS, phantom
from Testing.slicer import environment

MOVED = environment.affine(angles=(-25, 40, 10), origin=(30, -20, 25))


def segments_of(scene: Any, volume: Any, labels: np.ndarray) -> Any:
    """Every label of the phantom as a segment, written through the bridge in two pieces."""
    grid = bridge.geometry(volume)
    segmentation = bridge.new_segmentation(scene, "Segmentation", volume=volume)
    k, j, i = labels.shape
    for value in range(1, 9):
        new = bridge.add_segment(segmentation, Label(id=value, name=f"Part {value}", color=(value, 0, 0)))
        for box in ((0, k, 0, j, 0, 3), (0, k, 0, j, 3, i)):
            bridge.write_segment(segmentation, new, grid, box, labels[..., box[4] : box[5]] == value)
    return segmentation


def on_world_grid(scene: Any, segmentation: Any, grid: bridge.Geometry) -> np.ndarray:
    """All segments as Slicer exports them, through every transform, to a volume that lies in the world."""
    reference = environment.add_volume(np.zeros(grid.shape, np.uint8), grid.affine, "World")
    found = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    logic = slicer.modules.segmentations.logic()
    assert logic.ExportAllSegmentsToLabelmapNode(segmentation, found, slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY)
    ids = segmentation.GetSegmentation().GetSegmentIDs()
    assert logic.ExportSegmentsToLabelmapNode(segmentation, ids, found, reference)
    return slicer.util.arrayFromVolume(found).copy()


def centres(labels: np.ndarray, grid: bridge.Geometry) -> np.ndarray:
    """Centre of every label, world RAS mm."""
    places = [np.argwhere(labels == value).mean(axis=0)[::-1] for value in range(1, 9)]
    return grid.to_ras(places)


@pytest.fixture(scope="module")
def straight() -> tuple[np.ndarray, bridge.Geometry]:
    labels, grid = phantom((0, 1, 2), (1, 1, 1))
    return labels, bridge.Geometry(shape=grid.shape, affine=grid.affine)


@pytest.mark.parametrize(("perm", "signs"), ORDERS)
def test_every_axis_order_lies_on_the_same_voxels_of_the_world(
    scene: Any, straight: Any, perm: Any, signs: Any
) -> None:
    labels, grid = phantom(perm, signs)
    segmentation = segments_of(scene, environment.add_volume(labels, grid.affine), labels)
    assert np.array_equal(on_world_grid(scene, segmentation, straight[1]), straight[0])


@pytest.mark.parametrize(("perm", "signs"), ORDERS[::5])
def test_clicks_on_the_world_find_the_same_body(scene: Any, straight: Any, perm: Any, signs: Any) -> None:
    labels, grid = phantom(perm, signs)
    volume = environment.add_volume(labels, grid.affine)
    environment.add_transform(MOVED, volume)
    expected, world = straight
    indices = np.argwhere(expected >= 0)
    places = world.to_ras(indices[:, ::-1]) @ MOVED[:3, :3].T + MOVED[:3, 3]
    found = bridge.world_to_ijk(volume, places)
    assert np.allclose(found, np.rint(found), atol=1e-6)
    k, j, i = np.rint(found).astype(int).T[::-1]
    assert np.array_equal(bridge.scalars(volume)[k, j, i], expected.ravel())


def test_an_oblique_grid_under_a_transform_lies_where_it_should(scene: Any) -> None:
    turn = environment.affine(angles=(20, -30, 45), origin=(-60, 30, 300))
    labels, grid = phantom((2, 0, 1), (1, -1, 1), turn)
    volume = environment.add_volume(labels, grid.affine)
    environment.add_transform(MOVED, volume)
    segmentation = segments_of(scene, volume, labels)
    moved = bridge.Geometry(shape=labels.shape, affine=MOVED @ grid.affine)
    assert np.array_equal(on_world_grid(scene, segmentation, moved), labels)
    fine = environment.affine(spacing=(0.5, 0.5, 0.5), origin=moved.center - np.full(3, 15))
    sampled = bridge.Geometry(shape=(60, 60, 60), affine=fine)
    found = centres(on_world_grid(scene, segmentation, sampled), sampled)
    assert np.abs(found - centres(labels, moved)).max() < 0.15


def test_a_bent_volume_carries_its_segments_along(scene: Any) -> None:
    k, j, i = np.indices((20, 30, 30))
    labels = ((k // 5) % 2 + 2 * ((j // 10) % 2) + 4 * ((i // 10) % 2) + 1).astype(np.uint8)
    affine = environment.affine(spacing=(1.5, 1.5, 2.0), angles=(5, 10, 15), origin=(-20, -30, 10))
    volume = environment.add_volume(labels, affine)
    grid = environment.affine(spacing=(15, 15, 15), origin=(-90, -90, -60))
    wave = np.indices((13, 13, 13)).astype(float)
    field = 4 * np.stack([np.sin(wave[1] / 2), np.cos(wave[0] / 2), np.sin(wave[2] / 2)], axis=-1)
    environment.add_grid_transform(field, grid, volume)
    segmentation = segments_of(scene, volume, labels)
    assert segmentation.GetParentTransformNode() is volume.GetParentTransformNode()
    box = bridge.Geometry(shape=(40, 50, 50), affine=environment.affine(origin=(-20, -30, 10)))
    found = on_world_grid(scene, segmentation, box)
    seen = np.argwhere(found > 0)[::7]
    places = bridge.world_to_ijk(volume, box.to_ras(seen[:, ::-1]))
    # Slicer samples twice on the way: what lies within a voxel of a border may fall on either side.
    around = np.stack([places + step for step in (*np.eye(3), *-np.eye(3))])
    nearest = np.clip(np.rint(around), 0, 29).astype(int)
    nearest[..., 2] = nearest[..., 2].clip(0, 19)
    near = labels[nearest[..., 2], nearest[..., 1], nearest[..., 0]]
    clear = (near == near[0]).all(axis=0)
    assert clear.sum() > 300
    assert np.array_equal(near[0][clear], found[tuple(seen.T)][clear])
    straight = np.rint(bridge.geometry(volume).to_ijk(box.to_ras(seen[:, ::-1]))).astype(int).clip(0, 19)
    assert (labels[tuple(straight.T[::-1])] != found[tuple(seen.T)])[clear].mean() > 0.1, "the field does nothing"


@pytest.mark.parametrize("name", ["siemens_mr", "ge_mr", "ct_head"])
def test_segments_of_a_real_series_lie_on_its_anatomy(scene: Any, shared: Path, name: str) -> None:
    volume, _ = environment.load_dicom(sorted((shared / "data" / "dicom" / name).glob("*.dcm")))
    grid, voxels = bridge.geometry(volume), bridge.scalars(volume)
    bright = voxels > np.percentile(voxels, 90)
    segmentation = bridge.new_segmentation(scene, "Segmentation", volume=volume)
    body = bridge.add_segment(segmentation, lookup("liver").label(1))
    bridge.write_segment(segmentation, body, grid, grid.box, bright)
    expected = grid.to_ras(np.argwhere(bright).mean(axis=0)[::-1])
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, body, volume) > 0, bright)
    surface = slicer.vtkOrientedImageData()
    segmentation.GetBinaryLabelmapRepresentation(body, surface)
    middle = slicer.util.arrayFromVTKMatrix(matrix_of(surface)) @ (*centre_ijk(surface), 1)
    assert np.allclose(middle[:3], expected, atol=0.01)


def matrix_of(image: Any) -> Any:
    import vtk

    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return matrix


def centre_ijk(image: Any) -> np.ndarray:
    from vtk.util.numpy_support import vtk_to_numpy

    i0, _, j0, _, k0, _ = image.GetExtent()
    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    return np.argwhere(voxels > 0).mean(axis=0)[::-1] + (i0, j0, k0)


@pytest.mark.parametrize(("perm", "signs"), ORDERS[::7])
def test_a_file_that_slicer_writes_is_read_by_the_engine(scene: Any, tmp_path: Path, perm: Any, signs: Any) -> None:
    turn = environment.affine(angles=(20, -30, 45), origin=(-60, 30, 300))
    labels, grid = phantom(perm, signs, turn)
    volume = environment.add_volume(labels, grid.affine)
    segmentation = bridge.new_segmentation(scene, "Segmentation", volume=volume)
    place = bridge.geometry(volume)
    terms = [lookup(name).label(n) for n, name in enumerate(("left kidney", "right kidney", "liver"), start=1)]
    for term in terms:
        new = bridge.add_segment(segmentation, term)
        bridge.write_segment(segmentation, new, place, place.box, labels == term.id)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "a.seg.nrrd"))
    storage.SetCropToMinimumExtent(False)
    assert storage.WriteData(segmentation)
    read = read_labels(tmp_path / "a.seg.nrrd")
    assert read.grid.same_as(place)
    assert np.array_equal(read.array, np.where(labels <= 3, labels, 0))
    assert read.labels is not None
    assert list(read.labels.labels) == terms
