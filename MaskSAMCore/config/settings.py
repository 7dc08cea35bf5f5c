"""What can be set with `--set`: the list of all keys, and which settings a configuration in use has kept."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Union

from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import leaf_keys, split_assignment, to_dict, value_at
from MaskSAMCore.errors import InputError

LABEL = "preset"
"""The one key that changes nothing."""
_CITATION = re.compile(r" \((?:model\.md )?§[^)]*\)")
_ENTRY = re.compile(r"^ {4}(\w[\w, ]*): (.*)$")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of the configuration.

    Attributes:
        key: In full, such as `model.stem.kind`.
        values: Its type, or the values that it can have.
        default: Its value in a preset, as `--set` takes it.
        about: What it does, in one line.
    """

    key: str
    values: str
    default: str
    about: str


@dataclass(frozen=True, kw_only=True)
class Overruled:
    """Why a setting would have no effect.

    Attributes:
        why: What decides instead.
        remedy: What to change.
    """

    why: str
    remedy: str


FITTED = Overruled(
    why="data.fit_patch=true fits it to the data set", remedy="Leave it out, or set data.fit_patch=false as well."
)
OF_THE_DATA = Overruled(why="it is the data set's", remedy="Leave it out.")


def settings(config: Config) -> list[Setting]:
    """Every key, with its value in `config` as the default."""
    found = []
    for key in leaf_keys(Config):
        if key == LABEL:
            continue
        section, _, name = key.rpartition(".")
        cls = type(value_at(config, section)) if section else Config
        found.append(
            Setting(
                key=key,
                values=_describe_type(typing.get_type_hints(cls)[name]),
                default=_as_text(value_at(config, key)),
                about=_CITATION.sub("", attribute_docs(cls).get(name, "")),
            )
        )
    return found


def attribute_docs(cls: type) -> dict[str, str]:
    """The entries of the `Attributes:` section of a class's docstring, by field."""
    entries: dict[str, str] = {}
    names: list[str] = []
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    for line in section.splitlines():
        start = _ENTRY.match(line)
        if start:
            names = start[1].split(", ")
            entries |= dict.fromkeys(names, start[2])
        else:
            entries |= {name: f"{entries[name]} {line.strip()}".strip() for name in names}
    return entries


def check_kept(assignments: Sequence[str], asked: Config, used: Config, reasons: Mapping[str, Overruled]) -> None:
    """Refuse a setting that was given and that something else decided: it would be ignored.

    Args:
        assignments: Of `--set` and of recipes; of the same key the last one counts.
        asked: The configuration with these settings.
        used: The configuration that is trained.
        reasons: Why values of `used` are not those of `asked`, by key or section; the longest name counts.

    Raises:
        InputError: Names the setting, what its value would be instead, and why.
    """
    for key in dict.fromkeys(split_assignment(text)[0] for text in assignments):
        wanted, found = value_at(asked, key), value_at(used, key)
        if wanted != found:
            parents = [key[:end] for end in range(len(key), 0, -1) if key[end : end + 1] in ("", ".")]
            overruled = next((reasons[name] for name in parents if name in reasons), Overruled(why="", remedy=""))
            raise InputError(
                f"{_as_text(wanted)} would not be used, but {_as_text(found)}",
                where=f"--set {key}",
                why=overruled.why,
                remedy=overruled.remedy,
            )


def _describe_type(hint: object) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(str(value) for value in args)
    if origin in (Union, types.UnionType):
        return " | ".join("null" if arg is type(None) else _describe_type(arg) for arg in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"[{_describe_type(args[0])}, ...]"
        return "[" + ", ".join(map(_describe_type, args)) + "]"
    names = {bool: "true | false", int: "integer", float: "number", str: "text"}
    return names[typing.cast(type, hint)]


def _as_text(value: object) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, str):
        return value or '""'
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return json.dumps(to_dict(value))
    return json.dumps(value)
