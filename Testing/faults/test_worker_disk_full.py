"""faults.md row 45, for the worker: a full disk is an error with a remedy, and nothing is left.

A limit on the size of files stops real writes of the real processes; where the user may mount one, a real file system
of 256 KiB is filled as well.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.errors import ResourceError
from MaskSAMCore.worker.client import EngineClient
from Testing.fake_engine import block
from Testing.flood_worker import COMMAND
from Testing.toy_model import bright_scan
from Testing.workers import SHAPE, apply, fake, left, place, point, scan

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="NOT TESTED HERE: needs POSIX limits")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return place(monkeypatch, tmp_path)


def limit(pid: int, size: int) -> None:
    """Bytes of the largest file that a process may write; -1 for no limit."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size if size >= 0 else hard, hard))


@pytest.mark.parametrize("op", ["prompt", "undo", "drop", "propagate"])
@pytest.mark.parametrize("known", [0, 1])
def test_a_result_that_cannot_be_written(temporary: Path, op: str, known: int) -> None:
    """The client's mask, brought up to date by changed boxes, is right again as soon as there is room."""
    prompts = [point(5, 5, 2), point(12, 9, 3), point(6, 5, 2, positive=False)]
    with fake() as engine:
        case, pid = engine.open(scan(), np.eye(4), "plain"), engine.hello["pid"]
        mask = np.zeros(SHAPE, np.uint8)
        if known or op != "prompt":
            apply(mask, engine.prompt(case, 1, prompts[:2]))
        before = mask.copy()
        limit(pid, 10)
        calls = {
            "prompt": lambda: engine.prompt(case, 1, prompts),
            "undo": lambda: engine.prompt(case, 1, prompts[:1]),
            "drop": lambda: engine.drop(case, 1),
            "propagate": lambda: engine.prompt(case, 1, prompts[1:]),
        }
        for _ in range(2):
            with pytest.raises(ResourceError, match="not enough space") as error:
                calls[op]()
            assert str(temporary) in error.value.where
            assert "Free some space" in error.value.remedy
            assert [path.name for path in left(temporary)[1:]] == [".owner"]
        limit(pid, -1)
        assert engine.hello["pid"] == pid
        if before.any():
            assert engine.prompt(case, 1, prompts[:2]).box is None, "the state is the one before the failure"
        apply(mask, engine.prompt(case, 1, prompts))
        assert np.array_equal(mask, block(SHAPE, prompts))
    assert left(temporary) == []


def test_an_answer_of_several_arrays_of_which_the_second_has_no_room(temporary: Path) -> None:
    with fake() as engine:
        case, pid = engine.open(scan(), np.eye(4), "plain"), engine.hello["pid"]
        limit(pid, 10)
        with pytest.raises(ResourceError, match="not enough space"):
            engine.segment(case)
        assert [path.name for path in left(temporary)[1:]] == [".owner"]
        limit(pid, -1)
        assert len(engine.segment(case).blocks) == 2
    assert left(temporary) == []


@pytest.mark.slow
@pytest.mark.parametrize("op", ["prompt", "undo", "drop", "propagate"])
def test_a_result_of_a_real_session_that_cannot_be_written(temporary: Path, op: str) -> None:
    volume, _ = bright_scan()
    prompts = [point(8, 15, 5), point(8, 15, 6), point(30, 30, 5, positive=False)]
    with EngineClient(command=COMMAND, device="cpu", threads=1) as engine:
        case, pid = engine.open(volume.array, np.eye(4), "toy"), engine.hello["pid"]
        known = prompts[:1] if op == "propagate" else prompts[:2]
        mask = np.zeros(case.shape, np.uint8)
        if op != "prompt":
            apply(mask, engine.prompt(case, 1, known))
        calls = {
            "prompt": lambda: engine.prompt(case, 1, prompts),
            "undo": lambda: engine.prompt(case, 1, [point(0, 0, 0, scope="slice")]),
            "drop": lambda: engine.drop(case, 1),
            "propagate": lambda: engine.propagate(case, 1),
        }
        limit(pid, 10)
        for _ in range(2):
            with pytest.raises(ResourceError, match="not enough space"):
                calls[op]()
        limit(pid, -1)
        apply(mask, calls[op]())
        engine.drop(case, 2)
        expected = np.zeros(case.shape, np.uint8)
        if op != "drop":
            final = {"prompt": prompts, "undo": [point(0, 0, 0, scope="slice")]}.get(
                op, [known[0] | {"scope": "volume"}]
            )
            apply(expected, engine.prompt(case, 2, final))
            assert expected.any() or op == "undo"
        assert np.array_equal(mask, expected)
        assert engine.hello["pid"] == pid
    assert left(temporary) == []


def test_a_scan_that_cannot_be_written(temporary: Path) -> None:
    with fake() as engine:
        pid = engine.hello["pid"]
        limit(os.getpid(), 1000)
        try:
            with pytest.raises(ResourceError, match="cannot be handed") as error:
                engine.open(scan(), np.eye(4), "plain")
        finally:
            limit(os.getpid(), -1)
        assert "TMPDIR" in error.value.remedy
        assert [path.name for path in left(temporary)[1:]] == [".owner"]
        assert engine.open(scan(), np.eye(4), "plain").shape == SHAPE
        assert engine.hello["pid"] == pid
    assert left(temporary) == []


def test_no_room_for_a_temporary_folder_at_all(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(monkeypatch, temporary / "absent")
    with EngineClient() as engine, pytest.raises(ResourceError, match="no temporary folder"):
        _ = engine.hello


def test_a_real_full_disk(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = temporary / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("NOT TESTED HERE: this user may not mount a file system")
    except OSError:
        pytest.skip("NOT TESTED HERE: no mount command")
    try:
        place(monkeypatch, disk)
        with fake() as engine:
            with pytest.raises(ResourceError, match="cannot be handed"):
                engine.open(scan((40, 64, 64)), np.eye(4), "plain")
            case = engine.open(scan((10, 64, 64)), np.eye(4), "plain")
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            with pytest.raises(ResourceError, match="not enough space"):
                engine.segment(case)
            assert [path.name for path in left(disk)[1:]] == [".owner"]
            filler.unlink()
            assert engine.segment(case).blocks[-1].mask.shape == (10, 64, 64)
        assert left(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True, check=False)
