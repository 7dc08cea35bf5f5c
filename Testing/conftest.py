"""Fixtures of the whole suite: where the data lie, a private home, and loud skips."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from Testing.slicer.fixtures import rig as rig
from Testing.slicer.fixtures import scene as scene
from Testing.slicer.fixtures import slicer_process as slicer_process
from Testing.slicer.fixtures import views as views

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MASKSAM_SHARED", REPO.parent / "shared"))

# Set before anything imports torch, and inherited by every subprocess that a test starts: one
# thread per test process (xdist runs several), and a home that is not the user's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["MASKSAM_HOME"] = tempfile.mkdtemp(prefix="masksam-test-home-")
os.environ.pop("MASKSAM_WEIGHTS", None)
# A shell starts background jobs with SIGINT ignored, and every process that a test starts would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if (SHARED / "weights").is_dir():
    os.environ["MASKSAM_WEIGHTS"] = str(SHARED / "weights")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["MASKSAM_HOME"], ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("NOT TESTED HERE: needs a CUDA GPU")


def pytest_terminal_summary(terminalreporter) -> None:
    untested = [
        report for report in terminalreporter.stats.get("skipped", []) if "NOT TESTED HERE" in str(report.longrepr)
    ]
    if untested:
        terminalreporter.section("NOT TESTED HERE", sep="!")
        terminalreporter.line(
            f"{len(untested)} test(s) were skipped because this machine lacks data, weights or a GPU."
        )


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the repository."""
    return REPO


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real scans and weights beside the repository (or MASKSAM_SHARED); read-only."""
    if not SHARED.is_dir():
        pytest.skip(f"NOT TESTED HERE: no folder {SHARED} (set MASKSAM_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def mobile_sam(shared: Path) -> Path:
    """The real MobileSAM checkpoint."""
    path = shared / "weights" / "mobile_sam.pt"
    if not path.is_file():
        pytest.skip(f"NOT TESTED HERE: no base weights {path}")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MASKSAM_HOME of this test alone, and no MASKSAM_WEIGHTS."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("MASKSAM_HOME", str(folder))
    monkeypatch.delenv("MASKSAM_WEIGHTS", raising=False)
    return folder


@pytest.fixture(scope="session")
def phantom_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled data set of five phantoms."""
    from Testing.phantom import write_dataset

    return write_dataset(tmp_path_factory.mktemp("phantoms"), cases=5)


@pytest.fixture(scope="session")
def straight_run(phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training run that nothing interrupts; do not change it."""
    from MaskSAMCore import train
    from Testing.runs import arguments

    run = tmp_path_factory.mktemp("straight") / "run"
    assert train.main(arguments(phantom_data, run)) == 0
    return run
