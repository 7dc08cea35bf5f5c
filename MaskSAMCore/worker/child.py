"""Processes that are started from here: how they begin, how a whole tree of them ends, and how its end is told.

The engine's worker is one; commands that a program with a window runs in the background are others.
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
"""Where the package lies; what is started runs the same one."""
_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)
_BELOW_NORMAL = getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0)
NICE = 10
"""How much a process of `start` steps back on Linux and macOS."""


def start(what: str, words: Sequence[str], *, env: Mapping[str, str] | None = None, **pipes: Any) -> subprocess.Popen:
    """Start a program that finds this package, as the head of a process group and without a console window.

    Ctrl-C is for the program that started it, which ends it in its own time. It gives way to that program's window,
    which would stand still otherwise where the work takes all cores.

    Args:
        what: For the message: "the engine".
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
    """Environment of a command that ends when the other end of its stdin is closed; see `commandline.run`."""
    return {PARENT: "1"}


def ask_to_end(process: subprocess.Popen) -> None:
    """SIGTERM for a process of `start` and all that it started; on Windows, which has no such thing, their end."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)
    else:
        kill_tree(process)


def kill_tree(process: subprocess.Popen) -> None:
    """End a process of `start` now, and all that it started, even what outlived it where groups can be killed."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
            return
        # The interpreter of Slicer is a launcher: what is to end is its child.
        words = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(words, capture_output=True, check=False, creationflags=_NO_WINDOW)
    with contextlib.suppress(OSError):
        process.kill()


def how_it_ended(code: int | None) -> str:
    """An exit code in plain words; None for a process that still runs."""
    if code is None:
        return "it does not answer"
    if code < 0:
        return f"it was ended by {_signal_name(-code)}"
    if code == EXIT_DEVICE_LOST:
        return "the GPU was lost"
    return f"it left with exit code {code}"


def _paths() -> list[str]:
    return [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
