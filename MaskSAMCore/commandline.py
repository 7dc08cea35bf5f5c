"""What every command shares: its parser's frame, its exit codes, and how it ends on a signal.

A command module reads::

    def main(argv: list[str] | None = None) -> int:
        options = parser().parse_args(argv)
        return run(lambda: _work(options))
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

from MaskSAMCore import __version__
from MaskSAMCore.errors import DeviceLostError, MaskSAMError, translated
from MaskSAMCore.progress import CancelToken

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_DEVICE_LOST = DeviceLostError.exit_code
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
DEVICES = "auto, cpu, cuda or cuda:N"
PARENT = "MASKSAM_PARENT"
"""Environment variable of a program that runs a command in the background: the command ends when its stdin does."""
SLEEPING_THREADS = ("OMP_WAIT_POLICY", "PASSIVE")
"""Threads that spin while they wait take the processor from whatever else runs, and every step becomes many times as
slow. Read by the OpenMP library when PyTorch loads it."""
PATIENCE_S = 30.0
"""For a command to stop by itself when that program has died."""


class _Terminated(BaseException):
    """SIGTERM; like KeyboardInterrupt no Exception, so that no handler of errors swallows it."""


_program: ContextVar[str] = ContextVar("program", default="")


@contextlib.contextmanager
def called_as(program: str) -> Iterator[None]:
    """Within it, help and errors name the commands "PROGRAM NAME", as the user typed them."""
    token = _program.set(program)
    try:
        yield
    finally:
        _program.reset(token)


def command_parser(name: str, description: str, *, epilog: str = "") -> argparse.ArgumentParser:
    """The parser of a command: `masksam NAME`, or `python -m MaskSAMCore.NAME`."""
    program = _program.get()
    parser = argparse.ArgumentParser(
        prog=f"{program} {name}" if program else f"python -m MaskSAMCore.{name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"MaskSAM {__version__}")
    return parser


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """`--device auto|cpu|cuda|cuda:N`; `device.choose_device` judges the value."""
    parser.add_argument("--device", default="auto", metavar="DEVICE", help=f"{DEVICES} (default: auto)")


def run(work: Callable[[], int | None]) -> int:
    """Do the command's work and turn every way it can end into an exit code.

    0 done, 1 the work failed, 2 bad input, 3 the GPU was lost, 130 interrupted, 143 terminated.
    Expected failures print one message on stderr; an unexpected one, which is a bug, its traceback.
    PyTorch must not have been imported before: its threads sleep while they wait, unless the user chose otherwise.
    """
    os.environ.setdefault(*SLEEPING_THREADS)
    try:
        with _sigterm_raises():
            _end_with_parent()
            code = work() or 0
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        return _say("interrupted", EXIT_INTERRUPTED)
    except _Terminated:
        return _say("terminated", EXIT_TERMINATED)
    except BrokenPipeError:
        return _quiet_pipe()
    except MaskSAMError as error:
        return _say(str(error), error.exit_code)
    except (OSError, MemoryError, RuntimeError) as error:
        known = translated(error)
        if known is None:
            raise
        return _say(str(known), known.exit_code)


@contextlib.contextmanager
def cancel_on_signals(token: CancelToken) -> Iterator[CancelToken]:
    """Ctrl-C and SIGTERM set the token, so that the running step ends and the state is saved.

    The second signal ends at once, as it would without this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield token
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        token.cancel(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED)
        sys.stderr.write("stopping after this step; once more to stop at once\n")

    for number in before:
        signal.signal(number, handle)
    try:
        yield token
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so temporaries and locks are removed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_parent() -> None:
    if os.environ.pop(PARENT, ""):
        threading.Thread(target=_await_parent, name="parent", daemon=True).start()


def _await_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_S)
    os._exit(EXIT_TERMINATED)


def _say(message: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"error: {message}\n" if code not in (EXIT_INTERRUPTED, EXIT_TERMINATED) else f"{message}\n")
        sys.stderr.flush()
    return code


def _quiet_pipe() -> int:
    """The reader of our output has gone (`| head`): no message, and none from the interpreter's flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILED
