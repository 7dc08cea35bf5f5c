"""A click on a large scan stays within four gigabytes of the whole worker, torch and weights included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.worker.client import EngineClient
from Testing.workers import point

SHAPE = (300, 512, 512)
LIMIT_KB = 4 << 20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="NOT TESTED HERE: needs /proc")
def test_a_click_on_a_large_scan_fits_into_four_gigabytes(mobile_sam):
    array = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    array[140:160, 240:270, 240:270] += 5
    with EngineClient(device="cpu", threads=1) as engine:
        case = engine.open(array, np.eye(4), "hippocampus-mr")
        assert engine.prompt(case, 1, [point(255, 255, 150, scope="volume")]).encoded >= 1
        lines = Path(f"/proc/{engine.hello['pid']}/status").read_text().splitlines()
    most = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    assert most < LIMIT_KB
