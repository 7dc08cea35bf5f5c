"""Self-Prompt-SAM's schedule: the generator first, then all of it (model.md §9.4; check 16 of §19), to the end."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from MaskSAMCore import segment, train
from MaskSAMCore.config import presets
from MaskSAMCore.config.check import check_config
from MaskSAMCore.config.schema import TrainConfig
from MaskSAMCore.config.serialize import override
from MaskSAMCore.inference.cache import SlabCache
from MaskSAMCore.inference.predictor import Predictor
from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.inference.session import Session
from MaskSAMCore.io.images import read_volume
from MaskSAMCore.network.build import build_model
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.training import checkpoint, loop
from MaskSAMCore.training.learner import Objective
from MaskSAMCore.training.loop import objective_at
from MaskSAMCore.training.run import released
from MaskSAMCore.zoo import installed, model_folder
from Testing.core.training.test_training import free_port
from Testing.runs import arguments, assert_equal, final

SMALL = (
    "model.backbone.arch=tiny",
    "model.patch=[4, 16, 16]",
    "model.stem.kind=lean",
    "model.source.widths=[16, 8, 8]",
    "train.optimizer=adamw",
    "train.lr=0.002",
    "train.weight_decay=0.1",
    "train.batch=1",
    "train.iterations=2",
    "train.epochs=3",
    "train.generator_epochs=2",
    "train.ema=0.9",
    "train.validate_every=0",
)
DECODER = ("model.decoder.", "model.multiclass.")


def words(
    data: Path, run: Path, *extra: str, settings: tuple[str, ...] = (), preset: str = "selfprompt-acdc"
) -> list[str]:
    options = [str(data), "-o", str(run), "--preset", preset, "--device", "cpu", *extra]
    return options + [word for setting in (*SMALL, *settings) for word in ("--set", setting)]


@pytest.fixture(scope="module")
def run(phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through both stages; do not change it."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    assert train.main(words(phantom_data, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def first_stage(phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, whose time ends with the first stage; do not change it."""
    folder = tmp_path_factory.mktemp("first") / "run"
    assert train.main(words(phantom_data, folder, settings=("train.epochs=2",))) == 0
    return folder


def of_decoder(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(DECODER)}


def fresh() -> dict[str, torch.Tensor]:
    config = override(presets.get("selfprompt-acdc"), [*SMALL, "model.classes=3"])
    torch.manual_seed(config.train.seed)
    return {f"model.{name}": tensor for name, tensor in build_model(config.model).state_dict().items()}


def test_what_the_steps_train() -> None:
    cfg = TrainConfig(generator_epochs=200, epochs=1000, iterations=250)
    assert objective_at(199 * 250 + 249, cfg) is Objective.GENERATOR
    assert objective_at(200 * 250, cfg) is Objective.AUTOMATIC
    sp = presets.get("selfprompt-acdc").train
    assert (sp.generator_epochs, sp.epochs, sp.lr, sp.optimizer) == (200, 1000, 1e-2, "sgd")


@pytest.mark.slow
def test_the_first_stage_leaves_the_decoder_alone_and_the_second_trains_it(run: Path, first_stage: Path) -> None:
    start, middle, end = fresh(), final(first_stage), final(run)
    untouched = of_decoder(middle)
    assert len(untouched) > 20
    # Weight decay would shrink what has no gradient, and the average would follow.
    assert all(torch.equal(tensor, start[name]) for name, tensor in untouched.items())
    assert all(torch.equal(middle["ema." + name.removeprefix("model.")], start[name]) for name in untouched)
    assert any(not torch.equal(middle[name], start[name]) for name in middle if name.startswith("model.generator."))
    assert any(not torch.equal(middle[name], start[name]) for name in middle if name.startswith("model.encoder."))
    moved = [name for name, tensor in of_decoder(end).items() if not torch.equal(tensor, start[name])]
    assert any("token_adapters" in name for name in moved)
    assert any("multiclass" in name for name in moved)


@pytest.mark.slow
def test_the_terms_of_both_stages_are_logged(run: Path) -> None:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["segmentation"]) for row in rows] == [False, False, True]
    assert all(float(row["generator"]) > 0 for row in rows)
    assert [bool(row["val dice"]) for row in rows] == [False, True, True]


@pytest.mark.slow
def test_a_model_of_the_first_stage_is_its_generator_and_the_last_one_is_whole(run: Path, first_stage: Path) -> None:
    model, card = installed.load_model(first_stage / "model")
    assert card.config.model.decoder.kind == "none"
    assert not model.decodes
    image = torch.randn(1, 1, 4, 16, 16)
    with torch.no_grad():
        own = model.generator_logits(model.encode(image), image)[-1].softmax(1)
        torch.testing.assert_close(model.segment_patch(image), own)
    whole, card = installed.load_model(run / "model")
    assert card.config.model.decoder.kind == "sam"
    assert whole.decodes
    with torch.no_grad():
        own = whole.generator_logits(whole.encode(image), image)[-1].softmax(1)
        assert not torch.allclose(whole.segment_patch(image), own)


