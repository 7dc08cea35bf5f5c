"""faults.md row 59: a click in the 3-D view or outside the volume → ignored with a hint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from Testing.slicer import environment
from Testing.slicer.desk import SHAPE, Desk

OUTSIDE = "This position is outside Scan; click inside it."
DEPTH, HEIGHT, WIDTH = SHAPE


@pytest.fixture
def desk(scene: Any) -> Desk:
    return Desk(scene)


def nothing_happened(desk: Desk) -> bool:
    desk.settle()
    return desk.segmentation is None and not environment.nodes("vtkMRMLMarkupsNode") and not desk.engine.asked


def test_a_click_in_the_3d_view(desk: Desk) -> None:
    desk.refinement.click(desk.world(20, 15, 10), True, None)
    assert desk.messages == ["Click in a slice view; a position in the 3-D view has no depth."]
    assert nothing_happened(desk)


@pytest.mark.parametrize(
    "place",
    [
        (-0.6, 15, 10),
        (WIDTH - 0.4, 15, 10),
        (20, -0.6, 10),
        (20, HEIGHT - 0.4, 10),
        (20, 15, -0.6),
        (20, 15, DEPTH - 0.4),
    ],
)
def test_a_click_beside_the_volume(desk: Desk, place: tuple[float, float, float]) -> None:
    desk.press(*place)
    assert desk.messages == [OUTSIDE]
    assert nothing_happened(desk)


@pytest.mark.parametrize("place", [(-0.4, 15, 10), (WIDTH - 0.6, HEIGHT - 0.6, DEPTH - 0.6)])
def test_a_click_in_the_outermost_voxels_counts(desk: Desk, place: tuple[float, float, float]) -> None:
    desk.click(*place)
    assert desk.messages == []
    assert desk.voxels().any()


def test_a_click_nowhere(desk: Desk) -> None:
    desk.refinement.click(np.array([np.nan, 0, 0]), True, desk.view)
    assert desk.messages == [OUTSIDE]
    assert nothing_happened(desk)


def test_a_box_beside_the_volume(desk: Desk) -> None:
    desk.refinement.draw_box(desk.world(WIDTH + 2, 3, 10), desk.world(WIDTH + 9, 9, 10), desk.view)
    assert desk.messages == [OUTSIDE]
    assert nothing_happened(desk)


def test_a_box_that_reaches_out_counts(desk: Desk) -> None:
    desk.refinement.draw_box(desk.world(WIDTH - 5, 3, 10), desk.world(WIDTH + 5, 9, 10), desk.view)
    assert desk.messages == []
    assert desk.refinement.has_work


def test_a_click_without_a_volume(desk: Desk) -> None:
    desk.parameters.inputVolume = None
    desk.refinement.click(np.zeros(3), True, desk.view)
    assert desk.messages == ["no volume is chosen. Choose a volume first."]
    assert nothing_happened(desk)


def test_work_goes_on_after_it(desk: Desk) -> None:
    desk.click(20, 15, 10)
    before = desk.voxels()
    desk.press(-9, 15, 10)
    desk.refinement.click(desk.world(20, 15, 10), False, None)
    desk.settle()
    assert np.array_equal(desk.voxels(), before)
    assert len(desk.rows) == 1
