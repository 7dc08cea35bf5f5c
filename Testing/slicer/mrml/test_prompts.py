"""Prompts as markups on a real MRML scene: what the engine is told, what the panel shows, and what undo restores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import slicer.util

from MaskSAMCore.errors import PromptError
from MaskSAMCore.worker.jobs import checked_fields
from SlicerMaskSAMLib.mrml import markups
from SlicerMaskSAMLib.mrml.auto_prompts import AutomaticPromptNodes
from SlicerMaskSAMLib.mrml.bridge import ijk_to_world
from SlicerMaskSAMLib.values.choices import Scope
from Testing.slicer import environment
from Testing.slicer.heart import FIRST, SECOND, SHAPE, THIRD, Heart, messages, prompt_lists

MOVED = environment.affine(angles=(5, 40, -10), origin=(10, -20, 30))


# -- messages to the engine --------------------------------------------------------------------------------------------


def test_prompts_reach_the_engine_in_voxels_and_in_the_order_given(heart: Heart) -> None:
    heart.some_of_each()
    start, first, second, box, third = messages(heart.prompts)
    assert start["kind"] == "mask"
    assert start["mask_box"] == (2, 4, 6)
    assert np.array_equal(start["mask"], np.eye(3, 5, dtype=np.uint8)[None])
    assert [each["kind"] for each in (first, second, box, third)] == ["point", "point", "box", "point"]
    assert [each["positive"] for each in (first, second, third)] == [True, False, True]
    assert [each["scope"] for each in (first, second, box, third)] == ["slab", "slice", "slab", "volume"]
    for point, ijk in ((first, FIRST), (second, SECOND), (third, THIRD)):
        assert point["position"] == pytest.approx(ijk)
    checked_fields("prompt", {"case": 0, "structure": 1, "prompts": messages(heart.prompts)})


def test_a_box_ends_in_the_voxels_that_its_edges_enclose(heart: Heart) -> None:
    heart.box((1.5, 2.5, 4.5), (5.5, 8.5, 7.5), axis=None)
    (corners,) = heart.places()
    assert np.allclose(corners, ((2, 3, 5), (5, 8, 7)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_box_drawn_in_a_slice_lies_in_that_slice(heart: Heart, axis: int) -> None:
    heart.box((9, 11, 6), (2, 3, 4), axis=axis)
    low, high = np.array(heart.places()[0])
    flat = np.arange(3) == 2 - axis
    assert np.allclose((high - low)[flat], 0)
    assert np.allclose(((low + high) / 2)[flat], np.array((5.5, 7, 5))[flat])
    assert np.allclose((high - low)[~flat], np.array((6, 7, 1))[~flat])


def test_a_box_smaller_than_a_voxel_is_that_voxel(heart: Heart) -> None:
    heart.box((5.1, 6.2, 3), (5.3, 6.9, 3))
    assert np.allclose(heart.places()[0], ((5.2, 6.55, 3), (5.2, 6.55, 3)))


def test_boxes_are_right_in_a_volume_whose_axes_are_left_handed(heart: Heart) -> None:
    mirrored = np.diag([1.0, 1.0, -2.0, 1.0])
    volume = environment.add_volume(np.zeros(SHAPE, np.int16), mirrored)
    prompts = heart.nodes.of(heart.segmentation, "heart", volume)
    ends = ijk_to_world(volume, [(1.5, 2.5, 4.5), (5.5, 8.5, 7.5)])
    prompts.add_box(*ends, scope=Scope.SLAB)
    assert np.allclose(messages(prompts)[0]["corners"], ((2, 3, 5), (5, 8, 7)))
    turned = slicer.util.arrayFromVTKMatrix(heart.node("box").GetObjectToNodeMatrix())
    assert np.linalg.det(turned[:3, :3]) == pytest.approx(1), "dragging it would turn it over"


def test_only_the_first_including_click_has_a_candidate(heart: Heart) -> None:
    heart.click(FIRST)
    heart.prompts.set_last(candidate=2)
    heart.prompts.set_last(scope=Scope.VOLUME)
    (point,) = messages(heart.prompts)
    assert (point["candidate"], point["scope"]) == (2, "volume")
    heart.prompts.set_start(np.ones((1, 1, 1)), (0, 1, 0, 1, 0, 1))
    assert "candidate" not in messages(heart.prompts)[1]


def test_set_last_changes_the_last_prompt_alone_and_nothing_where_there_is_none(heart: Heart) -> None:
    heart.prompts.set_last(scope=Scope.VOLUME)
    heart.click(FIRST)
    heart.box((2, 3, 5), (9, 11, 5))
    heart.prompts.set_last(scope=Scope.SLICE, candidate=1)
    assert [each["scope"] for each in messages(heart.prompts)] == ["slab", "slice"]
    heart.prompts.clear()
    heart.prompts.set_start(np.ones((1, 1, 1)), (0, 1, 0, 1, 0, 1))
    before = heart.prompts.snapshot()
    heart.prompts.set_last(scope=Scope.VOLUME)
    assert heart.prompts.snapshot() == before


def test_starting_from_nothing_is_no_start(heart: Heart) -> None:
    heart.prompts.set_start(np.ones((1, 1, 1)), (0, 1, 0, 1, 0, 1))
    heart.prompts.set_start(np.zeros((2, 2, 2)), (0, 2, 0, 2, 0, 2))
    assert heart.prompts.snapshot() == ()


def test_a_damaged_start_is_named(heart: Heart) -> None:
    heart.prompts.set_start(np.ones((4, 4, 4)), (0, 4, 0, 4, 0, 4))
    node = heart.node("start")
    node.SetParameter("mask", node.GetParameter("mask")[:-4])
    with pytest.raises(PromptError, match="damaged"):
        messages(heart.prompts)


# -- the list --------------------------------------------------------------------------------------------------------


def test_rows_tell_each_prompt_and_their_keys_remove_it(heart: Heart) -> None:
    heart.some_of_each()
    rows = heart.prompts.rows()
    assert [row.text for row in rows] == [
        "Segment at the start",
        "Include (4, 8, 3), slab",
        "Exclude (10, 13, 6), slice",
        "Box of 7 × 8 × 1 voxels around (6, 7, 5), slab",
        "Include (16, 3, 8), volume",
    ]
    assert [(row.kind, row.positive) for row in rows][1:4] == [("point", True), ("point", False), ("box", True)]
    for row in rows:
        heart.prompts.remove(row.key)
        assert row.key not in {each.key for each in heart.prompts.rows()}
    assert heart.prompts.rows() == ()
    assert heart.nodes.all() == []


def test_removing_one_click_leaves_the_others_and_a_second_time_nothing_happens(heart: Heart) -> None:
    heart.some_of_each()
    rows = heart.prompts.rows()
    for gone in (1, 3):
        for _ in range(2):
            heart.prompts.remove(rows[gone].key)
            assert rows[gone] not in heart.prompts.rows()
    assert heart.prompts.rows() == (rows[0], rows[2], rows[4])


def test_a_key_of_another_list_removes_nothing(heart: Heart) -> None:
    heart.click(FIRST)
    heart.nodes.of(heart.segmentation, "lung", heart.volume).remove(heart.prompts.rows()[0].key)
    assert len(heart.prompts.rows()) == 1


def test_segments_and_volumes_have_lists_of_their_own(heart: Heart) -> None:
    other_scan = environment.add_volume(np.zeros(SHAPE, np.int16))
    heart.click(FIRST)
    lung = heart.nodes.of(heart.segmentation, "lung", heart.volume)
    elsewhere = heart.nodes.of(heart.segmentation, "heart", other_scan)
    assert lung.snapshot() == elsewhere.snapshot() == ()
    lung.add_point(heart.world(SECOND), positive=True, scope=Scope.SLAB)
    assert [each.key for each in prompt_lists(heart.nodes)] == [heart.prompts.key, lung.key]
    assert len(heart.prompts.snapshot()) == 1


def test_a_snapshot_restores_the_list_exactly_and_touches_nothing_else(heart: Heart) -> None:
    heart.click(FIRST)
    heart.box((2, 3, 5), (9, 11, 5))
    earlier, rows = heart.prompts.snapshot(), heart.prompts.rows()
    heart.click(SECOND, positive=False)
    heart.box((1, 1, 4), (3, 3, 4))
    heart.prompts.set_start(np.ones((1, 2, 3)), (0, 1, 0, 2, 0, 3))
    heart.prompts.set_last(scope=Scope.VOLUME)
    later = heart.prompts.snapshot()
    heart.prompts.restore(earlier)
    assert (heart.prompts.snapshot(), heart.prompts.rows()) == (earlier, rows)
    heart.prompts.restore(later)
    assert heart.prompts.snapshot() == later
    heart.prompts.clear()
    assert heart.prompts.snapshot() == ()
    heart.prompts.restore(later)
    assert heart.prompts.snapshot() == later
    assert heart.news == []


def test_what_includes_and_what_excludes_differ_in_colour_and_in_shape(heart: Heart) -> None:
    heart.click(FIRST)
    heart.click(SECOND, positive=False)
    include, exclude = (heart.node(kind).GetDisplayNode() for kind in ("include", "exclude"))
    assert include.GetSelectedColor() == pytest.approx(markups.INCLUDE_STYLE.color)
    assert exclude.GetSelectedColor() == pytest.approx(markups.EXCLUDE_STYLE.color)
    assert include.GetGlyphType() != exclude.GetGlyphType()
    assert markups.INCLUDE_STYLE.color[1] > 0.5 > markups.EXCLUDE_STYLE.color[1]


def test_one_list_is_shown_and_the_others_hidden(heart: Heart) -> None:
    heart.some_of_each()
    lung = heart.nodes.of(heart.segmentation, "lung", heart.volume)
    lung.add_point(heart.world(SECOND), positive=True, scope=Scope.SLAB)
    shown = {"lung": lung, "heart": heart.prompts, None: None}
    for segment_id, prompts in shown.items():
        heart.nodes.show_only(prompts)
        for node in heart.nodes.all():
            if node.IsA("vtkMRMLMarkupsNode"):
                assert bool(node.GetDisplayVisibility()) == (node.GetAttribute("MaskSAM.segment") == segment_id)


# -- automatic prompts -------------------------------------------------------------------------------------------------

FOUND = {
    "Heart": [
        {"kind": "point", "position": (5.5, 7.0, 5.0), "positive": True, "scope": "slab"},
        {"kind": "box", "corners": ((2, 3, 5), (9, 11, 5)), "scope": "slab"},
    ],
    "Lung": [{"kind": "point", "position": (15.0, 16.0, 5.0), "positive": True, "scope": "slab"}],
}


def test_automatic_prompts_are_shown_dragged_and_passed_on(heart: Heart) -> None:
    environment.add_transform(MOVED, heart.volume)
    automatic = AutomaticPromptNodes(heart.scene)
    automatic.show(heart.volume, FOUND)
    (point,) = (node for node in automatic.nodes() if node.GetName() == "Heart automatic" and node.IsA(markups.POINTS))
    point.SetNthControlPointPositionWorld(0, heart.world((6, 8, 5)))
    given = automatic.prompts(scope=Scope.SLICE)
    assert list(given) == ["Heart", "Lung"]
    heart.prompts.add(given["Heart"])
    box, moved = messages(heart.prompts)
    assert np.allclose(box["corners"], FOUND["Heart"][1]["corners"])
    assert np.allclose(moved["position"], (6, 8, 5))
    assert [box["scope"], moved["scope"]] == ["slice", "slice"]
    assert heart.news == []


def test_automatic_prompts_are_replaced_hidden_and_not_saved(heart: Heart, tmp_path: Path) -> None:
    automatic = AutomaticPromptNodes(heart.scene)
    automatic.show(heart.volume, FOUND)
    automatic.show(heart.volume, {"Lung": FOUND["Lung"]})
    assert list(automatic.prompts(scope=Scope.SLAB)) == ["Lung"]
    environment.save_scene(tmp_path / "scene.mrb")
    automatic.hide()
    assert automatic.prompts(scope=Scope.SLAB) == {}
    scene = environment.open_scene(tmp_path / "scene.mrb")
    assert scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode") == 0


def test_automatic_prompts_without_their_volume_are_ignored(heart: Heart) -> None:
    automatic = AutomaticPromptNodes(heart.scene)
    automatic.show(heart.volume, FOUND)
    heart.scene.RemoveNode(heart.volume)
    assert automatic.prompts(scope=Scope.SLAB) == {}
