"""The teach command: from a folder of cases to an installed model, and nothing else; or an error and nothing at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from MaskSAMCore import teach
from MaskSAMCore.data.raw import read_case, read_dataset
from MaskSAMCore.evaluate import choose_cases
from MaskSAMCore.evaluation import hold_out
from MaskSAMCore.evaluation.hold_out import HoldOutPlan, evaluate_hold_out
from MaskSAMCore.evaluation.metrics import dice
from MaskSAMCore.inference.predictor import Predictor
from MaskSAMCore.io.atomic import FolderLock
from MaskSAMCore.losses import set_loss
from MaskSAMCore.progress import CancelToken, no_progress
from MaskSAMCore.zoo import installed, model_folder
from MaskSAMCore.zoo.download import UrlSource
from Testing.models import fake_base
from Testing.runs import REPO

SETTINGS = ("train.mode=mixed", "model.patch=[4,32,32]", "model.source.queries=4")
QUICK = ("--preset", "tiny", "--steps", "6", "--minutes", "60", "--device", "cpu")


def words(cases: Path, *more: str) -> list[str]:
    """A lesson of a few steps."""
    return [str(cases), *QUICK, *(word for each in SETTINGS for word in ("--set", each)), *more]


def learn(capsys: pytest.CaptureFixture[str], *given: str) -> dict[str, Any]:
    """A lesson that succeeds; what it prints."""
    assert teach.main(list(given)) == 0
    return json.loads(capsys.readouterr().out)


def fail(capsys: pytest.CaptureFixture[str], *given: str, code: int = 2) -> str:
    """A lesson that fails; what it says on stderr, its progress left out."""
    assert teach.main(list(given)) == code
    lines = capsys.readouterr().err.splitlines()
    return "\n".join(line for line in lines if not line.startswith("{"))


def left(home: Path) -> list[str]:
    """What a lesson left in the user's folder, besides the note of files whose hash was checked."""
    found = sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
    return [path for path in found if path != "verdicts.json"]


MODEL = ["models/balls/README.md", "models/balls/model.json", "models/balls/weights.safetensors"]


@pytest.mark.slow
def test_a_lesson_installs_a_model_that_was_judged_by_the_case_left_out(phantom_data, home, tmp_path, capsys):
    picture = tmp_path / "worst.png"
    told = learn(capsys, *words(phantom_data, "--name", "balls", "--picture", str(picture)))
    assert left(home) == MODEL
    assert told["folder"] == str(home / "models/balls")
    (case,) = told["left_out"]
    assert told["worst_case"] == case
    assert told["steps"] == 6
    assert told["seconds"] > 0
    assert told["overlay"] == str(picture)
    assert matplotlib.image.imread(picture).shape[2] in (3, 4)
    assert set(told["prompts"]) == {"click 1", "click 3", "box"}
    card = model_folder.verify_model(home / "models/balls")
    assert card.provenance["validation_cases"] == [case]
    assert len(card.provenance["training_cases"]) == 4
    figures = next(iter(card.metrics.values()))
    assert figures == {name: {"dice": value, "cases": 1} for name, value in told["dice"].items()}


@pytest.mark.slow
def test_the_dice_told_is_the_one_that_anybody_gets_with_this_model(phantom_data, home, capsys):
    told = learn(capsys, *words(phantom_data, "--name", "balls", "--left-out", "2"))
    raw, predictor = read_dataset(phantom_data), Predictor("balls", device="cpu")
    chosen = choose_cases(raw, predictor.card, names=told["left_out"])
    assert len(chosen) == 2
    for label in raw.labels.labels:
        each = []
        for case in chosen:
            volume, reference = read_case(raw, case)
            found = predictor.segment(volume).labels
            each.append(dice(found.array == label.id, reference.array == label.id))
        assert told["dice"][label.name] == pytest.approx(np.mean(each), abs=1e-4)


@pytest.mark.slow
def test_the_card_says_how_the_model_was_made_and_measured(phantom_data, home, capsys):
    told = learn(capsys, *words(phantom_data, "--name", "balls"))
    text = (home / "models/balls/README.md").read_text(encoding="utf-8")
    assert "taught from 4 case(s)" in text
    assert "1 more were left out for its evaluation" in text
    assert "6 steps" in text
    assert "SAM's encoder as it is" in text
    assert "simulated clicks" in text
    assert f"cases {told['left_out'][0]}" in text
    assert "`masksam teach " in text
    assert "--minutes 60 --steps 6" in text
    assert "seen 4 case(s) only" in text
    assert str(phantom_data) not in text


@pytest.mark.slow
def test_every_case_may_be_learned_from(phantom_data, home, capsys, tmp_path):
    picture = tmp_path / "none.png"
    told = learn(capsys, *words(phantom_data, "--name", "balls", "--left-out", "0", "--picture", str(picture)))
    assert told["left_out"] == []
    assert told["dice"] == {}
    assert told["worst_case"] == told["overlay"] == ""
    assert not picture.exists()
    card = model_folder.load_card(home / "models/balls")
    assert card.metrics == {}
    assert len(card.provenance["training_cases"]) == 5


