"""The module `qt` as PythonQt offers it inside Slicer, over PySide6; for tests without the Slicer application.

What PySide6 lets pass and PythonQt does not is closed, so that a mistake shows here:

* A Qt property is an attribute (`button.text`, not `button.text()`); an attribute that is none raises AttributeError.
* `connect("signal(types)", slot)` wants the exact signature of C++ and returns False where there is none.
* A slot gets as many arguments as its function takes, all of them where it takes `*args`: `clicked` hands over False.
* Enums are ints, and lie flat: `qt.Qt.Checked`, on instances as well.
* `isinstance(button, qt.QWidget)` is False, only the class itself is true.
* There is neither `Signal` nor `Slot` nor `Property`.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import sys
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from enum import EnumType
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.pyside6_option_python_enum = 0x2  # type: ignore[attr-defined]  # every enum an IntEnum

from PySide6 import QtCore, QtGui, QtSvg, QtUiTools, QtWidgets  # noqa: E402

VIRTUAL = {"sizeHint", "minimumSizeHint"}
"""Properties that C++ reads through a virtual function, which a Python attribute would override."""
NOT_OFFERED = {"Signal", "Slot", "Property", "SignalInstance", "QtWidgets", "QtGui", "QtCore"}
STAND_INS = {"Testing.panel.ctk_widgets", "Testing.panel.mrml_widgets"}

_wrapped: set[type] = set()
_own_get: dict[type, Callable] = {}
_custom: dict[str, type] = {}
_slots: dict[tuple[int, str, Any], tuple[Any, Callable]] = {}

if sys.version_info < (3, 12):
    # PySide6 6.12 returns a reference to None too many with every click, and None is not immortal yet.
    ctypes.c_ssize_t.from_address(id(None)).value += 1 << 30


def wrap(kind: type) -> None:
    """Make a QObject class behave as PythonQt's wrapper of it."""
    _wrapped.add(kind)
    if "__getattribute__" in vars(kind):
        _own_get[kind] = vars(kind)["__getattribute__"]
    meta = kind.staticMetaObject  # type: ignore[attr-defined]
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(index).name()
        if name not in VIRTUAL and not isinstance(vars(kind).get(name), QtCore.Property):
            setattr(kind, name, _property(name))
    kind.__setattr__ = _set  # type: ignore[assignment,method-assign]
    kind.__getattribute__ = _get  # type: ignore[assignment,method-assign]


def offer(kind: type) -> type:
    """Class decorator: a stand-in for a widget class of C++, which .ui files may name."""
    wrap(kind)
    _custom[kind.__name__] = kind
    return kind


def _property(name: str) -> property:
    def read(self: Any) -> Any:
        return QtCore.QObject.property(self, name)

    def write(self: Any, value: Any) -> None:
        if not QtCore.QObject.setProperty(self, name, value):
            raise ValueError(f"property {name} cannot be set to {value!r}")

    return property(read, write)


def _set(self: Any, name: str, value: Any) -> None:
    kind = type(self)
    found = inspect.getattr_static(kind, name, None)
    if isinstance(found, property):
        found.__set__(self, value)
    elif isinstance(found, QtCore.Property):
        QtCore.QObject.setProperty(self, name, value)
    elif kind in _wrapped and not _set_by_pyside(kind, name, value):
        raise AttributeError(f"Attribute '{name}' does not exist or is not a property of {kind.__name__}")
    else:
        self.__dict__[name] = value


def _set_by_pyside(kind: type, name: str, value: Any) -> bool:
    """Whether an attribute is set by PySide6 itself or by a stand-in, not by the code under test."""
    own = kind.__module__ in STAND_INS and name.startswith("_")
    return own or UiLoader.busy or isinstance(value, QtCore.SignalInstance)


def _get(self: Any, name: str) -> Any:
    # Shiboken finds its own connect before any that a class is given.
    if name in ("connect", "disconnect"):
        return types.MethodType(_connect if name == "connect" else _disconnect, self)
    if name == "name":
        return QtCore.QObject.property(self, "objectName")
    return _plain_get(self, name)


def _plain_get(what: Any, name: str) -> Any:
    """An attribute as PySide6 itself finds it."""
    return next(_own_get[kind] for kind in type(what).__mro__ if kind in _own_get)(what, name)


def _accepted(slot: Callable) -> int | None:
    """How many arguments PythonQt hands to a slot; None for all."""
    function = slot.__func__ if inspect.ismethod(slot) else slot
    if not inspect.isfunction(function) or function.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return function.__code__.co_argcount - inspect.ismethod(slot)


