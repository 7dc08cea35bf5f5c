"""faults.md row 33, through the worker: label ids above 255, and structures' numbers far above, arrive as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.worker.client import EngineClient
from Testing.flood_worker import COMMAND
from Testing.toy_model import bright_scan
from Testing.workers import place, point


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 255, 256, 65535])
def test_the_label_of_a_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int) -> None:
    place(monkeypatch, tmp_path)
    volume, block = bright_scan()
    with EngineClient(command=COMMAND, device="cpu", threads=1) as engine:
        case = engine.open(volume.array, np.eye(4), f"label:{number}")
        assert [label["id"] for label in case.labels] == [number]
        (found,) = engine.segment(case).blocks
        assert found.label == number
        assert found.mask.sum() == block.sum()
        update = engine.prompt(case, 1_000_000 + number, [point(8, 15, 5)])
        assert update.structure == 1_000_000 + number
        assert update.suggestion.label == number
