"""faults.md row 58, for commands such as teaching: cancel and every end of Slicer end the process tree."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker import child
from SlicerMaskSAMLib.engine import commands
from SlicerMaskSAMLib.engine.commands import CommandJob
from SlicerMaskSAMLib.values.tasks import Steps, Task
from Testing.workers import LONG_S, alive, eventually, left, place, script

pytestmark = pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX process groups")

# A command with a child; it writes both numbers when both are ready.
FAMILY = """
import os, pathlib, signal, subprocess, sys, time
{before}
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
other.stdout.readline()
path = pathlib.Path({pids!r})
path.with_suffix(".new").write_text(f"{{os.getpid()}} {{other.pid}}")
path.with_suffix(".new").rename(path)
{after}
"""
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
SLEEP = "time.sleep(600)"


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return place(monkeypatch, tmp_path)


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "pids.txt"
    yield path
    for pid in numbers(path):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def numbers(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def family(pids: Path, *, before: str = "", after: str = SLEEP) -> CommandJob:
    job = CommandJob([sys.executable, "-c", FAMILY.format(pids=str(pids), before=before, after=after)])
    assert eventually(lambda: numbers(pids))
    assert all(alive(pid) for pid in numbers(pids))
    return job


def gone(path: Path) -> bool:
    return eventually(lambda: not any(alive(pid) for pid in numbers(path)))


def test_cancel_ends_a_tree_that_does_not_obey(temporary: Path, pids: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commands, "KILL_AFTER_S", 0.2)
    job = family(pids, before=DEAF)
    job.cancel()
    job.cancel()
    assert eventually(job.done)
    assert gone(pids)
    with pytest.raises(Cancelled):
        job.result()
    assert not left(temporary)


def test_a_cancelled_command_may_clean_up_and_its_children_go_with_it(temporary: Path, pids: Path):
    tidy = (
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(temporary / 'tidy')!r}).touch(), sys.exit(143)))"
    )
    job = family(pids, before=tidy)
    job.cancel()
    assert eventually(job.done)
    assert gone(pids)
    assert (temporary / "tidy").exists()


def test_a_command_that_has_ended_leaves_nobody_behind(temporary: Path, pids: Path):
    job = family(pids, after=f"while not pathlib.Path({str(temporary / 'go')!r}).exists(): time.sleep(0.01)")
    (temporary / "go").touch()
    assert eventually(job.done)
    assert gone(pids)
    assert job.result().code == 0


def test_a_result_that_came_before_the_end_counts(temporary: Path, pids: Path):
    job = family(pids, before="signal.signal(signal.SIGTERM, lambda *_: (print('done'), os._exit(0)))")
    job.cancel()
    assert eventually(job.done)
    assert job.result().code == 0


def test_an_abandoned_task_ends_its_command_though_nobody_looks(temporary: Path, pids: Path):
    def steps() -> Steps:
        yield family(pids)

    task = Task("teach", steps(), on_error=lambda error: None)
    task.tick()
    task.abandon()
    assert gone(pids)
    assert eventually(lambda: not left(temporary))


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, "SlicerMaskSAM")
from SlicerMaskSAMLib.engine.commands import CommandJob
from MaskSAMCore.worker import child
job = CommandJob([sys.executable, "-c", sys.argv[1]], env=child.watched())
while not Path(sys.argv[2]).exists():
    time.sleep(0.01)
{end}
"""


def test_the_end_of_the_program_ends_the_tree(temporary: Path, pids: Path):
    program = script(PROGRAM.format(end=""), FAMILY.format(pids=str(pids), before=DEAF, after=SLEEP), str(pids))
    assert program.wait(LONG_S) == 0
    program.stdout.close()
    assert numbers(pids)
    assert gone(pids)
    assert not left(temporary)


def test_a_command_of_ours_notices_that_the_program_was_killed(temporary: Path, pids: Path):
    code = f"from MaskSAMCore.commandline import run\ndef work():\n    {SLEEP}\nsys.exit(run(work))"
    program = script(PROGRAM.format(end=SLEEP), FAMILY.format(pids=str(pids), before="", after=code), str(pids))
    assert eventually(lambda: numbers(pids))
    command = numbers(pids)[0]
    program.send_signal(signal.SIGKILL)
    program.wait(LONG_S)
    program.stdout.close()
    assert eventually(lambda: not alive(command))


def test_where_groups_cannot_be_killed_the_system_ends_the_tree(pids: Path, temporary: Path, monkeypatch):
    job, asked = family(pids), []
    monkeypatch.delattr(os, "killpg")
    monkeypatch.setattr(child.subprocess, "run", lambda words, **_: asked.append(words))
    child.ask_to_end(job._process)
    assert asked == [["taskkill", "/F", "/T", "/PID", str(job.pid)]]
    monkeypatch.undo()
    job.close()
    assert gone(pids)
