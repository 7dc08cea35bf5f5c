"""faults.md row 23: clicks are mapped through transforms, and results carry them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util

from MaskSAMCore.terminology import lookup
from SlicerMaskSAMLib.mrml import bridge
from Testing.slicer import environment

AFFINE = environment.affine(spacing=(0.8, 0.9, 2.5), angles=(12, -20, 33), origin=(-10, 17, -33))
MOVED = environment.affine(spacing=(1.1, 0.9, 1), angles=(-25, 40, 10), origin=(30, -50, 25))
SHAPE = (12, 30, 40)
BALL = np.array([22.0, 12.0, 6.0])
"""Its middle, ijk."""


def linear(*nodes: Any) -> Any:
    return environment.add_transform(MOVED, *nodes)


def bent(*nodes: Any) -> Any:
    wave = np.indices((14, 14, 14)).astype(float)
    field = 4 * np.stack([np.sin(wave[1] / 2), np.cos(wave[0] / 2), np.sin(wave[2] / 2)], axis=-1)
    grid = environment.affine(spacing=(12, 12, 12), origin=(-80, -60, -90))
    return environment.add_grid_transform(field, grid, *nodes)


def both(*nodes: Any) -> Any:
    inner = bent(*nodes)
    linear(inner)
    return inner


@pytest.fixture(params=[linear, bent, both])
def moved(request: Any, scene: Any) -> Any:
    """A volume with a bright ball, under a transform."""
    k, j, i = np.indices(SHAPE)
    away = np.linalg.norm((np.stack([i, j, k], axis=-1) - BALL) * (0.8, 0.9, 2.5), axis=-1)
    volume = environment.add_volume((1000 * (away < 6)).astype(np.int16), AFFINE, "Scan")
    request.param(volume)
    return volume


def test_a_click_on_the_ball_is_a_voxel_of_the_ball(scene: Any, moved: Any) -> None:
    parent = moved.GetParentTransformNode()
    marker = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    marker.AddControlPoint(AFFINE[:3, :3] @ BALL + AFFINE[:3, 3])
    marker.SetAndObserveTransformNodeID(parent.GetID())
    clicked = np.zeros(3)
    marker.GetNthControlPointPositionWorld(0, clicked)
    assert np.linalg.norm(clicked - (AFFINE[:3, :3] @ BALL + AFFINE[:3, 3])) > 1, "the transform does nothing"
    i, j, k = np.rint(bridge.world_to_ijk(moved, [clicked])[0]).astype(int)
    assert (i, j, k) == tuple(BALL.astype(int))
    assert bridge.scalars(moved)[k, j, i] == 1000


def test_the_result_lies_on_the_ball_in_the_world(scene: Any, moved: Any) -> None:
    grid, mask = bridge.geometry(moved), bridge.scalars(moved) > 500
    segmentation = bridge.new_segmentation(scene, "Result", volume=moved)
    new = bridge.add_segment(segmentation, lookup("liver").label(1))
    bridge.write_segment(segmentation, new, grid, grid.box, mask)
    assert segmentation.GetParentTransformNode() is moved.GetParentTransformNode()
    segmentation.HardenTransform()
    world = environment.add_volume(np.zeros((90, 90, 90), np.uint8), environment.affine(origin=centre(moved) - 45))
    found = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, new, world)
    middle = np.argwhere(found).mean(axis=0)[::-1] + centre(moved) - 45
    expected = bridge.ijk_to_world(moved, np.argwhere(mask)[:, ::-1]).mean(axis=0)
    assert np.linalg.norm(middle - expected) < 2.5 / 4  # Slicer resamples slices of 2.5 mm where the field bends


def centre(volume: Any) -> np.ndarray:
    return np.rint(bridge.ijk_to_world(volume, [BALL])[0])


def test_a_region_of_interest_around_the_ball_holds_it(scene: Any, moved: Any) -> None:
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenter(bridge.ijk_to_world(moved, [BALL])[0])
    roi.SetSize(24, 24, 24)
    region = bridge.roi_region(moved, roi)
    middle, half = np.array(region["center"]), np.array(region["size"]) / 2
    ball = bridge.geometry(moved).to_ras(np.argwhere(bridge.scalars(moved) > 500)[:, ::-1])
    assert (np.abs(ball - middle) < half).all()


def test_hardening_a_linear_transform_makes_another_scan(scene: Any) -> None:
    volume = environment.add_volume(np.zeros(SHAPE, np.int16), AFFINE)
    linear(volume)
    before = bridge.fingerprint(volume)
    world = bridge.ijk_to_world(volume, [BALL])
    volume.HardenTransform()
    assert bridge.fingerprint(volume) != before
    assert np.allclose(bridge.ijk_to_world(volume, [BALL]), world)
