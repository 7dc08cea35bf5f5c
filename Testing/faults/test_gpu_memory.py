"""faults.md row 47: GPU out of memory: single windows, then sums on the CPU, then the CPU; each step is said."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from MaskSAMCore.errors import ResourceError
from MaskSAMCore.inference import sliding_window
from MaskSAMCore.inference.cache import SlabCache
from MaskSAMCore.inference.memory import Fallback, MemoryLadder
from MaskSAMCore.inference.sliding_window import Placement, slide

IMAGE = np.random.default_rng(0).normal(size=(1, 9, 20, 21)).astype(np.float32)
PATCH = (4, 8, 8)


def scores(patches: torch.Tensor) -> torch.Tensor:
    """Windows that overlap disagree, so that one which counts twice shows."""
    ramp = torch.arange(8.0).expand_as(patches)
    return torch.cat([patches + ramp, patches - ramp], dim=1)


class Crowded:
    """A network whose memory holds `room` patches; it fails `times` times, late in its work."""

    def __init__(self, *, room: int, times: int, after: int = 2) -> None:
        self.room, self.times, self.after, self.calls = room, times, after, 0

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > self.after and len(patches) > self.room and self.times:
            self.times -= 1
            raise torch.OutOfMemoryError("CUDA out of placement. Tried to allocate 2 GiB")
        return scores(patches)


@pytest.fixture
def pretend_gpu(monkeypatch: pytest.MonkeyPatch):
    """A Placement that believes in a GPU, on the meta device's name; the tensors stay on the CPU."""

    class Device:
        type = "cuda"

    place = torch.Tensor.to
    zeros = torch.zeros

    def to(self, device=None, *args, **kwargs):
        return place(self, "cpu" if isinstance(device, Device) else device, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(
        sliding_window.torch,
        "zeros",
        lambda *a, device=None, **k: zeros(*a, device="cpu" if isinstance(device, Device) else device, **k),
    )
    return Device()


def test_smaller_batches_come_first_and_no_window_counts_twice(pretend_gpu, caplog: pytest.LogCaptureFixture):
    expected = slide(scores, IMAGE, PATCH, 2)
    placement = Placement(device=pretend_gpu, batch=4)
    with caplog.at_level(logging.WARNING):
        found = slide(Crowded(room=1, times=1), IMAGE, PATCH, 2, placement=placement)
    assert torch.allclose(found, expected, atol=1e-6)
    assert placement.batch == 1
    assert placement.device is pretend_gpu
    assert placement.sums is None
    assert ["one window at a time" in text for text in placement.messages] == [True]
    assert "one window at a time" in caplog.text


def test_a_window_that_is_summed_already_is_not_run_again(pretend_gpu):
    """Memory may also end while a batch is being added, after some of its windows."""
    expected = slide(scores, IMAGE, PATCH, 2)
    failed = []

    class Late(list):
        def __iter__(self):
            yield self[0]
            yield self[1]
            failed.append(len(self))
            raise torch.OutOfMemoryError("CUDA out of memory")

    def network(patches: torch.Tensor):
        found = scores(patches)
        return Late(found) if len(patches) == 4 and not failed else found

    found = slide(network, IMAGE, PATCH, 2, placement=Placement(device=pretend_gpu, batch=4))
    assert failed == [4]
    assert torch.allclose(found, expected, atol=1e-6)


def test_then_the_sums_move_and_then_the_network(pretend_gpu):
    expected = slide(scores, IMAGE, PATCH, 2)
    moved = []
    placement = Placement(device=pretend_gpu, batch=4, on_cpu=lambda: moved.append(1) or scores)
    found = slide(Crowded(room=0, times=3), IMAGE, PATCH, 2, placement=placement)
    assert torch.allclose(found, expected, atol=1e-6)
    assert moved == [1]
    assert placement.device.type == "cpu"
    assert placement.sums == torch.device("cpu")
    words = ("one window at a time", "summed in the computer's memory", "on the CPU")
    assert all(word in text for word, text in zip(words, placement.messages, strict=True))


def test_encoded_slabs_are_given_up_before_the_windows_are(pretend_gpu):
    steps = []

    class Cache(SlabCache):
        def spill(self) -> None:
            steps.append("spill")

        def clear(self) -> None:
            steps.append("clear")

    placement = Placement(device=pretend_gpu, batch=4, on_cpu=lambda: steps.append("cpu") or scores, cache=Cache())
    found = slide(Crowded(room=0, times=4), IMAGE, PATCH, 2, placement=placement)
    assert torch.allclose(found, slide(scores, IMAGE, PATCH, 2), atol=1e-6)
    assert steps == ["spill", "cpu"]
    assert [text.split(":")[1].split()[0] for text in placement.messages] == ["encoded", "one", "the", "the"]


def test_a_fallback_is_applied_once_in_a_run():
    applied = []
    ladder = MemoryLadder([Fallback(message="less", possible=lambda: True, apply=lambda: applied.append(1))])

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for times in (1, 2):
        with pytest.raises(ResourceError, match="memory is full"):
            ladder.run(full)
        assert applied == [1] * times
        assert ladder.messages == ["less"] * times


def test_at_the_end_of_the_ladder_the_error_is_told(pretend_gpu):
    placement = Placement(device=pretend_gpu, batch=2)
    with pytest.raises(ResourceError, match=r"memory is full .*Tried to allocate"):
        slide(Crowded(room=0, times=99), IMAGE, PATCH, 2, placement=placement)
    assert len(placement.messages) == 2


def test_other_errors_are_not_taken_for_full_memory(pretend_gpu):
    def broken(patches: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    placement = Placement(device=pretend_gpu, batch=4, on_cpu=lambda: scores)
    with pytest.raises(RuntimeError, match="shapes"):
        slide(broken, IMAGE, PATCH, 2, placement=placement)
    assert not placement.messages


def test_on_the_cpu_there_is_nowhere_to_go():
    with pytest.raises(ResourceError, match="memory is full"):
        slide(Crowded(room=0, times=1, after=0), IMAGE, PATCH, 2, placement=Placement(batch=4, on_cpu=lambda: scores))


@pytest.mark.gpu
def test_a_real_gpu_gives_the_same_scores():
    device = torch.device("cuda")
    expected = slide(scores, IMAGE, PATCH, 2)
    found = slide(Crowded(room=1, times=2), IMAGE, PATCH, 2, placement=Placement(device=device, batch=4))
    assert torch.allclose(found.cpu(), expected, atol=1e-5)
