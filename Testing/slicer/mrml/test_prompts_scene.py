"""Prompts as markups on a real MRML scene: what transforms, users, files and other nodes may do to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slicer.util

from SlicerMaskSAMLib.mrml import markups
from SlicerMaskSAMLib.mrml.bridge import geometry, ijk_to_world
from SlicerMaskSAMLib.mrml.prompts import PromptList
from SlicerMaskSAMLib.mrml.volumes import vtk_matrix
from SlicerMaskSAMLib.values.choices import Scope
from Testing.slicer import environment
from Testing.slicer.heart import FIRST, OBLIQUE, SECOND, SHAPE, THIRD, Heart, messages, prompt_lists

MOVED = environment.affine(angles=(5, 40, -10), origin=(10, -20, 30))
STRETCHED = np.diag([1.2, 0.8, 1.5, 1.0]) @ MOVED


# -- transforms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [MOVED, STRETCHED], ids=["moved", "stretched"])
def test_prompts_stay_on_the_anatomy_whatever_happens_to_the_volumes_transform(
    heart: Heart, transform: np.ndarray
) -> None:
    heart.some_of_each()
    places = heart.places()
    world = heart.world(FIRST)
    node = environment.add_transform(transform, heart.volume)
    assert np.allclose(heart.position(0), (transform @ [*world, 1])[:3])
    assert np.allclose(np.vstack(heart.places()), np.vstack(places))
    node.SetMatrixTransformToParent(None)
    assert np.allclose(heart.position(0), world)
    node.SetMatrixTransformToParent(vtk_matrix(transform))
    heart.volume.SetAndObserveTransformNodeID(None)
    assert np.allclose(heart.position(0), world)
    assert np.allclose(np.vstack(heart.places()), np.vstack(places))
    assert heart.news == []


def test_hardening_the_volumes_transform_leaves_the_prompts_where_they_are(heart: Heart) -> None:
    environment.add_transform(MOVED, heart.volume)
    heart.some_of_each()
    places, world = heart.places(), heart.position(0)
    heart.volume.HardenTransform()
    assert np.allclose(heart.position(0), world)
    assert np.allclose(np.vstack(heart.places()), np.vstack(places), atol=1e-5)
    assert heart.news == []


def test_clicks_under_a_warping_transform_are_in_the_voxel_that_was_clicked(heart: Heart) -> None:
    field = 4 * np.sin(np.indices((6, 6, 6)).transpose(1, 2, 3, 0))
    grid = environment.affine(spacing=(12, 12, 12), origin=heart.world((-2, -2, -2)) - 12)
    environment.add_grid_transform(field, grid, heart.volume)
    assert not np.allclose(heart.world(FIRST), OBLIQUE[:3] @ (*FIRST, 1), atol=0.5)
    heart.some_of_each()
    first, second, box, third = heart.places()
    assert np.allclose([first, second, third], [FIRST, SECOND, THIRD], atol=0.01)
    assert np.allclose(box, ((2.5, 3.5, 5), (8.5, 10.5, 5)), atol=0.01)


# -- the user --------------------------------------------------------------------------------------------------------


def test_a_dragged_point_is_reported_once_at_the_end(heart: Heart) -> None:
    heart.some_of_each()
    before, node = heart.prompts.snapshot(), heart.node("include")
    node.InvokeEvent(node.PointStartInteractionEvent)
    for offset in (1.0, 2.0, 3.0):
        node.SetNthControlPointPositionWorld(1, heart.world((15.5 + offset, 3, 8)))
        assert heart.prompts.snapshot() == before
    assert heart.news == []
    node.InvokeEvent(node.PointEndInteractionEvent)
    heart.assert_notified(before, heart.prompts.snapshot())
    assert np.allclose(heart.places()[3], (18.5, 3, 8))


def test_a_grip_that_moves_nothing_is_no_news(heart: Heart) -> None:
    heart.some_of_each()
    node = heart.node("include")
    node.InvokeEvent(node.PointStartInteractionEvent)
    node.InvokeEvent(node.PointEndInteractionEvent)
    assert heart.news == []


def test_a_box_can_be_dragged_and_made_to_span_slices(heart: Heart) -> None:
    heart.box((2, 3, 5), (9, 11, 5))
    before, node = heart.prompts.snapshot(), heart.node("box")
    width, height, depth = node.GetSize()
    node.SetSize(width, height, 3 * depth)
    heart.assert_notified(before, heart.prompts.snapshot())
    assert np.allclose(heart.places()[0], ((2.5, 3.5, 4), (8.5, 10.5, 6)))


def test_a_point_set_in_a_table_is_reported_at_once(heart: Heart) -> None:
    heart.click(FIRST)
    before = heart.prompts.snapshot()
    heart.node("include").SetNthControlPointPositionWorld(0, heart.world(SECOND))
    heart.assert_notified(before, heart.prompts.snapshot())
    assert np.allclose(heart.places()[0], SECOND)


def test_a_point_that_the_user_placed_with_slicers_own_tools_is_the_last_prompt(heart: Heart) -> None:
    heart.click(FIRST)
    heart.click(SECOND, positive=False)
    before = heart.prompts.snapshot()
    heart.node("include").AddControlPointWorld(heart.world(THIRD))
    heart.assert_notified(before, heart.prompts.snapshot())
    heart.click((1, 2, 3), positive=False)
    assert np.allclose(np.vstack(heart.places()), [FIRST, SECOND, THIRD, (1, 2, 3)])


def test_a_point_that_still_hangs_on_the_mouse_is_no_prompt(heart: Heart) -> None:
    heart.click(FIRST)
    node = heart.node("include")
    index = node.AddControlPointWorld(heart.world(THIRD))
    node.ResetNthControlPointPosition(index)
    assert np.allclose(np.vstack(heart.places()), [FIRST])


def test_a_deleted_prompt_is_gone_and_reported(heart: Heart) -> None:
    heart.some_of_each()
    before = heart.prompts.snapshot()
    heart.node("include").RemoveNthControlPoint(0)
    heart.assert_notified(before, before[:1] + before[2:])
    heart.news.clear()
    heart.scene.RemoveNode(heart.node("box"))
    heart.assert_notified(before[:1] + before[2:], (before[0], before[2], before[4]))
    heart.news.clear()
    heart.scene.RemoveNode(heart.node("exclude"))
    heart.assert_notified((before[0], before[2], before[4]), (before[0], before[4]))
    heart.prompts.restore(before)
    assert heart.prompts.snapshot() == before


def test_what_the_list_does_itself_is_no_news(heart: Heart) -> None:
    heart.some_of_each()
    heart.prompts.remove(heart.prompts.rows()[2].key)
    heart.prompts.set_last(scope=Scope.SLICE)
    heart.prompts.clear()
    assert heart.news == []


def test_two_nodes_with_the_same_clicks_are_both_counted(heart: Heart) -> None:
    heart.click(FIRST)
    copy = heart.scene.AddNewNodeByClass(markups.POINTS)
    copy.Copy(heart.node("include"))
    copy.SetNthControlPointPositionWorld(0, heart.world(THIRD))
    assert np.allclose(np.vstack(heart.places()), [FIRST, THIRD])
    heart.prompts.clear()
    assert heart.prompts.snapshot() == ()


# -- what the prompts belong to --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["segment", "segmentation", "volume"])
def test_prompts_go_with_what_they_belong_to(heart: Heart, lost: str) -> None:
    heart.some_of_each()
    lung = heart.nodes.of(heart.segmentation, "lung", heart.volume)
    lung.add_point(heart.world(FIRST), positive=True, scope=Scope.SLAB)
    if lost == "segment":
        heart.segmentation.GetSegmentation().RemoveSegment("heart")
    else:
        heart.scene.RemoveNode(getattr(heart, lost))
    assert len(heart.nodes.all()) == (1 if lost == "segment" else 0)
    assert heart.news == []


def test_a_segment_that_comes_back_gets_its_prompts_from_the_snapshot(heart: Heart) -> None:
    heart.some_of_each()
    snapshot = heart.prompts.snapshot()
    heart.segmentation.GetSegmentation().RemoveSegment("heart")
    heart.segmentation.GetSegmentation().AddEmptySegment("heart", "Heart")
    heart.prompts.restore(snapshot)
    assert heart.nodes.of(heart.segmentation, "heart", heart.volume).snapshot() == snapshot


def test_closing_the_scene_tells_nothing_and_leaves_nothing(heart: Heart) -> None:
    heart.some_of_each()
    heart.scene.Clear(False)
    assert heart.nodes.all() == []
    assert prompt_lists(heart.nodes) == ()
    assert heart.news == []


def test_another_scene_with_the_same_ids_has_its_own_past(heart: Heart, tmp_path: Path) -> None:
    heart.some_of_each()
    path, before = environment.save_scene(tmp_path / "scene.mrb"), heart.prompts.snapshot()
    heart.prompts.clear()
    environment.open_scene(path)
    (prompts,) = prompt_lists(heart.nodes)
    assert prompts.key == heart.prompts.key
    heart.node("include").RemoveNthControlPoint(0)
    ((told, now),) = heart.news
    assert (len(told), len(now)) == (len(before), len(before) - 1)


def test_nothing_is_watched_after_close(heart: Heart) -> None:
    heart.some_of_each()
    heart.nodes.close()
    heart.node("include").SetNthControlPointPositionWorld(0, heart.world(SECOND))
    heart.scene.RemoveNode(heart.volume)
    assert heart.news == []
    assert len(heart.nodes.all()) == 4


# -- the scene's file ------------------------------------------------------------------------------------------------

READER = """
import json, sys
from Testing.slicer import environment
environment.start()
import slicer
from SlicerMaskSAMLib.values.choices import Scope
from SlicerMaskSAMLib.mrml.prompts import PromptNodes
from Testing.slicer.heart import messages, prompt_lists

