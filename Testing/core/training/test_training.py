"""The training command on a phantom: resume, distribution, phases, ground-truth prompts, and what it leaves."""

from __future__ import annotations

import csv
import socket
import subprocess
import sys

import pytest
import torch

from MaskSAMCore import train
from MaskSAMCore.training import checkpoint, loop
from MaskSAMCore.zoo import installed, model_folder
from Testing.runs import arguments, assert_equal, final


def test_run_leaves_what_it_promises(straight_run):
    with (straight_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    assert [row["phase"] for row in rows] == ["frozen", "full", "full"]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["val dice"]) <= 1 for row in rows)
    assert (straight_run / "curves.png").stat().st_size > 1000
    assert list((straight_run / "overlays").glob("*.png"))
    assert not (straight_run / "features").exists()
    model, card = installed.load_model(straight_run / "model")
    assert card.labels.labels[1].name == "cube"
    assert not model.training
    assert set(card.provenance["training_cases"]).isdisjoint(card.provenance["validation_cases"])


@pytest.mark.slow
@pytest.mark.parametrize("copies", [2, 0])
def test_frozen_phase_leaves_the_encoder_alone_and_the_full_phase_trains_it(phantom_data, tmp_path, copies):
    settings = ("train.epochs=1", f"train.frozen_copies={copies}")
    assert train.main(arguments(phantom_data, tmp_path / "run", settings=settings)) == 0
    first = final(tmp_path / "run")
    ups = [name for name in first if name.startswith("model.encoder.adapters") and name.endswith("up.weight")]
    assert ups
    assert all(not first[name].any() for name in ups)
    assert any(first[name].any() for name in first if name.startswith("model.decoder.token_adapters"))


@pytest.mark.slow
def test_a_frozen_phase_without_cache_writes_none_and_takes_the_features_that_a_cache_would_hold(
    phantom_data, tmp_path, monkeypatch
):
    seen = []
    optimise = loop.Trainer.optimise

    def watched(self, batches, **options):
        batch = next(batches)
        seen.append(None if batch.features is None else batch.features.embed.requires_grad)
        if batch.features is not None:
            assert torch.equal(batch.features.embed, self.model.encode_frozen(batch.image).embed)
            assert not (tmp_path / "run" / "features").exists()
        return optimise(self, iter([batch]), **options)

    monkeypatch.setattr(loop.Trainer, "optimise", watched)
    settings = ("train.epochs=2", "train.iterations=1", "train.frozen_copies=0", "train.validate_every=0")
    assert train.main(arguments(phantom_data, tmp_path / "run", settings=settings)) == 0
    assert seen == [False, None]


@pytest.mark.slow
def test_two_runs_are_equal(phantom_data, straight_run, tmp_path):
    assert train.main(arguments(phantom_data, tmp_path / "run")) == 0
    assert_equal(final(straight_run), final(tmp_path / "run"))


