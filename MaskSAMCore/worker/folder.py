"""The private folder in which client and worker exchange arrays (faults.md row 15).

It holds patient data. A file exists only from its writing to its reading, and whichever process ends last deletes the
folder. Its owner, the client, locks a file in it; the operating system releases the lock when the client ends, however
it ends. By that the worker sees that the client is dead, and the next client that a folder was left behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
import uuid
from pathlib import Path

import numpy as np

from MaskSAMCore.errors import InputError, ResourceError
from MaskSAMCore.io.atomic import try_lock
from MaskSAMCore.worker.protocol import ArrayRef

PREFIX = "masksam-worker-"
OWNER = ".owner"
FILE = re.compile(r"[0-9a-f]{32}\.raw")
CHUNK_BYTES = 32 << 20
OWNERLESS_S = 3600.0
"""Age from which a folder without its owner's file counts as left behind; a younger one is just being made."""
_REMOVE_TRIES, _REMOVE_PAUSE_S = 6, 0.1
_LOG = logging.getLogger(__name__)


class PrivateFolder:
    """A folder that only this user can enter. The client uses `make`, the worker `adopt`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._writing = threading.Lock()
        self._closed = False

    @classmethod
    def make(cls) -> PrivateFolder:
        """Make a temporary folder and lock it; folders of dead clients are deleted first.

        Raises:
            ResourceError: It cannot be made, locked, or kept from other users.
        """
        sweep()
        try:
            for _ in range(5):
                folder = cls(Path(tempfile.mkdtemp(prefix=PREFIX)))
                if not _private(folder.path):
                    folder.remove()
                    why = "its file system does not keep other users out"
                    remedy = "Let TMPDIR name a folder on another disk."
                    raise ResourceError("no private folder can be made", where=folder.path, why=why, remedy=remedy)
                if folder._hold():
                    return folder
        except OSError as error:
            where = error.filename or tempfile.gettempdir()
            remedy = "Check the folder for temporary files (TMPDIR) and the space on its disk."
            raise ResourceError(
                "no temporary folder can be made", where=where, why=str(error), remedy=remedy
            ) from error
        raise ResourceError("no temporary folder can be locked", where=tempfile.gettempdir())

    @classmethod
    def adopt(cls, path: Path) -> PrivateFolder:
        """The folder that a client made.

        Raises:
            InputError: It is not such a folder. This is checked because a worker deletes its folder.
        """
        path = Path(path).absolute()
        if not (path.name.startswith(PREFIX) and _private(path) and (path / OWNER).is_file()):
            raise InputError("is not a private folder of a client", where=path, remedy="Start without --folder.")
        return cls(path)

    def _hold(self) -> bool:
        """Lock the owner's file; False if another client deleted the folder meanwhile."""
        owner = self.path / OWNER
        self._lock = os.open(owner, os.O_RDWR | os.O_CREAT, 0o600)
        if try_lock(self._lock):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._lock), os.stat(owner)):
                    return True
        self.remove()
        return False

    def abandoned(self) -> bool:
        """Whether the client has died; for the worker."""
        return self._lock is None and _ownerless(self.path)

    def write(self, array: np.ndarray, dtype: str | None = None) -> ArrayRef:
        """Write an array to a new file, converted to `dtype` in parts.

        The file is not memory-mapped, where a full disk would kill the process.

        Raises:
            OSError: The disk is full, or the folder is gone; the file is deleted.
        """
        kind = np.dtype(dtype or array.dtype).newbyteorder("<")
        path = self.path / f"{uuid.uuid4().hex}.raw"
        with self._writing:
            if self._closed:
                raise FileNotFoundError(f"{self.path} is closed")
            try:
                with open(path, "xb", opener=_only_mine) as file:
                    for part in _parts(array, kind.itemsize):
                        file.write(np.ascontiguousarray(part, kind).data.cast("B") if part.size else b"")
            except BaseException:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                raise
        return ArrayRef(file=path.name, dtype=kind.name, shape=tuple(array.shape))

    def read(self, ref: ArrayRef, *, mapped: bool = False) -> np.ndarray:
        """Read an array; `mapped` maps the file read-only, except on Windows, which cannot delete a mapped file.

        Raises:
            InputError: There is no such file, or it has another size.
        """
        if not FILE.fullmatch(ref.file):
            raise InputError("is not the name of an array's file", where=ref.file)
        path = self.path / ref.file
        try:
            found = os.lstat(path)
        except OSError as error:
            raise InputError("the array's file is missing", where=ref.file, why=str(error.strerror)) from error
        if not stat.S_ISREG(found.st_mode) or found.st_size != ref.nbytes:
            why = f"{ref.dtype} {list(ref.shape)} takes {ref.nbytes} bytes, the file has {found.st_size}"
            raise InputError("the array's file does not hold what was announced", where=ref.file, why=why)
        kind = np.dtype(ref.dtype).newbyteorder("<")
        if not ref.nbytes:
            return np.zeros(ref.shape, kind)
        if mapped and os.name != "nt":
            return np.memmap(path, kind, "r", shape=ref.shape)
        return np.fromfile(path, kind).reshape(ref.shape)

    def discard(self, ref: ArrayRef) -> None:
        """Delete the file of an array, if it exists."""
        if FILE.fullmatch(ref.file):
            with contextlib.suppress(OSError):
                (self.path / ref.file).unlink(missing_ok=True)

    def remove(self) -> bool:
        """Delete the folder; later writes fail. False if something of it is left."""
        self._closed = True
        held = self._writing.acquire(timeout=0.5)  # with a limit: on a dead disk a write never returns
        try:
            gone = _delete(self.path, self._release)
        finally:
            if held:
                self._writing.release()
        return gone

    def _release(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = None


def sweep() -> list[Path]:
    """Delete the folders of this user's dead clients; returns their paths."""
    gone = []
    with contextlib.suppress(OSError):
        for path in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
            if _private(path) and _ownerless(path) and _delete(path):
                _LOG.warning("%s: deleted, as its program had died", path)
                gone.append(path)
    return gone


def _private(path: Path) -> bool:
    """Whether a path is a folder, not a link, that belongs to this user and that nobody else may enter."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode):
        return False
    return os.name == "nt" or (found.st_uid == os.getuid() and not found.st_mode & 0o077)


def _ownerless(path: Path) -> bool:
    """Whether nobody locks the owner's file; true for a folder that is gone."""
    try:
        descriptor = os.open(path / OWNER, os.O_RDWR)
    except FileNotFoundError:
        try:
            return time.time() - path.stat().st_mtime > OWNERLESS_S
        except OSError:
            return True
    except OSError:
        return False
    try:
        return try_lock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _delete(path: Path, release: object = None) -> bool:
    """Delete a folder; try again as long as another thread or process still writes files into it."""
    for attempt in range(_REMOVE_TRIES):
        if attempt:
            time.sleep(_REMOVE_PAUSE_S)
        if callable(release) and os.name == "nt":
            release()  # Windows deletes no open file
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            break
    if callable(release):
        release()
    return not path.exists()


def _parts(array: np.ndarray, itemsize: int) -> list[np.ndarray]:
    """An array in parts along its first axis, each small enough to be converted at once."""
    if array.ndim == 0 or not array.size:
        return [array]
    if array.ndim > 3:
        return [part for channel in array for part in _parts(channel, itemsize)]
    rows = max(1, CHUNK_BYTES // max(1, itemsize * array[0].size))
    return [array[start : start + rows] for start in range(0, len(array), rows)]


def _only_mine(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
