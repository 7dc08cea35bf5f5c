"""Progress on terminals and in pipes, cancelling, and the exit codes of commands."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from MaskSAMCore.__main__ import COMMANDS
from MaskSAMCore.commandline import cancel_on_signals, run
from MaskSAMCore.errors import InputError, MaskSAMError, ResourceError
from MaskSAMCore.progress import Cancelled, CancelToken, terminal_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with terminal_progress(stream) as progress:
        for done in range(1, 101):
            progress(done, 100, "windows")
        progress(1, 1, "écriture")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events[0] == {"event": "progress", "done": 1, "total": 100, "text": "windows"}
    assert events[-2]["done"] == 100
    assert events[-1]["text"] == "écriture"
    assert len(events) < 50


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    with terminal_progress(stream) as progress:
        progress(1, 4, "windows")
        progress(4, 4, "windows")
        progress(2, 3, "writing")
    text = stream.getvalue()
    assert "windows" in text
    assert "4/4" in text
    assert "writing" in text
    assert "2/3" in text
    assert "{" not in text


def test_a_token_is_seen_from_another_thread() -> None:
    token = CancelToken()
    token.check()
    thread = threading.Thread(target=token.cancel)
    thread.start()
    thread.join()
    with pytest.raises(Cancelled) as caught:
        token.check()
    assert caught.value.exit_code == 130


def test_the_first_cancel_decides_the_exit_code() -> None:
    token = CancelToken()
    token.cancel(143)
    token.cancel(130)
    with pytest.raises(Cancelled) as caught:
        token.check()
    assert caught.value.exit_code == 143


def fail(error: BaseException):
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            MaskSAMError("it failed", where="x.nii", why="7 < 8", remedy="Do this."),
            1,
            "x.nii: it failed (7 < 8). Do this.",
        ),
        (InputError("no such file", where="y"), 2, "y: no such file"),
        (ResourceError("full"), 1, "full"),
        (Cancelled(exit_code=143), 143, "cancelled"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "/x/y: not enough space on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, "/x/y: cannot be used (Permission denied)"),
        (MemoryError("1 TiB"), 1, "memory is full (1 TiB)"),
    ],
)
def test_every_end_has_its_exit_code(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture
) -> None:
    assert run(fail(error)) == code
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(RuntimeError):
        run(fail(RuntimeError("a bug")))
    with pytest.raises(KeyError):
        run(fail(KeyError("a bug")))


def test_gpu_memory_is_named(capsys: pytest.CaptureFixture) -> None:
    import torch

    assert run(fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))) == 1
    assert "GPU's memory is full" in capsys.readouterr().err


def test_success_is_0_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run(lambda: None) == 0
    assert run(lambda: 1) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_sets_the_token_and_the_second_one_ends() -> None:
    token = CancelToken()
    with cancel_on_signals(token):
        os.kill(os.getpid(), signal.SIGINT)
        assert token.cancelled
        assert token.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


LOOP = """
import sys, time
from pathlib import Path
from MaskSAMCore.commandline import cancel_on_signals, run
from MaskSAMCore.progress import CancelToken
def plain():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        Path(sys.argv[2]).write_text("cleaned up")
def stepwise():
    with cancel_on_signals(CancelToken()) as token:
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
            if token.cancelled:
                Path(sys.argv[2]).write_text("cleaned up")
            token.check()
sys.exit(run({"plain": plain, "stepwise": stepwise}[sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("kind", ["plain", "stepwise"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_unwinds_and_exits(repo: Path, tmp_path: Path, kind: str, number: int, code: int) -> None:
    mark = tmp_path / "mark"
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, kind, str(mark)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert mark.read_text() == "cleaned up"
    assert "Traceback" not in errors


@pytest.mark.parametrize("chosen", [None, "ACTIVE"])
def test_threads_of_a_command_sleep_while_they_wait(repo: Path, chosen: str | None) -> None:
    code = (
        "import os, sys\nfrom MaskSAMCore.commandline import run\n"
        "def work():\n    assert 'torch' not in sys.modules\n    print(os.environ['OMP_WAIT_POLICY'])\n"
        "sys.exit(run(work))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | {"PYTHONPATH": str(repo)}
    environment |= {"OMP_WAIT_POLICY": chosen} if chosen else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (chosen or "PASSIVE")


@pytest.mark.parametrize("name", list(COMMANDS))
def test_no_command_imports_torch_before_its_work_begins(repo: Path, name: str) -> None:
    code = (
        "import importlib, sys\n"
        f"module = importlib.import_module('MaskSAMCore.{COMMANDS[name][0]}')\n"
        "module.parser()\nassert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_reader_that_leaves_is_no_error(repo: Path) -> None:
    code = (
        "import sys\nfrom MaskSAMCore.commandline import run\n"
        "def work():\n    for i in range(100000): print('line', i)\n"
        "sys.exit(run(work))"
    )
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1
