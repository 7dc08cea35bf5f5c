"""Teaching from the module: the list of training cases, and training through the real command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from MaskSAMCore.errors import InputError, MaskSAMError
from MaskSAMCore.terminology import lookup
from MaskSAMCore.zoo import installed, model_folder
from SlicerMaskSAMLib.engine.commands import CommandResult, core_command
from SlicerMaskSAMLib.values.status import CaseRow, TrainingResult
from SlicerMaskSAMLib.values.tasks import Task
from SlicerMaskSAMLib.work import teaching
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.teaching import Teaching
from Testing.core.data.test_save_case import save
from Testing.models import tiny_model
from Testing.phantom import write_dataset
from Testing.slicer import rig
from Testing.workers import eventually, left, place

LIVER, SPLEEN = lookup("liver").label(1), lookup("spleen").label(2)
QUICK = ("--preset", "tiny", "--minutes", "60", "--steps")


class Answered:
    """A command that has ended already."""

    progress = None

    def __init__(self, told: dict[str, Any] | MaskSAMError) -> None:
        self._told = told

    def done(self) -> bool:
        return True

    def result(self) -> CommandResult:
        if isinstance(self._told, MaskSAMError):
            raise self._told
        return CommandResult(stdout="a line before\n" + json.dumps(self._told))

    def cancel(self) -> None:
        pass


TOLD = {
    "model": "livers", "folder": "/models/livers", "dice": {"Liver": 0.912}, "prompts": {}, "left_out": ["b"],
    "poor": [], "worst_case": "b", "overlay": "/tmp/b.png", "steps": 400, "seconds": 510.0,
}  # fmt: skip


class Desk:
    """`Teaching` with a training folder; what it said, and the words that it started commands with."""

    def __init__(self, folder: Path, answer: Any = TOLD) -> None:
        self.folder, self.answer = folder, answer
        self.messages: list[str] = []
        self.words: list[str] = []
        self.changes = 0
        self.parameters = rig.parameters()
        self.parameters.trainingFolder, self.parameters.device = str(folder), "cpu"
        nothing = SimpleNamespace()
        self.context = Context(
            scene=nothing,
            parameters=self.parameters,
            history=nothing,  # type: ignore[arg-type]
            prompts=nothing,  # type: ignore[arg-type]
            engine_link=nothing,  # type: ignore[arg-type]
            models=lambda: tuple(installed.installed_models()),
            log=self.messages.append,
            changed=self._change,
        )
        self.teaching = Teaching(self.context, start=self._start)

    def _start(self, *words: str) -> Any:
        self.words = list(words)
        return self.answer(*words) if callable(self.answer) else Answered(self.answer)

    def _change(self) -> None:
        self.changes += 1

    def begin(self, name: str) -> Task:
        return Task("teach", self.teaching.teach(name), on_error=lambda error: self.messages.append(str(error)))

    def teach(self, name: str) -> TrainingResult | None:
        task = self.begin(name)
        assert eventually(lambda: task.tick() and task.ended, 300)
        return self.teaching.last_result


@pytest.fixture(autouse=True)
def temporary(slicer_process: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(monkeypatch, tmp_path_factory.mktemp("temporary"))


@pytest.fixture
def desk(home: Path, tmp_path: Path) -> Desk:
    """Two cases are saved: one of a liver, one of liver and spleen."""
    folder = tmp_path / "livers"
    save(folder, LIVER, seed=0, name="a")
    save(folder, LIVER, SPLEEN, seed=1, name="b")
    return Desk(folder)


@pytest.fixture
def balls(home: Path, tmp_path: Path) -> Callable[..., Desk]:
    """A desk with phantoms, on which the real command is quick."""
    folder = write_dataset(tmp_path / "balls", cases=3)

    def make(steps: int = 6) -> Desk:
        return Desk(folder, lambda *words: core_command(*words, *QUICK, str(steps)))

    return make


# -- the list ----------------------------------------------------------------------------------------------------------


def test_saved_cases_are_listed_with_their_structures(desk: Desk):
    assert desk.teaching.cases() == (
        CaseRow(name="a", structures=("Liver",)),
        CaseRow(name="b", structures=("Liver", "Spleen")),
    )
    assert desk.teaching.enough
    save(desk.folder, SPLEEN, seed=2, name="c")
    assert [row.name for row in desk.teaching.cases()] == ["a", "b", "c"]


def test_another_training_folder_has_other_cases(desk: Desk, tmp_path: Path):
    assert desk.teaching.cases()
    desk.parameters.trainingFolder = str(tmp_path / "nowhere")
    assert desk.teaching.cases() == ()
    assert not desk.teaching.enough
    assert not desk.messages


def test_without_a_chosen_folder_it_is_the_users_own(desk: Desk, home: Path):
    desk.parameters.trainingFolder = ""
    save(home / "training", LIVER, name="mine")
    assert [row.name for row in desk.teaching.cases()] == ["mine"]


def test_a_folder_that_does_not_change_is_read_once(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    reads: list[Path] = []
    read = teaching.read_dataset
    monkeypatch.setattr(teaching, "read_dataset", lambda folder: reads.append(folder) or read(folder))
    for _ in range(3):
        desk.teaching.cases()
    assert reads == [desk.folder]


def test_a_data_set_from_elsewhere_is_listed_too(balls: Callable[..., Desk]):
    assert [row.name for row in balls().teaching.cases()] == ["case_000", "case_001", "case_002"]


def test_an_unreadable_description_is_reported_once(desk: Desk):
    (desk.folder / "dataset.json").write_text("{", encoding="utf-8")
    assert desk.teaching.cases() == () == desk.teaching.cases()
    assert len(desk.messages) == 1
    assert "dataset.json" in desk.messages[0]


def test_a_case_is_removed(desk: Desk):
    desk.teaching.remove_case("b")
    assert [row.name for row in desk.teaching.cases()] == ["a"]
    assert desk.changes == 1
    assert not list(desk.folder.rglob("b*"))
    assert not desk.teaching.enough
    with pytest.raises(InputError, match="no such case"):
        desk.teaching.remove_case("b")


# -- teaching --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_teaching_gives_a_model_a_score_and_a_picture(balls: Callable[..., Desk], home: Path):
    desk = balls()
    result = desk.teach("my balls!")
    assert result is not None, desk.messages
    assert result.model == "my-balls"
    assert model_folder.load_card(home / "models/my-balls").provenance["validation_cases"] == list(result.left_out)
    assert result.worst_case in result.left_out
    assert set(result.dice) == {"ball", "cube"}
    assert Path(result.overlay).read_bytes()[1:4] == b"PNG"
    assert result.seconds > 0
    assert "my-balls was taught" in desk.messages[-1]
    assert result.left_out[0] in desk.messages[-1]
    assert desk.changes == 1


@pytest.mark.slow
def test_teaching_again_replaces_the_model_with_another_picture(balls: Callable[..., Desk], home: Path):
    desk = balls()
    first = desk.teach("balls")
    second = desk.teach("balls")
    assert "--overwrite" in desk.words
    assert len(list((home / "models").iterdir())) == 1
    assert first is not None
    assert second is not None
    assert first.overlay != second.overlay


@pytest.mark.slow
def test_cancel_leaves_neither_a_model_nor_anything_else(balls: Callable[..., Desk], home: Path, temporary: Path):
    desk = balls(100_000)
    task = desk.begin("balls")
    assert eventually(lambda: (task.tick(), task.progress)[1] is not None, 300)
    assert eventually(lambda: (task.tick(), task.progress)[1][2] == "learning", 300)
    done, total, _ = task.progress or (0, 0, "")
    assert 0 <= done < total == 3600
    task.cancel()
    assert eventually(lambda: task.tick() and task.ended, 300)
    assert desk.teaching.last_result is None
    assert not desk.messages
    assert not (home / "models").exists()
    assert not list(home.glob(".*"))


@pytest.mark.slow
def test_cases_with_problems_are_reported_as_by_the_command(balls: Callable[..., Desk], home: Path):
    desk = balls()
    for name in ("case_000", "case_002"):
        (desk.folder / f"labelsTr/{name}.nii.gz").unlink()
    assert desk.teach("balls") is None
    assert len(desk.messages) == 1
    assert "case_000" in desk.messages[0]
    assert "case_002" in desk.messages[0]


# -- what is asked of the command --------------------------------------------------------------------------------------


def test_the_command_gets_the_folder_the_name_and_the_device(desk: Desk, temporary: Path):
    result = desk.teach("livers")
    assert desk.words[:4] == ["teach", str(desk.folder), "--name", "livers"]
    assert option(desk.words, "--device") == "cpu"
    assert "--overwrite" not in desk.words
    assert Path(option(desk.words, "--picture")).parent in left(temporary)
    assert result == TrainingResult(
        model="livers", dice={"Liver": 0.912}, left_out=("b",), worst_case="b", overlay="/tmp/b.png", seconds=510.0
    )


def option(words: Sequence[str], name: str) -> str:
    return words[words.index(name) + 1]


@pytest.mark.parametrize(
    ("given", "name"),
    [("", "livers"), ("  Livers of 2024 ", "Livers-of-2024"), ("Lebergröße", "Lebergr-e"), ("..", "model")],
)
def test_a_name_becomes_one_that_models_can_have(desk: Desk, given: str, name: str):
    desk.teach(given)
    assert option(desk.words, "--name") == name


def test_a_model_that_was_not_taught_here_is_not_overwritten(desk: Desk, home: Path):
    tiny_model(home / "models", "livers")
    desk.teach("livers")
    assert "--overwrite" not in desk.words


def test_one_case_is_too_few(desk: Desk):
    desk.teaching.remove_case("b")
    assert desk.teach("livers") is None
    assert "too few training cases" in desk.messages[0]
    assert not desk.words


def test_teaching_that_fails_leaves_the_last_one(desk: Desk):
    first = desk.teach("livers")
    desk.answer = MaskSAMError("the disk is full")
    assert desk.teach("livers") is first
    assert desk.messages[-1] == "the disk is full"


def test_no_held_out_case_is_reported(desk: Desk):
    desk.answer = TOLD | {"dice": {}, "left_out": [], "worst_case": "", "overlay": ""}
    desk.teach("livers")
    assert "No case was held out" in desk.messages[-1]


def test_a_model_that_finds_too_little_is_reported(desk: Desk):
    desk.teach("livers")
    assert "Not good enough" not in desk.messages[-1]
    desk.answer = TOLD | {"dice": {"Liver": 0.31}, "poor": ["Liver"]}
    desk.teach("livers")
    assert desk.messages[-1].endswith("Liver 0.31. Not good enough yet for Liver: more cases help.")


def test_pictures_of_patients_go_with_the_process(desk: Desk, temporary: Path):
    desk.teach("livers")
    assert desk.teaching._pictures is not None
    assert left(temporary)
    desk.teaching._pictures.remove()
    assert not left(temporary)