@pytest.mark.slow
def test_two_cases_are_enough(phantom_data, home, capsys, tmp_path):
    cases = some(phantom_data, tmp_path / "two", 2)
    told = learn(capsys, *words(cases, "--name", "balls"))
    assert len(told["left_out"]) == 1
    assert set(told["dice"]) <= {"ball", "cube"}


@pytest.mark.slow
def test_the_model_may_go_to_a_folder_instead(phantom_data, home, capsys, tmp_path):
    told = learn(capsys, *words(phantom_data, "-o", str(tmp_path / "out/model")))
    assert told["model"] == "phantom"
    assert not left(home)
    assert model_folder.verify_model(tmp_path / "out/model").name == "phantom"


def test_people_get_sentences():
    result = {
        "model": "liver", "folder": "/x/liver", "dice": {"liver": 0.9123}, "poor": [], "prompts": {"click 1": 0.8},
        "left_out": ["a", "b"], "worst_case": "b", "overlay": "/x/b.png", "steps": 400, "seconds": 510.0,
    }  # fmt: skip
    text = "\n".join(teach.summary(result))
    for part in ("8.5 minutes", "left out (a, b)", "liver: 0.912", "click 1 0.800", "worst of them, b: /x/b.png"):
        assert part in text
    assert "Not good enough" not in text
    assert "Not good enough to rely on for liver" in "\n".join(teach.summary(result | {"poor": ["liver"]}))


@pytest.mark.slow
def test_a_model_that_found_little_says_so_on_its_card(phantom_data, home, capsys):
    told = learn(capsys, *words(phantom_data, "--name", "balls"))
    poor = [name for name, dice in told["dice"].items() if dice < 0.5]
    assert poor, "six steps teach next to nothing"
    assert told["poor"] == poor
    assert f"Not good enough to rely on for {', '.join(poor)}" in model_folder.load_card(home / "models/balls").limits


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_name_that_is_taken_is_refused_before_any_work(phantom_data, home, capsys):
    learn(capsys, *words(phantom_data, "--name", "balls"))
    before = contents(home)
    assert "exists already" in fail(capsys, *words(phantom_data, "--name", "balls"))
    assert contents(home) == before


@pytest.mark.slow
def test_a_lesson_may_replace_a_model(phantom_data, home, capsys):
    learn(capsys, *words(phantom_data, "--name", "balls"))
    learn(capsys, *words(phantom_data, "--name", "balls", "--overwrite", "--set", "train.seed=5"))
    assert left(home) == MODEL
    assert model_folder.load_card(home / "models/balls").config.train.seed == 5


@pytest.mark.parametrize("name", ["../balls", "a b", "mobile"])
def test_a_name_that_no_model_can_have_is_refused(phantom_data, home, capsys, name):
    assert "unusable model name" in fail(capsys, *words(phantom_data, "--name", name))


def test_the_name_of_a_model_that_is_built_in_is_refused(phantom_data, home, capsys):
    name = next(model.name for model in installed.installed_models() if model.origin == "bundled")
    assert "built in" in fail(capsys, *words(phantom_data, "--name", name, "--overwrite"))


@pytest.mark.parametrize("preset", ["swin-tiny", "A1", "masksam-acdc-gt", "M5"])
def test_networks_that_a_lesson_cannot_train_are_refused_before_the_cases_are_read(
    phantom_data, home, capsys, monkeypatch, preset
):
    monkeypatch.setattr("MaskSAMCore.data.build.prepare", lambda *_, **__: pytest.fail("the cases were read"))
    text = fail(capsys, str(phantom_data), "--name", "balls", "--device", "cpu", "--preset", preset)
    assert "cannot be taught" in text
    assert preset in text


def test_cases_with_problems_give_one_report(phantom_data, home, capsys, tmp_path):
    cases = some(phantom_data, tmp_path / "bad", 3)
    (cases / "labelsTr/case_000.nii.gz").unlink()
    (cases / "imagesTr/case_001_0000.nii.gz").write_bytes(b"no image")
    text = fail(capsys, *words(cases, "--name", "balls"))
    assert "case_000" in text
    assert "case_001" in text
    assert not left(home)


@pytest.mark.slow
def test_a_missing_base_is_told_before_the_cases_are_read(phantom_data, home, capsys, monkeypatch):
    monkeypatch.setattr("MaskSAMCore.data.build.prepare", lambda *_, **__: pytest.fail("the cases were read"))
    fake_base(monkeypatch, UrlSource(url=(home / "nowhere").as_uri()))
    assert "base weights could not be fetched" in fail(capsys, str(phantom_data), "--name", "balls", "--device", "cpu")
    assert not left(home)


@pytest.mark.parametrize("given", [("--minutes", "0"), ("--minutes", "soon"), ("--left-out", "-1"), ("--steps", "x")])
def test_numbers_that_are_none_are_refused(phantom_data, given):
    with pytest.raises(SystemExit) as ended:
        teach.main([str(phantom_data), *given])
    assert ended.value.code == 2


