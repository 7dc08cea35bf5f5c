"""What is packed: the wheel, the constraints, and syntax for every Python."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from the working tree."""
    if subprocess.run([sys.executable, "-c", "import hatchling"], capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED HERE: hatchling is not installed (it is in the test extras)")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_resource_and_nothing_else(repo: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as bundle:
        names = {n for n in bundle.namelist() if ".dist-info/" not in n}
    modules = {p.relative_to(repo).as_posix() for p in (repo / "MaskSAMCore").rglob("*.py")}
    resources = {
        f"MaskSAMCore/_resources/{p.relative_to(repo / 'Resources').as_posix()}"
        for p in (repo / "Resources").rglob("*")
        if p.is_file()
    }
    assert resources
    assert modules - names == set()
    assert resources - names == set()
    assert {n for n in names if not n.startswith("MaskSAMCore/")} == set()
    assert {n for n in names if n.endswith((".pyc", ".part", ".pt", ".pth"))} == set()


def test_resources_and_bundled_models_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as bundle:
        bundle.extractall(tmp_path)  # an unpacked wheel of pure Python is an installed one
    code = (
        "from MaskSAMCore.zoo import installed\nfrom MaskSAMCore.config.resources import resource\n"
        "print(resource('README.md'))\nprint(*[m.name for m in installed.installed_models()])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, models = done.stdout.split("\n")[:2]
    assert Path(found) == tmp_path / "MaskSAMCore" / "_resources" / "README.md"
    packed = tmp_path / "MaskSAMCore" / "_resources" / "Models"
    assert sorted(models.split()) == sorted(p.name for p in packed.glob("*") if p.is_dir())


@pytest.mark.slow
@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 13)])
def test_every_file_is_syntax_of_every_supported_python(repo: Path, version: tuple[int, int]) -> None:
    for folder in ("MaskSAMCore", "Testing", "SlicerMaskSAM"):
        for path in (repo / folder).rglob("*.py"):
            ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=version)


def test_every_declared_dependency_is_pinned(repo: Path) -> None:
    text = (repo / "pyproject.toml").read_text(encoding="utf-8")
    declared = {
        re.sub(r"_", "-", name).lower() for name in re.findall(r'^ {4}"([A-Za-z][\w.-]*)>=', text, flags=re.MULTILINE)
    }
    pins = {
        line.split("==")[0].lower()
        for line in (repo / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    assert {"torch", "simpleitk", "pytest"} <= declared
    assert declared - pins == set()


def test_no_file_names_a_private_place(repo: Path) -> None:
    place = re.compile(r"(?<![\w.*)])/(?:home|root|work|Users)/\w|127\.0\.0\.1:\d{2}|/tmp/plan")
    skipped = {".venv", ".git", ".ruff_cache", ".mypy_cache", ".pytest_cache", "build", "dist", "__pycache__", "runs"}
    files = [
        p for p in repo.rglob("*") if p.suffix in (".py", ".md", ".toml", ".txt", ".json", ".cmake") and p.is_file()
    ]
    files = [p for p in files if not skipped & set(p.relative_to(repo).parts)]
    found = [str(p) for p in files if p != Path(__file__) and place.search(p.read_text(encoding="utf-8"))]
    assert found == []
