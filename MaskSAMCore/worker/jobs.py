"""A request on its way, as the caller of the client sees it, and what a caller may put into one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import InputError, MaskSAMError
from MaskSAMCore.worker import protocol
from MaskSAMCore.worker.protocol import ArrayRef
from MaskSAMCore.worker.results import Case

BY_CLIENT = ("hello", "cancel", "quit")
"""Requests that the client makes by itself."""


class Job:
    """A request that was submitted; ask `done`, then take its `result`.

    Attributes:
        id: Its number; events name it.
        op: The operation.
        internal: Whether the client itself made the request, to restore a new worker.
        progress: The last `(done, total, text)` that the worker told; None before the first.
    """

    def __init__(
        self, number: int, op: str, fields: dict[str, Any], cancel: Callable[[Job], None], *, internal: bool = False
    ) -> None:
        self.id, self.op, self.fields, self.internal = number, op, fields, internal
        self.progress: tuple[int, int, str] | None = None
        self.cancel_asked = False
        self.sent_to: object = None
        self.written: list[ArrayRef] = []
        self._cancel = cancel
        self._done = threading.Event()
        self._result: Any = None
        self._error: MaskSAMError | None = None

    def done(self) -> bool:
        """Whether it was answered, failed or was cancelled; never waits."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is done, at most `timeout` seconds; whether it is."""
        return self._done.wait(timeout)

    def result(self, timeout: float | None = None) -> Any:
        """Its answer; waits for it.

        Raises:
            MaskSAMError: The error that the worker named; Cancelled where it was cancelled in time.
            TimeoutError: It is not done.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"{self.op} is not done after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> None:
        """Ask for its end. It may still succeed; its result then counts."""
        self._cancel(self)

    def finish(self, result: Any = None, error: MaskSAMError | None = None) -> None:
        """Called by the client alone; lets go of the arrays."""
        self._result, self._error = result, error
        self.fields = {}
        self._done.set()


def checked_fields(op: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields with plain values; arrays stay arrays until they are sent.

    Raises:
        PromptError: A prompt is none; names its index and position.
        InputError: Anything else is wrong.
    """
    if op in BY_CLIENT:
        raise InputError("is the client's own request", where=op)
    out = {name: _plain(name, value) for name, value in fields.items() if value is not None}
    protocol.check_request(op, _described(out))
    return out


def _plain(name: str, value: Any) -> Any:
    if name == "volume":
        return _numbers(name, value, "biuf")
    if name == "mask":
        mask = _numbers(name, value, "biu")
        return (mask if mask.dtype == np.bool_ else mask != 0).view(np.uint8)
    if name == "model":
        path = Path(value).expanduser()  # the worker's current folder is another one
        return str(path.absolute()) if (path / "model.json").is_file() else os.fspath(value)
    if isinstance(value, Case):
        return value.id
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(str(key), each) for key, each in value.items() if each is not None}
    return [_plain("", each) for each in value] if isinstance(value, (list, tuple)) else value


def _numbers(name: str, value: Any, kinds: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in kinds:
        raise InputError("holds no real numbers", where=name, why=f"its type is {array.dtype}")
    return array


def _described(value: Any, name: str = "") -> Any:
    """Fields as they will stand in the message, for its check before anything is written."""
    if isinstance(value, np.ndarray):
        return ArrayRef(file="-", dtype=protocol.ARRAYS[name], shape=value.shape).plain()
    if isinstance(value, dict):
        return {key: _described(each, key) for key, each in value.items()}
    return [_described(each) for each in value] if isinstance(value, list) else value
