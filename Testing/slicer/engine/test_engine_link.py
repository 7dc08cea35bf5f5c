"""The engine's process and the scans that are open in it: real processes, real pipes, Slicer's own volumes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.worker.results import Case
from SlicerMaskSAMLib.engine.engine_link import MAX_OPEN_SCANS, EngineLink
from SlicerMaskSAMLib.values.tasks import Steps, Task
from Testing.slicer import environment
from Testing.workers import LONG_S, alive, eventually, fake, scan


class Engines:
    """Starts engines that answer by rule, and remembers them."""

    def __init__(self) -> None:
        self.started: list[EngineClient] = []

    def __call__(self, on_event: Callable[[dict[str, Any]], None]) -> EngineClient:
        self.started.append(fake(on_event=on_event))
        return self.started[-1]


@pytest.fixture
def engines() -> Engines:
    return Engines()


@pytest.fixture
def link(scene: Any, engines: Engines) -> Iterator[EngineLink]:
    link = EngineLink(engines)
    yield link
    link.close()


@pytest.fixture
def asked(link: EngineLink, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The fields of the requests that the engine gets."""
    found: list[dict[str, Any]] = []
    submit = link.client.submit
    monkeypatch.setattr(link.client, "submit", lambda op, **fields: found.append(fields) or submit(op, **fields))
    return found


def done(steps: Steps) -> Any:
    """What steps return, with the waiting done for them."""
    answers: list[Any] = []
    errors: list[MaskSAMError] = []

    def keeping() -> Steps:
        answers.append((yield from steps))

    task = Task("test", keeping(), on_error=errors.append)
    assert eventually(lambda: task.tick() and task.ended)
    if errors:
        raise errors[0]
    return answers[0] if answers else None


def case(link: EngineLink, volume: Any, model: str = "plain") -> Case:
    return done(link.case(volume, model))


def gone(link: EngineLink, case: Case) -> bool:
    """Whether the engine has closed a case."""
    try:
        link.client.submit("encode", case=case).result(LONG_S)
    except MaskSAMError as error:
        return "no such case" in str(error)
    return False


def test_the_engine_starts_with_the_first_scan(link: EngineLink, engines: Engines) -> None:
    link.poll()
    assert not engines.started
    assert link.take_events() == []
    assert link.device == ""
    opened = case(link, environment.add_volume(scan()))
    assert len(engines.started) == 1
    assert opened.shape == scan().shape
    assert eventually(lambda: link.take_events() or link.device)
    assert link.device == "none", "what the fake engine calls its device"


def test_a_scan_is_opened_once_for_a_model(link: EngineLink) -> None:
    volume = environment.add_volume(scan())
    first = case(link, volume)
    assert case(link, volume) is first
    assert case(link, volume, "slow").id != first.id
    assert case(link, volume) is first, "both models stay"


def test_the_engine_sees_voxels_and_affine_of_the_volume(link: EngineLink, asked: list[dict[str, Any]]) -> None:
    affine = environment.affine(spacing=(1, 2, 3), angles=(10, 20, 30), origin=(4, 5, 6))
    environment.add_transform(environment.affine(origin=(100, 0, 0)), volume := environment.add_volume(scan(), affine))
    case(link, volume)
    np.testing.assert_array_equal(asked[0]["volume"], scan())
    np.testing.assert_allclose(asked[0]["affine"], affine, atol=1e-9)
    assert asked[0]["source"] == "Volume"
    assert asked[0]["modality"] is None


def test_two_who_need_the_same_scan_share_its_opening(link: EngineLink) -> None:
    volume = environment.add_volume(scan())
    first, second = link.case(volume, "plain"), link.case(volume, "plain")
    one, other = next(first), next(second)
    one.cancel()
    assert one.done()
    assert not other.done(), "the other one still waits"
    assert eventually(other.done)
    assert other.result().shape == scan().shape
    first.close()


def test_a_scan_that_is_closed_is_not_opened_first(link: EngineLink) -> None:
    volume = environment.add_volume(scan())
    opening = next(link.case(volume, "plain"))
    assert not link.client.ready, "the engine is still starting"
    link.keep_scans(lambda node: node != volume.GetID())
    assert opening.done()
    with pytest.raises(MaskSAMError, match="cancelled"):
        opening.result()


