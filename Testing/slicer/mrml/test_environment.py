"""The test environment itself: a scene that starts empty, is saved and reopened, and a strict parameter node."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import slicer
from slicer.parameterNodeWrapper import Default, parameterNodeWrapper

from Testing.slicer import environment


class Fruit(Enum):
    PEAR = "A pear"
    PLUM = "A plum"


@parameterNodeWrapper
class Parameters:
    volume: slicer.vtkMRMLScalarVolumeNode
    text: str = "é\n\"'&<>"
    number: int = 3
    share: float = 0.5
    on: bool = True
    fruit: Fruit = Fruit.PLUM
    names: list[str]
    count: Annotated[int, Default(4)]


@pytest.fixture
def parameters(scene: Any) -> Any:
    return Parameters(environment.parameter_node())


def test_every_test_starts_with_an_empty_scene(scene: Any) -> None:
    kinds = ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLScriptedModuleNode", "vtkMRMLSliceNode")
    assert not any(environment.nodes(kind) for kind in kinds)
    environment.add_volume(np.zeros((2, 3, 4), np.int16))
    environment.parameter_node()
    environment.clear()
    assert not any(environment.nodes(kind) for kind in kinds)


def test_defaults(parameters: Any) -> None:
    assert parameters.volume is None
    assert parameters.names == []
    assert parameters.fruit is Fruit.PLUM
    assert (parameters.number, parameters.share, parameters.on, parameters.count) == (3, 0.5, True, 4)


def test_values_go_through_a_scene_file(parameters: Any, tmp_path: Path) -> None:
    parameters.volume = environment.add_volume(np.zeros((2, 3, 4), np.int16), name="Scan")
    parameters.text, parameters.number, parameters.share, parameters.on = "a b~|;=\nc é", -7, 0.1 + 0.2, False
    parameters.fruit, parameters.names = Fruit.PEAR, ["x", "", "y z"]
    environment.open_scene(environment.save_scene(tmp_path / "scene.mrb"))
    again = Parameters(environment.parameter_node())
    assert again.parameterNode is not parameters.parameterNode
    assert again.volume.GetName() == "Scan"
    assert (again.text, again.number, again.share, again.on) == ("a b~|;=\nc é", -7, 0.1 + 0.2, False)
    assert again.fruit is Fruit.PEAR
    assert list(again.names) == ["x", "", "y z"]


def test_lists_are_stored_when_they_change(parameters: Any) -> None:
    def stored() -> list[str]:
        return list(Parameters(parameters.parameterNode).names)

    parameters.names.append("a")
    assert stored() == ["a"]
    parameters.names += ["b", "c"]
    assert stored() == ["a", "b", "c"]
    parameters.names[1] = "B"
    assert stored() == ["a", "B", "c"]
    del parameters.names[0]
    assert stored() == ["B", "c"] == parameters.names
    assert len(parameters.names) == 2
    parameters.names.clear()
    assert stored() == []


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("text", None, ValueError),
        ("text", 3, TypeError),
        ("number", 0.5, TypeError),
        ("number", True, TypeError),
        ("on", 1, TypeError),
        ("fruit", "PEAR", TypeError),
        ("names", ["a", 1], TypeError),
        ("volume", "vtkMRMLScalarVolumeNode1", TypeError),
        ("nmaes", [], AttributeError),
    ],
)
def test_wrong_values_are_refused(parameters: Any, name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        setattr(parameters, name, value)
    again = Parameters(parameters.parameterNode)
    assert again.text == "é\n\"'&<>"
    assert again.number == 3
    assert again.names == []
    assert not parameters.parameterNode.HasParameter("names.0")


def test_types_that_slicer_cannot_store_are_refused(scene: Any) -> None:
    def declare(kind: Any) -> None:
        parameterNodeWrapper(type("Wrong", (), {"__annotations__": {"value": kind}}))

    for kind in (slicer.vtkMRMLScalarVolumeNode | None, str | None, object, list[object]):
        with pytest.raises(TypeError, match="serializer"):
            declare(kind)


def test_observers_see_the_value_in_place(parameters: Any) -> None:
    seen: list[int] = []
    parameters.AddObserver("ModifiedEvent", lambda *_: seen.append(parameters.number))
    parameters.number = 8
    before = parameters.StartModify()
    parameters.number, parameters.share = 9, 0.25
    assert seen == [8]
    parameters.EndModify(before)
    assert seen == [8, 9]


def test_a_removed_node_is_no_value_any_more(parameters: Any) -> None:
    parameters.volume = environment.add_volume(np.zeros((2, 3, 4), np.int16))
    slicer.mrmlScene.RemoveNode(parameters.volume)
    assert parameters.volume is None


@pytest.mark.slow
def test_what_an_observer_raises_fails_the_test(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from Testing.slicer.fixtures import scene, slicer_process\n")
    (tmp_path / "test_event.py").write_text(
        "def test_event(scene):\n    scene.AddObserver('ModifiedEvent', lambda *_: 1 / 0)\n    scene.Modified()\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), str(tmp_path)]
    environ = os.environ | {"PYTHONPATH": str(repo)}
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "an observer raised" in done.stdout
    assert "ZeroDivisionError" in done.stdout


def test_a_displacement_field_moves_what_lies_under_it(scene: Any) -> None:
    marker = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    marker.AddControlPoint([1.0, 2.0, 3.0])
    field = np.tile(np.array([5.0, -6.0, 7.0]), (4, 5, 6, 1))
    environment.add_grid_transform(field, environment.affine(spacing=(9, 8, 7), origin=(-15, -15, -10)), marker)
    place = np.zeros(3)
    marker.GetNthControlPointPositionWorld(0, place)
    assert np.allclose(place, (6, -4, 10))


def test_a_wrapper_that_was_let_go_is_not_called_any_more(scene: Any) -> None:
    wrapper = Parameters(environment.parameter_node())  # nobody in Python but the wrapper holds the node
    wrapper._circle = wrapper
    del wrapper
    gc.collect()
    node = environment.parameter_node()
    node.SetParameter("text", "changed")  # what an observer raises fails the test by its scene
    assert node.GetParameter("text") == "changed"
