"""What the Slicer application would have set up, on slicer-core: the scene, the application and module logics.

Everything underneath is Slicer's own C++. Stand-ins are only `slicer.app`, `slicer.modules.NAME.logic()` and
`slicer.parameterNodeWrapper`. Nothing here needs a display, Qt, or pytest.
"""

from __future__ import annotations

import shutil
import tempfile
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from Testing.slicer import parameter_node_wrapper

MODULES = {
    "colors": ("Colors", "vtkMRMLColorLogic"),
    "subjecthierarchy": ("SubjectHierarchy", "vtkSlicerSubjectHierarchyModuleLogic"),
    "volumes": ("Volumes", "vtkSlicerVolumesLogic"),
    "markups": ("Markups", "vtkSlicerMarkupsLogic"),
    "transforms": ("Transforms", "vtkSlicerTransformLogic"),
    "models": ("Models", "vtkSlicerModelsLogic"),
    "tables": ("Tables", "vtkSlicerTablesLogic"),
    "segmentations": ("Segmentations", "vtkSlicerSegmentationsModuleLogic"),
}
"""Name in `slicer.modules`, name that the application logic knows, class of the logic."""


class _Module:
    """`slicer.modules.NAME`, as far as a logic goes."""

    def __init__(self, name: str, logic: Any) -> None:
        self.name, self._logic = name, logic

    def logic(self) -> Any:
        return self._logic


@dataclass(kw_only=True)
class _Application:
    """`slicer.app`, as far as slicer.util and the module ask for it."""

    logic: Any
    temporaryPath: str
    applicationName: str = "Slicer"
    majorVersion: int = 5
    minorVersion: int = 13
    kept: list[Any] = field(default_factory=list)
    """What nobody else refers to and must live as long as the process."""

    def applicationLogic(self) -> Any:
        return self.logic

    def mrmlScene(self) -> Any:
        import slicer

        return slicer.mrmlScene

    def processEvents(self, *_flags: int) -> None:
        pass

    def pauseRender(self) -> None:
        pass

    def resumeRender(self) -> None:
        pass


def start() -> Any:
    """The scene of this process, with everything around it; made by the first call."""
    import slicer
    import vtk

    if getattr(slicer, "mrmlScene", None) is not None:
        return slicer.mrmlScene
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerApplicationLogic()
    folder = tempfile.mkdtemp(prefix="masksam-test-slicer-")
    logic.SetMRMLScene(scene)
    logic.SetTemporaryPath(folder)
    logic.GetColorLogic().SetMRMLScene(scene)
    logic.GetColorLogic().AddDefaultColorNodes()
    logic.SetSliceLogics(vtk.vtkCollection())
    logic.SetViewLogics(vtk.vtkCollection())
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    for factory in (
        slicer.vtkMRMLThreeDViewDisplayableManagerFactory,
        slicer.vtkMRMLSliceViewDisplayableManagerFactory,
    ):
        factory.GetInstance().SetMRMLApplicationLogic(logic)
    slicer.mrmlScene = scene
    slicer.app = _Application(logic=logic, temporaryPath=folder)
    slicer.modules = types.SimpleNamespace()
    for key, (name, kind) in MODULES.items():
        module = getattr(slicer, kind)()
        module.SetMRMLScene(scene)
        module.SetMRMLApplicationLogic(logic)
        logic.SetModuleLogic(name, module)
        setattr(slicer.modules, key, _Module(name, module))
    slicer.app.kept += _remote_io(scene, logic, folder)
    parameter_node_wrapper.install()
    slicer.parameterNodeWrapper = parameter_node_wrapper
    return scene


def _remote_io(scene: Any, logic: Any, folder: str) -> tuple[Any, Any]:
    """What `ReadFromMRB` asks the scene for: a data IO manager with its cache."""
    import slicer

    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.SetMRMLScene(scene)
    remote.SetMRMLApplicationLogic(logic)
    remote.GetCacheManager().SetRemoteCacheDirectory(folder)
    manager = slicer.vtkDataIOManagerLogic()
    manager.SetMRMLScene(scene)
    manager.SetMRMLApplicationLogic(logic)
    manager.SetAndObserveDataIOManager(remote.GetDataIOManager())
    remote.AddDataIOToScene()
    return remote, manager


def clear() -> Any:
    """Close the scene as File > Close Scene does, and remove what Slicer keeps from one scene to the next."""
    import slicer

    scene = start()
    scene.Clear(False)
    for kind in ("vtkMRMLScriptedModuleNode", "vtkMRMLSliceNode", "vtkMRMLViewNode", "vtkMRMLSliceCompositeNode"):
        for node in nodes(kind):
            scene.RemoveNode(node)
    slicer.app.logic.GetSliceLogics().RemoveAllItems()
    slicer.app.logic.GetViewLogics().RemoveAllItems()
    return scene


def stop() -> None:
    """Remove the process's temporary folder."""
    import slicer

    if getattr(slicer, "app", None) is not None:
        shutil.rmtree(slicer.app.temporaryPath, ignore_errors=True)


@contextmanager
def observers(node: Any) -> Iterator[dict[int, str]]:
    """What Python lets observe a node inside, and has not removed yet: name of the callable by tag."""
    add, remove = node.AddObserver, node.RemoveObserver
    tags: dict[int, str] = {}

    def added(event: Any, heard: Any, *priority: float) -> int:
        tag: int = add(event, heard, *priority)
        tags[tag] = getattr(heard, "__qualname__", repr(heard))
        return tag

    def removed(tag: Any) -> None:
        tags.pop(tag, None)
        remove(tag)

    node.AddObserver, node.RemoveObserver = added, removed
    try:
        yield tags
    finally:
        node.AddObserver, node.RemoveObserver = add, remove


