"""Recipes: the released models' trainings as files, run by one command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from MaskSAMCore import train
from MaskSAMCore.config import presets
from MaskSAMCore.config.check import check_config
from MaskSAMCore.config.recipe import read_recipe, recipe_names
from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import from_dict, override
from MaskSAMCore.errors import InputError
from MaskSAMCore.network.build import check_network
from MaskSAMCore.zoo import installed, model_folder
from MaskSAMCore.zoo.model_folder import MEAN
from Testing.core.training.test_training import free_port
from Testing.runs import SETTINGS, assert_equal, final


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Automatic mode, then clicks; two short runs."""
    settings = [*SETTINGS, "train.epochs=2", "model.loss.assignment=own", "model.decoder.kind=none"]
    stages = [
        {"about": "automatic mode", "settings": ["train.mode=auto"]},
        {"about": "clicks", "settings": ["train.mode=prompt", "train.keep_generator=true"]},
    ]
    text = {"about": "a test", "data": "phantoms", "preset": "tiny", "settings": settings, "stages": stages}
    text["card"] = {"description": "Finds balls.", "licence": "CC0"}
    path = tmp_path / "phantoms.json"
    path.write_text(json.dumps(text))
    return path


def words(data: Path, run: Path, recipe: Path, *extra: str) -> list[str]:
    return [str(data), "-o", str(run), "--recipe", str(recipe), "--device", "cpu", *extra]


