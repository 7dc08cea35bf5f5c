"""faults.md row 31, through the worker: a bad prompt is named by its number; nothing changes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.errors import PromptError
from MaskSAMCore.worker.client import EngineClient
from Testing.flood_worker import COMMAND
from Testing.toy_model import bright_scan
from Testing.workers import left, place, point

IN = point(8, 15, 5)
BAD = {
    "NaN": (point(math.nan, 1, 1), "prompt 2 of 2"),
    "infinite": (point(1, math.inf, 1), "prompt 2 of 2"),
    "huge": (point(1, 10**400, 1), "prompt 2 of 2"),
    "two numbers": ({"kind": "point", "position": [1, 2]}, "prompt 2 of 2"),
    "a text": (point("1", 2, 3), "prompt 2 of 2"),
    "no position": ({"kind": "point"}, "prompt 2 of 2.position"),
    "no kind": ({"position": [1, 2, 3]}, "prompt 2 of 2.kind"),
    "an unknown kind": ({"kind": "line", "position": [1, 2, 3]}, "prompt 2 of 2.kind"),
    "an unknown field": (point(1, 2, 3, radius=3), "prompt 2 of 2.radius"),
    "an unknown scope": (point(1, 2, 3, scope="world"), "prompt 2 of 2.scope"),
    "no prompt": (3, "prompt 2 of 2"),
    "outside": (point(8, 15, 99), "prompt 2 of 2, point at (i, j, k) (8.0, 15.0, 99.0)"),
    "just outside": (point(-0.6, 15, 5), "prompt 2 of 2, point at (i, j, k) (-0.6, 15.0, 5.0)"),
    "contradicting": (point(8.2, 15, 5, positive=False), "prompt 2 of 2"),
    "inverted": ({"kind": "box", "corners": [[9, 9, 5], [3, 12, 5]]}, "prompt 2 of 2, box"),
    "a flat mask": ({"kind": "mask", "mask": np.ones((3, 3), np.uint8)}, "prompt 2 of 2"),
    "an empty mask": ({"kind": "mask", "mask": np.zeros((2, 3, 3), np.uint8)}, "prompt 2 of 2, mask"),
    "a mask outside": (
        {"kind": "mask", "mask": np.ones((2, 3, 3), np.uint8), "mask_box": (11, 0, 0)},
        "prompt 2 of 2, mask",
    ),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        folder = place(patch, tmp_path_factory.mktemp("worker"))
        with EngineClient(command=COMMAND, device="cpu", threads=1) as client:
            client.case = client.open(bright_scan()[0].array, np.eye(4), "toy")  # type: ignore[attr-defined]
            client.prompt(client.case, 1, [IN])  # type: ignore[attr-defined]
            yield client
        assert left(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD)
def test_it_is_named_and_the_structure_stays(engine, what: str) -> None:
    prompt, where = BAD[what]
    pid = engine.hello["pid"]
    with pytest.raises(PromptError) as error:
        engine.prompt(engine.case, 1, [IN, prompt])
    assert where in error.value.where
    assert error.value.what
    assert engine.prompt(engine.case, 1, [IN]).box is None
    assert engine.hello["pid"] == pid
    assert [path.name for path in left(Path(engine._process.folder.path).parent)[1:]] == [".owner"]


def test_none_at_all(engine) -> None:
    with pytest.raises(PromptError):
        engine.prompt(engine.case, 1, [])
