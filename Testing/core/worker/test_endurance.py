"""A thousand random valid requests in a row: every answer right, and memory, files and threads flat."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.worker.jobs import Job
from MaskSAMCore.worker.results import Case
from Testing import flood_worker
from Testing.fake_engine import block
from Testing.toy_model import bright_scan
from Testing.workers import FAKE, LONG_S, apply, left, memory, place, point, scan

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="NOT TESTED HERE: needs /proc")
ALLOWED = 4 << 20
"""Growth that the allocator may show; a leak of one small scan or mask each time would be far above."""


class User:
    """Does random valid things to a few cases, and keeps the books."""

    def __init__(self, engine: EngineClient, volume: np.ndarray, model: str, *, exact: bool) -> None:
        self.engine, self.volume, self.model, self.exact = engine, volume, model, exact
        self.rng = random.Random(0)
        self.open: list[Case] = []
        self.masks: dict[tuple[int, int], np.ndarray] = {}
        self.lists: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self.behind: list[Job] = []

    def act(self) -> None:
        """One request, or none where there is nothing to do it to."""
        self.behind = [job for job in self.behind if not job.done()]
        if not self.open or (len(self.open) < 3 and self.rng.random() < 0.1):
            self.open.append(self.engine.open(self.volume, np.eye(4), self.model))
            return
        case = self.rng.choice(self.open)
        does = {
            "prompt": 12,
            "undo": 4,
            "propagate": 2,
            "drop": 2,
            "encode": 3,
            "cancel": 2,
            "segment": 1,
            "release": 1,
        }
        getattr(self, self.rng.choices(list(does), list(does.values()))[0])(case)

    def prompt(self, case: Case) -> None:
        key = case.id, self.rng.randrange(3)
        prompts = self.lists.get(key, [])[-4:]
        size = self.volume.shape[::-1]
        where = [self.rng.randrange(n) for n in size]
        if not any(prompt["position"] == where for prompt in prompts):
            prompts = [*prompts, point(*where, positive=not prompts or self.rng.random() < 0.7)]
        self.answer(key, prompts, case)

    def undo(self, case: Case) -> None:
        key = case.id, self.rng.randrange(3)
        if len(self.lists.get(key, ())) > 1:
            self.answer(key, self.lists[key][:-1], case)

    def answer(self, key: tuple[int, int], prompts: list[dict[str, Any]], case: Case) -> None:
        prompts = [prompts[0] | {"positive": True}, *prompts[1:]]
        mask = self.masks.setdefault(key, np.zeros(self.volume.shape, np.uint8))
        apply(mask, self.engine.prompt(case, key[1], prompts))
        self.lists[key] = prompts
        if self.exact:
            assert np.array_equal(mask, block(self.volume.shape, prompts))

    def propagate(self, case: Case) -> None:
        key = case.id, self.rng.randrange(3)
        if key in self.lists:
            apply(self.masks[key], self.engine.propagate(case, key[1]))
            self.lists[key] = [*self.lists[key][:-1], self.lists[key][-1] | {"scope": "volume"}]

    def drop(self, case: Case) -> None:
        key = case.id, self.rng.randrange(3)
        update = self.engine.drop(case, key[1])
        if key in self.lists:
            apply(self.masks[key], update)
            assert not self.masks.pop(key).any()
            del self.lists[key]

    def encode(self, case: Case) -> None:
        self.behind.append(self.engine.encode(case, slabs=3))

    def cancel(self, case: Case) -> None:
        job = self.engine.encode(case, slabs=5)
        job.cancel()
        self.behind.append(job)

    def segment(self, case: Case) -> None:
        found = self.engine.segment(case)
        assert found.blocks[-1].mask.any()

    def release(self, case: Case) -> None:
        self.engine.release(case)
        self.open.remove(case)
        for key in [key for key in self.lists if key[0] == case.id]:
            del self.lists[key], self.masks[key]

    def settle(self) -> None:
        """Release everything and wait for the rest."""
        for case in list(self.open):
            self.release(case)
        for job in self.behind:
            try:
                job.result(LONG_S)
            except Cancelled:
                assert job.done()
        self.behind.clear()


def state(engine: EngineClient) -> tuple[int, int, int, int, int]:
    """Memory, open files and threads of the worker; files and threads of this process."""
    pid = engine.hello["pid"]
    tasks, files = (len(os.listdir(f"/proc/{pid}/{name}")) for name in ("task", "fd"))
    return memory(pid), files, tasks, len(os.listdir("/proc/self/fd")), threading.active_count()


def endure(engine: EngineClient, user: User, warm: int, times: int, temporary: Path) -> None:
    for _ in range(warm):
        user.act()
    user.settle()
    before, own = state(engine), memory(os.getpid())
    for _ in range(times):
        user.act()
    user.settle()
    after = state(engine)
    assert after[0] - before[0] < ALLOWED
    assert memory(os.getpid()) - own < ALLOWED
    assert after[1:] == before[1:]
    assert not engine._jobs
    assert not engine._log.cases
    assert [path.name for path in left(temporary)[1:]] == [".owner"]


@pytest.mark.slow
def test_with_an_engine_that_answers_by_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    temporary = place(monkeypatch, tmp_path)
    with EngineClient(command=FAKE) as engine:
        endure(engine, User(engine, scan((10, 40, 48)), "plain", exact=True), 200, 1000, temporary)
    assert left(temporary) == []


@pytest.mark.slow
def test_with_real_sessions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    temporary = place(monkeypatch, tmp_path)
    volume, _ = bright_scan((8, 20, 20), at=(slice(2, 6), slice(4, 16), slice(4, 16)))
    with EngineClient(command=flood_worker.COMMAND, device="cpu", threads=1) as engine:
        endure(engine, User(engine, volume.array, "toy", exact=False), 300, 1000, temporary)
    assert left(temporary) == []