@pytest.mark.slow
def test_two_processes_train_one_model(phantom_data, tmp_path, repo):
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    process = subprocess.run(
        [*command, "-m", "MaskSAMCore.train", *arguments(phantom_data, run)],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert checkpoint.newest(run / "checkpoints")[0].step == 12
    installed.load_model(run / "model")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_accumulation_and_checkpointing_change_nothing_but_the_batch(phantom_data, tmp_path):
    plain = ("train.frozen_epochs=0", "train.epochs=1", "train.iterations=2")
    finals = []
    for name, extra in (("plain", ()), ("recomputed", ("train.checkpointing=true",))):
        assert train.main(arguments(phantom_data, tmp_path / name, settings=(*plain, *extra))) == 0
        finals.append(final(tmp_path / name))
    for name, tensor in finals[0].items():
        torch.testing.assert_close(finals[1][name], tensor, rtol=1e-4, atol=1e-6)
    assert train.main(arguments(phantom_data, tmp_path / "two", settings=(*plain, "train.accumulate=2"))) == 0


@pytest.mark.slow
def test_ground_truth_prompts_train_and_validate(phantom_data, tmp_path):
    settings = (
        "model.source.kind=gt",
        "model.source.class_tokens=false",
        "model.head=argmax",
        "model.decoder.fine_masks=false",
        "model.decoder.click_maps=false",
        "model.loss.kind=binary",
        "train.epochs=1",
    )
    assert train.main(arguments(phantom_data, tmp_path / "run", settings=settings)) == 0
    assert (tmp_path / "run/metrics.csv").read_text().splitlines()[0].count("val ") == 3


@pytest.mark.slow
def test_dry_run_saves_nothing(phantom_data, tmp_path, capsys):
    assert train.main(arguments(phantom_data, tmp_path / "run", "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert "frozen phase" in printed
    assert "full phase" in printed
    assert "s per step" in printed
    assert not (tmp_path / "run/checkpoints").exists()
    assert not (tmp_path / "run/model").exists()


def test_a_started_folder_needs_resume(phantom_data, straight_run, capsys):
    assert train.main(arguments(phantom_data, straight_run)) == 2
    assert "--resume" in capsys.readouterr().err


def test_resume_with_other_options_is_refused(phantom_data, straight_run, capsys):
    assert train.main(arguments(phantom_data, straight_run, "--resume", "--set", "train.lr=0.5")) == 2
    message = capsys.readouterr().err
    assert "--set train.lr" in message
    assert "0.5 is asked for, but the run was started with 0.002" in message


@pytest.mark.slow
def test_training_from_a_cache_needs_no_readers(phantom_data, straight_run, tmp_path, repo):
    """Training from the prepared cache needs torch, numpy, scipy, timm, safetensors and segment-anything only."""
    code = (
        "import sys\n"
        "for name in ('SimpleITK', 'pydicom', 'highdicom', 'monai', 'einops', 'matplotlib'): sys.modules[name] = None\n"
        "from MaskSAMCore import train\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    settings = ("train.epochs=1", "train.iterations=2", "train.frozen_epochs=1")
    command = [sys.executable, "-c", code, *arguments(straight_run / "cache", tmp_path / "run", settings=settings)]
    process = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_training_goes_on_from_another_model(phantom_data, straight_run, tmp_path, capsys):
    settings = ("train.frozen_epochs=0", "train.epochs=1", "train.iterations=1", "train.lr=1e-12", "train.ema=0")
    words = ("--init", str(straight_run / "model"), "--name", "second")
    assert train.main(arguments(phantom_data, tmp_path / "run", *words, settings=settings)) == 0
    assert "starts from phantom, trained for 12 steps" in capsys.readouterr().out
    first, _ = installed.load_model(straight_run / "model")
    second, card = installed.load_model(tmp_path / "run/model")
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=0, atol=1e-3)
    assert card.provenance["starts_from"]["steps"] == 12
    assert "starting from phantom" in (tmp_path / "run/model/README.md").read_text()


@pytest.mark.slow
def test_a_model_that_does_not_fit_is_no_start(phantom_data, straight_run, tmp_path, capsys):
    words, settings = ("--init", str(straight_run / "model")), ("model.source.queries=16",)
    assert train.main(arguments(phantom_data, tmp_path / "run", *words, settings=settings)) == 2
    assert "does not fit the network" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_ends_before_its_schedule(straight_run, phantom_data, tmp_path):
    """It is where the longer run was then, and has a model."""
    run = tmp_path / "run"
    assert train.main(arguments(phantom_data, run, settings=("train.stop_epoch=2",))) == 0
    assert_equal(final(run), checkpoint.load(straight_run / "checkpoints/step-00000008.safetensors").tensors)
    assert model_folder.load_card(run / "model").provenance["steps"] == 8


def test_memory_is_measured_where_posix_counts_nothing(monkeypatch):
    """Windows has no module `resource`; macOS counts in bytes what Linux counts in KiB."""
    monkeypatch.setitem(sys.modules, "resource", None)
    gib, unit = loop.memory(torch.device("cpu")).split(maxsplit=1)
    assert unit == "GiB of memory"
    assert 0.05 < float(gib) < 64