@pytest.mark.slow
def test_a_model_of_the_first_stage_proposes_and_answers_prompts(first_stage: Path, phantom_data: Path) -> None:
    network, card = installed.load_model(first_stage / "model")
    volume = read_volume(phantom_data / "imagesTr" / "case_000_0000.nii.gz")
    session = Session.open(network, card, volume)
    found = session.automatic(1)
    assert all(box.corners is not None and point.position is not None for box, point in found)
    session.prompt(1, [Prompt(kind="point", position=(16.0, 16.0, 5.0), scope="slice")])
    assert session.mask(1)[5, 16, 16] == 1


@pytest.mark.slow
def test_validation_uses_what_is_trained(phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []
    validate = loop.Trainer.averaged

    def averaged(self: loop.Trainer):
        seen.append((self.step, self.model.decodes))
        return validate(self)

    monkeypatch.setattr(loop.Trainer, "averaged", averaged)
    # The end of the stage is worth a look whatever `validate_every` says.
    assert train.main(words(phantom_data, tmp_path / "run")) == 0
    assert seen == [(4, False), (6, True)]


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 5])
def test_a_resumed_run_ends_as_if_nothing_had_been(
    after: int, phantom_data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimise = loop.Trainer.optimise

    def stops(self: loop.Trainer, *args, **kwargs):
        terms = optimise(self, *args, **kwargs)
        if self.step + 1 == after:
            self.hooks.cancel.cancel()
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "optimise", stops)
        assert train.main(words(phantom_data, tmp_path / "run")) == Cancelled("").exit_code
    assert train.main(words(phantom_data, tmp_path / "run", "--resume")) == 0
    assert_equal(final(run), final(tmp_path / "run"))


@pytest.mark.slow
def test_a_second_run_starts_from_the_first_stage(phantom_data: Path, first_stage: Path, tmp_path: Path) -> None:
    settings = ("train.epochs=1", "train.generator_epochs=0")
    extra = ("--init", str(first_stage / "model"))
    assert train.main(words(phantom_data, tmp_path / "run", *extra, settings=settings)) == 0
    assert model_folder.load_card(tmp_path / "run/model").config.model.decoder.kind == "sam"


@pytest.mark.slow
def test_features_of_the_frozen_encoder_serve_the_first_stage(phantom_data: Path, tmp_path: Path) -> None:
    settings = ("train.frozen_epochs=1", "train.epochs=2", "train.generator_epochs=1")
    assert train.main(words(phantom_data, tmp_path / "run", settings=settings)) == 0
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], bool(row["segmentation"])) for row in rows] == [("frozen", False), ("full", True)]


@pytest.mark.slow
def test_simulated_users_can_join_in_the_second_stage(phantom_data: Path, tmp_path: Path) -> None:
    settings = ("train.epochs=4", "train.generator_epochs=1")
    extra = ("--mode", "mixed")
    assert train.main(words(phantom_data, tmp_path / "run", *extra, settings=settings)) == 0
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert not rows[0]["prompt_dice"]
    assert any(row["prompt_dice"] for row in rows[1:])
    assert any(row["segmentation"] for row in rows[1:])
    assert rows[-1]["val click 1"]


