"""A scene that d6d6e8e's module saved: parameters, structures and prompts are there, and refining goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from SlicerMaskSAMLib.mrml import bridge
from Testing.old.samples import SAMPLES, read_json
from Testing.slicer import environment
from Testing.slicer import rig as rigs
from Testing.slicer.toy_engine import ToyEngine, answer

EXPECTED = read_json("scene", "expected.json")
PROMPTED = [name for name, structure in EXPECTED.items() if structure["asked"]]
PLACES = ("position", "corners", "mask_box")
FARTHER = (20.0, 4.0, 9.0)
"""A voxel (i, j, k) that no prompt of the scene has reached."""


class Engine(ToyEngine):
    """Takes the requests of a whole controller."""

    def _encode(self, **_: Any) -> dict[str, int]:
        return {"encoded": 0}


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def opened(scene: Any, engine: Engine) -> Iterator[rigs.Rig]:
    """The controller over the scene as it was read."""
    environment.open_scene(SAMPLES / "scene" / "scene.mrb")
    with rigs.Rig(scene, start=lambda on_event: engine) as rig:
        yield rig


def choose(rig: rigs.Rig, name: str) -> None:
    """Choose a structure by its name."""
    rig.controller.choose_segment(rigs.segments(rig.parameters.segmentation)[name])


def click(rig: rigs.Rig, *ijk: float) -> None:
    """Click on a voxel and wait for the answer."""
    view = rig.scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientationToAxial()
    rig.controller.click(bridge.ijk_to_world(rig.parameters.inputVolume, [ijk])[0], True, view)
    assert rig.idle()


def test_the_panel_has_its_parameters_again(opened: rigs.Rig) -> None:
    parameters = opened.parameters
    assert (parameters.inputVolume.GetName(), parameters.model) == ("Scan", "plain")
    assert list(parameters.skippedStructures) == ["Spleen"]
    names = parameters.region.name, parameters.speed.name, parameters.scope.name, parameters.neighbours.name
    assert names == ("ROI", "FAST", "SLICE", "OVERLAP")
    assert parameters.roi.GetName() == "Region"
    assert (parameters.device, parameters.trainingFolder, parameters.showAutomatic) == ("cpu", "", False)
    assert parameters.segmentID == rigs.segments(parameters.segmentation)["Lesion"]
    assert [row.name for row in opened.status.structures if not row.wanted] == ["Spleen"]


@pytest.mark.parametrize("name", list(EXPECTED))
def test_a_structure_has_its_voxels_code_and_prompts(opened: rigs.Rig, name: str) -> None:
    choose(opened, name)
    expected, parameters = EXPECTED[name], opened.parameters
    places = np.argwhere(rigs.voxels(parameters.segmentation, name, parameters.inputVolume))
    assert len(places) == expected["voxels"]
    assert places.mean(axis=0).tolist() == pytest.approx(expected["centre"], abs=1e-3)
    label = bridge.segment_label(parameters.segmentation, parameters.segmentID)
    assert list(label.color) == expected["color"]
    assert (label.type.value if label.type else "") == expected["code"]
    assert [[row.kind, row.positive] for row in opened.status.prompts] == expected["rows"]


@pytest.mark.parametrize("name", PROMPTED)
def test_refining_goes_on_from_the_prompts_that_were_answered(opened: rigs.Rig, engine: Engine, name: str) -> None:
    choose(opened, name)
    before = rigs.voxels(opened.parameters.segmentation, name, opened.parameters.inputVolume)
    click(opened, *FARTHER)
    assert not opened.status.messages
    *old, new = engine.prompted()[-1]
    assert new["position"] == pytest.approx(FARTHER)
    for prompt, expected in zip(old, EXPECTED[name]["asked"], strict=True):
        for place in PLACES:
            assert np.allclose(prompt.get(place, ()), expected.get(place, ()), atol=1e-3)
        assert int(np.sum(prompt.get("mask", 0))) == expected.get("mask", 0)
        more = {key: value for key, value in expected.items() if key not in (*PLACES, "mask")}
        assert {key: prompt[key] for key in more} == more
    after = rigs.voxels(opened.parameters.segmentation, name, opened.parameters.inputVolume)
    assert np.array_equal(after, answer(after.shape, [*old, new]))
    assert np.array_equal(before, answer(after.shape, old))
    assert (after != before).any()
    opened.controller.undo()
    assert opened.idle()
    assert np.array_equal(rigs.voxels(opened.parameters.segmentation, name, opened.parameters.inputVolume), before)