@pytest.mark.slow
def test_stages_follow_each_other(
    phantom_data: Path, tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train.main(words(phantom_data, run, recipe)) == 0
    assert "stage 1 of 2: automatic mode" in capsys.readouterr().out
    (first, _), (last, card) = (installed.load_model(folder / "model") for folder in (run / "stage-1", run))
    assert (card.description, card.licence) == ("Finds balls.", "CC0")
    assert card.name == "phantoms"
    assert card.provenance["starts_from"]["steps"] == 8
    before, after = first.state_dict(), last.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "decoder" in changed
    assert "generator" not in changed
    whole = final(run)
    # as if the power had gone after the first epoch of the second stage
    for path in (run / "checkpoints").glob("step-00000008*"):
        path.unlink()
    shutil.rmtree(run / "model")
    assert train.main(words(phantom_data, run, recipe)) == 2
    assert "--resume" in capsys.readouterr().err
    # the run knows its recipe, even when the file is gone
    recipe.unlink()
    for extra, name in ((["--mode", "auto"], "--mode"), (["--set", "train.lr=1"], "--set train.lr")):
        assert train.main(["-o", str(run), "--resume", "--device", "cpu", *extra]) == 2
        assert name in capsys.readouterr().err
    assert train.main(["-o", str(run), "--resume", "--device", "cpu"]) == 0
    assert_equal(final(run), whole)
    assert (run / "model").is_dir()


@pytest.mark.slow
def test_two_processes_run_all_stages(phantom_data: Path, tmp_path: Path, recipe: Path, repo: Path) -> None:
    text = json.loads(recipe.read_text())
    text["stages"][1]["average"] = True
    recipe.write_text(json.dumps(text))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    done = subprocess.run(
        [*launch, "-m", "MaskSAMCore.train", *words(phantom_data, tmp_path / "run", recipe)],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    card = installed.load_model(tmp_path / "run/model")[1]
    assert len(card.provenance["stages"]) == 2
    assert card.provenance[MEAN]


@pytest.mark.slow
def test_a_stage_may_be_averaged_with_its_start(phantom_data: Path, tmp_path: Path, recipe: Path) -> None:
    text = json.loads(recipe.read_text())
    text["stages"] = [text["stages"][0], text["stages"][0] | {"average": True}]
    text["settings"] += ["train.ema=0", "train.precision=fp32"]
    recipe.write_text(json.dumps(text))
    run = tmp_path / "run"
    assert train.main(words(phantom_data, run, recipe)) == 0
    (first, _), (last, card) = (installed.load_model(folder / "model") for folder in (run / "stage-1", run))
    ends = {name[6:]: tensor for name, tensor in final(run).items() if name.startswith("model.")}
    before, after = first.state_dict(), last.state_dict()
    for name, end in ends.items():
        torch.testing.assert_close(after[name], (before[name] + end) / 2, atol=2e-3, rtol=2e-3)
    assert any(not torch.allclose(after[name], end, atol=2e-3) for name, end in ends.items())
    assert [stage["steps"] for stage in card.provenance["stages"]] == [8, 8]
    readme = (run / "model/README.md").read_text()
    assert "8 steps (automatic mode); 8 steps (automatic mode, averaged with the weights before)" in readme
    weights = (run / "model/weights.safetensors").read_bytes()
    assert train.main(words(phantom_data, run, recipe, "--resume")) == 0
    assert (run / "model/weights.safetensors").read_bytes() == weights


def test_a_recipe_says_what_is_trained(tmp_path: Path, recipe: Path) -> None:
    for extra in (["--mode", "auto"], ["--preset", "tiny"], ["--fold", "1"]):
        with pytest.raises(SystemExit) as stop:
            train.main(words(tmp_path, tmp_path / "run", recipe, *extra))
        assert stop.value.code == 2


def test_faulty_recipes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.json"
    for text, reason in (
        ("{", "not a recipe"),
        ('{"about": "", "data": "", "stages": []}', "needs a stage"),
        ('{"about": "", "data": "", "stages": [{"about": "", "steps": 3}]}', "steps"),
        ('{"about": "", "stages": [{"about": ""}]}', "missing"),
    ):
        path.write_text(text)
        assert train.main(words(tmp_path, tmp_path / "run", path)) == 2
        assert reason in capsys.readouterr().err
    assert train.main([str(tmp_path), "-o", str(tmp_path / "run"), "--recipe", "hipocampus-mr"]) == 2
    message = capsys.readouterr().err
    assert recipe_names()
    assert all(name in message for name in recipe_names())
    assert 'Did you mean "hippocampus-mr"?' in message


@pytest.mark.parametrize("name", recipe_names())
def test_what_comes_with_the_program_describes_trainings(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.about
    assert recipe.data
    for stage in recipe.stages:
        config = override(presets.get(recipe.preset), [*recipe.settings, *stage.settings])
        check_config(config)
        check_network(config.model)


STAGES = json.loads((Path(__file__).parent / "recipe_stages.json").read_text(encoding="utf-8"))
"""The configuration of every stage by which the bundled models were trained, key by key."""


@pytest.mark.parametrize("name", STAGES)
def test_recipes_train_what_the_bundled_models_were_trained_by(name: str) -> None:
    recipe = read_recipe(name)
    assert len(recipe.stages) == len(STAGES[name]["stages"])
    for stage, different in zip(recipe.stages, STAGES[name]["stages"], strict=True):
        values = STAGES[name]["common"] | different
        assert nested(values)["model"]["stem"]["kind"] == "repeat"
        config = override(presets.get(recipe.preset), [*recipe.settings, *stage.settings])
        assert config == from_dict(Config, nested(values)), stage.about


@pytest.mark.parametrize("name", recipe_names())
def test_the_last_stage_is_the_bundled_models_configuration(name: str) -> None:
    recipe, card = read_recipe(name), model_folder.load_card(installed.find_model(name))
    config = override(presets.get(recipe.preset), [*recipe.settings, *recipe.stages[-1].settings])
    fitted = [f"model.channels={card.config.model.channels}", f"model.classes={card.config.model.classes}"]
    assert override(config, fitted) == card.config


def test_a_recipe_without_a_format_starts_from_the_network_of_its_time(tmp_path: Path) -> None:
    text = {"about": "", "data": "", "preset": "core-mobile", "stages": [{"about": ""}]}
    path = tmp_path / "old.json"
    path.write_text(json.dumps(text))
    old = read_recipe(str(path))
    assert old.preset == "core-mobile-whole"
    path.write_text(json.dumps(text | {"format": 2}))
    assert read_recipe(str(path)).preset == "core-mobile"
    path.write_text(json.dumps(text | {"format": 3}))
    with pytest.raises(InputError, match="too new"):
        read_recipe(str(path))


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values by their full keys as an object of objects."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def test_every_bundled_model_has_its_recipe(repo: Path) -> None:
    models = {path.parent.name for path in (repo / "Resources/Models").glob("*/model.json")}
    assert models
    assert models <= set(recipe_names())
