"""Dataclasses as JSON values and back, and the `--set` option; an unknown or ill-typed key is an error."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union

from MaskSAMCore.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def from_dict(cls: type[T], data: object, *, where: str = "") -> T:
    """Build the dataclass `cls` from JSON values; missing keys keep their defaults.

    Keys of `cls.FORMER`, which older files hold, must have the value that is a constant now.

    Raises:
        InputError: A key is unknown or its value has the wrong type; `where` names it.
    """
    if not isinstance(data, dict):
        raise InputError("expected an object", where=where or cls.__name__, why=f"found {data!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    former = getattr(cls, "FORMER", {})
    for key in sorted(former.keys() & data):
        _check_former(former[key], data[key], f"{where}.{key}" if where else key)
    data = {key: value for key, value in data.items() if key not in former}
    unknown = sorted(set(data) - known)
    if unknown:
        raise InputError(
            f"unknown key {unknown[0]!r}",
            where=where or cls.__name__,
            remedy=_join(did_you_mean(unknown[0], known), "Known keys: " + ", ".join(sorted(known)) + "."),
        )
    values = {key: _convert(hints[key], value, f"{where}.{key}" if where else key) for key, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError("a required key is missing", where=where or cls.__name__, why=str(error)) from error


def override(config: T, assignments: Sequence[str]) -> T:
    """Apply `a.b=value` assignments (the `--set` option); values are JSON, or bare words for text.

    Raises:
        InputError: An assignment is malformed, its key unknown or its value ill-typed.
    """
    data = to_dict(config)
    keys = set(leaf_keys(type(config)))
    former = set(former_keys(type(config)))
    for text in assignments:
        key, value = split_assignment(text)
        if key not in keys | former:
            raise InputError(f"unknown key {key!r}", where=f"--set {text}", remedy=_closest_keys(key, keys))
        node: Any = data
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return from_dict(type(config), data)


def split_assignment(text: str) -> tuple[str, object]:
    """Key and value of `a.b=value`; the value is JSON, or a bare word.

    Raises:
        InputError: There is no key, or no value.
    """
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise InputError("expected KEY=VALUE", where=f"--set {text}")
    try:
        return key, json.loads(raw)
    except json.JSONDecodeError:
        return key, raw


def leaf_keys(cls: type) -> Iterator[str]:
    """Every key of a dataclass that holds a value, such as `model.stem.kind`, in the order of its fields."""
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[each.name]):
            yield from (f"{each.name}.{key}" for key in leaf_keys(hints[each.name]))
        else:
            yield each.name


def former_keys(cls: type) -> Iterator[str]:
    """Every key that older configurations hold and that is a constant now, such as `train.momentum`."""
    yield from getattr(cls, "FORMER", {})
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[each.name]):
            yield from (f"{each.name}.{key}" for key in former_keys(hints[each.name]))


def value_at(config: DataclassInstance, key: str) -> object:
    """The value of one key, such as `model.stem.kind`; of a former key, its constant."""
    node: object = config
    for part in key.split("."):
        former = getattr(type(node), "FORMER", {})
        node = former[part] if part in former else getattr(node, part)
    return node


def _check_former(constant: object, value: object, where: str) -> None:
    if value != constant or isinstance(value, bool):
        raise InputError(
            "this setting is a constant now",
            where=where,
            why=f"found {value!r}, and {constant!r} is the only value",
            remedy="Leave it out.",
        )


def _closest_keys(key: str, known: Iterable[str]) -> str:
    """Which known key an unknown one stands for: one that ends with it, or one that is spelled alike."""
    known = sorted(known)
    inside = [each for each in known if each.startswith(f"{key}.")]
    if inside:
        return f"It has the keys {', '.join(inside)}."
    ending = [each for each in known if each.endswith(f".{key}")]
    if len(ending) > 1:
        return f"Write it in full: {', '.join(ending)}."
    if ending:
        return f'Did you mean "{ending[0]}"?'
    last = key.rpartition(".")[2]
    alike = did_you_mean(key, known) or did_you_mean(last, {each.rpartition(".")[2] for each in known})
    return _join(alike, "`train --list-settings` prints all keys.")


def _join(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[DataclassInstance]", hint), value, where=where)
    if origin is Literal:
        return _convert_choice(args, value, where)
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError("expected an object", where=where, why=f"found {value!r}")
        return {_convert(args[0], k, where): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise InputError(
            f"expected {getattr(hint, '__name__', hint)}", where=where, why=f"found {value!r} ({type(value).__name__})"
        )
    return value


def _convert_choice(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value in choices and type(value) is type(choices[choices.index(value)]):
        return value
    words = [str(choice) for choice in choices]
    raise InputError(
        f"unknown value {value!r}",
        where=where,
        remedy=_join(did_you_mean(str(value), words), "Choose one of " + ", ".join(words) + "."),
    )


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError("expected a list", where=where, why=f"found {value!r}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(value) != len(args):
        raise InputError(f"expected {len(args)} values", where=where, why=f"found {len(value)}")
    return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
