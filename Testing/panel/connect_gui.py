"""`connectGui` for the stand-in of `slicer.parameterNodeWrapper`: which widget shows which type, as in Slicer."""

from __future__ import annotations

from enum import Enum
from typing import Any

from Testing.slicer import parameter_node_wrapper

PROPERTY = "SlicerParameterName"


class _Link:
    """A parameter and the widget that shows it."""

    def __init__(self, widget: Any, signal: str, attribute: str) -> None:
        self.widget, self.signal, self.attribute = widget, signal, attribute

    def read(self) -> Any:
        return getattr(self.widget, self.attribute)

    def write(self, value: Any) -> None:
        setattr(self.widget, self.attribute, value)


class _NodeLink(_Link):
    def read(self) -> Any:
        return self.widget.currentNode()

    def write(self, value: Any) -> None:
        self.widget.setCurrentNode(value)


class _EnumLink(_Link):
    def __init__(self, widget: Any, kind: type[Enum]) -> None:
        super().__init__(widget, "currentIndexChanged(int)", "currentIndex")
        label = getattr(kind, "label", lambda member: member.name)
        self._members = list(kind)
        widget.clear()
        for member in self._members:
            widget.addItem(label(member))

    def read(self) -> Enum:
        return self._members[self.widget.currentIndex]

    def write(self, value: Enum) -> None:
        self.widget.currentIndex = self._members.index(value)


def _link(widget: Any, kind: type) -> _Link:
    """What shows a type in a widget; raises as Slicer does where nothing can. Subclasses of widgets do not count."""
    import ctk  # noqa: F401  # Slicer's needs it as well
    import qt
    import slicer

    if kind is bool and type(widget) is qt.QCheckBox:
        return _Link(widget, "stateChanged(int)", "checked")
    if kind is bool and type(widget) is qt.QPushButton and widget.checkable:
        return _Link(widget, "toggled(bool)", "checked")
    if kind is str and type(widget) is qt.QLineEdit:
        return _Link(widget, "textChanged(QString)", "text")
    if issubclass(kind, Enum) and type(widget) is qt.QComboBox:
        return _EnumLink(widget, kind)
    if issubclass(kind, slicer.vtkMRMLNode) and type(widget) is slicer.qMRMLNodeComboBox:
        widget.nodeTypes = [kind().GetClassName()]
        return _NodeLink(widget, "currentNodeChanged(vtkMRMLNode*)", "")
    raise RuntimeError(f"Unable to create GUI connector from datatype '{kind}' to widget type '{type(widget)}'")


class _Binding:
    """The widgets of one panel, bound to one parameter node."""

    def __init__(self, wrapper: Any, links: dict[str, _Link]) -> None:
        self._wrapper, self._links, self._writing = wrapper, links, False
        self._slots = {name: self._slot(name, link) for name, link in links.items()}
        self.show()
        for name, link in links.items():
            assert link.widget.connect(link.signal, self._slots[name])
        wrapper.AddObserver("ModifiedEvent", lambda *_: self.show())

    def _slot(self, name: str, link: _Link) -> Any:
        def changed() -> None:
            if not self._writing:
                self._wrapper.setValue(name, link.read())

        return changed

    def show(self) -> None:
        if self._writing:
            return
        self._writing = True
        try:
            for name, link in self._links.items():
                link.write(self._wrapper.getValue(name))
        finally:
            self._writing = False

    def end(self) -> None:
        for name, link in self._links.items():
            link.widget.disconnect(link.signal, self._slots[name])
        self._links = {}


def _connect_gui(self: Any, gui: Any) -> int:
    named = {}
    for widget in vars(gui).values():
        if widget.property(PROPERTY):
            named[widget.property(PROPERTY)] = widget
    links = {}
    for name, widget in named.items():
        storage, _ = self.allParameters[self._checked(name)]
        links[name] = _link(widget, storage.kind)
    bindings = self.__dict__.setdefault("_bindings", {})
    tag = len(bindings)
    bindings[tag] = _Binding(self, links)
    return tag


def _disconnect_gui(self: Any, tag: int) -> None:
    self._bindings[tag].end()


def install() -> None:
    """Give the stand-in its two methods."""
    parameter_node_wrapper._Wrapper.connectGui = _connect_gui  # type: ignore[attr-defined]
    parameter_node_wrapper._Wrapper.disconnectGui = _disconnect_gui  # type: ignore[attr-defined]