# -- what fails --------------------------------------------------------------------------------------------------------


REMEMBERED = "verdicts.json"
"""Hashes of base weights that were checked, with the time of the look."""


def break_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    good = set_loss.SetLoss.forward
    monkeypatch.setattr(
        set_loss.SetLoss, "forward", lambda self, *given: {n: v * float("nan") for n, v in good(self, *given).items()}
    )


def break_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teach, "ENDING_S", 1e6)


def break_judging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold_out, "evaluate_hold_out", full_disk)


def break_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "save_model", full_disk)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.slow
@pytest.mark.parametrize("break_it", [break_learning, break_the_time, break_judging, break_saving])
def test_a_lesson_that_fails_changes_nothing(
    phantom_data, home, capsys, monkeypatch, break_it: Callable[[pytest.MonkeyPatch], None]
):
    learn(capsys, *words(phantom_data, "--name", "balls"))
    before = contents(home)
    break_it(monkeypatch)
    assert fail(capsys, *words(phantom_data, "--name", "balls", "--overwrite"), code=1)
    assert contents(home) == before


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("stage", ["encoding patches", "learning"])
def test_a_signal_ends_it_and_leaves_nothing(phantom_data, home, number, code, stage):
    endless = words(phantom_data, "--name", "balls", "--steps", "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "MaskSAMCore.teach", *endless],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while f'"{stage}"' not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert out == ""
    assert not left(home)
    assert not list(home.glob(".*"))


def test_what_a_killed_lesson_left_goes_with_the_next_one_and_a_running_one_is_left_alone(tmp_path):
    for name in ("dead", "alive"):
        (tmp_path / f".lesson-{name}").mkdir()
        (tmp_path / f".lesson-{name}/patient.npy").touch()
    with FolderLock(tmp_path / ".lesson-alive"):
        with teach.workplace(tmp_path) as mine:
            assert mine.is_dir()
            names = {path.name for path in tmp_path.iterdir()}
            assert names == {".lesson-alive", mine.name}
        assert [path.name for path in tmp_path.iterdir()] == [".lesson-alive"]
        assert (tmp_path / ".lesson-alive/patient.npy").exists()


# -- judging -----------------------------------------------------------------------------------------------------------


class Oracle:
    """Predicts from a table of label maps."""

    def __init__(self, raw: Any, answers: dict[str, float]) -> None:
        self.raw, self.answers, self.steps = raw, answers, []
        self.card = SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(mode="auto")))

    def segment(self, volume: Any, *, step: float, cancel: CancelToken) -> Any:
        """The reference, of which a share of the slices is missing."""
        self.steps.append(step)
        case = next(c for c in self.raw.cases if str(c.images[0]) == volume.source)
        _, reference = read_case(self.raw, case)
        reference.array[: int(self.answers[case.id] * len(reference.array))] = 0
        return SimpleNamespace(labels=reference)


def examine(phantom_data: Path, missing: dict[str, float], enough: Callable[[], bool] = lambda: False) -> Any:
    raw = read_dataset(phantom_data)
    oracle = Oracle(raw, missing)
    exam = HoldOutPlan(cases=tuple(missing), step=1.0, seconds=1.0)
    verdict = evaluate_hold_out(oracle, raw, None, exam, enough=enough, progress=no_progress, cancel=CancelToken())
    assert set(oracle.steps) == {1.0}
    return verdict


def test_the_case_with_the_lowest_mean_is_the_worst(phantom_data):
    verdict = examine(phantom_data, {"case_000": 0.0, "case_001": 0.5, "case_002": 0.3})
    assert verdict.worst == "case_001"
    assert not verdict.found.array[:5].any()
    assert verdict.dice["case_000"] == {"ball": 1.0, "cube": 1.0}
    means = verdict.structures()
    assert means["ball"]["cases"] == 3
    assert 0.6 < means["ball"]["dice"] < 1


def test_a_structure_that_is_nowhere_counts_for_nothing(phantom_data, tmp_path, monkeypatch):
    verdict = hold_out.HoldOutResult(step=0.5, dice={"a": {"ball": 0.5, "cube": 0.7}, "b": {"ball": 0.9}})
    assert verdict.structures() == {"ball": {"dice": 0.7, "cases": 2}, "cube": {"dice": 0.7, "cases": 1}}


def test_judging_ends_when_the_time_does_but_not_before_one_case(phantom_data):
    verdict = examine(phantom_data, {"case_000": 0.0, "case_001": 0.0}, enough=lambda: True)
    assert list(verdict.dice) == ["case_000"]


# -- helpers -----------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != REMEMBERED)
    return {str(path): path.read_bytes() for path in files}


def some(source: Path, target: Path, count: int) -> Path:
    """A data set of the first few cases of another."""
    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True)
        for path in sorted((source / name).iterdir())[:count]:
            (target / name / path.name).write_bytes(path.read_bytes())
    (target / "dataset.json").write_bytes((source / "dataset.json").read_bytes())
    return target
