"""`Job`: a submitted request as the caller of the client sees it; and the check of its fields."""

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
"""Requests that only the client itself makes."""


class Job:
    """A submitted request. Poll `done`, then get the `result`.

    Attributes:
        id: Its number, as in the client's events.
        op: The operation.
        internal: Whether the client itself made the request, to restore a new worker.
        progress: The last `(done, total, text)` of the worker; None before the first.
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
        """Whether it was answered, failed or was cancelled. Does not wait."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is done, at most `timeout` seconds; returns whether it is."""
        return self._done.wait(timeout)

    def result(self, timeout: float | None = None) -> Any:
        """The answer; waits for it.

        Raises:
            MaskSAMError: The error of the worker; Cancelled if the job was cancelled in time.
            TimeoutError: It is not done after `timeout` seconds.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"{self.op} is not done after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> None:
        """Ask the worker to stop. The job may still succeed; its result is then valid."""
        self._cancel(self)

    def finish(self, result: Any = None, error: MaskSAMError | None = None) -> None:
        """Set the result or the error, and release the arrays. Only the client calls this."""
        self._result, self._error = result, error
        self.fields = {}
        self._done.set()


def checked_fields(op: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the fields of a request to plain values and check them; arrays stay arrays until they are sent.

    Raises:
        PromptError: A prompt is malformed; names its number and position.
        InputError: Another field is missing, unknown or of the wrong type.
    """
    if op in BY_CLIENT:
        raise InputError("is the client's own request and cannot be submitted", where=op)
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
        path = Path(value).expanduser()  # absolute, as the worker has another current folder
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
        raise InputError("must be an array of numbers", where=name, why=f"its type is {array.dtype}")
    return array


def _described(value: Any, name: str = "") -> Any:
    """The fields as they will be in the message, so that they are checked before any file is written."""
    if isinstance(value, np.ndarray):
        return ArrayRef(file="-", dtype=protocol.ARRAYS[name], shape=value.shape).plain()
    if isinstance(value, dict):
        return {key: _described(each, key) for key, each in value.items()}
    return [_described(each) for each in value] if isinstance(value, list) else value
