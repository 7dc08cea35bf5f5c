"""Files that are complete or absent, and folders that one process holds at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from MaskSAMCore.errors import InputError, MaskSAMError, ResourceError

LOCK_NAME = ".masksam.lock"
SCRATCH = ".masksam-"
"""How the folders of `atomic_files` are called while they are filled."""
_LOCK_BYTE = 1 << 30
_RETRIES, _RETRY_SECONDS = 10, 0.2
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT if hasattr(errno, "EDQUOT") else errno.ENOSPC, errno.EFBIG)
_log = logging.getLogger(__name__)


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return a.absolute() == b.absolute()


def check_target(target: str | os.PathLike, *, overwrite: bool = False, inputs: Iterable[Path] = ()) -> Path:
    """Whether `target` may be written, asked before the work starts.

    Raises:
        InputError: It exists and `overwrite` is false, is an input, a folder or read-only, or its folder is missing.
    """
    target = Path(target)
    if any(_same_file(target, Path(i)) for i in inputs):
        why = "the output is also an input"
        raise InputError("input files are never changed", where=target, why=why, remedy="Choose another output")
    if target.is_dir():
        raise InputError("the output is an existing folder", where=target, remedy="Name a file")
    if not target.parent.is_dir():
        raise InputError("the output folder does not exist", where=target.parent, remedy="Create it first")
    if target.exists():
        if not overwrite:
            raise InputError("exists already", where=target, remedy="Use --overwrite, or choose another output")
        if not os.access(target, os.W_OK) or not target.stat().st_mode & 0o222:
            raise InputError("is read-only", where=target, remedy="Choose another output")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError("the output folder is read-only", where=target.parent, remedy="Choose another output")
    return target


def _suffixes(name: str) -> str:
    known = (".nii.gz", ".seg.nrrd", ".tar.gz")
    return next((name[-len(s) :] for s in known if name.lower().endswith(s)), Path(name).suffix)


def _replace(part: Path, target: Path) -> None:
    """Rename onto the target, or keep the result beside it where another program holds that."""
    try:
        _rename_with_retries(part, target)
    except PermissionError as error:
        ending = _suffixes(target.name)
        kept = _unused_path(target.with_name(f"{target.name[: len(target.name) - len(ending)]}-new{ending}"))
        os.replace(part, kept)
        raise _target_in_use(target, kept) from error


def _rename_with_retries(source: Path, target: Path) -> None:
    """Rename, again and again for two seconds: Windows refuses while another program has one of the two open.

    Raises:
        PermissionError: It still does.
    """
    for _ in range(_RETRIES - 1):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(_RETRY_SECONDS)
    os.replace(source, target)


def _unused_path(path: Path) -> Path:
    return path.with_name(f"{uuid.uuid4().hex[:8]}-{path.name}") if path.exists() else path


def _target_in_use(target: Path, kept: Path) -> ResourceError:
    why = f"the result was kept as {kept}"
    remedy = "Close the program that has the old file open, then move the new one there"
    return ResourceError("another program holds the output", where=target, why=why, remedy=remedy)


@contextlib.contextmanager
def atomic_files(targets: Sequence[Path], *, home: Path, kept: Path) -> Iterator[Path]:
    """A folder whose files replace the targets of their names when the block ends well: all of them, or none.

    Args:
        targets: The files to make or replace; the block writes each of them into the folder.
        home: Where the folder is made, on the disk of the targets.
        kept: What the folder becomes where another program holds a target, so that the work is not lost.

    Raises:
        ResourceError: The folder cannot be made; or another program holds a target, even after two seconds of trying:
            names the place of the new files. The old ones are where they were.
    """
    try:
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=home))
    except OSError as error:
        raise ResourceError("cannot be written", where=home, why=error.strerror or "") from error
    moves = _Replacements(scratch)
    try:
        yield scratch
        moves.make(targets)
    except BaseException as error:
        moves.undo()
        if moves.stuck is not None or moves.lost:
            moves.keep(_unused_path(kept))
        if moves.stuck is not None:
            raise _target_in_use(moves.stuck, moves.folder) from error
        raise
    finally:
        if not moves.kept:
            shutil.rmtree(scratch, ignore_errors=True)


class _Replacements:
    """Files on their way from a folder to their targets, and the way back.

    Attributes:
        folder: Where they come from.
        stuck: The target that another program holds.
        lost: Targets whose old files could not be put back and lie in the folder.
        kept: The folder stays.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stuck: Path | None = None
        self.lost: list[Path] = []
        self.kept = False
        self._done: list[tuple[Path, Path | None]] = []

    def make(self, targets: Sequence[Path]) -> None:
        for number, target in enumerate(targets):
            try:
                old = self.folder / f"old-{number}" if target.exists() else None
                if old is not None:
                    _rename_with_retries(target, old)
                self._done.append((target, old))
                _rename_with_retries(self.folder / target.name, target)
            except PermissionError:
                self.stuck = target
                raise

    def undo(self) -> None:
        for target, old in reversed(self._done):
            try:
                if not (self.folder / target.name).exists():
                    _rename_with_retries(target, self.folder / target.name)
                if old is not None:
                    _rename_with_retries(old, target)
            except OSError:
                self.lost.append(target)

    def keep(self, place: Path) -> None:
        """Rename the folder, if that can be done."""
        self.kept = True
        with contextlib.suppress(OSError):
            self.folder = self.folder.rename(place)
        for target in self.lost:
            _log.error("%s: the old file could not be put back and lies in %s", target, self.folder)


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike, *, overwrite: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """A temporary path beside `target` that becomes it when the block ends well, and vanishes when it does not.

    The temporary carries the target's suffix, so that writers which choose a format by name work.

    Args:
        target: The file to make.
        overwrite: Whether an existing file may be replaced.
        inputs: Files that must never be the target, `overwrite` or not.

    Raises:
        InputError: The target may not be written (see `check_target`).
        ResourceError: The disk is full, or another program holds the target; the old file is intact.
    """
    target = check_target(target, overwrite=overwrite, inputs=inputs)
    part = target.with_name(f".{uuid.uuid4().hex[:12]}.part{_suffixes(target.name)}")
    try:
        yield part
        if not part.is_file():
            raise MaskSAMError("nothing was written", where=target)
        sync_file(part)
        if not overwrite and target.exists():
            raise InputError(
                "appeared meanwhile", where=target, why="another program wrote it", remedy="Use --overwrite"
            )
        _replace(part, target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno in _NO_SPACE:
            why = f"{os.strerror(error.errno)}; nothing that existed was changed"
            raise ResourceError("not enough space to write", where=target, why=why, remedy="Free some space") from error
        raise ResourceError("cannot be written", where=target, why=str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(target: str | os.PathLike, data: bytes, *, overwrite: bool = False) -> None:
    """Write a whole file, or leave what was there."""
    with atomic_path(target, overwrite=overwrite) as part:
        part.write_bytes(data)


def write_text(target: str | os.PathLike, text: str, *, overwrite: bool = False) -> None:
    """Write a whole UTF-8 file with Unix line ends, or leave what was there."""
    write_bytes(target, text.encode("utf-8"), overwrite=overwrite)


def write_json(target: str | os.PathLike, value: Any, *, overwrite: bool = False) -> None:
    """Write `value` as indented JSON; NaN and Inf are refused, since JSON has none."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", overwrite=overwrite)


def sweep_parts(folder: str | os.PathLike, *, older_than_s: float = 86400.0) -> list[Path]:
    """Remove temporaries that a killed run left in `folder` more than `older_than_s` ago; returns them."""
    gone = []
    for part in Path(folder).glob(".????????????.part*"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > older_than_s:
                part.unlink()
                gone.append(part)
    return gone


def try_lock(descriptor: int) -> bool:
    """Take the operating system's lock, which ends with the process; False where another holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCK_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


class FolderLock:
    """Keeps a second run out of a folder; a lock left by a dead process of this machine is taken over.

    Use as a context manager, or with `acquire` and `release`. The operating system drops the lock when the
    process ends in whatever way; the file beside the data names the holder.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.path = self.folder / LOCK_NAME
        self._descriptor: int | None = None

    def acquire(self) -> FolderLock:
        """Take the lock.

        Raises:
            InputError: The folder does not exist.
            ResourceError: Another process holds it; names its id, machine and start.
        """
        if not self.folder.is_dir():
            raise InputError("the folder does not exist", where=self.folder)
        while True:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise ResourceError("the folder cannot be locked", where=self.path, why=str(error)) from error
            try:
                locked = try_lock(descriptor)
                current = self.path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(self.path))
                if locked and not current:
                    os.close(descriptor)
                    continue
                self._claim(descriptor, locked)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                raise
            self._descriptor = descriptor
            return self

    def _claim(self, descriptor: int, locked: bool) -> None:
        holder = _read_holder(descriptor)
        if not locked or (holder and holder.get("host") != socket.gethostname()):
            name = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
            remedy = "Wait for it or end it"
            if locked:
                remedy = f"If that process is gone, delete {self.path}"
            raise ResourceError("another run uses this folder", where=self.folder, why=name, remedy=remedy)
        if holder:
            _log.warning("%s: took over the lock of process %s, which is gone", self.folder, holder.get("pid"))
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, text.encode())

    def release(self) -> None:
        """Give the folder free; does nothing where it is not held."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            if os.name != "nt":
                self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None
        if os.name == "nt":
            with contextlib.suppress(OSError):
                self.path.unlink()

    def __enter__(self) -> FolderLock:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _read_holder(descriptor: int) -> dict:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        holder = json.loads(os.read(descriptor, 4096) or b"{}")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}
