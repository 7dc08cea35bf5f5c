"""The import rules of the project: which folder may import which, and what stays outside altogether."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Every folder of MaskSAMCore is a room. The files beside the folders have rooms too:
FILES = {
    "package": "__init__",
    "base": "errors labels progress",
    "volume": "volume label_statistics volumes_table",
    "terminology": "terminology",
    "device": "device",
    "commandline": "commandline",
    "commands": "__main__ api interactive_session outputs segment prepare train teach evaluate models demo",
}
FOLDERS = (
    "config",
    "preprocessing",
    "losses",
    "evaluation",
    "zoo",
    "io",
    "network",
    "data",
    "inference",
    "training",
    "worker",
)

# What each room may import besides itself.
ALLOWED = {
    "package": {"base", "commands"},
    "base": set(),
    "config": {"base"},
    "volume": {"base"},
    "terminology": {"base", "config"},
    "device": {"base"},
    "commandline": {"base"},
    "io": {"base", "terminology", "volume"},
    "preprocessing": {"base", "config", "volume", "io.grey_reconstruction"},
    "network": {"errors", "config"},
    "losses": {"config", "network.types", "network.boxes", "network.gt_source", "network.backbone"},
    "zoo": {"base", "config", "io", "network"},
    "data": {"base", "config", "terminology", "volume", "io", "preprocessing"},
    "inference": {"base", "config", "device", "volume", "io", "preprocessing", "network", "zoo"},
    "training": {"base", "config", "device", "volume", "io", "preprocessing", "network", "losses", "zoo", "data"},
    "worker": {"base", "commandline", "config", "device", "volume", "io", "network", "zoo", "data", "inference"},
    "evaluation": {
        "base",
        "config",
        "device",
        "volume",
        "io",
        "preprocessing",
        "network",
        "losses",
        "zoo",
        "data",
        "inference",
        "training",
    },
    "commands": {*FILES, *FOLDERS},
}

FILE_LIBRARIES = {"SimpleITK", "pydicom", "highdicom"}
APPLICATION = {"slicer", "qt", "vtk", "ctk"}
HEAVY = {"torch", "torchvision", "SimpleITK"}
LIGHT = dict.fromkeys(("base", "config", "volume", "terminology", "device", "commandline", "zoo", "commands"), HEAVY)
COUNT_ON_NETWORKS = ("zoo/audit.py", "zoo/cost.py")
"""They count on built networks, and are imported where that is asked for."""
CONTOURS = "io/rtstruct.py"
NETWORK_LIBRARIES = {"torch", "torchvision", "segment_anything", "timm", "monai", "einops", "numpy"}
PREPROCESS_LIBRARIES = {"torch", "numpy", "scipy"}
DATA_LIBRARIES = {"torch", "numpy", "scipy"}
THIRD_PARTY = FILE_LIBRARIES | APPLICATION | NETWORK_LIBRARIES | PREPROCESS_LIBRARIES | {
    "cv2", "matplotlib", "nibabel", "safetensors", "skimage", "sklearn", "pandas", "tqdm",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    file_scope: bool


def imports(source: str, package: str) -> Iterator[Import]:
    """Every import of a file, wherever it stands; `package` resolves relative ones."""

    def visit(node: ast.AST, file_scope: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, file_scope) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                parents = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                base = ".".join([*parents, *([child.module] if child.module else [])])
                yield from (Import(f"{base}.{alias.name}", child.lineno, file_scope) for alias in child.names)
            inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            yield from visit(child, file_scope and not inner and not typing_only)

    return visit(ast.parse(source), True)


def room_of(path: Path) -> str:
    """Room of a file given relative to MaskSAMCore."""
    if len(path.parts) > 1:
        return path.parts[0] if path.parts[0] in FOLDERS else ""
    return next((room for room, names in FILES.items() if path.stem in names.split()), "")


def violations(path: Path, source: str) -> list[str]:
    """What a file of MaskSAMCore (path relative to it) imports against the rules."""
    room = room_of(path)
    if not room:
        return [f"{path}: belongs to no room: move it into a folder, or list it in this test"]
    package = ".".join(["MaskSAMCore", *path.parent.parts])
    found = []
    for item in imports(source, package):
        why = _inside(room, item) if item.module.split(".")[0] == "MaskSAMCore" else _outside(room, path, item)
        if why:
            found.append(f"{path}:{item.line}: {item.module}: {why}")
    return found


def _inside(room: str, item: Import) -> str:
    parts = item.module.split(".")[1:]
    if not parts or parts[0].startswith("__"):
        return ""
    target = parts[0] if parts[0] in FOLDERS else room_of(Path(f"{parts[0]}.py"))
    allowed = ALLOWED[room]
    if target == room or target in allowed or parts[0] in allowed or ".".join(parts[:2]) in allowed:
        return ""
    return f"{room} must not import {target or parts[0]}"


def _outside(room: str, path: Path, item: Import) -> str:
    top = item.module.split(".")[0]
    if top in APPLICATION:
        return "the core never imports Slicer, Qt or VTK"
    if top == "cv2":
        return "OpenCV comes in through rt-utils alone"
    if top == "rt_utils" and (path.as_posix() != CONTOURS or item.file_scope):
        return f"only {CONTOURS} uses rt-utils, which brings OpenCV, and only where RTSTRUCT is written"
    if top in FILE_LIBRARIES and room != "io":
        return "only io touches files' libraries"
    if room == "network" and top in THIRD_PARTY - NETWORK_LIBRARIES:
        return "the network imports torch, config and errors only"
    if room == "preprocessing" and top in THIRD_PARTY - PREPROCESS_LIBRARIES:
        return "preprocessing needs numpy, scipy and torch only"
    if room == "data" and top in THIRD_PARTY - DATA_LIBRARIES:
        return "reading the prepared cache needs numpy and torch only"
    light = set() if path.as_posix() in COUNT_ON_NETWORKS else LIGHT.get(room, set())
    if item.file_scope and (top in light or top == "segment_anything"):
        return "not at file scope: it is slow to import"
    return ""


def test_every_room_is_there(repo: Path) -> None:
    core = repo / "MaskSAMCore"
    folders = {p.name for p in core.iterdir() if p.is_dir() and p.name not in ("__pycache__", "_resources")}
    assert folders == set(FOLDERS)
    assert {p.stem for p in core.glob("*.py")} == {name for names in FILES.values() for name in names.split()}


@pytest.mark.slow
def test_every_import_of_the_core_is_allowed(repo: Path) -> None:
    core = repo / "MaskSAMCore"
    files = sorted(p for p in core.rglob("*.py") if "_resources" not in p.parts)
    assert len(files) > 20
    found = [v for p in files for v in violations(p.relative_to(core), p.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


LIBRARY = {
    "values": set(),
    "mrml": {"values"},
    "engine": {"values", "mrml"},
    "work": {"values", "mrml", "engine"},
    "window": {"values", "mrml", "work"},
}
"""The rooms of SlicerMaskSAMLib, and what each may import besides itself."""


def library_violations(path: Path, source: str) -> list[str]:
    """What a file of SlicerMaskSAMLib (path relative to it) imports against the rules."""
    room = path.parts[0]
    if room not in LIBRARY:
        return [f"{path}: belongs to no room"]
    banned = {"torch", "torchvision"} | (set() if room == "window" else {"qt", "ctk"})
    banned |= {"slicer", "vtk"} if room == "values" else set()
    found = []
    for item in imports(source, ".".join(["SlicerMaskSAMLib", *path.parent.parts])):
        parts = item.module.split(".")
        outside = parts[0] == "SlicerMaskSAMLib" and parts[1] != room and parts[1] not in LIBRARY[room]
        if outside or parts[0] in banned:
            found.append(f"{path}:{item.line}: {room} must not import {item.module}")
    return found


def test_every_import_of_the_slicer_library_is_allowed(repo: Path) -> None:
    library = repo / "SlicerMaskSAM" / "SlicerMaskSAMLib"
    assert {p.name for p in library.iterdir() if p.is_dir() and p.name != "__pycache__"} == set(LIBRARY)
    assert [p.name for p in library.glob("*.py")] == ["__init__.py"]
    files = sorted(p for p in library.rglob("*.py") if p.parent != library)
    found = [v for p in files for v in library_violations(p.relative_to(library), p.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("values/x.py", "import slicer"),
        ("values/x.py", "from SlicerMaskSAMLib.mrml import bridge"),
        ("mrml/x.py", "import qt"),
        ("mrml/x.py", "from SlicerMaskSAMLib.work.context import Context"),
        ("engine/x.py", "def f():\n    import torch"),
        ("work/x.py", "from SlicerMaskSAMLib.window import panel"),
        ("elsewhere/x.py", ""),
    ],
)
def test_a_breach_of_the_slicer_library_is_found(path: str, source: str) -> None:
    assert library_violations(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("network/x.py", "from MaskSAMCore.volume import Volume"),
        ("network/x.py", "from ..labels import LabelTable"),
        ("network/x.py", "import scipy"),
        ("network/x.py", "from segment_anything.modeling import Sam"),
        ("inference/x.py", "from MaskSAMCore.training import loop"),
        ("inference/x.py", "def f():\n    from MaskSAMCore.training.loop import Loop"),
        ("training/x.py", "from MaskSAMCore.inference.predictor import Predictor"),
        ("training/x.py", "import MaskSAMCore.inference.predictor"),
        ("training/x.py", "from MaskSAMCore import inference"),
        ("preprocessing/x.py", "import SimpleITK"),
        ("preprocessing/x.py", "from MaskSAMCore.io.images import read_volume"),
        ("data/x.py", "def f():\n    import monai"),
        ("data/x.py", "import pydicom"),
        ("volume.py", "from MaskSAMCore.io import images"),
        ("errors.py", "from MaskSAMCore.volume import Volume"),
        ("inference/x.py", "import slicer"),
        ("inference/x.py", "import vtk.util"),
        ("config/x.py", "import torch"),
        ("segment.py", "import torch"),
        ("segment.py", "try:\n    import SimpleITK\nexcept ImportError:\n    pass"),
        ("zoo/x.py", "from MaskSAMCore.inference.predictor import Predictor"),
        ("io/x.py", "from MaskSAMCore import segment"),
        ("inference/x.py", "import cv2"),
        ("io/rtstruct.py", "def f():\n    import cv2"),
        ("io/rtstruct.py", "import rt_utils"),
        ("io/x.py", "def f():\n    from rt_utils import RTStruct"),
        ("nobody.py", ""),
    ],
)
def test_a_breach_is_found(path: str, source: str) -> None:
    assert violations(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "network/x.py",
            "import torch\nfrom MaskSAMCore.config.schema import Config\nfrom MaskSAMCore.network.types import Level",
        ),
        ("segment.py", "def f():\n    import torch\n    from MaskSAMCore.inference.predictor import Predictor"),
        ("zoo/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("io/x.py", "import SimpleITK"),
        ("io/rtstruct.py", "def f():\n    from rt_utils import RTStruct"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert violations(Path(path), source) == []


LIGHT_MODULES = (
    "MaskSAMCore MaskSAMCore.errors MaskSAMCore.config.schema MaskSAMCore.labels MaskSAMCore.volume "
    "MaskSAMCore.progress MaskSAMCore.commandline MaskSAMCore.device MaskSAMCore.zoo.installed "
    "MaskSAMCore.config.presets"
)
CACHE_READERS = "MaskSAMCore.data.dataset MaskSAMCore.data.sampling MaskSAMCore.data.augment"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "banned"),
    [
        (LIGHT_MODULES, "torch torchvision SimpleITK monai pydicom"),
        ("MaskSAMCore.io.rtstruct MaskSAMCore.outputs", "cv2 rt_utils pydicom torch"),
        (CACHE_READERS, "SimpleITK pydicom highdicom monai torchvision matplotlib"),
        ("MaskSAMCore.network.build", "SimpleITK pydicom highdicom monai torchvision matplotlib scipy.ndimage"),
    ],
)
def test_importing_brings_nothing_heavy_along(repo: Path, modules: str, banned: str) -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {modules.split()!r}: importlib.import_module(name)\n"
        f"print(*[name for name in {banned.split()!r} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
