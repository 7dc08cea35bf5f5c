"""Every failure that a user can meet has a name here, and says what, where, why and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that names the known word closest to `word`; "" where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f'Did you mean "{close[0]}"?' if close else ""


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
    """A package that only some networks need is not installed."""


class ResourceError(MaskSAMError):
    """Not enough memory or disk, a lost GPU, or a folder that another process holds."""
