"""What the tests of the worker share: a place for its folders, raw pipes to it, and what is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.worker.folder import PREFIX

REPO = Path(__file__).resolve().parent.parent
FAKE = [sys.executable, "-m", "Testing.fake_engine"]
SHAPE = (6, 20, 24)
LONG_S = 60.0
"""Far more than anything here takes, on a machine that is busy with something else."""


def place(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let `folder` be the system's place for temporary files, here and in the processes started from here."""
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def left(folder: Path) -> list[Path]:
    """Private folders that are there, with all they hold."""
    return sorted(path for top in folder.glob(f"{PREFIX}*") for path in (top, *top.rglob("*")))


def fake(**options: Any) -> EngineClient:
    """A client with a worker whose engine answers by rule."""
    return EngineClient(command=FAKE, **options)


def scan(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """Noise."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def point(i: float, j: float, k: float, **more: Any) -> dict[str, Any]:
    """A point prompt."""
    return {"kind": "point", "position": [i, j, k], **more}


def apply(mask: np.ndarray, update: Any) -> None:
    """Bring a mask of the whole scan up to date."""
    if update.box is not None:
        k0, k1, j0, j1, i0, i1 = update.box
        mask[k0:k1, j0:j1, i0:i1] = update.mask


def eventually(what: Callable[[], Any], seconds: float = LONG_S) -> bool:
    """Whether it becomes true."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def memory(pid: int) -> int:
    """Bytes of a process's own memory, without what it shares with files."""
    _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


class Raw:
    """A worker with plain pipes, for messages that no client would send."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view) :]

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        assert line, f"the worker ended with {self.process.wait()}"
        return json.loads(line)

    def ask(self, op: str, number: int = 1, **fields: Any) -> dict[str, Any]:
        self.write(json.dumps({"id": number, "op": op, **fields}).encode() + b"\n")
        return self.read()


@contextmanager
def raw(command: list[str] | None = None, *, hello: bool = True) -> Iterator[Raw]:
    """A `Raw` worker, greeted, that is ended in the end."""
    worker = Raw(command or FAKE)
    try:
        if hello:
            assert "result" in worker.ask("hello", 0, protocol=1)
        yield worker
    finally:
        worker.process.stdin.close()
        worker.process.stdout.close()
        try:
            worker.process.wait(LONG_S)
        finally:
            worker.process.kill()


def script(code: str, *words: str) -> subprocess.Popen:
    """A program of its own that uses a client; prints what it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        text=True,
    )
