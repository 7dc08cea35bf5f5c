"""What d6d6e8e's training left: saved cases, a cache, recipes, and a run that was interrupted."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from MaskSAMCore import prepare, train
from MaskSAMCore.config import presets
from MaskSAMCore.config.recipe import read_recipe
from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import from_dict, override, to_dict
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.data.save import save_case
from MaskSAMCore.data.verify import verify_dataset
from MaskSAMCore.io.images import read_labels, read_volume
from MaskSAMCore.training import checkpoint
from MaskSAMCore.zoo.installed import load_model
from Testing.old.samples import SAMPLES, leaves, read_json, unpack

RECIPE = SAMPLES / "recipes" / "phantoms.json"
CONFIGURATIONS = read_json("configurations.json")
LEARNING_RATE = 5e-3
DONE, ALL = 216, 240
"""Steps of the interrupted stage: when it was interrupted, and in the end."""


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file by its name."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_a_recipe_leads_to_the_same_configurations(name: str) -> None:
    recipe = read_recipe(str(SAMPLES / "recipes" / f"{name}.json"))
    assert len(recipe.stages) == len(CONFIGURATIONS[name])
    for stage, expected in zip(recipe.stages, CONFIGURATIONS[name], strict=True):
        config = override(presets.get(recipe.preset), [*recipe.settings, *stage.settings])
        wanted = from_dict(Config, expected)
        assert config == replace(wanted, preset=config.preset), "all but the name of the preset, which was changed"
        before, now = leaves(expected | {"preset": config.preset}), leaves(to_dict(config))
        assert {key: now[key] for key in before if key in now} == {key: before[key] for key in before if key in now}
        assert len(before.keys() & now.keys()) > len(before) / 2


# -- cases and cache -------------------------------------------------------------------------------------------------


def test_saved_cases_are_a_data_set_that_takes_more(tmp_path: Path) -> None:
    folder = shutil.copytree(SAMPLES / "cases", tmp_path / "cases")
    dataset = verify_dataset(folder)
    assert [case.id for case in dataset.cases] == [f"Scan_{number}" for number in range(5)]
    assert [(label.id, label.name) for label in dataset.labels.labels] == [(1, "Liver"), (2, "Dark cube")]
    scan, labels = read_volume(folder / "imagesTr/Scan_1_0000.nii.gz"), read_labels(folder / "labelsTr/Scan_1.nii.gz")
    other = replace(scan, array=scan.array + 1)
    saved = save_case(folder, other, replace(labels, labels=dataset.labels), name="Scan 1")
    assert (saved.name, dict(saved.labels)) == ("Scan_1-2", {"Liver": 1, "Dark cube": 2})
    assert len(verify_dataset(folder).cases) == 6


def test_a_cache_is_kept_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = unpack("cache", tmp_path)
    before = files(cache)
    words = [word for setting in read_recipe(str(RECIPE)).settings for word in ("--set", setting)]
    assert prepare.main([str(SAMPLES / "cases"), "-o", str(cache), "--preset", "tiny", *words]) == 0
    assert files(cache) == before
    assert "kept 5" in capsys.readouterr().out
    dataset = PreparedDataset(cache)
    dataset.verify()
    assert [dataset.case(case).image.shape for case in dataset.ids] == [(1, 8, 32, 32)] * 5


# -- the run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """A recipe's run that was interrupted in its first stage, and its cache."""

    run: Path
    cache: Path

    @property
    def stage(self) -> Path:
        return self.run / "stage-1"

    def rows(self) -> list[dict[str, str]]:
        """Of the stage's metrics.csv."""
        with (self.stage / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def interrupted(tmp_path: Path) -> Interrupted:
    return Interrupted(run=unpack("run", tmp_path), cache=unpack("cache", tmp_path))


def check_continued(before: checkpoint.Checkpoint, after: checkpoint.Checkpoint) -> None:
    """The tensors went on from where they were, and the optimiser with them."""
    assert (before.step, after.step) == (DONE, ALL)
    assert before.tensors.keys() == after.tensors.keys()
    counters = {name for name in before.tensors if name.startswith("optim.") and name.endswith(".step")}
    assert counters
    for name, tensor in before.tensors.items():
        if name in counters:
            assert (float(tensor), float(after.tensors[name])) == (DONE, ALL)
        elif name.startswith("model."):
            moved = float((after.tensors[name] - tensor).abs().max())
            assert moved <= 2 * LEARNING_RATE * (ALL - DONE), name
    assert any(not torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())


@pytest.mark.slow
def test_a_run_resumes_and_ends(interrupted: Interrupted) -> None:
    run, before, rows = interrupted.stage, checkpoint.newest(interrupted.stage / "checkpoints")[0], interrupted.rows()
    recipe = read_recipe(str(RECIPE))
    settings = [*recipe.settings, *recipe.stages[0].settings]
    words = [word for setting in settings for word in ("--set", setting)]
    cache = files(interrupted.cache)
    options = [str(interrupted.cache), "-o", str(run), "--preset", recipe.preset, "--device", "cpu", *words]
    assert train.main([*options, "--resume"]) == 0
    assert files(interrupted.cache) == cache
    check_continued(before, checkpoint.newest(run / "checkpoints")[0])
    after = interrupted.rows()
    assert after[: len(rows)] == rows
    assert int(after[-1]["step"]) == ALL
    _, card = load_model(run / "model")
    assert card.provenance["steps"] == ALL


@pytest.mark.slow
def test_a_recipe_goes_on_in_the_stage_where_it_was_interrupted(interrupted: Interrupted) -> None:
    before = checkpoint.newest(interrupted.stage / "checkpoints")[0]
    options = [str(interrupted.cache), "-o", str(interrupted.run), "--recipe", str(RECIPE), "--device", "cpu"]
    assert train.main([*options, "--resume"]) == 0
    check_continued(before, checkpoint.newest(interrupted.stage / "checkpoints")[0])
    _, card = load_model(interrupted.run / "model")
    assert [stage["steps"] for stage in card.provenance["stages"]] == [ALL, 24]
