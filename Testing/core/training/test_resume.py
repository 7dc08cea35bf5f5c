"""`--resume` needs the folder of the run alone; what contradicts the run is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from MaskSAMCore import train
from MaskSAMCore.training import checkpoint
from MaskSAMCore.zoo import model_folder
from Testing.phantom import write_dataset
from Testing.runs import assert_equal, final

OPTIONS = ("--resume", "--device", "cpu")


@pytest.fixture
def stopped(straight_run: Path, tmp_path: Path) -> Path:
    """The short run as if the power had gone before its last epoch."""
    run = shutil.copytree(straight_run, tmp_path / "stopped")
    (run / "checkpoints/step-00000012.safetensors").unlink()
    shutil.rmtree(run / "model")
    return run


def edit_config(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the configuration that a run has recorded, in all places."""
    for path in (run / "checkpoints").glob("*.safetensors"):
        stored = checkpoint.load(path)
        change(stored.meta["config"])
        checkpoint.save(path.parent, stored)
    file = run / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@pytest.mark.slow
def test_the_folder_is_enough(straight_run: Path, stopped: Path) -> None:
    assert train.main(["-o", str(stopped), *OPTIONS]) == 0
    assert_equal(final(stopped), final(straight_run))
    was, now = (model_folder.load_card(run / "model") for run in (straight_run, stopped))
    assert now.config == was.config
    assert now.provenance["validation_cases"] == was.provenance["validation_cases"]
    assert len((stopped / "metrics.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_patch_that_was_fitted_to_the_data_leaves_the_cache_as_it_is(
    phantom_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ("data.fit_patch=true", "train.epochs=1", "train.iterations=1", "train.frozen_epochs=0")
    words = [word for setting in settings for word in ("--set", setting)]
    run = tmp_path / "run"
    assert train.main([str(phantom_data), "-o", str(run), "--preset", "tiny", "--device", "cpu", *words]) == 0
    manifest = (run / "cache/manifest.json").stat().st_mtime_ns
    assert train.main(["-o", str(run), *OPTIONS]) == 0
    assert "have changed" not in caplog.text
    assert (run / "cache/manifest.json").stat().st_mtime_ns == manifest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("--preset", "core-acdc"), "--preset"),
        (("--fold", "1"), "--fold"),
        (("--mode", "mixed"), "--set train.mode"),
        (("--set", "train.lr=0.5"), "--set train.lr"),
        (("--set", "train.iterations=4", "--set", "data.foreground=0.9"), "--set data.foreground"),
        (("--teacher", "hippocampus-mr"), "--teacher"),
        (("--recipe", "hippocampus-mr"), "--recipe hippocampus-mr"),
    ],
)
def test_what_contradicts_the_run_is_refused_by_name(
    stopped: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], name: str
) -> None:
    before = final(stopped)
    assert train.main(["-o", str(stopped), *OPTIONS, *words]) == 2
    assert name in capsys.readouterr().err
    assert_equal(final(stopped), before)


@pytest.mark.slow
def test_a_run_keeps_its_name_and_its_data(
    phantom_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from Testing.runs import arguments

    run, data = tmp_path / "run", shutil.copytree(phantom_data, tmp_path / "data")
    settings = ("train.epochs=1", "train.iterations=1", "train.validate_every=0", "train.frozen_epochs=0")
    assert train.main(arguments(data, run, "--name", "first", settings=settings)) == 0
    assert train.main(["-o", str(run), *OPTIONS, "--name", "second"]) == 2
    assert "--name" in capsys.readouterr().err
    other = write_dataset(tmp_path / "other", cases=4)
    assert train.main([str(other), "-o", str(run), "--cache", str(tmp_path / "new"), *OPTIONS]) == 2
    assert "another data set" in capsys.readouterr().err
    moved = data.rename(tmp_path / "moved")
    assert train.main([str(moved), "-o", str(run), *OPTIONS]) == 0
    shutil.rmtree(moved)
    assert train.main(["-o", str(run), *OPTIONS]) == 0
    assert "the cache" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_of_an_older_version_goes_on(straight_run: Path, stopped: Path) -> None:
    """It recorded no options, and keys that were added since are missing."""
    (stopped / "run.json").unlink()

    def older(config: dict[str, Any]) -> None:
        del config["model"]["loss"]["generator_dice"], config["train"]["keep_generator"]

    edit_config(stopped, older)
    assert train.main(["-o", str(stopped), *OPTIONS]) == 0
    assert_equal(final(stopped), final(straight_run))


@pytest.mark.slow
def test_its_options_may_be_repeated(straight_run: Path, stopped: Path, phantom_data: Path) -> None:
    from Testing.runs import arguments

    (stopped / "run.json").unlink()
    assert train.main(arguments(phantom_data, stopped, "--resume")) == 0
    assert_equal(final(stopped), final(straight_run))


@pytest.mark.slow
def test_a_key_that_was_added_since_keeps_its_default(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(stopped, lambda config: config["model"]["loss"].pop("generator_dice"))
    assert train.main(["-o", str(stopped), *OPTIONS, "--set", "model.loss.generator_dice=log"]) == 2
    assert "log is asked for, but the run was started with linear" in capsys.readouterr().err


@pytest.mark.slow
def test_a_key_that_no_version_knows_is_named(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(stopped, lambda config: config["train"].update(wings=2))
    assert train.main(["-o", str(stopped), *OPTIONS]) == 2
    assert "unknown key 'wings'" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_record_the_data_set_must_be_named(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stopped / "run.json").unlink()
    shutil.rmtree(stopped / "cache")
    assert train.main(["-o", str(stopped), *OPTIONS]) == 2
    assert "a data set is needed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_record_is_named(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stopped / "run.json").write_text("{")
    assert train.main(["-o", str(stopped), *OPTIONS]) == 2
    assert "run.json" in capsys.readouterr().err
