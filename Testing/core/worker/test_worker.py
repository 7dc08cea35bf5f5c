"""The worker as a process and its client: requests, order, cancel, crashes; with an engine that answers by rule."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore import __version__
from MaskSAMCore.errors import InputError, MaskSAMError, ModelError, PromptError, ResourceError
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker import child
from MaskSAMCore.worker.client import EngineClient
from Testing.fake_engine import block
from Testing.workers import LONG_S, SHAPE, alive, apply, eventually, fake, left, place, point, raw, scan

EYE = np.eye(4)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return place(monkeypatch, tmp_path)


@pytest.fixture(autouse=True)
def nothing_is_left(temporary: Path):
    yield
    assert left(temporary) == []


# -- the command -----------------------------------------------------------------------------------------------------

LIGHT = """
import importlib, sys
importlib.import_module("{module}")
print(*[m for m in ("torch", "SimpleITK", "scipy", "safetensors", "numpy") if m in sys.modules])
"""


@pytest.mark.parametrize(
    ("module", "brings"),
    [("MaskSAMCore.worker.__main__", []), ("MaskSAMCore.worker.client", ["numpy"]),
     ("MaskSAMCore.worker.server", ["numpy"]), ("MaskSAMCore.worker.engine", ["numpy"])],
)  # fmt: skip
def test_nothing_heavy_is_imported(repo: Path, module: str, brings: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(module=module)], cwd=repo, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == brings


def test_help_version_and_wrong_options(repo: Path, temporary: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "MaskSAMCore.worker", *words]
        return subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False, input="")

    assert "python -m MaskSAMCore.worker" in run("--help").stdout
    assert run("--version").stdout.strip() == f"MaskSAM {__version__}"
    for words in (["--no-such-option"], ["--threads", "0"], ["--folder", str(temporary)]):
        done = run(*words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stderr


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="Windows has priority classes")
def test_it_gives_way_to_the_program_that_started_it(temporary: Path) -> None:
    with fake() as client:
        own, its = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, client.hello["pid"]))
    assert its == min(own + child.NICE, 19)


# -- answers ---------------------------------------------------------------------------------------------------------


def test_a_session_from_open_to_release(temporary: Path) -> None:
    events = []
    with fake(on_event=events.append) as engine:
        assert engine.hello["version"] == __version__
        assert engine.hello["pid"] != os.getpid()
        case = engine.open(scan().astype(np.float64), EYE, "plain")
        assert case.shape == SHAPE
        mask, prompts = np.zeros(SHAPE, np.uint8), []
        for prompt in (point(5, 5, 2), point(9, 5, 3), point(6, 5, 2, positive=False)):
            prompts.append(prompt)
            update = engine.prompt(case, 1, prompts)
            apply(mask, update)
            assert np.array_equal(mask, block(SHAPE, prompts))
        assert update.box is not None
        assert update.mask.shape < SHAPE
        assert engine.prompt(case, 1, prompts).box is None
        apply(mask, engine.prompt(case, 1, prompts[:1]))
        assert np.array_equal(mask, block(SHAPE, prompts[:1]))
        assert engine.propagate(case, 1).box is None
        found = engine.segment(case)
        assert np.array_equal(found.blocks[-1].mask, scan() > scan().mean())
        apply(mask, engine.drop(case, 1))
        assert not mask.any()
        engine.release(case)
        with pytest.raises(InputError, match="no such case"):
            engine.prompt(case, 1, prompts)
        assert len(left(temporary)) == 2, "no array outlives its reading"
    assert {event["event"] for event in events} == {"ready", "progress", "done"}


def test_several_cases_and_structures_do_not_mix(temporary: Path) -> None:
    with fake() as engine:
        cases = [engine.open(scan(seed=seed), EYE, "plain") for seed in range(2)]
        for case in cases:
            for structure in (1, 70_000):
                at = point(3 + 4 * case.id, 4, structure % 5)
                assert engine.prompt(case, structure, [at]).voxels == block(SHAPE, [at]).sum()
        engine.release(cases[0])
        assert engine.prompt(cases[1], 1, [point(7, 4, 1)]).box is None


def test_what_libraries_print_does_not_reach_the_protocol(temporary: Path) -> None:
    with fake() as engine:
        case = engine.open(scan(), EYE, "noisy")
        assert engine.prompt(case, 1, [point(5, 5, 2)]).voxels


def test_an_error_nobody_expected_is_told_and_survived(temporary: Path) -> None:
    with fake() as engine:
        pid = engine.hello["pid"]
        case = engine.open(scan(), EYE, "breaks")
        with pytest.raises(MaskSAMError, match="the engine failed") as error:
            engine.prompt(case, 1, [point(5, 5, 2)])
        assert "a bug" in error.value.why
        with pytest.raises(ModelError, match="no such model"):
            engine.open(scan(), EYE, "unknown")
        assert engine.segment(case).blocks
        assert engine.hello["pid"] == pid


def test_wrong_calls_are_refused_before_anything_is_sent(temporary: Path) -> None:
    with fake() as engine:
        case = engine.open(scan(), EYE, "plain")
        with pytest.raises(PromptError, match="prompt 2 of 2"):
            engine.prompt(case, 1, [point(1, 1, 1), point(float("nan"), 1, 1)])
        with pytest.raises(PromptError):
            engine.prompt(case, 1, [])
        with pytest.raises(InputError, match=r"open\.affine"):
            engine.open(scan(), np.full((4, 4), np.inf), "plain")
        with pytest.raises(InputError, match=r"open\.volume"):
            engine.open(scan()[0], EYE, "plain")
        with pytest.raises(InputError, match="array of numbers"):
            engine.open(np.array([[["a"]]]), EYE, "plain")
        with pytest.raises(InputError, match="own request"):
            engine.submit("quit")
        with pytest.raises(InputError, match="unknown operation"):
            engine.submit("exec")
        assert engine.prompt(case, 1, [point(1, 1, 1)]).voxels


# -- order and cancel ------------------------------------------------------------------------------------------------


def test_submit_does_not_wait_and_progress_is_told(temporary: Path) -> None:
    seen = threading.Event()
    with fake(on_event=lambda event: seen.set() if event["event"] == "progress" else None) as engine:
        opening = engine.submit("open", volume=scan(), affine=EYE, model="slow")
        working = engine.submit("segment", case=0)
        assert not opening.done()
        assert not working.done()
        with pytest.raises(TimeoutError):
            working.result(0)
        assert seen.wait(LONG_S)
        assert not working.done()
        assert working.progress[1:] == (3, "working")
        working.cancel()
        with pytest.raises(Cancelled):
            working.result(LONG_S)


@pytest.mark.slow
def test_a_click_goes_before_work_in_the_background(temporary: Path) -> None:
    with fake() as engine:
        case = engine.open(scan(), EYE, "slow")
        behind = engine.encode(case)
        assert eventually(lambda: behind.progress)
        assert engine.prompt(case, 1, [point(5, 5, 2)]).voxels
        assert not behind.done()
        assert behind.result(LONG_S) == {"encoded": 3}


@pytest.mark.slow
def test_cancel_of_what_runs_what_waits_and_what_is_done(temporary: Path) -> None:
    with fake() as engine:
        case = engine.open(scan(), EYE, "slow")
        runs, waits, last = engine.encode(case), engine.encode(case), engine.submit("encode", case=case)
        assert eventually(lambda: runs.progress)
        waits.cancel()
        runs.cancel()
        for job in (runs, waits):
            with pytest.raises(Cancelled):
                job.result(LONG_S)
        assert last.result(LONG_S) == {"encoded": 3}
        last.cancel()
        assert last.result() == {"encoded": 3}


@pytest.mark.slow
def test_release_ends_work_in_the_background_on_that_case(temporary: Path) -> None:
    with fake() as engine:
        case, other = (engine.open(scan(), EYE, "slow") for _ in range(2))
        jobs = [engine.encode(case), engine.encode(case)]
        kept = engine.encode(other)
        assert eventually(lambda: jobs[0].progress)
        engine.release(case)
        for job in jobs:
            with pytest.raises(Cancelled):
                job.result(LONG_S)
        assert kept.result(LONG_S) == {"encoded": 3}


def test_close_fails_what_waits_and_later_calls(temporary: Path) -> None:
    engine = fake()
    case = engine.open(scan(), EYE, "deaf")
    jobs = [engine.submit("segment", case=case) for _ in range(3)]
    assert eventually(lambda: jobs[0].progress)
    pid = engine.hello["pid"]
    engine.close()
    assert not alive(pid)
    for job in jobs:
        with pytest.raises(MaskSAMError, match="closed"):
            job.result(LONG_S)
    with pytest.raises(MaskSAMError, match="closed"):
        engine.segment(case)
    with pytest.raises(MaskSAMError, match="closed"):
        _ = engine.hello
    engine.close()


# -- start and restart -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["/no/such/python"], [sys.executable, "-c", "raise SystemExit('no engine here')"]])
def test_a_worker_that_cannot_be_started(temporary: Path, command: list[str]) -> None:
    with EngineClient(command=command) as engine:
        with pytest.raises(ResourceError) as error:
            _ = engine.hello
        assert "/no/such/python" in str(error.value) or "no engine here" in str(error.value)
        with pytest.raises(ResourceError):
            engine.open(scan(), EYE, "plain")


@pytest.mark.slow
def test_an_error_of_hello_is_told(temporary: Path) -> None:
    with EngineClient(device="abacus") as engine, pytest.raises(InputError, match="unknown device"):
        _ = engine.hello


@pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_killed_worker_is_started_again_and_knows_what_it_knew(temporary: Path, number: int) -> None:
    events: list[dict] = []
    with fake(on_event=events.append) as engine:
        cases = [engine.open(scan(seed=seed), EYE, "plain") for seed in range(2)]
        prompts = [point(5, 5, 2), point(9, 9, 3)]
        masks = {case.id: np.zeros(SHAPE, np.uint8) for case in cases}
        for case in cases:
            apply(masks[case.id], engine.prompt(case, 1, prompts))
        apply(masks[1], engine.prompt(cases[1], 2, prompts))
        apply(masks[1], engine.drop(cases[1], 2))
        engine.release(engine.open(scan(), EYE, "plain"))
        first = engine.hello["pid"]
        os.kill(first, number)
        assert eventually(lambda: not engine.ready)
        assert engine.hello["pid"] != first
        assert not alive(first)
        assert len(left(temporary)) == 2
        prompts.append(point(5, 5, 2, positive=False))
        for case in cases:
            apply(masks[case.id], engine.prompt(case, 1, prompts))
        assert np.array_equal(masks[0], block(SHAPE, prompts))
    names = [event["event"] for event in events]
    assert names.count("ready") == 2
    assert names.count("restarting") == 1
    assert "lost" not in names


@pytest.mark.slow
def test_what_was_being_done_is_done_again(temporary: Path) -> None:
    with fake() as engine:
        case = engine.open(scan(), EYE, "slow-once")
        before = engine.encode(case)
        assert engine.prompt(case, 1, [point(5, 5, 2)]).voxels == 125
        assert before.result(LONG_S) == {"encoded": 3}
        assert (temporary / "once").exists()


def test_after_two_crashes_in_a_row_it_gives_up_and_the_next_call_starts_anew(temporary: Path) -> None:
    events: list[dict] = []
    with fake(on_event=events.append) as engine:
        good, bad = engine.open(scan(), EYE, "plain"), engine.open(scan(), EYE, "dies")
        engine.prompt(good, 1, [point(5, 5, 2)])
        for _ in range(2):
            events.clear()
            with pytest.raises(ResourceError, match="stopped") as error:
                engine.prompt(bad, 1, [point(5, 5, 2)])
            assert "SIGKILL" in error.value.why
            assert "about to die" in error.value.why
            assert [event["event"] for event in events].count("restarting") == 1
            assert eventually(lambda: left(temporary) == [])
            assert engine.prompt(good, 1, [point(5, 5, 2)]).box is None


def test_a_library_that_exits_takes_the_worker_along_but_not_its_answer(temporary: Path) -> None:
    with fake() as engine:
        case = engine.open(scan(), EYE, "leaves")
        with pytest.raises(ResourceError, match="exit code 1"):
            engine.prompt(case, 1, [point(5, 5, 2)])


def test_a_case_that_cannot_be_opened_again_is_lost_and_that_is_told(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[dict] = []
    with fake(on_event=events.append) as engine:
        cases = [engine.open(scan(), EYE, "plain") for _ in range(2)]
        engine._log.cases[0].fields["model"] = "gone"
        os.kill(engine.hello["pid"], signal.SIGTERM)
        assert eventually(lambda: any(event["event"] == "lost" for event in events))
        with pytest.raises(InputError, match="no such case"):
            engine.prompt(cases[0], 1, [point(5, 5, 2)])
        assert engine.prompt(cases[1], 1, [point(5, 5, 2)]).voxels


def test_a_case_that_comes_back_without_a_structure_is_lost_as_well(temporary: Path) -> None:
    events: list[dict] = []
    with fake(on_event=events.append) as engine:
        case = engine.open(scan(), EYE, "plain")
        engine.prompt(case, 1, [point(5, 5, 2)])
        engine._log.cases[0].structures[1]["prompts"][0]["position"] = "broken"
        os.kill(engine.hello["pid"], signal.SIGTERM)
        assert eventually(lambda: any(event["event"] == "lost" for event in events))
        with pytest.raises(InputError, match="no such case"):
            engine.prompt(case, 1, [point(5, 5, 2)])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="NOT TESTED HERE: needs /proc")
def test_a_client_gives_its_files_and_threads_back(temporary: Path) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = held()
    with fake() as engine:
        os.kill(engine.hello["pid"], signal.SIGTERM)
        assert eventually(lambda: not engine.ready)
        assert engine.hello
        assert held() > before
    assert eventually(lambda: held() == before)


@pytest.mark.slow
def test_a_callback_that_fails_or_closes_does_no_harm(temporary: Path) -> None:
    def fail(event: dict) -> None:
        raise KeyError("in the callback")

    with fake(on_event=fail) as engine:
        assert engine.open(scan(), EYE, "plain").shape == SHAPE
    closing: list[EngineClient] = []
    engine = fake(on_event=lambda event: closing[0].close() if event["event"] == "done" else None)
    closing.append(engine)
    engine.submit("open", volume=scan(), affine=EYE, model="plain").wait(LONG_S)
    assert eventually(lambda: not engine.ready)
    engine.close()


# -- raw messages ----------------------------------------------------------------------------------------------------


def test_hello_comes_first_and_once_and_in_the_right_version(temporary: Path) -> None:
    with raw(hello=False) as worker:
        assert worker.ask("release", 5, case=0)["error"]["what"] == "out of order"
        error = worker.ask("hello", 6, protocol=99)["error"]
        assert "99" in error["why"]
        assert "version 1" in error["why"]
        assert worker.ask("release", 7, case=0)["error"]["what"] == "out of order"
        assert worker.ask("hello", 8, protocol=1)["result"]["protocol"] == 1
        assert worker.ask("hello", 9, protocol=1)["error"]["what"] == "out of order"
        assert worker.ask("release", 10, case=0)["error"]["what"] == "no such case"
        assert worker.ask("cancel", 11, target=99)["result"] == {"found": False}
        assert worker.ask("quit", 12) == {"id": 12, "result": {}}
        assert worker.process.wait(LONG_S) == 0


def test_arrays_cannot_come_from_elsewhere(temporary: Path) -> None:
    (temporary / ("a" * 32 + ".raw")).write_bytes(bytes(24))
    with raw() as worker:
        for name in ("../" + "a" * 32 + ".raw", "/dev/zero", "/etc/passwd", "a" * 32 + ".raw"):
            volume = {"file": name, "dtype": "float32", "shape": [1, 2, 3]}
            error = worker.ask("open", 1, case=0, volume=volume, affine=EYE.tolist(), model="plain")["error"]
            assert error["name"] == "InputError"
