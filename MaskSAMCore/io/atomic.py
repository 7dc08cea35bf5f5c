"""Atomic writing of files, and folder locks between processes."""

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

from MaskSAMCore.errors import NO_SPACE, InputError, MaskSAMError, ResourceError

LOCK_NAME = ".masksam.lock"
SCRATCH = ".masksam-"
"""Prefix of the temporary folders of `atomic_files`."""
_LOCK_BYTE = 1 << 30
_RETRIES, _RETRY_SECONDS = 10, 0.2
_log = logging.getLogger(__name__)


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return a.absolute() == b.absolute()


def check_target(target: str | os.PathLike, *, overwrite: bool = False, inputs: Iterable[Path] = ()) -> Path:
    """Check that `target` may be written, before the work starts; returns it as a path.

    Raises:
        InputError: It exists and `overwrite` is false, is one of `inputs`, a folder or read-only, or its folder is
            missing or read-only.
    """
    target = Path(target)
    if any(_same_file(target, Path(i)) for i in inputs):
        why = "the output is also an input"
        raise InputError("input files are not overwritten", where=target, why=why, remedy="Choose another output")
    if target.is_dir():
        raise InputError("the output is an existing folder", where=target, remedy="Give the name of a file")
    if not target.parent.is_dir():
        raise InputError("the output folder does not exist", where=target.parent, remedy="Create it first")
    if target.exists():
        if not overwrite:
            raise InputError("already exists", where=target, remedy="Use --overwrite, or choose another output")
        if not os.access(target, os.W_OK) or not target.stat().st_mode & 0o222:
            raise InputError("is read-only", where=target, remedy="Choose another output")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError("the output folder is read-only", where=target.parent, remedy="Choose another output")
    return target


def _suffixes(name: str) -> str:
    known = (".nii.gz", ".seg.nrrd", ".tar.gz")
    return next((name[-len(s) :] for s in known if name.lower().endswith(s)), Path(name).suffix)


def _replace(part: Path, target: Path) -> None:
    """Rename onto the target; if another program has it open, keep the result beside it."""
    try:
        _rename_with_retries(part, target)
    except PermissionError as error:
        ending = _suffixes(target.name)
        kept = _unused_path(target.with_name(f"{target.name[: len(target.name) - len(ending)]}-new{ending}"))
        os.replace(part, kept)
        raise _target_in_use(target, kept) from error


def _rename_with_retries(source: Path, target: Path) -> None:
    """Rename with retries for two seconds, because Windows refuses while another program has a file open.

    Raises:
        PermissionError: It still refuses.
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
    remedy = "Close the program that has the old file open, then move the new file there"
    return ResourceError("another program has the output open", where=target, why=why, remedy=remedy)


@contextlib.contextmanager
def atomic_files(targets: Sequence[Path], *, home: Path, kept: Path) -> Iterator[Path]:
    """Write several files together: a temporary folder whose files replace the targets, all of them or none.

    Args:
        targets: Files to create or replace; the block writes a file of each name into the folder.
        home: Parent of the temporary folder, on the disk of the targets.
        kept: New name of the folder if another program has a target open, so that the files are not lost.

    Raises:
        ResourceError: The folder cannot be created; or another program has a target open, even after two seconds: the
            message says where the new files are, and the old ones are unchanged.
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
    """Replaces targets by the files of a folder, and can undo that.

    Attributes:
        folder: The folder with the new files.
        stuck: The target that another program has open, or None.
        lost: Targets whose old files could not be restored and are in the folder.
        kept: Whether the folder is kept.
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
        """Keep the folder, renamed if possible."""
        self.kept = True
        with contextlib.suppress(OSError):
            self.folder = self.folder.rename(place)
        for target in self.lost:
            _log.error("%s: the old file could not be restored; it is in %s", target, self.folder)


def sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk, on systems that support it."""
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
    """Write a file atomically: a temporary path that replaces `target` after the block, or is removed on an error.

    The temporary path has the suffix of the target, for writers that choose the format by name.

    Args:
        target: The file to write.
        overwrite: Whether an existing file may be replaced.
        inputs: Files that must not be the target, whatever `overwrite` is.

    Raises:
        InputError: The target may not be written (see `check_target`).
        ResourceError: The disk is full, or another program has the target open; the old file is unchanged.
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
        if error.errno in NO_SPACE:
            why = f"{os.strerror(error.errno)}; nothing that existed was changed"
            raise ResourceError("not enough space to write", where=target, why=why, remedy="Free some space") from error
        raise ResourceError("cannot be written", where=target, why=str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(target: str | os.PathLike, data: bytes, *, overwrite: bool = False) -> None:
    """Write a file atomically; on an error the old file is unchanged."""
    with atomic_path(target, overwrite=overwrite) as part:
        part.write_bytes(data)


def write_text(target: str | os.PathLike, text: str, *, overwrite: bool = False) -> None:
    """Write a UTF-8 file with Unix line ends atomically."""
    write_bytes(target, text.encode("utf-8"), overwrite=overwrite)


def write_json(target: str | os.PathLike, value: Any, *, overwrite: bool = False) -> None:
    """Write `value` as indented JSON atomically; NaN and Inf raise ValueError."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", overwrite=overwrite)


def sweep_parts(folder: str | os.PathLike, *, older_than_s: float = 86400.0) -> list[Path]:
    """Remove and return temporary files in `folder` that are older than `older_than_s` seconds."""
    gone = []
    for part in Path(folder).glob(".????????????.part*"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > older_than_s:
                part.unlink()
                gone.append(part)
    return gone


def try_lock(descriptor: int) -> bool:
    """Take the operating system's lock on a file, which ends with the process; False if another process has it."""
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
    """Lock of a folder against other processes; used as a context manager, or with `acquire` and `release`.

    The operating system releases the lock when the process ends. The lock file names the process, for messages; the
    file of a process of this machine that has ended is taken over.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.path = self.folder / LOCK_NAME
        self._descriptor: int | None = None

    def acquire(self) -> FolderLock:
        """Take the lock.

        Raises:
            InputError: The folder does not exist.
            ResourceError: Another process has the lock; names its id, machine and start.
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
            remedy = "Wait until it ends, or end it"
            if locked:
                remedy = f"If that process has ended, delete {self.path}"
            raise ResourceError("another run uses this folder", where=self.folder, why=name, remedy=remedy)
        if holder:
            _log.warning("%s: took over the lock of process %s, which has ended", self.folder, holder.get("pid"))
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, text.encode())

    def release(self) -> None:
        """Release the folder; does nothing if it is not locked."""
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
