"""Errors that a user can meet: each says what failed, where, why, and what to do."""

from __future__ import annotations

import contextlib
import difflib
import errno
import sys
from collections.abc import Iterable, Iterator

NO_SPACE: tuple[int, ...] = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Numbers of the errors of a full disk, a file that is too large, and a used up quota."""


class MaskSAMError(Exception):
    """Base of all expected failures; commands print it as one line and leave with `exit_code`.

    Args:
        what: What failed, in plain words.
        where: The file, case, node, key or position concerned.
        why: The reason, with the numbers that were found.
        remedy: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = "", why: str = "", remedy: str = "") -> None:
        self.what, self.where, self.why, self.remedy = what, str(where), why, remedy
        super().__init__(what, self.where, why, remedy)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        text = f"{head} ({self.why})" if self.why else head
        return f"{text}. {self.remedy}" if self.remedy else text


class InputError(MaskSAMError):
    """A file, folder, option or value that the user gave cannot be used."""

    exit_code = 2


class GeometryError(InputError):
    """A grid, spacing, direction or affine that describes no usable space."""


class PromptError(InputError):
    """A point, box or mask prompt that cannot be answered; names its index and position."""


class DatasetError(InputError):
    """A training data set with problems; `problems` lists every one of them.

    Args:
        what: What was checked.
        problems: One line per problem, each naming its case or file.
        where: The data set's folder.
    """

    def __init__(self, what: str, *, problems: list[str] | None = None, where: object = "", remedy: str = "") -> None:
        self.problems = list(problems or [])
        why = "" if not self.problems else f"{len(self.problems)} problem(s):\n  " + "\n  ".join(self.problems) + "\n"
        super().__init__(what, where=where, why=why, remedy=remedy)


class ModelError(InputError):
    """A model folder, checkpoint or base-weights file that is missing, damaged or does not fit."""


class PackageError(ModelError):
    """An optional package, which only some networks or formats need, is not installed."""


class ResourceError(MaskSAMError):
    """Not enough memory or disk, a lost GPU, or a folder that another process holds."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion for a misspelt word, 'Did you mean "x"?', or "" where no known word is like it."""
    by_case = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), by_case, n=1)
    return f'Did you mean "{by_case[close[0]]}"?' if close else ""


@contextlib.contextmanager
def optional_package(extra: str, *, what: str) -> Iterator[None]:
    """Turn an ImportError in the block into the advice to install an extra of this package.

    Args:
        extra: Its name in pyproject.toml.
        what: What needs the package, for the message.

    Raises:
        PackageError: A package is missing.
    """
    try:
        yield
    except ImportError as error:
        remedy = f'Run `pip install ".[{extra}]"` in the clone of the repository.'
        raise PackageError(f"{what} needs a package that is not installed", why=str(error), remedy=remedy) from error


class DeviceLostError(ResourceError):
    """The GPU failed; this process cannot use it any more."""

    exit_code = 3


def gpu_memory_full(error: BaseException) -> ResourceError:
    """The error for a `torch.OutOfMemoryError`, with the sizes that it names."""
    why = ". ".join(str(error).split(". ")[:3])
    remedy = "Close other programs and scans, use a smaller batch, patch or region, or the CPU."
    return ResourceError("the GPU's memory is full", why=why, remedy=remedy)


def translated(error: BaseException, *, where: object = "") -> MaskSAMError | None:
    """A failure of the computer as an error with a remedy; None for any other, which is a bug.

    Args:
        error: Of PyTorch, numpy or the operating system.
        where: The file or folder concerned, for errors that name none.
    """
    torch = sys.modules.get("torch")  # not imported here: what was not imported cannot have failed
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return gpu_memory_full(error)
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        remedy = "Check the driver, then start again; a training goes on with --resume."
        return DeviceLostError("the GPU was lost", why=str(error).splitlines()[0], remedy=remedy)
    if isinstance(error, MemoryError):
        return ResourceError("the computer's memory is full", why=str(error), remedy="Close other programs.")
    if isinstance(error, OSError):
        where, why = error.filename or where, error.strerror or str(error)
        if error.errno in NO_SPACE:
            remedy = "Free some space and try again."
            return ResourceError("not enough space on the disk", where=where, why=why, remedy=remedy)
        if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
            return InputError("cannot be used", where=where, why=why)
        return ResourceError("the operating system refused", where=where, why=why)
    return None
