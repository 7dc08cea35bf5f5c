"""The extension as CMake makes it, against a stand-in for Slicer's build tree: configured, built, installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

SLICER = Path(__file__).resolve().parent / "slicer"
MODULES = Path("lib", "Slicer-5.10", "qt-scripted-modules")
"""Where Slicer looks for an extension's scripted modules."""
# There is nothing to compile, so a machine without compilers will do: any program passes for one.
NO_COMPILERS = [
    f"-DCMAKE_{language}_{setting}"
    for language in ("C", "CXX")
    for setting in (f"COMPILER={Path(sys.executable).as_posix()}", "COMPILER_FORCED=1", "COMPILER_ID_RUN=1")
]


@dataclass(frozen=True, kw_only=True)
class Extension:
    """An installed extension.

    Attributes:
        build: The build tree.
        modules: The folder that Slicer adds to its module paths.
        about: What the package says of itself, by key.
    """

    build: Path
    modules: Path
    about: dict[str, str]

    @property
    def files(self) -> set[str]:
        """Paths of all installed files relative to `modules`."""
        return {path.relative_to(self.modules).as_posix() for path in self.modules.rglob("*") if path.is_file()}


def program(name: str) -> str:
    """cmake or ctest: of the package cmake, which the test extras bring, or of the system."""
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = shutil.which(name, path=places)
    if found is None:
        raise FileNotFoundError(f"{name} is neither installed nor did pip bring it (it is in the test extras)")
    return found


def cmake(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run cmake; the caller judges the outcome."""
    return subprocess.run([program("cmake"), *map(str, words)], capture_output=True, text=True, check=False)


def configure(source: Path, build: Path, slicer: Path = SLICER) -> subprocess.CompletedProcess[str]:
    """The first step, which judges the CMakeLists.txt."""
    return cmake("-S", source, "-B", build, f"-DSlicer_DIR={slicer.as_posix()}", *NO_COMPILERS)


def install(source: Path, place: Path) -> Extension:
    """Configure, build and install what Slicer packages of an extension; an error of cmake is raised with its words."""
    build, prefix = place / "build", place / "installed"
    for done in (
        configure(source, build),
        cmake("--build", build, "--parallel", "2"),
        cmake("--install", build, "--prefix", prefix, "--component", "RuntimeLibraries"),
    ):
        if done.returncode:
            raise RuntimeError(f"{done.args}\n{done.stdout}{done.stderr}")
    (description,) = build.glob("*.s4ext")
    lines = description.read_text(encoding="utf-8").splitlines()
    about = {key: value for key, _, value in (line.partition(" ") for line in lines)}
    return Extension(build=build, modules=prefix / MODULES, about={"NAME": description.stem, **about})
