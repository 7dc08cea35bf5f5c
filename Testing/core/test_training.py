"""The training command on a phantom: resume, distribution, phases, ground-truth prompts, and what it leaves."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from MaskSAMCore import train, zoo
from MaskSAMCore.training import checkpoint
from Testing.phantom import write_dataset

SETTINGS = ("train.frozen_epochs=1", "train.frozen_copies=2", "train.ema=0.9", "train.iterations=4", "train.epochs=3")


def arguments(data: Path, run: Path, *extra: str, settings: tuple[str, ...] = SETTINGS) -> list[str]:
    options = [str(data), "-o", str(run), "--preset", "tiny", "--device", "cpu", *extra]
    return options + [word for setting in settings for word in ("--set", setting)]


def final(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.newest(run / "checkpoints")[0].tensors


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), cases=5)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    """A run that nothing interrupts."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert train.main(arguments(data, run)) == 0
    return run


def test_run_leaves_what_it_promises(straight):
    with (straight / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    assert [row["phase"] for row in rows] == ["frozen", "full", "full"]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["val dice"]) <= 1 for row in rows)
    assert (straight / "curves.png").stat().st_size > 1000
    assert list((straight / "overlays").glob("*.png"))
    assert not (straight / "features").exists()
    model, card = zoo.load_model(straight / "model")
    assert card.labels.labels[1].name == "cube" and not model.training
    assert set(card.provenance["training_cases"]).isdisjoint(card.provenance["validation_cases"])


def test_frozen_phase_leaves_the_encoder_alone_and_the_full_phase_trains_it(data, tmp_path):
    settings = (*SETTINGS[:-1], "train.epochs=1")
    assert train.main(arguments(data, tmp_path / "run", settings=settings)) == 0
    first = final(tmp_path / "run")
    ups = [name for name in first if name.startswith("model.encoder.adapters") and name.endswith("up.weight")]
    assert ups and all(not first[name].any() for name in ups)
    assert any(first[name].any() for name in first if name.startswith("model.decoder.token_adapters"))


def test_two_runs_are_equal(data, straight, tmp_path):
    assert train.main(arguments(data, tmp_path / "run")) == 0
    assert_equal(final(straight), final(tmp_path / "run"))


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def start(arguments: list[str], repo: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "MaskSAMCore.train", *arguments],
        cwd=repo,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("attempt", [0, 1])
def test_killed_and_resumed_ends_with_the_same_weights(data, straight, tmp_path, repo, attempt):
    """FAULTS row 46: SIGKILL at a random moment."""
    run = tmp_path / "run"
    process = start(arguments(data, run), repo)
    while process.poll() is None and not list(run.glob("checkpoints/step-*")):
        time.sleep(0.02)
    time.sleep(random.uniform(0, 1.5))
    process.kill()
    process.communicate()
    assert train.main(arguments(data, run, "--resume")) == 0
    assert_equal(final(straight), final(run))
    assert (run / "metrics.csv").read_text().count("\n") == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_the_step_and_leaves_with_its_code(data, straight, tmp_path, repo, number, code):
    """FAULTS row 50."""
    run = tmp_path / "run"
    process = start(arguments(data, run), repo)
    while process.poll() is None and not list(run.glob("checkpoints/step-*")):
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == code, output
    assert "resume" in output
    assert train.main(arguments(data, run, "--resume")) == 0
    assert_equal(final(straight), final(run))


def test_two_processes_train_one_model(data, tmp_path, repo):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    process = subprocess.run(
        [*command, "-m", "MaskSAMCore.train", *arguments(data, run)],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert checkpoint.newest(run / "checkpoints")[0].step == 12
    zoo.load_model(run / "model")


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_accumulation_and_checkpointing_change_nothing_but_the_batch(data, tmp_path):
    plain = ("train.epochs=1", "train.iterations=2", "train.ema=0.5")
    finals = []
    for name, extra in (("plain", ()), ("recomputed", ("train.checkpointing=true",))):
        assert train.main(arguments(data, tmp_path / name, settings=(*plain, *extra))) == 0
        finals.append(final(tmp_path / name))
    for name, tensor in finals[0].items():
        torch.testing.assert_close(finals[1][name], tensor, rtol=1e-4, atol=1e-6)
    assert train.main(arguments(data, tmp_path / "two", settings=(*plain, "train.accumulate=2"))) == 0


def test_ground_truth_prompts_train_and_validate(data, tmp_path):
    settings = (
        "model.source.kind=gt",
        "model.source.class_tokens=false",
        "model.head=argmax",
        "model.loss.kind=binary",
        "train.epochs=1",
    )
    assert train.main(arguments(data, tmp_path / "run", settings=settings)) == 0
    assert (tmp_path / "run/metrics.csv").read_text().splitlines()[0].count("val ") == 3


def test_dry_run_saves_nothing(data, tmp_path, capsys):
    assert train.main(arguments(data, tmp_path / "run", "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert "frozen phase" in printed and "full phase" in printed and "s per step" in printed
    assert not (tmp_path / "run/checkpoints").exists() and not (tmp_path / "run/model").exists()


def test_a_started_folder_needs_resume(data, straight, capsys):
    assert train.main(arguments(data, straight)) == 2
    assert "--resume" in capsys.readouterr().err


def test_resume_with_other_options_is_refused(data, straight, capsys):
    assert train.main(arguments(data, straight, "--resume", "--set", "train.lr=0.5")) == 2
    assert "train.lr: 0.002 there, 0.5 now" in capsys.readouterr().err


def test_resume_where_there_is_nothing(data, tmp_path, capsys):
    assert train.main(arguments(data, tmp_path / "run", "--resume")) == 2
    assert "no checkpoint to resume from" in capsys.readouterr().err


def test_training_from_a_cache_needs_no_readers(data, straight, tmp_path, repo):
    """Training from the prepared cache imports neither SimpleITK nor pydicom nor MONAI."""
    code = (
        "import sys\n"
        "for name in ('SimpleITK', 'pydicom', 'highdicom', 'monai'): sys.modules[name] = None\n"
        "from MaskSAMCore import train\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    settings = ("train.epochs=1", "train.iterations=2", "train.frozen_epochs=1")
    command = [sys.executable, "-c", code, *arguments(straight / "cache", tmp_path / "run", settings=settings)]
    process = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
