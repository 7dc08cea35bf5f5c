"""Helpers for tests of the worker: its temporary folders, raw pipes to it, and clients of it."""

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
"""Much longer than anything here takes, even on a busy machine."""


def place(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Make `folder` the folder for temporary files, for this process and those that it starts."""
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def left(folder: Path) -> list[Path]:
    """The private folders that exist, and all files in them."""
    return sorted(path for top in folder.glob(f"{PREFIX}*") for path in (top, *top.rglob("*")))


def fake(**options: Any) -> EngineClient:
    """A client whose worker has the engine of `Testing.fake_engine`."""
    return EngineClient(command=FAKE, **options)


def scan(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """A volume of noise."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def point(i: float, j: float, k: float, **more: Any) -> dict[str, Any]:
    """A point prompt."""
    return {"kind": "point", "position": [i, j, k], **more}


def apply(mask: np.ndarray, update: Any) -> None:
    """Apply an update to a mask of the whole scan."""
    if update.box is not None:
        k0, k1, j0, j1, i0, i1 = update.box
        mask[k0:k1, j0:j1, i0:i1] = update.mask


def eventually(what: Callable[[], Any], seconds: float = LONG_S) -> bool:
    """Wait until `what()` is true; False after `seconds`."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def memory(pid: int) -> int:
    """Resident memory of a process in bytes, without shared pages."""
    _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


class Raw:
    """A worker with plain pipes, for messages that a client would not send."""

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
    """Start a `Raw` worker, say hello, and end it afterwards."""
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
    """Run Python code that uses a client in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        text=True,
    )