scene = slicer.mrmlScene
if sys.argv[2] == "taken":
    for name in ("ScalarVolume", "Segmentation", "MarkupsFiducial", "MarkupsROI", "ScriptedModule", "LinearTransform"):
        scene.AddNewNodeByClass(f"vtkMRML{name}Node")
assert scene.ReadFromMRB(sys.argv[1], False)
nodes = PromptNodes(scene)
(prompts,) = prompt_lists(nodes)
told = []
nodes.on_user_change = lambda moved, before: told.append(len(before))
plain = [{key: getattr(value, "tolist", lambda: value)() for key, value in each.items()} for each in messages(prompts)]
rows = [row.text for row in prompts.rows()]
(include,) = (node for node in nodes.all() if node.GetAttribute("MaskSAM.kind") == "include")
include.RemoveNthControlPoint(0)
prompts.add_point((0, 0, 0), positive=True, scope=Scope.SLAB)
print(json.dumps({"plain": plain, "rows": rows, "told": told, "segment": prompts.segment_id, "kinds": [
    each["kind"] for each in messages(prompts)], "color": include.GetDisplayNode().GetSelectedColor(),
    "transform": include.GetParentTransformNode().GetName()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ids", ["free", "taken"])
def test_prompts_go_on_in_another_process_that_reads_the_scene(
    heart: Heart, tmp_path: Path, repo: Path, ids: str
) -> None:
    environment.add_transform(STRETCHED, heart.volume, name="Moved")
    heart.some_of_each()
    path = environment.save_scene(tmp_path / "scene.mrb")
    words = [sys.executable, "-c", READER, str(path), ids]
    paths = {"PYTHONPATH": f"{repo}:{repo / 'SlicerMaskSAM'}"}
    done = subprocess.run(words, cwd=repo, env={**os.environ, **paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = messages(heart.prompts)
    assert found["rows"] == [row.text for row in heart.prompts.rows()]
    assert found["plain"][0]["mask"] == expected[0]["mask"].tolist()
    for mine, theirs in zip(expected[1:], found["plain"][1:], strict=True):
        place = "corners" if mine["kind"] == "box" else "position"
        assert np.allclose(mine.pop(place), theirs.pop(place), atol=1e-4)
        assert mine == theirs
    assert found["segment"] == "heart"
    assert found["told"] == [5]
    assert found["kinds"] == ["mask", "point", "box", "point", "point"]
    assert found["color"] == pytest.approx(markups.INCLUDE_STYLE.color)
    assert found["transform"] == "Moved"


def test_a_start_stays_on_the_anatomy_where_the_file_stores_the_slices_in_reverse(heart: Heart, tmp_path: Path) -> None:
    volume = environment.add_volume(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), np.diag([-1.0, 1, 2, 1]))
    prompts = heart.nodes.of(heart.segmentation, "heart", volume)
    mask = np.zeros((3, 4, 5), np.uint8)
    mask[0, 1, 2] = mask[2, 3, 4] = 1
    prompts.set_start(mask, (4, 7, 5, 9, 6, 11))
    prompts.add_point(ijk_to_world(volume, [(8, 6, 4)])[0], positive=True, scope=Scope.SLAB)
    before = values(prompts)
    environment.open_scene(environment.save_scene(tmp_path / "scene.mrb"))
    (read,) = prompt_lists(heart.nodes)
    assert values(read) == before
    kept = json.loads(heart.node("start").GetParameter("affine"))
    assert np.allclose(kept, geometry(read.volume).affine), "it would be turned over again and again"


def values(prompts: PromptList) -> tuple[list[int], int]:
    """The scan's values in the start, and under the first click."""
    start, point = messages(prompts)
    voxels = slicer.util.arrayFromVolume(prompts.volume)
    inside = tuple(np.argwhere(start["mask"]).T + np.reshape(start["mask_box"], (3, 1)))
    return sorted(voxels[inside].tolist()), int(voxels[tuple(np.rint(point["position"]).astype(int)[::-1])])
