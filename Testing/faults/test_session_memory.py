"""faults.md rows 47 and 48, for clicks: full memory is met with fallbacks, and large scans stay small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from MaskSAMCore import device as devices
from MaskSAMCore.errors import ResourceError
from MaskSAMCore.inference.cache import SlabCache
from MaskSAMCore.inference.slabs import NetworkRunner
from MaskSAMCore.network.types import PromptBatch, Prompted, Slab
from Testing.toy_model import bright_scan
from Testing.toy_session import Flood, click, open_session

PROMPTS = [click(8, 8, 5, scope="volume"), click(9, 9, 5), click(5, 5, 9, positive=False)]
FULL = "CUDA out of memory. Tried to allocate 2 GiB"


class Crowded(Flood):
    """Its memory is full at the calls numbered `bad`, of encoder and decoder together, from 0."""

    def __init__(self, bad: object = ()) -> None:
        super().__init__()
        self.bad, self.calls = bad, 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls - 1 in self.bad:  # type: ignore[operator]
            raise torch.OutOfMemoryError(FULL)

    def slab(self, image: torch.Tensor, features: object = None) -> Slab:
        self._count()
        return super().slab(image)

    def prompted(self, slab: Slab, prompts: PromptBatch, *, multimask: bool = False) -> Prompted:
        self._count()
        return super().prompted(slab, prompts, multimask=multimask)


def scan():
    return bright_scan((16, 16, 16), at=(slice(1, 15), slice(4, 12), slice(4, 12)))[0]


@pytest.fixture(scope="module")
def expected() -> tuple[np.ndarray, int]:
    """The right answer, and how many calls it takes."""
    network = Crowded()
    session = open_session(scan(), network)
    session.prompt(1, PROMPTS)
    return session.mask(1), network.calls


def test_full_memory_at_any_call_costs_time_only_and_is_said(expected):
    mask, calls = expected
    assert calls > 8
    for bad in range(calls):
        session = open_session(scan(), Crowded([bad]))
        update = session.prompt(1, PROMPTS)
        assert np.array_equal(session.mask(1), mask), bad
        assert update.messages == ("the computer's memory is full: encoded slabs were given up",)


def test_memory_that_stays_full_ends_in_an_error_and_the_structure_stays(expected):
    for first in range(expected[1]):
        network = Crowded()
        session = open_session(scan(), network)
        session.prompt(1, PROMPTS[:1])
        before = session.mask(1)
        network.bad = range(network.calls + first, 10**6)
        message = ""
        try:
            session.prompt(1, PROMPTS)
        except ResourceError as error:
            message = str(error)
        if not message:
            break
        assert "Tried to allocate" in message
        assert "memory is full" in message
        assert np.array_equal(session.mask(1), before)
        network.bad = ()
        session.prompt(1, PROMPTS)
        assert np.array_equal(session.mask(1), expected[0])
    assert first > 1


def test_other_errors_are_not_taken_for_full_memory():
    class Broken(Flood):
        def slab(self, image: torch.Tensor, features: object = None) -> Slab:
            raise RuntimeError("shapes do not match")

    session = open_session(scan(), Broken())
    with pytest.raises(RuntimeError, match="shapes"):
        session.prompt(1, PROMPTS)
    assert session.structures == ()


def test_encoding_ahead_steps_back_as_well():
    session = open_session(scan(), Crowded([2]))
    assert session.encode(slabs=4) == 4
    with pytest.raises(ResourceError, match="memory is full"):
        open_session(scan(), Crowded(range(99))).encode()


def test_a_gpu_first_gives_its_cache_then_its_work_to_the_computer(monkeypatch: pytest.MonkeyPatch):
    class Device:
        type = "cuda"

    cache, network, steps = SlabCache(), Flood(), []
    monkeypatch.setattr(cache, "spill", lambda: steps.append("spill"))
    monkeypatch.setattr(cache, "clear", lambda: steps.append("clear"))
    runner = NetworkRunner(network, torch.device("cpu"), cache, "auto")
    place = [Device()]
    monkeypatch.setattr(NetworkRunner, "device", property(lambda self: place[0]))
    monkeypatch.setattr(NetworkRunner, "_autocast", lambda self: torch.autocast("cpu", enabled=False))
    monkeypatch.setattr(network, "to", lambda device: steps.append("move") or place.__setitem__(0, device))

    def work(device: object) -> str:
        steps.append(device.type)
        if len(steps) < 7:
            raise torch.OutOfMemoryError(FULL)
        return "done"

    assert runner.run(work) == "done"
    assert steps == ["cuda", "spill", "cuda", "move", "cpu", "clear", "cpu"]
    words = ("moved to the computer's memory", "on the CPU", "given up")
    assert all(word in text for word, text in zip(words, runner.messages, strict=True))
    steps.clear()
    with pytest.raises(ResourceError):
        NetworkRunner.run(runner, lambda device: (_ for _ in ()).throw(torch.OutOfMemoryError(FULL)))
    assert steps == ["clear"], "on the CPU only one step is left"


def test_a_scan_that_does_not_fit_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "available_ram", lambda: 10_000)
    with pytest.raises(ResourceError, match="GiB needed"):
        open_session(scan())


LARGE = """
import resource, sys
import numpy as np, torch
from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.inference.session import Session
from MaskSAMCore.network.build import build_model
from MaskSAMCore.volume import Grid, Volume
from Testing.toy_model import make_card, make_plan
shape = (300, 512, 512)
array = np.empty(shape, np.float32)
array[:] = np.random.default_rng(0).normal(20, 1, shape[1:])
array += np.arange(shape[0])[:, None, None] % 7
array[100:140, 200:280, 200:280] += 150
volume = Volume(array=array, grid=Grid(shape=shape, affine=np.diag([0.98, 0.98, 1.0, 1.0])))
card = make_card(plan=make_plan(patch=(8, 128, 128), spacing=(1.0, 0.98, 0.98), median_shape=(60, 256, 256)))
session = Session.open(build_model(card.config.model), card, volume)
update = session.prompt(1, [Prompt(kind="point", position=(240, 240, 120))], multimask=True)
session.prompt(1, [Prompt(kind="point", position=(240, 240, 120)), Prompt(kind="point", position=(230, 250, 121))])
assert session.encodes == 1
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"{peak:.2f}", update.voxels)
assert peak < 4, peak
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="ru_maxrss")
def test_a_click_on_a_scan_of_512_512_300_stays_within_4_gb(repo: Path):
    if (devices.available_ram() or 0) < 6 * devices.GIB:
        pytest.skip("NOT TESTED HERE: needs 6 GiB of free memory")
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_a_structure_keeps_grows_with_what_was_answered_not_with_the_scan():
    def held(depth: int) -> int:
        volume, _ = bright_scan((depth, 64, 64), at=(slice(2, 7), slice(20, 30), slice(20, 30)))
        session = open_session(volume)
        for count in range(1, 31):
            session.prompt(1, [click(22 + n % 6, 22 + n // 6, 4, scope="volume") for n in range(count)])
        states = [session._structures[1].shown, *session._structures[1].snapshots.values()]
        tiles = {id(t): t.array.nbytes for s in states for t in (*s.planes.values(), *s.slices.values())}
        return sum(tiles.values())

    assert held(60) < 1.5 * held(12) < 400_000


@pytest.mark.gpu
def test_a_real_gpu_gives_the_same_answer_and_steps_down(expected):
    for bad in (None, 0, 1, 4):
        network = Crowded([] if bad is None else [bad])
        session = open_session(scan(), network, device="cuda")
        update = session.prompt(1, PROMPTS)
        assert np.array_equal(session.mask(1), expected[0])
        assert session.device.type == "cuda"
        assert len(update.messages) == (bad is not None)
    session = open_session(scan(), Crowded([3, 4]), device="cuda")
    update = session.prompt(1, PROMPTS)
    assert np.array_equal(session.mask(1), expected[0])
    assert session.device.type == "cpu"
    assert len(update.messages) == 2
