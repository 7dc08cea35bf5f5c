"""Child processes: start them, end them with all that they started, and describe how they ended.

Used for the engine's worker, and for commands that a program with a window runs in the background.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from MaskSAMCore.commandline import EXIT_DEVICE_LOST, PARENT
from MaskSAMCore.errors import ResourceError

HOME = Path(__file__).resolve().parents[2]
"""The folder of the package; child processes import it from there."""
_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)
_BELOW_NORMAL = getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0)
NICE = 10
"""Added to the niceness of a child process on Linux and macOS."""


def start(what: str, words: Sequence[str], *, env: Mapping[str, str] | None = None, **pipes: Any) -> subprocess.Popen:
    """Start a program that can import this package, in a process group of its own and without a console window.

    Ctrl-C does not reach it; the program that started it ends it. It runs with a lower priority, so that the window
    of that program stays responsive when the work takes all cores.

    Args:
        what: Its name for the message of an error: "the engine".
        words: The program and its arguments.
        env: Environment variables in addition to those of this process.
        pipes: `stdin`, `stdout`, `stderr` and `bufsize` of `subprocess.Popen`.

    Raises:
        ResourceError: It cannot be started.
    """
    try:
        process = subprocess.Popen(
            list(words),
            cwd=HOME,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_paths()), **(env or {})},
            start_new_session=True,
            creationflags=_NO_WINDOW | _BELOW_NORMAL,
            **pipes,
        )
    except OSError as error:
        raise ResourceError(f"{what} cannot be started", where=words[0], why=str(error)) from error
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):  # gone already, or its priority is not ours to choose
            os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
    return process


def watched() -> dict[str, str]:
    """Environment variables that make a command end when its stdin is closed; see `commandline.run`."""
    return {PARENT: "1"}


def ask_to_end(process: subprocess.Popen) -> None:
    """Send SIGTERM to a process of `start` and all that it started; on Windows, which has none, kill them."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)
    else:
        kill_tree(process)


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a process of `start` and all that it started, on Linux and macOS even what outlived it."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
            return
        # The Python of Slicer is a launcher; the process that has to end is its child.
        words = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(words, capture_output=True, check=False, creationflags=_NO_WINDOW)
    with contextlib.suppress(OSError):
        process.kill()


def how_it_ended(code: int | None) -> str:
    """Describe an exit code in plain words; None for a process that still runs."""
    if code is None:
        return "it does not answer"
    if code < 0:
        return f"it was ended by {_signal_name(-code)}"
    if code == EXIT_DEVICE_LOST:
        return "the GPU was lost"
    return f"it ended with exit code {code}"


def _paths() -> list[str]:
    return [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
