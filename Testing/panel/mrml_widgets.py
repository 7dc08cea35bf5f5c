"""Stand-ins for Slicer's qMRML widgets that the panel uses, over the real scene of slicer-core.

Properties, signals and methods are those of the real ones; what the panel does not need is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from PySide6 import QtCore, QtGui, QtWidgets

from Testing.panel.pythonqt import offer

NODE = "vtkMRMLNode*"


def _stored(kind: type, name: str, default: Any) -> Any:
    """A property that is only remembered."""

    def read(self: Any) -> Any:
        return getattr(self, f"_{name}", default)

    def write(self: Any, value: Any) -> None:
        setattr(self, f"_{name}", value)

    return QtCore.Property(kind, read, write)


@offer
class qMRMLWidget(QtWidgets.QWidget):
    """A widget that knows the scene."""

    SIGNALS: ClassVar = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}
    mrmlSceneChanged = QtCore.Signal(object)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


class _Observing:
    """Observes VTK objects as long as its widget lives."""

    def __init__(self) -> None:
        self._tags: list[tuple[Any, int]] = []

    def watch(self, what: Any, events: tuple[Any, ...], call: Callable[[], None]) -> None:
        """Observe one object, and no other any more."""
        for watched, tag in self._tags:
            watched.RemoveObserver(tag)
        self._tags = [] if what is None else [(what, what.AddObserver(event, lambda *_: call())) for event in events]

    def watch_segments(self, node: Any, call: Callable[[], None]) -> None:
        """Observe the segments of a segmentation node, or nothing."""
        segmentation = node.GetSegmentation() if node is not None else None
        kinds = type(segmentation)
        events = () if node is None else (kinds.SegmentAdded, kinds.SegmentRemoved, kinds.SegmentModified)
        self.watch(segmentation, events, call)


@offer
class qMRMLNodeComboBox(QtWidgets.QWidget):
    """Lists the nodes of the scene of some classes; the chosen one follows the scene."""

    SIGNALS: ClassVar = {
        f"currentNodeChanged({NODE})": "currentNodeChanged",
        "currentNodeIDChanged(QString)": "currentNodeIDChanged",
        f"nodeActivated({NODE})": "nodeActivated",
    }
    nodeActivated = QtCore.Signal(object)
    currentNodeChanged = QtCore.Signal(object)
    currentNodeIDChanged = QtCore.Signal(str)
    noneEnabled = _stored(bool, "noneEnabled", False)
    addEnabled = _stored(bool, "addEnabled", True)
    removeEnabled = _stored(bool, "removeEnabled", True)
    editEnabled = _stored(bool, "editEnabled", False)
    renameEnabled = _stored(bool, "renameEnabled", False)
    showHidden = _stored(bool, "showHidden", False)
    showChildNodeTypes = _stored(bool, "showChildNodeTypes", True)
    selectNodeUponCreation = _stored(bool, "selectNodeUponCreation", True)
    noneDisplay = _stored(str, "noneDisplay", "None")
    baseName = _stored(str, "baseName", "")

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene, self._node = None, None
        self._types: list[str] = []
        self._observing = _Observing()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._list = QtWidgets.QComboBox()
        self._list.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        layout.addWidget(self._list)
        QtCore.QObject.connect(self._list, QtCore.SIGNAL("activated(int)"), self._chosen)

    def _get_types(self) -> list[str]:
        return self._types

    def _set_types(self, types: list[str]) -> None:
        self._types = list(types)
        self._fill()

    nodeTypes = QtCore.Property("QStringList", _get_types, _set_types)

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        import slicer

        self._scene = scene
        kinds = slicer.vtkMRMLScene
        events = (kinds.NodeAddedEvent, kinds.NodeRemovedEvent, kinds.EndBatchProcessEvent)
        self._observing.watch(scene, events, self._fill)
        self._fill()

    def _nodes(self) -> list[Any]:
        from Testing.slicer import environment

        return [node for kind in self._types for node in environment.nodes(kind) if not node.GetHideFromEditors()]

    def _fill(self) -> None:
        if self._scene is None:
            return
        nodes = self._nodes()
        node = self._node if any(node is self._node for node in nodes) else None
        if node is None and nodes and not self.noneEnabled:
            node = nodes[0]
        self._list.clear()
        if self.noneEnabled or not nodes:
            self._list.addItem(self.noneDisplay, "")
        for listed in nodes:
            self._list.addItem(listed.GetName(), listed.GetID())
        self._become(node)

    def _chosen(self, _index: int) -> None:
        self.setCurrentNodeID(self._list.currentData)
        self.nodeActivated.emit(self._node)

    def _become(self, node: Any) -> None:
        self._list.setCurrentIndex(max(self._list.findData(node.GetID() if node else ""), 0))
        if node is not self._node:
            self._node = node
            self.currentNodeChanged.emit(node)
            self.currentNodeIDChanged.emit(node.GetID() if node else "")

    def currentNode(self) -> Any:
        return self._node

    def setCurrentNode(self, node: Any) -> None:
        nodes = self._nodes() if self._scene is not None else []
        self._become(node if any(node is listed for listed in nodes) else None)

    def setCurrentNodeID(self, node_id: str) -> None:
        self.setCurrentNode(self._scene.GetNodeByID(node_id) if node_id else None)

    def choose(self, node: Any) -> None:
        """For tests: choose a node in the list, as a user does."""
        self._list.setCurrentIndex(self._list.findData(node.GetID() if node else ""))
        self._list.activated.emit(self._list.currentIndex)


@offer
class qMRMLSegmentsTableView(qMRMLWidget):
    """The segments of a segmentation with their colours; the selected ones."""

    SIGNALS: ClassVar = {"selectionChanged(QItemSelection,QItemSelection)": "selectionChanged"}
    selectionChanged = QtCore.Signal(object, object)
    selectionMode = _stored(int, "selectionMode", 3)
    headerVisible = _stored(bool, "headerVisible", True)
    visibilityColumnVisible = _stored(bool, "visibilityColumnVisible", True)
    colorColumnVisible = _stored(bool, "colorColumnVisible", True)
    opacityColumnVisible = _stored(bool, "opacityColumnVisible", True)
    statusColumnVisible = _stored(bool, "statusColumnVisible", False)
    layerColumnVisible = _stored(bool, "layerColumnVisible", False)
    filterBarVisible = _stored(bool, "filterBarVisible", False)
    readOnly = _stored(bool, "readOnly", False)
    jumpToSelectedSegmentEnabled = _stored(bool, "jumpToSelectedSegmentEnabled", False)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node, self._observing = None, _Observing()
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._table = QtWidgets.QListWidget()
        layout.addWidget(self._table)
        selection = QtCore.SIGNAL("itemSelectionChanged()")
        QtCore.QObject.connect(self._table, selection, lambda: self.selectionChanged.emit(None, None))

    def segmentationNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        self._node = node
        self._observing.watch_segments(node, self._fill)
        self._fill()

    def _fill(self) -> None:
        selected = self.selectedSegmentIDs()
        before = self._table.blockSignals(True)
        self._table.clear()
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        for segment_id in segmentation.GetSegmentIDs() if segmentation is not None else ():
            segment = segmentation.GetSegment(segment_id)
            pixmap = QtGui.QPixmap(14, 14)
            pixmap.fill(QtGui.QColor.fromRgbF(*segment.GetColor()))
            item = QtWidgets.QListWidgetItem(QtGui.QIcon(pixmap), segment.GetName())
            item.setData(QtCore.Qt.ItemDataRole.UserRole, segment_id)
            self._table.addItem(item)
        self._table.blockSignals(before)
        self.setSelectedSegmentIDs([segment_id for segment_id in selected if segment_id in self._ids()])

    def _ids(self) -> list[str]:
        count = QtWidgets.QListWidget.count.__get__(self._table)
        return [self._table.item(row).data(QtCore.Qt.ItemDataRole.UserRole) for row in range(count)]

    def selectedSegmentIDs(self) -> list[str]:
        return [item.data(QtCore.Qt.ItemDataRole.UserRole) for item in self._table.selectedItems()]

    def setSelectedSegmentIDs(self, segment_ids: list[str]) -> None:
        before = self.selectedSegmentIDs()
        self._table.blockSignals(True)
        for row, segment_id in enumerate(self._ids()):
            self._table.item(row).setSelected(segment_id in segment_ids)
        self._table.blockSignals(False)
        if self.selectedSegmentIDs() != before:
            self.selectionChanged.emit(None, None)


@offer
class qMRMLSegmentSelectorWidget(qMRMLWidget):
    """A list of the segments of a segmentation, of which one is chosen."""

    SIGNALS: ClassVar = {"currentSegmentChanged(QString)": "currentSegmentChanged"}
    currentSegmentChanged = QtCore.Signal(str)
    noneEnabled = _stored(bool, "noneEnabled", False)
    segmentationNodeSelectorVisible = _stored(bool, "segmentationNodeSelectorVisible", True)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node, self._observing = None, _Observing()
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._list = QtWidgets.QComboBox()
        layout.addWidget(self._list)

    def currentNode(self) -> Any:
        return self._node

    def setCurrentNode(self, node: Any) -> None:
        self._node = node
        self._observing.watch_segments(node, self._fill)
        self._fill()

    def _fill(self) -> None:
        current = self.currentSegmentID()
        self._list.clear()
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        for segment_id in segmentation.GetSegmentIDs() if segmentation is not None else ():
            self._list.addItem(segmentation.GetSegment(segment_id).GetName(), segment_id)
        self.setCurrentSegmentID(current)

    def currentSegmentID(self) -> str:
        return self._list.currentData or ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        self._list.setCurrentIndex(max(self._list.findData(segment_id), 0))


@offer
class qMRMLSegmentationShow3DButton(QtWidgets.QPushButton):
    """Shows a segmentation in 3-D."""

    locked = _stored(bool, "locked", False)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node = None
        self.setCheckable(True)

    def segmentationNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        self._node = node


WIDGETS = (
    qMRMLWidget,
    qMRMLNodeComboBox,
    qMRMLSegmentsTableView,
    qMRMLSegmentSelectorWidget,
    qMRMLSegmentationShow3DButton,
)
