"""The offscreen views themselves: what is drawn, and where a click lands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer.util

from MaskSAMCore.terminology import lookup
from SlicerMaskSAMLib.mrml import bridge
from Testing.slicer import environment, offscreen

AFFINE = environment.affine(spacing=(1, 1, 2), origin=(-20, -15, -10))


def test_a_click_places_a_point_where_the_mouse_is(scene: Any, views: Any) -> None:
    view = views.slice()
    view.show(environment.add_volume(np.zeros((12, 30, 40), np.int16), AFFINE))
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    points.CreateDefaultDisplayNodes()
    scene.GetNodeByID("vtkMRMLSelectionNodeSingleton").SetReferenceActivePlaceNodeID(points.GetID())
    scene.GetNodeByID("vtkMRMLSelectionNodeSingleton").SetActivePlaceNodeClassName(points.GetClassName())
    interaction = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    interaction.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.Place)
    target = view.world((120, 200))
    view.click(target)
    interaction.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.ViewTransform)
    placed = slicer.util.arrayFromMarkupsControlPoints(points, world=True)
    assert np.allclose(placed, [target], atol=0.2)


def test_a_segment_is_drawn_in_its_colour_where_it_lies(scene: Any, views: Any, tmp_path: Path) -> None:
    volume = environment.add_volume(np.zeros((12, 30, 40), np.int16), AFFINE)
    view = views.slice()
    view.show(volume)
    segmentation = bridge.new_segmentation(scene, "Segmentation", volume=volume)
    kidney = bridge.add_segment(segmentation, lookup("left kidney").label(1))
    grid = bridge.geometry(volume)
    bridge.write_segment(segmentation, kidney, grid, (0, 12, 20, 30, 30, 40), np.ones((12, 10, 10), np.uint8))
    before = view.picture()
    assert before.max(axis=2).any(), "nothing is drawn"
    rows, columns = np.nonzero(before.max(axis=2) > 60)
    centre = view.xy(bridge.ijk_to_world(volume, [(34.5, 24.5, 6)])[0])
    assert abs((columns.min() + columns.max()) / 2 - centre[0]) < 3
    assert abs(view.size[1] - (rows.min() + rows.max()) / 2 - centre[1]) < 3
    view.save(tmp_path / "slice.png")
    assert (tmp_path / "slice.png").stat().st_size > 500


def test_a_surface_is_drawn_in_the_3d_view(scene: Any, views: Any) -> None:
    volume = environment.add_volume(np.zeros((12, 30, 40), np.int16), AFFINE)
    segmentation = bridge.new_segmentation(scene, "Segmentation", volume=volume)
    kidney = bridge.add_segment(segmentation, lookup("left kidney").label(1))
    grid = bridge.geometry(volume)
    bridge.write_segment(segmentation, kidney, grid, (2, 10, 5, 25, 5, 35), np.ones((8, 20, 30), np.uint8))
    view = views.three_d()
    empty = view.picture()
    segmentation.CreateClosedSurfaceRepresentation()
    view.fit()
    assert (view.picture() != empty).any(axis=2).mean() > 0.05


def test_views_leave_nothing_behind(scene: Any, views: Any) -> None:
    views.slice()
    views.three_d()
    views.close()
    assert not environment.nodes("vtkMRMLSliceNode")
    assert not environment.nodes("vtkMRMLViewNode")
    assert slicer.app.applicationLogic().GetSliceLogics().GetNumberOfItems() == 0


def test_a_computer_that_cannot_render_is_detected_without_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTK_DEFAULT_OPENGL_WINDOW", "vtkXOpenGLRenderWindow")
    monkeypatch.setenv("DISPLAY", ":nowhere")
    assert "libegl1" in offscreen.missing.__wrapped__()


def test_tests_that_draw_are_skipped_loudly_there(request: pytest.FixtureRequest, monkeypatch: Any) -> None:
    monkeypatch.setattr(offscreen, "missing", lambda: "VTK cannot draw")
    with pytest.raises(pytest.skip.Exception, match="NOT TESTED HERE: VTK cannot draw"):
        request.getfixturevalue("views")
