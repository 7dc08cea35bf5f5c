"""Commands in the background: output, progress, errors and cancellation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from MaskSAMCore.errors import InputError, MaskSAMError, ResourceError
from MaskSAMCore.worker import child
from SlicerMaskSAMLib.engine import commands
from SlicerMaskSAMLib.engine.commands import CommandJob, CommandResult, core_command
from SlicerMaskSAMLib.values.tasks import Steps, Task
from Testing.workers import eventually, left, place


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return place(monkeypatch, tmp_path)


def python(code: str, *words: str, **options: object) -> CommandJob:
    return CommandJob([sys.executable, "-c", code, *words], **options)


def outcome(job: CommandJob) -> CommandResult:
    assert eventually(job.done)
    return job.result()


WAITING = """
import pathlib, sys, time
def told(done, text):
    sys.stderr.write('{"event": "progress", "done": %d, "total": 9, "text": "%s"}\\n' % (done, text))
    sys.stderr.flush()
told(1, "Slices")
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
told(9, "Größe")
print("übrig")
print("ok", end="")
"""


def test_progress_arrives_while_it_runs_and_its_output_when_it_has_ended(tmp_path: Path):
    job = python(WAITING, str(tmp_path / "go"))
    assert not job.done()
    assert job.progress is None
    assert eventually(lambda: job.done() or job.progress)
    assert job.progress == (1, 9, "Slices")
    assert not job.done()
    with pytest.raises(RuntimeError, match="still running"):
        job.result()
    (tmp_path / "go").touch()
    assert outcome(job) == CommandResult(stdout="übrig\nok", code=0)
    assert job.progress == (9, 9, "Größe")


def test_stdout_is_progress_before_the_command_ends(tmp_path: Path):
    job = python(
        WAITING.replace('told(1, "Slices")', 'print("Collecting torch")'), str(tmp_path / "go"), stdout_is_progress=True
    )
    assert eventually(lambda: job.done() or job.progress)
    assert job.progress == (0, 0, "Collecting torch")
    (tmp_path / "go").touch()
    outcome(job)


def test_a_task_waits_for_a_command(tmp_path: Path):
    found = []

    def steps() -> Steps:
        found.append((yield python(WAITING, str(tmp_path / "go"))))

    task = Task("test", steps(), on_error=found.append)
    assert eventually(lambda: (task.tick(), task.progress)[1])
    assert task.progress == (1, 9, "Slices")
    (tmp_path / "go").touch()
    assert eventually(lambda: (task.tick(), task.ended)[1])
    assert [each.stdout for each in found] == ["übrig\nok"]


def test_a_command_of_the_engine_runs_this_very_package(home: Path):
    lines = outcome(core_command("models", "presets", "core-mobile")).stdout
    assert json.loads(lines)["model"]["backbone"]["arch"] == "mobile"


def test_a_command_of_the_engine_watches_whether_this_program_lives(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commands, "CommandJob", lambda words, **options: (words, options))
    words, options = core_command("models", Path("list"))
    assert words == [sys.executable, "-m", "MaskSAMCore.models", "list"]
    assert options == {"name": "models", "env": child.watched()}


def test_an_error_has_the_message_of_the_command(home: Path):
    job = core_command("models", "show", "no-such-model")
    with pytest.raises(InputError, match=r"^no-such-model: no such model\. Name a model folder"):
        outcome(job)


def test_a_wrong_option_is_reported_without_the_usage(home: Path):
    with pytest.raises(InputError, match=r"^unrecognized arguments: --nonsense$"):
        outcome(core_command("models", "presets", "--nonsense"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('what no one foresaw')", "exit code 1; its last line: ValueError: what no one foresaw"),
        ("import sys; sys.exit(7)", "the command failed .it ended with exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "it was ended by SIGKILL"),
        ("import sys; sys.exit('ERROR: No matching distribution found for x')", "^No matching distribution found"),
    ],
)
def test_every_other_error_says_how_the_command_ended(code: str, words: str):
    with pytest.raises(MaskSAMError, match=words):
        outcome(python(code))


def test_lines_that_only_look_like_progress_are_kept_for_the_message():
    code = """import sys; sys.stderr.write('{"event": "progress", "done": "x"}\\n[1]\\n{"a": 1}\\n'); sys.exit(1)"""
    job = python(code)
    with pytest.raises(MaskSAMError, match=r'its last line: \{"a": 1\}'):
        outcome(job)
    assert job.progress is None


def test_nothing_is_left_behind(temporary: Path):
    job = python("print(1)")
    assert left(temporary)
    outcome(job)
    assert not left(temporary)


def test_a_program_that_is_not_there_is_named(temporary: Path):
    with pytest.raises(ResourceError, match="no-such-program: the command 'teach' cannot be started"):
        CommandJob(["no-such-program"], name="teach")
    assert not left(temporary)
