"""Refining goes on with another engine, with another model, in a scene that was saved, and under transforms."""

from __future__ import annotations

from typing import Any

import numpy as np

from Testing.slicer import environment, rig
from Testing.slicer.desk import SHAPE, Desk, cube, point
from Testing.slicer.toy_engine import answer

TWO = answer(SHAPE, [point(20, 15, 10, candidate=0), point(26, 15, 10)])


# -- the engine, the model and the scene are others --------------------------------------------------------------------


def test_another_engine_gets_all_prompts(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.click(26, 15, 10)
    desk.sit_down()
    desk.click(26, 17, 10, positive=False)
    assert [len(prompts) for prompts in desk.engine.prompted()] == [2, 3]
    assert np.array_equal(desk.voxels(), TWO & ~answer(SHAPE, [point(26, 17, 10)]))
    desk.refinement.undo()
    assert np.array_equal(desk.voxels(), TWO)


def test_another_model_gets_all_prompts(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.click(26, 15, 10)
    desk.parameters.model = "slow"
    desk.click(26, 17, 10, positive=False)
    assert [len(prompts) for prompts in desk.engine.prompted()] == [1, 2, 2, 3]
    assert np.array_equal(desk.voxels(), TWO & ~answer(SHAPE, [point(26, 17, 10)]))


def test_prompts_that_were_dragged_before_anything_was_asked_are_answered(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.sit_down()
    desk.refinement.choose_segment(desk.parameters.segmentID)
    (node,) = environment.nodes("vtkMRMLMarkupsFiducialNode")
    node.SetNthControlPointPositionWorld(0, desk.world(8, 15, 10))
    desk.settle()
    assert np.array_equal(desk.voxels(), cube(8, 15, 10))


def test_a_saved_scene_goes_on_where_it_was(desk: Desk, tmp_path: Any) -> None:
    desk.refinement.new_structure("Spleen")
    desk.click(20, 15, 10)
    desk.click(26, 15, 10)
    desk.paint("Spleen", np.s_[17:19, 25:28, 35:38])
    path = environment.save_scene(tmp_path / "scene.mrb")
    again = Desk.reopened(path)
    assert again.rows == ["Include (20, 15, 10), slab", "Include (26, 15, 10), slab"]
    assert again.name == "Spleen"
    again.click(26, 17, 10, positive=False)
    edited = TWO & ~answer(SHAPE, [point(26, 17, 10)])
    edited[17:19, 25:28, 35:38] = True
    assert np.array_equal(again.voxels(), edited)


# -- transforms --------------------------------------------------------------------------------------------------------


def test_under_a_transform_a_click_means_the_place_that_is_seen(desk: Desk) -> None:
    matrix = environment.affine(angles=(10, 20, 30), origin=(5, -6, 7))
    environment.add_transform(matrix, desk.volume)
    desk.click(20, 15, 10)
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))
    assert desk.segmentation.GetTransformNodeID() == desk.volume.GetTransformNodeID()


def test_where_the_volume_goes_its_prompts_go_without_a_new_answer(desk: Desk) -> None:
    transform = environment.add_transform(environment.affine(), desk.volume)
    desk.click(20, 15, 10)
    rig_matrix = environment.affine(angles=(0, 0, 40), origin=(50, 0, 0))
    import slicer.util

    slicer.util.updateTransformMatrixFromArray(transform, rig_matrix)
    desk.settle()
    assert len(desk.engine.prompted()) == 1
    desk.click(26, 15, 10)
    assert np.array_equal(desk.voxels(), TWO)


def test_where_a_transform_was_hardened_the_same_prompts_are_not_asked_again(desk: Desk) -> None:
    environment.add_transform(environment.affine(angles=(0, 0, 40), origin=(50, 0, 0)), desk.volume)
    desk.click(20, 15, 10)
    desk.segmentation.HardenTransform()
    desk.volume.HardenTransform()
    desk.refinement.accept()
    desk.settle()
    assert desk.rows == []
    assert len(desk.engine.prompted()) == 1
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))


def test_after_a_transform_was_hardened_refining_goes_on(desk: Desk) -> None:
    environment.add_transform(environment.affine(angles=(0, 0, 40), origin=(50, 0, 0)), desk.volume)
    desk.click(20, 15, 10)
    desk.segmentation.HardenTransform()
    desk.volume.HardenTransform()
    desk.click(22, 15, 10, positive=False)
    assert np.array_equal(desk.voxels(), cube(20, 15, 10) & ~answer(SHAPE, [point(22, 15, 10)]))


def test_what_was_done_before_a_transform_was_hardened_is_not_undone_elsewhere(desk: Desk) -> None:
    environment.add_transform(environment.affine(origin=(50, 0, 0)), desk.volume)
    desk.click(20, 15, 10)
    desk.segmentation.HardenTransform()
    desk.volume.HardenTransform()
    desk.refinement.undo()
    assert desk.messages == ["Click in Structure 1: the volume was moved; nothing was changed."]
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))


def test_a_segmentation_under_another_transform_is_refused(desk: Desk) -> None:
    desk.click(20, 15, 10)
    environment.add_transform(environment.affine(origin=(5, 0, 0)), desk.volume)
    desk.click(26, 15, 10)
    assert desk.messages == [
        "Scan segmentation: has another parent transform than the volume. "
        "Put both under the same transform (module Transforms)."
    ]


def test_an_oblique_anisotropic_volume(scene: Any) -> None:
    affine = environment.affine(spacing=(0.7, 0.9, 2.5), angles=(12, -25, 40), origin=(3, 9, -80))
    desk = Desk(scene, volume=rig.volume(SHAPE, affine=affine))
    desk.click(20, 15, 10)
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))
