"""The extension is packaged whole, finds its parts where Slicer puts them, and its description is in order."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from Testing.packaging import extension as making
from Testing.packaging.extension import Extension

NOT_PACKAGED = "Screenshots"
"""Pictures of the README; the package has no use for them."""


@pytest.fixture(scope="module")
def extension(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Extension:
    """This repository's extension, installed."""
    return making.install(repo, tmp_path_factory.mktemp("extension"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An extension of one module, to spoil."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(Small)\nfind_package(Slicer REQUIRED)\n"
        "include(${Slicer_USE_FILE})\nslicerMacroBuildScriptedModule(NAME Small SCRIPTS Small.py)\n"
        "include(${Slicer_EXTENSION_GENERATE_CONFIG})\n"
    )
    (tmp_path / "Small.py").touch()
    (tmp_path / "Forgotten.py").touch()
    return tmp_path


def spoil(source: Path, old: str, new: str) -> None:
    path = source / "CMakeLists.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# -- what is packaged ------------------------------------------------------------------------------------------------


def sources(folder: Path, kind: str, root: Path) -> set[str]:
    paths = (path for path in folder.rglob(kind) if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix() for path in paths}


@pytest.mark.slow
def test_every_script_and_resource_is_installed_where_slicer_looks_and_nothing_else(repo: Path, extension: Extension):
    scripts = sources(repo / "MaskSAMCore", "*.py", repo) | sources(
        repo / "SlicerMaskSAM", "*.py", repo / "SlicerMaskSAM"
    )
    resources = {name for name in sources(repo / "Resources", "*", repo) if NOT_PACKAGED not in Path(name).parts}
    assert "MaskSAMCore/worker/__main__.py" in scripts
    assert "SlicerMaskSAMLib/window/panel.py" in scripts
    assert {Path(name).parts[1] for name in resources} >= {"UI", "Icons", "Models", "Terminology"}
    wanted = scripts | resources
    lacking, extra = wanted - extension.files, extension.files - wanted
    assert not lacking, "list these in CMakeLists.txt or SlicerMaskSAM/CMakeLists.txt:\n" + "\n".join(sorted(lacking))
    assert not extra, f"these are installed, but not in the tree: {sorted(extra)}"


@pytest.mark.slow
def test_files_are_installed_as_they_are(repo: Path, extension: Extension):
    model = Path("Resources", "Models", "hippocampus-mr", "weights.safetensors")
    assert (extension.modules / model).read_bytes() == (repo / model).read_bytes()


def test_the_tests_for_slicer_are_registered_with_ctest(extension: Extension, repo: Path):
    listing = subprocess.run(
        [making.program("ctest"), "--show-only=json-v1"],
        cwd=extension.build,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [test["name"] for test in json.loads(listing.stdout)["tests"]]
    assert names == ["py_SlicerMaskSAMModuleTest"]
    folder = (repo / "SlicerMaskSAM" / "Testing" / "Python").as_posix()
    recorded = "".join(path.read_text() for path in extension.build.rglob("CTestTestfile.cmake"))
    assert f"runUnitTest(['{folder}'], 'SlicerMaskSAMModuleTest')" in recorded
    assert (repo / "SlicerMaskSAM" / "Testing" / "Python" / "SlicerMaskSAMModuleTest.py").is_file()


# -- what finds what -------------------------------------------------------------------------------------------------

ENGINE = """
import MaskSAMCore
from MaskSAMCore.config import resources
from MaskSAMCore.zoo import installed
print(MaskSAMCore.__file__)
for parts in (("UI", "SlicerMaskSAM.ui"), ("Icons", "SlicerMaskSAM.png"), ("Terminology", "structures.json")):
    print(resources.resource(*parts))
print(*(model.path for model in installed.installed_models()))
"""
MODULE = """
import sys
sys.path[:] = [path for path in sys.path if path != {repo!r}]
import pytest
from Testing.panel import slicer_gui
from Testing.slicer import environment
environment.start()
gui = slicer_gui.open_window(pytest.MonkeyPatch())
import qt, slicer, SlicerMaskSAM, MaskSAMCore
print(MaskSAMCore.__file__)
parent = slicer.qMRMLWidget()
qt.QVBoxLayout(parent)
widget = SlicerMaskSAM.SlicerMaskSAMWidget(parent)
widget.setup()
widget.enter()
print(*(row.name for row in widget.logic.controller.status().models))
widget.exit()
widget.cleanup()
"""


def run(code: str, *paths: Path) -> list[str]:
    """What Python says that finds packages in these folders."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=paths[-1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def bundled(root: Path) -> list[Path]:
    """The model folders that come with the extension."""
    return sorted(card.parent for card in (root / "Resources" / "Models").glob("*/model.json"))


@pytest.mark.parametrize("where", ["installed", "checkout"])
def test_the_engine_finds_resources_and_models(repo: Path, extension: Extension, home: Path, where: str):
    root = extension.modules if where == "installed" else repo
    engine, *resources, models = run(ENGINE, root)
    assert Path(engine) == root / "MaskSAMCore" / "__init__.py"
    assert all(Path(path).is_file() and root / "Resources" in Path(path).parents for path in resources)
    assert [Path(model) for model in models.split()] == bundled(root)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["installed", "checkout"])
def test_the_module_finds_engine_panel_and_models(
    repo: Path, extension: Extension, home: Path, tmp_path: Path, where: str
):
    (tmp_path / "Testing").symlink_to(repo / "Testing", target_is_directory=True)  # the stand-ins, and no more
    module, root = (extension.modules, extension.modules) if where == "installed" else (repo / "SlicerMaskSAM", repo)
    engine, models = run(MODULE.format(repo=str(repo)), module, tmp_path)
    assert Path(engine) == root / "MaskSAMCore" / "__init__.py"
    assert models.split() == [model.name for model in bundled(repo)]


# -- what the extension says of itself -------------------------------------------------------------------------------


def test_the_index_entry_says_the_same_as_the_package(repo: Path, extension: Extension):
    entry = json.loads((repo / "MaskSAM.json").read_text(encoding="utf-8"))
    about = extension.about
    assert about["NAME"] == "MaskSAM"
    assert about["CATEGORY"] == entry["category"]
    assert about["DEPENDS"].split(";") == entry["build_dependencies"]
    assert about["HOMEPAGE"] == entry["scm_url"]
    assert Path(about["LICENSE_FILE"]) == repo / "LICENSE"
    assert Path(about["README_FILE"]) == repo / "README.md"


def test_every_picture_that_the_package_names_is_in_the_repository(repo: Path, extension: Extension):
    entry = json.loads((repo / "MaskSAM.json").read_text(encoding="utf-8"))
    files = f"{entry['scm_url']}/{entry['scm_revision']}/".replace(
        "https://github.com", "https://raw.githubusercontent.com"
    )
    addresses = [extension.about["ICONURL"], *extension.about["SCREENSHOTURLS"].split()]
    assert len(addresses) >= 2
    for address in addresses:
        assert address.startswith(files)
        assert (repo / address.removeprefix(files)).is_file(), address
    icon = (repo / extension.about["ICONURL"].removeprefix(files)).read_bytes()
    assert struct.unpack(">II", icon[16:24]) == (128, 128)


# -- the stand-in refuses what Slicer refuses ------------------------------------------------------------------------


def test_without_slicer_nothing_is_configured(repo: Path, tmp_path: Path):
    refused = making.configure(repo, tmp_path / "build", slicer=tmp_path)
    assert refused.returncode
    assert "Slicer" in refused.stderr


def test_what_is_not_listed_is_not_installed(small: Path):
    installed = making.install(small, small / "place")
    assert installed.files == {"Small.py"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Small.py", "Small.py Absent.py", "nonexistent file or directory 'Absent.py'"),
        ("NAME Small", "NAME Small FILES Forgotten.py", "Unknown keywords"),
        ("SCRIPTS Small.py", "", "NAME and SCRIPTS are mandatory"),
        ("project(Small)", "project(Small LANGUAGES NONE)", "which project() did not enable"),
        ("project(Small)", "project(Slicer)", "Make sure to call 'project"),
    ],
)
def test_a_mistake_is_refused(small: Path, old: str, new: str, words: str):
    spoil(small, old, new)
    refused = making.configure(small, small / "build")
    assert refused.returncode
    assert words in re.sub(r"\s+", " ", refused.stderr)


def test_what_lies_outside_the_folder_of_a_list_is_not_installed(small: Path):
    (small.parent / "outside.txt").touch()
    spoil(small, "SCRIPTS Small.py", "SCRIPTS Small.py RESOURCES ../outside.txt")
    assert making.install(small, small / "place").files == {"Small.py"}