def _signal(sender: Any, signature: str) -> tuple[Any, int] | None:
    """A signal of an object by its C++ signature, and how many arguments that has."""
    name, _, rest = signature.partition("(")
    kinds = [kind for kind in rest.rstrip(")").split(",") if kind]
    declared = getattr(type(sender), "SIGNALS", {}).get(signature)
    normal = QtCore.QMetaObject.normalizedSignature(signature).toStdString()
    if declared is None and sender.metaObject().indexOfSignal(normal) < 0:
        return None
    return _plain_get(sender, declared or name), len(kinds)


def _connect(self: Any, signature: str, slot: Callable) -> bool:
    found = _signal(self, signature)
    if found is None or not callable(slot):
        return False
    signal, given = found
    accepted = _accepted(slot)
    count = given if accepted is None else min(given, accepted)

    # PySide6 looks at how many arguments a slot takes before it chooses what to send.
    call = (
        (lambda: slot()),
        (lambda first: slot(*(first,)[:count])),
        (lambda first, second: slot(*(first, second)[:count])),
    )[given]
    _slots[id(self), signature, slot] = self, call
    signal.connect(call)
    return True


def _disconnect(self: Any, signature: str, slot: Callable) -> bool:
    found, kept = _signal(self, signature), _slots.pop((id(self), signature, slot), None)
    if found is None or kept is None:
        return False
    found[0].disconnect(kept[1])
    return True


class UiLoader(QtUiTools.QUiLoader):
    """Loads .ui files with the classes that `offer` was told of, and makes their connections."""

    busy = False
    """While PySide6 gives the children's names to the parent as attributes, which PythonQt does not."""

    def createWidget(self, kind: str, parent: Any = None, name: str = "") -> Any:
        if kind in _custom:
            widget = _custom[kind](parent)
            widget.objectName = name
            return widget
        return super().createWidget(kind, parent, name)

    def load(self, file: Any) -> Any:
        """The widget of a file that is open; raises where the file names what does not exist."""
        tree = ElementTree.fromstring(bytes(file.readAll().data()))
        for custom in tree.iter("customwidget"):
            if custom.findtext("class") not in _custom:
                raise ValueError(f"no stand-in for {custom.findtext('class')}")
        # Python's signals have no C++ types, by which Qt itself would connect.
        connections = tree.find("connections")
        if connections is not None:
            tree.remove(connections)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(tree))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        UiLoader.busy = True
        widget = super().load(buffer)
        UiLoader.busy = False
        for connection in connections if connections is not None else ():
            self._make(widget, connection)
        return widget

    def _make(self, widget: Any, connection: ElementTree.Element) -> None:
        ends = [connection.findtext(end) for end in ("sender", "receiver")]
        sender, receiver = (widget if widget.name == end else widget.findChild(QtCore.QObject, end) for end in ends)
        signal, slot = connection.findtext("signal") or "", connection.findtext("slot") or ""
        if not sender.connect(signal, getattr(receiver, slot.partition("(")[0])):
            raise ValueError(f"{ends[0]} has no signal {signal}")


def _flat(source: type) -> types.SimpleNamespace:
    """The namespace Qt without the names of its enums in between."""
    flat = types.SimpleNamespace()
    for name in dir(source):
        value = getattr(source, name)
        if isinstance(value, EnumType):
            for member, number in value.__members__.items():
                setattr(flat, member, number)
    return flat


def _is_a(kind: type, what: Any) -> bool:
    if kind in _wrapped:
        return type(what) is kind or (type(what) not in _wrapped and kind in type(what).__mro__)
    return kind in type(what).__mro__


def make() -> types.ModuleType:
    """The module `qt`, with its QApplication."""
    qt = types.ModuleType("qt", __doc__)
    for source in (QtCore, QtGui, QtWidgets, QtSvg):
        for name in dir(source):
            if not name.startswith("_") and name not in NOT_OFFERED:
                setattr(qt, name, getattr(source, name))
    application = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    qt.application = application  # type: ignore[attr-defined]  # kept alive
    for kind in list(vars(qt).values()):
        if inspect.isclass(kind) and QtCore.QObject in kind.__mro__:
            wrap(kind)
    qt.Qt = _flat(QtCore.Qt)  # type: ignore[attr-defined]
    qt.QUiLoader = UiLoader  # type: ignore[attr-defined]
    type(QtCore.QObject).__instancecheck__ = _is_a  # type: ignore[attr-defined]
    return qt
