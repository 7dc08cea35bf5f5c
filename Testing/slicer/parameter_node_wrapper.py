"""A strict stand-in for `slicer.parameterNodeWrapper`, which comes with the Slicer application only.

Values lie in a real vtkMRMLScriptedModuleNode where Slicer would put them, so that they go through .mrml and .mrb.
What Slicer's refuses is refused here (`X | None` among it: annotate a node's plain type, None is always allowed);
names that are no parameters, which Slicer's lets pass, are refused too.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Iterable, MutableSequence
from contextlib import contextmanager
from enum import Enum
from typing import Any


class Default:
    """Annotation that gives a parameter its default: `Annotated[int, Default(3)]`."""

    def __init__(self, value: Any = None, *, generator: Callable[[], Any] | None = None) -> None:
        self._value, self._generator = value, generator

    @property
    def value(self) -> Any:
        """The default, made anew where there is a generator."""
        return self._generator() if self._generator else self._value


@contextmanager
def _one_event(node: Any) -> Any:
    before = node.StartModify()
    try:
        yield
    finally:
        node.EndModify(before)


class _Text:
    """A parameter that is stored as one text."""

    def __init__(self, kind: type, default: Any, write: Callable[[Any], str], read: Callable[[str], Any]) -> None:
        self.kind, self.default, self._write, self._read = kind, default, write, read

    def check(self, value: Any) -> None:
        if value is None:
            raise ValueError("Value must not be None")
        allowed = (int, float) if self.kind is float else self.kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and self.kind is not bool):
            raise TypeError(f"Value must be of type {self.kind}, is {value!r}")

    def has(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(name))

    def read(self, node: Any, name: str) -> Any:
        return self._read(node.GetParameter(name))

    def write(self, node: Any, name: str, value: Any) -> None:
        self.check(value)
        node.SetParameter(name, self._write(value))

    def remove(self, node: Any, name: str) -> None:
        node.UnsetParameter(name)


class _Node:
    """A node of the scene, stored as a node reference beside an empty parameter of the same name."""

    default = None

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def has(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(name))

    def read(self, node: Any, name: str) -> Any:
        return node.GetNodeReference(name)

    def write(self, node: Any, name: str, value: Any) -> None:
        if value is not None and not isinstance(value, self.kind):
            raise TypeError(f"Value must be of type {self.kind}, is {type(value)}")
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)


class _List:
    """A list, stored as `name.len`, `name.0`, ..."""

    def __init__(self, element: _Text) -> None:
        self._element = element

    @property
    def default(self) -> list[Any]:
        return []

    def has(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(f"{name}.len"))

    def read(self, node: Any, name: str) -> ObservedList:
        count = int(node.GetParameter(f"{name}.len"))
        values = [self._element.read(node, f"{name}.{index}") for index in range(count)]
        return ObservedList(values, lambda changed: self.write(node, name, changed))

    def write(self, node: Any, name: str, values: Iterable[Any]) -> None:
        values = list(values)
        for value in values:
            self._element.check(value)
        before = int(node.GetParameter(f"{name}.len")) if self.has(node, name) else 0
        with _one_event(node):
            for index, value in enumerate(values):
                self._element.write(node, f"{name}.{index}", value)
            node.SetParameter(f"{name}.len", str(len(values)))
            for index in range(len(values), before):
                self._element.remove(node, f"{name}.{index}")


class ObservedList(MutableSequence):
    """A list parameter; its changes are stored. Like Slicer's it is no `list` and cannot be added to one."""

    def __init__(self, values: list[Any], save: Callable[[list[Any]], None]) -> None:
        self._values, self._save = values, save

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._values[index] = value
        self._save(self._values)

    def __delitem__(self, index: Any) -> None:
        del self._values[index]
        self._save(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return self._values == (other._values if isinstance(other, ObservedList) else other)

    __hash__ = None  # type: ignore[assignment]

    def insert(self, index: int, value: Any) -> None:
        """Put a value before the one at `index`."""
        self._values.insert(index, value)
        self._save(self._values)


_Storage = _Text | _Node | _List


def _storage(kind: Any) -> _Storage:
    """How a type is stored; raises as Slicer does where it cannot be."""
    import slicer

    if typing.get_origin(kind) is list:
        element = _storage(typing.get_args(kind)[0])
        if isinstance(element, _Text):
            return _List(element)
    elif isinstance(kind, type) and not isinstance(kind, types.GenericAlias):
        if kind is bool:
            return _Text(bool, False, lambda value: "True" if value else "False", lambda text: text == "True")
        if kind in (int, float):
            return _Text(kind, 0, str, kind)
        if kind is str:
            return _Text(str, "", str, str)
        if issubclass(kind, Enum):
            return _Text(kind, next(iter(kind)), lambda value: value.name, _member(kind))
        if issubclass(kind, slicer.vtkMRMLNode):
            return _Node(kind)
    raise TypeError(f"Unable to create serializer for type: {kind}")


def _member(kind: type[Enum]) -> Callable[[str], Enum]:
    def read(text: str) -> Enum:
        if text not in kind.__members__:
            raise ValueError(f"Found {text!r} in parameter node but it is not a name in {kind}")
        return kind[text]

    return read


def _annotated(hint: Any, owner: type, name: str) -> tuple[_Storage, Default]:
    """Storage and default of one annotated attribute."""
    kind, *notes = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    storage = _storage(kind)
    if name in vars(owner):
        return storage, Default(vars(owner)[name])
    defaults = [note for note in notes if isinstance(note, Default)]
    return storage, defaults[0] if defaults else Default(storage.default)


_KEPT: list[Any] = []
"""Nodes with observers: the garbage collector would empty the wrapper of one that nobody else holds."""


class _Wrapper:
    """What the decorated class becomes: typed attributes over a parameter node."""

    allParameters: typing.ClassVar[dict[str, tuple[_Storage, Default]]] = {}

    def __init__(self, parameterNode: Any, prefix: str | None = None) -> None:
        self.parameterNode = parameterNode
        self._prefix = prefix or ""
        self._values: dict[str, Any] = {}
        self._writing = False
        self._read_all()
        parameterNode.AddObserver("ModifiedEvent", self._on_modified)
        _KEPT.append(parameterNode)

    def _read_all(self) -> None:
        for name, (storage, default) in self.allParameters.items():
            if not storage.has(self.parameterNode, self._prefix + name):
                storage.write(self.parameterNode, self._prefix + name, default.value)
            self._values[name] = storage.read(self.parameterNode, self._prefix + name)

    def _on_modified(self, _caller: Any, _event: str) -> None:
        if not self._writing:
            self._writing = True
            try:
                self._read_all()
            finally:
                self._writing = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.allParameters and name != "parameterNode" and not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no parameter {name!r}")
        super().__setattr__(name, value)

    def _checked(self, name: str) -> str:
        if name not in self.allParameters:
            raise ValueError(f"Cannot find a param with the given name: {name}")
        return name

    def getValue(self, name: str) -> Any:
        """The value of a parameter."""
        return self._values[self._checked(name)]

    def setValue(self, name: str, value: Any) -> None:
        """Store a value; observers of the node see it already in place."""
        storage, _ = self.allParameters[self._checked(name)]
        self._writing = True
        try:
            with _one_event(self.parameterNode):
                storage.write(self.parameterNode, self._prefix + name, value)
                self._values[name] = storage.read(self.parameterNode, self._prefix + name)
        finally:
            self._writing = False

    def default(self, name: str) -> Default:
        """The default of a parameter; its `value` is what a new node gets."""
        return self.allParameters[self._checked(name)][1]

    def StartModify(self) -> int:
        """Hold the node's ModifiedEvent back."""
        return self.parameterNode.StartModify()

    def EndModify(self, before: int) -> int:
        """Send the event that was held back."""
        return self.parameterNode.EndModify(before)

    def AddObserver(self, event: Any, callback: Callable[..., None], priority: float = 0.0) -> int:
        """Observe the node."""
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        """Observe it no more."""
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        """Send the node's ModifiedEvent."""
        self.parameterNode.Modified()


def _property(name: str) -> property:
    return property(lambda self: self.getValue(name), lambda self, value: self.setValue(name, value))


def parameterNodeWrapper(decorated: type) -> type:
    """Class decorator: annotated attributes become parameters of a vtkMRMLScriptedModuleNode."""
    hints = typing.get_type_hints(decorated, include_extras=True)
    parameters = {name: _annotated(hint, decorated, name) for name, hint in hints.items()}
    taken = sorted(name for name in parameters if hasattr(_Wrapper, name))
    if taken:
        raise ValueError(f"Cannot use reserved name {taken[0]!r} in a parameterNodeWrapper")
    kept = {name: value for name, value in vars(decorated).items() if name not in ("__dict__", "__weakref__")}
    body = kept | {name: _property(name) for name in parameters} | {"allParameters": parameters}
    return type(decorated.__name__, (_Wrapper,), body)


def isParameterNodeWrapper(what: Any) -> bool:
    """Whether a class, or an object of one, was decorated."""
    return hasattr(what, "allParameters")


def install() -> None:
    """Make `from slicer.parameterNodeWrapper import parameterNodeWrapper` find this module."""
    sys.modules.setdefault("slicer.parameterNodeWrapper", sys.modules[__name__])
