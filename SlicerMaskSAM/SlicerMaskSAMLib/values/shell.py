"""Shell commands to paste into a terminal."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence

_PLAIN = re.compile(r"[\w@+=:,./\\-]+", re.ASCII)


def shell_command(words: Sequence[str], environment: Mapping[str, str], *, windows: bool = os.name == "nt") -> str:
    """One line that a shell splits into exactly these words.

    Args:
        words: The program and its arguments.
        environment: Environment variables to set for it.
        windows: Whether the line is for cmd.exe; else it is for sh.
    """
    if windows:
        settings = [f'set "{name}={value}"' for name, value in environment.items()]
        return " && ".join([*settings, " ".join(map(_for_cmd, words))])
    settings = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*settings, shlex.join(words)])


def _for_cmd(word: str) -> str:
    """The word, quoted if needed, as Microsoft's C runtime reads it."""
    if _PLAIN.fullmatch(word):
        return word
    return '"' + re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ("\\" + found[2] if found[2] else ""), word) + '"'
