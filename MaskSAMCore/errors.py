"""Errors that a user can meet: each says what failed, where, why, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'Did you mean "x"?' for the known word that is most like `word`; "" where none is.

    Capitals do not count.
    """
    words = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(word.strip().casefold(), list(words), n=1)
    return f'Did you mean "{words[near[0]]}"?' if near else ""


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