def nodes(kind: str) -> list[Any]:
    """All nodes of a class, subclasses included."""
    import slicer

    found = slicer.mrmlScene.GetNodesByClass(kind)
    found.UnRegister(None)
    return [found.GetItemAsObject(index) for index in range(found.GetNumberOfItems())]


def save_scene(path: Path) -> Path:
    """Write the scene as .mrb."""
    import slicer

    scene = slicer.mrmlScene
    for node in nodes("vtkMRMLStorableNode"):
        if node.GetSaveWithScene() and not node.GetStorageNode():
            node.AddDefaultStorageNode()
    scene.SetURL(str(path))
    scene.SetRootDirectory(str(path.parent))
    if not scene.WriteToMRB(str(path)):
        raise OSError(f"{path} was not written")
    return path


def open_scene(path: Path) -> Any:
    """Close the scene and read another one from .mrb."""
    scene = clear()
    if not scene.ReadFromMRB(str(path), True):
        raise OSError(f"{path} was not read")
    return scene


def parameter_node(module: str = "SlicerMaskSAM") -> Any:
    """The module's parameter node, found or made the way ScriptedLoadableModuleLogic does."""
    import slicer

    found = slicer.mrmlScene.GetSingletonNode(module, "vtkMRMLScriptedModuleNode")
    if found is not None:
        return found
    node = slicer.vtkMRMLScriptedModuleNode()
    node.SetSingletonTag(module)
    node.SetModuleName(module)
    node.SetName(slicer.mrmlScene.GenerateUniqueName(module))
    return slicer.mrmlScene.AddNode(node)


def add_volume(array: np.ndarray, affine: np.ndarray | None = None, name: str = "Volume") -> Any:
    """A scalar volume node from (K, J, I) voxels and ijk to RAS mm."""
    import slicer.util

    affine = np.eye(4) if affine is None else affine
    return slicer.util.addVolumeFromArray(array, ijkToRAS=affine, name=name)


def load_volume(path: Path | str, name: str = "Volume") -> Any:
    """A scalar volume node from a file, as the Add Data dialog loads it."""
    import slicer

    volume = slicer.modules.volumes.logic().AddArchetypeVolume(str(path), name, 0)
    if volume is None:
        raise OSError(f"{path} was not loaded")
    return volume


def load_dicom(files: Sequence[Path | str], name: str = "Series") -> tuple[Any, dict[str, str]]:
    """A volume from the files of one series, as the DICOM module loads it.

    Returns:
        The volume, with its `DICOM.instanceUIDs`, and the files by instance UID (what the DICOM database knows).
    """
    import pydicom
    import slicer
    import vtk

    headers = {str(path): pydicom.dcmread(path, stop_before_pixels=True) for path in files}
    normal = np.cross(*np.reshape(next(iter(headers.values())).ImageOrientationPatient, (2, 3)).astype(float))
    ordered = sorted(headers, key=lambda path: float(normal @ np.array(headers[path].ImagePositionPatient, float)))
    names = vtk.vtkStringArray()
    for path in ordered:
        names.InsertNextValue(path)
    volume = slicer.modules.volumes.logic().AddArchetypeVolume(ordered[0], name, 0, names)
    if volume is None:
        raise OSError(f"the series of {ordered[0]} was not loaded")
    volume.SetAndObserveStorageNodeID(None)  # Slicer's DICOM plugin makes none
    uids = [str(headers[path].SOPInstanceUID) for path in ordered]
    volume.SetAttribute("DICOM.instanceUIDs", " ".join(uids))
    return volume, dict(zip(uids, ordered, strict=True))


def add_transform(matrix: np.ndarray, *nodes: Any, name: str = "Transform") -> Any:
    """A linear transform to parent, 4 x 4 mm RAS, over the given nodes."""
    import slicer
    import slicer.util

    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    slicer.util.updateTransformMatrixFromArray(transform, matrix)
    for node in nodes:
        node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def add_grid_transform(displacement: np.ndarray, grid: np.ndarray, *nodes: Any, name: str = "Grid transform") -> Any:
    """A displacement field to parent over the given nodes.

    Args:
        displacement: (K, J, I, 3), mm along R, A and S.
        grid: ijk of the field to RAS mm.
        nodes: What is put under it.
        name: Of the transform node.
    """
    import slicer
    import slicer.util
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    spacing = np.linalg.norm(grid[:3, :3], axis=0)
    directions = np.eye(4)
    directions[:3, :3] = grid[:3, :3] / spacing
    image = vtk.vtkImageData()
    image.SetDimensions(*displacement.shape[2::-1])
    image.SetSpacing(*spacing)
    image.SetOrigin(*grid[:3, 3])
    image.GetPointData().SetScalars(numpy_to_vtk(displacement.reshape(-1, 3).astype(np.float64), deep=True))
    field = slicer.vtkOrientedGridTransform()
    field.SetDisplacementGridData(image)
    field.SetGridDirectionMatrix(slicer.util.vtkMatrixFromArray(directions))
    field.SetInterpolationModeToCubic()
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode", name)
    transform.SetAndObserveTransformToParent(field)
    for node in nodes:
        node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def affine(
    *, spacing: Sequence[float] = (1, 1, 1), angles: Sequence[float] = (0, 0, 0), origin: Sequence[float] = (0, 0, 0)
) -> np.ndarray:
    """ijk to RAS mm of a grid that is turned about R, then A, then S, degrees."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[b, a], turn[a, b] = np.sin(angle), -np.sin(angle)
        turned = turn @ turned
    out = np.eye(4)
    out[:3, :3] = turned @ np.diag(np.asarray(spacing, float))
    out[:3, 3] = origin
    return out