def test_an_edited_volume_is_opened_anew_and_its_older_state_closed(link: EngineLink) -> None:
    import slicer.util

    volume = environment.add_volume(scan())
    before = case(link, volume)
    slicer.util.arrayFromVolume(volume)[0] += 1
    slicer.util.arrayFromVolumeModified(volume)
    after = case(link, volume)
    assert after.id != before.id
    assert gone(link, before)
    assert not gone(link, after)


def test_warnings_about_a_scan_are_logged_once(scene: Any, engines: Engines) -> None:
    said: list[str] = []
    link = EngineLink(engines, log=said.append)
    volume = environment.add_volume(scan())
    for _ in range(2):
        case(link, volume, "doubts")
    assert said == ["a doubt"]
    case(link, environment.add_volume(scan()), "doubts")
    assert said == ["a doubt", "a doubt"], "it is about another scan"
    link.close()


def test_what_could_not_be_opened_is_tried_again(link: EngineLink, asked: list[dict[str, Any]]) -> None:
    volume = environment.add_volume(scan())
    for count in (1, 2):
        with pytest.raises(MaskSAMError, match="no such model"):
            case(link, volume, "nonsense")
        assert len(asked) == count
    assert case(link, volume).shape == scan().shape


def test_scans_are_closed_with_their_volume_their_model_and_at_will(link: EngineLink, scene: Any) -> None:
    first, second = (environment.add_volume(scan(), name=name) for name in ("first", "second"))
    kept, removed, other_model = case(link, first), case(link, second), case(link, first, "slow")
    scene.RemoveNode(second)
    link.keep_scans(lambda node: scene.GetNodeByID(node) is not None)
    assert gone(link, removed)
    link.forget_model("slow")
    assert gone(link, other_model)
    assert case(link, first) is kept
    link.keep_scans(lambda node: node != first.GetID())
    assert gone(link, kept)


def test_the_scan_that_was_not_used_for_longest_is_closed(link: EngineLink) -> None:
    volumes = [environment.add_volume(scan(seed=n), name=str(n)) for n in range(MAX_OPEN_SCANS + 1)]
    oldest, *others = [case(link, volume) for volume in volumes[:-1]]
    assert case(link, volumes[0]) is oldest, "now it is the one used last"
    case(link, volumes[-1])
    assert gone(link, others[0])
    assert case(link, volumes[0]) is oldest


@pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX signals")
def test_a_worker_that_was_killed_comes_back_with_its_scans(link: EngineLink) -> None:
    volume = environment.add_volume(scan())
    before = case(link, volume)
    os.kill(link.client.hello["pid"], signal.SIGKILL)
    told: list[str] = []
    assert eventually(lambda: told.extend(each["event"] for each in link.take_events()) or "restarting" in told)
    assert eventually(lambda: told.extend(each["event"] for each in link.take_events()) or told[-1] == "ready")
    assert case(link, volume) is before
    assert link.client.submit("encode", case=before).result(LONG_S)


def test_a_scan_that_cannot_be_opened_again_is_opened_anew(link: EngineLink) -> None:
    volume = environment.add_volume(scan())
    before = case(link, volume)
    link.take_events()
    link._events.append({"event": "lost", "case": before.id, "why": "the model was removed"})
    assert [each["event"] for each in link.take_events()] == ["lost"]
    assert case(link, volume).id != before.id


def test_an_engine_that_was_given_up_is_replaced(link: EngineLink, engines: Engines) -> None:
    volume = environment.add_volume(scan())
    case(link, volume, "deaf")
    worker = link.client.hello["pid"]
    job = link.client.submit("segment", case=case(link, volume, "deaf"))
    assert eventually(lambda: job.progress)
    link.abandon()
    assert eventually(lambda: not alive(worker))
    assert eventually(job.done)
    assert case(link, volume).shape == scan().shape
    assert len(engines.started) == 2


def test_close_ends_the_process_and_forgets(link: EngineLink, engines: Engines) -> None:
    volume = environment.add_volume(scan())
    case(link, volume)
    worker = link.client.hello["pid"]
    link.close()
    assert not alive(worker)
    assert link.device == ""
    assert case(link, volume).shape == scan().shape
    assert len(engines.started) == 2
