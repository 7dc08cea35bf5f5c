"""Med-SA from data to clicks: trained by prompts alone, kept, evaluated, used, and refused where it must be."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from MaskSAMCore import evaluate, segment, teach, train
from MaskSAMCore.config import presets
from MaskSAMCore.data.raw import read_case, read_dataset
from MaskSAMCore.errors import InputError, ModelError
from MaskSAMCore.inference.cache import SlabCache
from MaskSAMCore.inference.predictor import Predictor
from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.inference.session import Session
from MaskSAMCore.io.images import read_volume
from MaskSAMCore.network.build import build_model
from MaskSAMCore.network.types import PromptBatch
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.zoo import installed, model_folder
from Testing.core.config.test_presets import small
from Testing.picture_phantom import write_pictures
from Testing.workers import place, point

SETTINGS = (
    "model.backbone.arch=tiny",
    "model.enc_adapter.ratio=0.25",
    "train.lr=5e-3",
    "train.epochs=2",
    "train.iterations=8",
    "train.batch=1",
    "train.validate_every=1",
    "train.precision=fp32",
)
PICTURES = ("model.patch=[1,64,64]", "data.longest=64")
VOLUMES = ("model.patch=[4,32,32]", "model.stem.upsample=2")


def arguments(data: Path, run: Path, preset: str, settings: tuple[str, ...], *extra: str) -> list[str]:
    words = [str(data), "-o", str(run), "--preset", preset, "--device", "cpu", *extra]
    return words + [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("eyes"), cases=5)


@pytest.fixture(scope="module")
def picture_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("2d") / "run"
    assert train.main(arguments(pictures, run, "medsa-2d", PICTURES)) == 0
    return run


@pytest.fixture(scope="module")
def volume_run(phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("3d") / "run"
    assert train.main(arguments(phantom_data, run, "medsa-3d", VOLUMES)) == 0
    return run


@pytest.fixture(params=["picture_run", "volume_run"])
def any_run(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_training_is_by_prompts_and_validated_by_them(any_run):
    rows = list(csv.DictReader((any_run / "metrics.csv").open(encoding="utf-8")))
    assert len(rows) == 2
    for row in rows:
        means = [float(row[f"val {name}"]) for name in ("click 1", "click 3", "box")]
        assert float(row["val dice"]) == pytest.approx(np.mean(means), abs=1e-4)
        assert float(row["prompt_dice"]) > 0
    card = model_folder.load_card(any_run / "model")
    assert card.config.model.prompts_only
    assert card.largest_component == "none"
    assert "click 3" in (any_run / "model/README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_folder_gives_the_same_network_again(any_run):
    network, card = installed.load_model(any_run / "model")
    names = {name.split(".")[1] for name in network.state_dict() if name.startswith("encoder.")}
    assert ("depth_branches" in names) == (card.config.model.patch[0] > 1)
    again, _ = installed.load_model(any_run / "model")
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


@pytest.mark.slow
def test_it_goes_on_from_its_own_weights(picture_run, pictures, tmp_path):
    words = ("--init", str(picture_run / "model"), "--name", "second")
    settings = (*PICTURES, "train.epochs=1", "train.iterations=1", "train.lr=1e-12")
    assert train.main(arguments(pictures, tmp_path / "run", "medsa-2d", settings, *words)) == 0
    first, second = (
        installed.load_model(folder / "model")[0].state_dict() for folder in (picture_run, tmp_path / "run")
    )
    assert all(torch.allclose(first[name], second[name], atol=1e-3) for name in first)


def test_segmenting_is_refused_before_anything_is_read(any_run, tmp_path, capsys):
    assert segment.main([str(tmp_path), "-m", str(any_run / "model"), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "takes clicks and boxes only" in said
    assert "give it prompts" in said
    predictor = Predictor(any_run / "model", device="cpu")
    with pytest.raises(InputError, match="takes clicks and boxes only"):
        predictor.segment(read_volume(write_pictures(tmp_path, cases=1) / "imagesTr/eye_000_0000.png"))


def test_other_ways_of_training_are_refused(pictures, tmp_path, capsys):
    assert train.main(arguments(pictures, tmp_path / "run", "medsa-2d", PICTURES, "--mode", "mixed")) == 2
    assert "--mode prompt" in capsys.readouterr().err
    words = [str(pictures), "--name", "lesson", "--preset", "medsa-2d", "--minutes", "1", "--device", "cpu"]
    assert teach.main(words) == 2
    assert "this network cannot be taught" in capsys.readouterr().err


def test_automatic_passes_are_refused_by_the_network():
    cfg = small(presets.get("M5").model)
    model, image = build_model(cfg), torch.zeros(1, cfg.channels, *cfg.patch)
    for ask in (model, model.segment_patch, model.segment_slab):
        with pytest.raises(ModelError, match="clicks and boxes only"):
            ask(image)


def session_on(run: Path, data: Path) -> tuple[Session, np.ndarray]:
    dataset = read_dataset(data)
    volume, labels = read_case(dataset, dataset.cases[0])
    network, card = installed.load_model(run / "model")
    return Session.open(network, card, volume, cache=SlabCache()), labels.array == 1


@pytest.mark.parametrize("kind", ["picture_run", "volume_run"])
def test_a_session_takes_clicks_and_boxes(kind, request, pictures, phantom_data):
    data = pictures if kind == "picture_run" else phantom_data
    session, target = session_on(request.getfixturevalue(kind), data)
    k, j, i = (int(v) for v in np.argwhere(target).mean(0).round())
    click = Prompt(kind="point", position=(i, j, k), scope="slice")
    first = session.prompt(1, [click])
    assert first.encoded == 1
    assert session.mask(1)[k, j, i] == 1
    wrong = np.argwhere((session.mask(1)[k] == 1) & ~target[k])
    place = wrong[0] if len(wrong) else np.argwhere(~target[k])[0]
    second = session.prompt(
        1, [click, Prompt(kind="point", position=(int(place[1]), int(place[0]), k), positive=False, scope="slice")]
    )
    assert second.encoded == 0
    assert session.mask(1)[k, place[0], place[1]] == 0
    rows, columns = np.flatnonzero(target[k].any(1)), np.flatnonzero(target[k].any(0))
    corners = ((columns[0], rows[0], k), (columns[-1], rows[-1], k))
    session.prompt(2, [Prompt(kind="box", corners=corners, scope="slice")])
    assert session.mask(2).shape == target.shape
    with pytest.raises(ModelError, match="clicks and boxes only"):
        session.automatic(1)


@pytest.mark.slow
def test_a_picture_goes_through_the_worker_as_through_a_session(picture_run, pictures, tmp_path, monkeypatch):
    place(monkeypatch, tmp_path)
    volume = read_volume(pictures / "imagesTr/eye_001_0000.png")
    session = Session.open(*installed.load_model(picture_run / "model"), volume)
    expected = session.prompt(1, [Prompt(kind="point", position=(20, 20, 0))])
    with EngineClient(device="cpu", threads=1) as engine:
        case = engine.open(volume.array, volume.grid.affine, picture_run / "model")
        found = engine.prompt(case, 1, [point(20, 20, 0)])
        assert found.box == expected.box
        assert np.array_equal(found.mask, expected.mask)
        with pytest.raises(InputError, match="clicks and boxes only"):
            engine.segment(case)


def test_prompts_change_what_the_conditioned_adapters_do(volume_run):
    """Check 22 on a trained model: the order of the clicks does not matter, what they say does."""
    network, card = installed.load_model(volume_run / "model")
    torch.manual_seed(0)
    depth = card.config.model.patch[0]
    slab = network.slab(torch.randn(1, 1, *card.config.model.patch))
    points = torch.rand(1, 1, 1, 3, 2).expand(1, 1, depth, 3, 2)
    labels = torch.tensor([1, 1, 0]).expand(1, 1, depth, 3)

    def masks(order: list[int], given: torch.Tensor = points) -> torch.Tensor:
        batch = PromptBatch(points=given[..., order, :], labels=labels[..., order])
        with torch.no_grad():
            return network.prompted(slab, batch).masks

    torch.testing.assert_close(masks([0, 1, 2]), masks([2, 0, 1]), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(masks([0, 1, 2]), masks([0, 1, 2], points.flip(-1)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["picture_run", "volume_run"])
def test_simulated_users_judge_it(kind, request, pictures, phantom_data, tmp_path, capsys):
    data = pictures if kind == "picture_run" else phantom_data
    table = tmp_path / "table.csv"
    words = [str(data), "--interactive", "--model", str(request.getfixturevalue(kind) / "model"), "-o", str(table)]
    assert evaluate.main([*words, "--fold", "0", "--slices", "1", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for column in ("1 click", "3 clicks", "1 point", "3 points", "box 0.5", "box 0.75"):
        assert column in said
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    protocols = {row["protocol"] for row in rows}
    assert protocols == {"single slices"} | ({"whole volumes"} if kind == "volume_run" else set())
    for row in rows:
        if row["protocol"] == "single slices":
            figures = [float(row[column]) for column in ("points_1", "points_3", "box_50", "box_75", "dice_1")]
            assert all(0 <= value <= 1 for value in figures)


def test_without_prompts_there_is_nothing_to_evaluate(picture_run, pictures, capsys):
    assert evaluate.main([str(pictures), "--model", str(picture_run / "model"), "--fold", "0", "--device", "cpu"]) == 2
    assert "takes clicks and boxes only" in capsys.readouterr().err
