"""faults.md row 50, for `segment`: Ctrl-C and SIGTERM end it with 130 and 143, and no partial output is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from MaskSAMCore.io.images import write_volume
from Testing.toy_model import bright_scan, save_tiny

pytestmark = pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX signals")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "toy")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_between_two_windows(toy: Path, tmp_path: Path, repo: Path, number: int, code: int):
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "out"
    write_volume(bright_scan((40, 160, 160))[0], scan)  # thousands of windows: it cannot end by itself
    before = sorted(p.name for p in tmp_path.iterdir())
    command = [sys.executable, "-m", "MaskSAMCore.segment", scan, "-m", toy, "-o", out, "--device", "cpu"]
    process = subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if '"progress"' in line:
                break
        process.send_signal(number)
        _, rest = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, rest
    assert "Traceback" not in rest
    assert sorted(p.name for p in tmp_path.iterdir() if p != out) == before
    assert not out.exists() or list(out.iterdir()) == []
