"""The training of the click model: its users, its loss, and runs from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from MaskSAMCore import train
from MaskSAMCore.config.network_schema import PROMPT_MAPS
from MaskSAMCore.data.collection import Collection, build_collection
from MaskSAMCore.preprocessing.prompt_maps import draw_points, draw_region, empty_maps
from MaskSAMCore.training.click_users import STARTS, ClickUser, damaged, lasso, scribble
from MaskSAMCore.training.clicks import ClickSampler, click_loss
from MaskSAMCore.zoo.installed import load_model
from Testing.runs import assert_equal, final

SETTINGS = (
    "model.source.widths=[16,8,8]",
    "train.epochs=2",
    "train.iterations=3",
    "train.warmup_steps=0",
    "train.precision=fp32",
    "train.validate_every=1",
)


def target() -> np.ndarray:
    """A ball (D, H, W)."""
    z, y, x = np.indices((16, 32, 32))
    return (z - 8) ** 2 + (y - 16) ** 2 + (x - 14) ** 2 < 36


def user(seed: int = 0) -> ClickUser:
    return ClickUser(target(), (1.0, 1.0, 1.0), np.random.default_rng(seed))


def test_users_begin_with_every_kind_of_prompt_inside_of_their_target() -> None:
    points, regions, masks = 0, 0, 0
    for seed in range(80):
        each = user(seed)
        assert each.prompts
        first = each.prompts[0]
        masks += each.former is not None
        if first.points is not None and each.former is None:
            points += 1
            places = first.points.round().astype(int)
            assert first.positive
            assert target()[tuple(places.T)].all()
        elif first.region is not None:
            regions += 1
    assert len(STARTS) == 5
    assert min(points, regions, masks) > 3


def test_a_correction_marks_an_error_as_what_it_is() -> None:
    for seed in range(30):
        each = user(seed)
        count = len(each.prompts)
        missing = np.zeros_like(target())
        assert each.correct(missing)
        assert each.prompts[-1].positive
        swollen = target() | np.roll(target(), 12, axis=2)
        assert each.correct(swollen)
        assert not each.prompts[-1].positive
        assert len(each.prompts) == count + 2
        assert not each.correct(target()), "nothing is wrong"


def test_scribbles_stay_inside_and_lassos_go_round() -> None:
    plane = target()[8]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        line = scribble(plane, rng).round().astype(int)
        assert plane[tuple(line.T)].all()
        around = lasso(plane, rng)
        assert (around & plane).sum() > 0.7 * plane.sum()
        assert around.sum() < 3 * plane.sum()


def test_a_damaged_mask_is_another_one() -> None:
    masks = [damaged(target(), np.random.default_rng(seed)) for seed in range(20)]
    assert sum(not np.array_equal(mask, target()) for mask in masks) > 15
    assert all(mask.shape == target().shape for mask in masks)


def test_prompts_are_drawn_where_they_are() -> None:
    maps = empty_maps((8, 16, 16))
    draw_points(maps, np.array([[4.0, 5, 6], [40, 5, 6]]), positive=True)
    draw_points(maps, np.array([[1.0, 1, 1]]), positive=False)
    draw_region(maps, np.ones((1, 4, 4), bool), (7, 14, 14), positive=True)
    ink, negative, region = (maps[PROMPT_MAPS.index(name)] for name in ("ink", "negative_ink", "region"))
    assert np.unravel_index(ink.argmax(), ink.shape) == (4, 5, 6)
    assert ink[3, 5, 6] > 0.5, "a click reaches the neighbouring slices"
    assert negative[1, 1, 1] == 1
    assert region.sum() == 4


def test_the_loss_rewards_the_target_and_the_clicked_place() -> None:
    each, wanted = user(), torch.from_numpy(target())
    right = torch.where(wanted, 8.0, -8.0)
    wrong = right.clone()
    places, signs = each.clicked
    if len(places):
        wrong[tuple(places[0])] *= -1
    good, bad = click_loss(right, wanted, each), click_loss(-right, wanted, each)
    assert good["loss"] < 0.01 < 1 < bad["loss"]
    assert good["overlap"] == 1
    assert bad["overlap"] == 0
    if len(places):
        assert click_loss(wrong, wanted, each)["near"] > good["near"]
    assert len(signs) == len(places)


@pytest.fixture(scope="module")
def collection(phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return build_collection([phantom_data], tmp_path_factory.mktemp("cache"), most=3)


def test_batches_are_functions_of_the_step(collection: Collection) -> None:
    first, again = (ClickSampler(collection, steps=10, seed=3) for _ in range(2))
    for step in (0, 9):
        a, b = first.batch(step), again.batch(step)
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)
        assert a.voxel is not None
        assert a.voxel.shape == (1, 4)
        assert int(a.label.sum()) > 0
    assert not torch.equal(first.batch(0).image[..., :8, :8], first.batch(1).image[..., :8, :8])


def words(data: Path, run: Path, *extra: str) -> list[str]:
    options = [str(data), "-o", str(run), "--preset", "any", "--device", "cpu", *extra]
    return options + [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.mark.slow
def test_a_run_makes_a_model_and_a_stopped_one_goes_on(collection: Collection, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main(words(collection.folder, whole)) == 0
    network, card = load_model(whole / "model")
    assert card.takes_any_structure
    assert card.provenance["steps"] == 6
    assert len(card.provenance["training_cases"]) == 3
    assert "structures of any kind" in (whole / "model/README.md").read_text(encoding="utf-8")
    assert sum(p.numel() for p in network.parameters()) > 10_000
    with (whole / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert train.main(words(collection.folder, stopped)) == 0
    (stopped / "checkpoints/step-00000006.safetensors").unlink()
    assert train.main(["-o", str(stopped), "--resume", "--device", "cpu"]) == 0
    assert_equal(final(whole), final(stopped))


@pytest.mark.slow
def test_a_later_run_starts_from_a_model(
    phantom_data: Path, collection: Collection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(words(collection.folder, tmp_path / "first")) == 0
    start = tmp_path / "first/model"
    assert train.main(words(phantom_data, tmp_path / "second", "--init", str(start), "--name", "mine")) == 0
    card = json.loads((tmp_path / "second/model/model.json").read_text(encoding="utf-8"))
    assert card["name"] == "mine"
    assert card["provenance"]["starts_from"] == {"name": "any", "steps": 6}
    assert train.main(words(collection.folder, tmp_path / "first")) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert train.main(words(collection.folder, tmp_path / "third", "--teacher", "hippocampus-mr")) == 2
    assert "--teacher" in capsys.readouterr().err
