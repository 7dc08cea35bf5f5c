"""Dataclasses as JSON values and back, and the `--set` option; an unknown or ill-typed key is an error."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal, TypeVar, Union

from MaskSAMCore.errors import InputError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], data: Any, *, where: str = "") -> T:
    """Build the dataclass `cls` from JSON values; missing keys keep their defaults.

    Raises:
        InputError: A key is unknown or its value has the wrong type; `where` names it.
    """
    if not isinstance(data, dict):
        raise InputError("expected an object", where=where or cls.__name__, why=f"found {data!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise InputError(
            f"unknown key {unknown[0]!r}",
            where=where or cls.__name__,
            remedy="Known keys: " + ", ".join(sorted(known)) + ".",
        )
    values = {key: _convert(hints[key], value, f"{where}.{key}" if where else key) for key, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError("a required key is missing", where=where or cls.__name__, why=str(error)) from error


def override(config: T, assignments: list[str]) -> T:
    """Apply `a.b=value` assignments (the `--set` option); values are JSON, or bare words for text.

    Raises:
        InputError: An assignment is malformed, its key unknown or its value ill-typed.
    """
    data = to_dict(config)
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            raise InputError("expected KEY=VALUE", where=f"--set {text}")
        try:
            value = json.loads(raw)
        except json.JSONDecodeError:
            value = raw
        node: Any = data
        *parents, last = key.strip().split(".")
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
            if node is None:
                raise InputError(f"unknown key {parent!r}", where=f"--set {text}")
        if not isinstance(node, dict) or last not in node:
            raise InputError(f"unknown key {last!r}", where=f"--set {text}")
        node[last] = value
    return from_dict(type(config), data)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where=where)
    if origin is Literal:
        if value in args and type(value) is type(args[args.index(value)]):
            return value
        raise InputError(
            f"unknown value {value!r}", where=where, remedy="Choose one of " + ", ".join(map(str, args)) + "."
        )
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


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError("expected a list", where=where, why=f"found {value!r}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(value) != len(args):
        raise InputError(f"expected {len(args)} values", where=where, why=f"found {len(value)}")
    return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