@pytest.mark.slow
def test_two_processes_train_both_stages(phantom_data: Path, tmp_path: Path, repo: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    run, start = tmp_path / "run", fresh()
    process = subprocess.run(
        [*launch, "-m", "MaskSAMCore.train", *words(phantom_data, run)],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    for step, untouched in ((4, True), (6, False)):
        tensors = checkpoint.load(run / f"checkpoints/step-{step:08d}.safetensors").tensors
        assert all(torch.equal(tensor, start[key]) for key, tensor in of_decoder(tensors).items()) is untouched


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["S1", "S2", "S8"])
def test_rows_train_and_segment(preset: str, phantom_data: Path, tmp_path: Path) -> None:
    settings = ("train.epochs=1", "train.generator_epochs=0")
    folder = tmp_path / "run"
    assert train.main(words(phantom_data, folder, settings=settings, preset=preset)) == 0
    scan = next((phantom_data / "imagesTr").iterdir())
    out = tmp_path / "out.nii.gz"
    assert segment.main([str(scan), "-o", str(out), "-m", str(folder / "model"), "--device", "cpu"]) == 0
    assert out.is_file()


@pytest.mark.slow
def test_queries_that_have_their_class_are_trained_in_two_stages_too(phantom_data: Path, tmp_path: Path) -> None:
    own = ("model.loss.assignment=own", "model.loss.generator=1.0", "train.generator_epochs=1", "train.ema=0")
    started = tmp_path / "started"
    assert train.main(arguments(phantom_data, started, settings=(*own, "train.epochs=1"))) == 0
    model, card = installed.load_model(started / "model")
    assert card.config.model.decoder.kind == "none"
    assert not model.decodes
    image = torch.randn(1, 1, 4, 16, 16)
    with torch.no_grad():
        masks = model.generator_logits(model.encode(image), image)[-1]
        torch.testing.assert_close(model.segment_patch(image), masks.softmax(1))
    assert train.main(arguments(phantom_data, tmp_path / "run", settings=(*own, "train.epochs=2"))) == 0
    whole, card = installed.load_model(tmp_path / "run/model")
    assert card.config.model.decoder.kind == "sam"
    assert whole.decodes
    first, last = (of_decoder(final(folder)) for folder in (started, tmp_path / "run"))
    assert any(not torch.equal(tensor, first[name]) for name, tensor in last.items())


@pytest.mark.slow
def test_clicks_are_learned_without_changing_what_automatic_mode_finds(phantom_data: Path, tmp_path: Path) -> None:
    """The automatic model had no adapters in its encoder; they start anew, and are not needed for clicks."""
    own = ("model.loss.assignment=own", "model.decoder.kind=none", "train.epochs=1", "train.ema=0")
    bare = (*own, "model.enc_adapter.kind=none", "model.depth.pe_encoder=false")
    automatic, run = tmp_path / "automatic", tmp_path / "run"
    assert train.main(arguments(phantom_data, automatic, settings=bare)) == 0
    assert not [
        name for name in installed.load_model(automatic / "model")[0].state_dict() if "encoder.adapters" in name
    ]
    words = ("--mode", "prompt", "--init", str(automatic / "model"))
    before = installed.load_model(automatic / "model")[0].state_dict()
    for keep in ("true", "false"):
        settings = (*own, f"train.keep_generator={keep}", "train.frozen_epochs=0", "train.lr=0.01")
        assert train.main(arguments(phantom_data, run / keep, *words, settings=settings)) == 0
        after = installed.load_model(run / keep / "model")[0].state_dict()
        changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert {"decoder", "fine"} <= changed
        assert ("generator" in changed) is (keep == "false")
        trained = [name for name in after if "encoder.adapters" in name and name.endswith("up.weight")]
        assert trained
        assert any(after[name].any() for name in trained) is (keep == "false")


def test_keeping_the_generator_needs_prompts(
    phantom_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments(phantom_data, tmp_path / "run", settings=("train.keep_generator=true",))) == 2
    assert "train.keep_generator" in capsys.readouterr().err


def test_other_models_have_no_first_stage(
    phantom_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments(phantom_data, tmp_path / "run", settings=("train.generator_epochs=1",))) == 2
    assert "train.generator_epochs" in capsys.readouterr().err


def test_a_released_configuration_tells_whether_there_is_a_decoder() -> None:
    config = override(presets.get("selfprompt-acdc"), [*SMALL])
    model = build_model(config.model)
    assert released(config, model) == config
    model.set_decoder(False)
    assert released(config, model).model.decoder.kind == "none"
    check_config(released(config, model))


@pytest.mark.slow
def test_it_learns_segments_and_takes_prompts(phantom_data: Path, tmp_path: Path) -> None:
    """From the phantoms to a model folder that finds their structures, proposes prompts and answers them."""
    settings = ("train.iterations=30", "train.lr=0.01", "train.weight_decay=0.01", "model.source.image_widths=[16]")
    # A decoder of random weights has nothing to correct with in so few steps.
    assert (
        train.main(words(phantom_data, tmp_path / "run", settings=(*settings, "model.decoder.mask_residual=true"))) == 0
    )
    network, card = installed.load_model(tmp_path / "run/model")
    volume = read_volume(phantom_data / "imagesTr" / "case_000_0000.nii.gz")
    wanted = read_volume(phantom_data / "labelsTr" / "case_000.nii.gz").array
    cache = SlabCache()
    found = Predictor.of(network, card, cache=cache).segment(volume).labels.array
    for label in (1, 2):
        dice = 2 * ((found == label) & (wanted == label)).sum() / ((found == label).sum() + (wanted == label).sum())
        assert dice > 0.7, (label, dice)
    session = Session.open(network, card, volume, cache=cache)
    k = int((wanted == 2).sum((1, 2)).argmax())
    (box, point), *_ = session.automatic(2, [k])
    assert box.corners is not None
    assert point.position is not None
    i, j, _ = (round(v) for v in point.position)
    assert wanted[k, j, i] == 2
    rows, columns = np.nonzero(wanted[k] == 2)
    low, high = box.corners
    assert np.allclose(
        [low[0], high[0], low[1], high[1]], [columns.min(), columns.max(), rows.min(), rows.max()], atol=3
    )
    for head in network.generator.heads:  # type: ignore[union-attr]
        head.bias.data[2] = -1e4
    network.blend.aux.data.zero_()  # type: ignore[union-attr]
    network.multiclass.layers[-1].bias.data[2] = 1e6  # type: ignore[union-attr]
    (tight, _), *_ = session.automatic(2, [k])
    assert tight.corners is not None
    assert np.ptp(np.array(tight.corners), axis=0)[:2].min() > 8
    update = session.prompt(1, [Prompt(kind="point", position=point.position, scope="slice")])
    assert session.mask(1)[k, j, i] == 1
    assert update.encoded == 0
