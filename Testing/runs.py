"""Small training runs of the `tiny` network on phantoms, for the tests that need a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from MaskSAMCore.training import checkpoint

REPO = Path(__file__).resolve().parent.parent
SETTINGS = (
    # Four windows in place of 36 in every validation, and as many queries as the structures need.
    "model.patch=[4,32,32]",
    "model.source.queries=4",
    "train.frozen_epochs=1",
    "train.frozen_copies=2",
    "train.ema=0.9",
    "train.iterations=4",
    "train.epochs=3",
)


def arguments(data: Path, run: Path, *extra: str, settings: tuple[str, ...] = ()) -> list[str]:
    """Command line of a short run; later settings win."""
    options = [str(data), "-o", str(run), "--preset", "tiny", "--device", "cpu", *extra]
    return options + [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]


def final(run: Path) -> dict[str, torch.Tensor]:
    """Tensors of a run's newest checkpoint: weights, averages and the optimiser's state."""
    return checkpoint.newest(run / "checkpoints")[0].tensors


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def start(words: list[str]) -> subprocess.Popen:
    """The train command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "MaskSAMCore.train", *words],
        cwd=REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(process: subprocess.Popen, run: Path) -> None:
    """Until the first checkpoint stands, or the process ends."""
    while process.poll() is None and not list(run.glob("checkpoints/step-*")):
        time.sleep(0.02)
