"""Packages and weights that the engine needs, and which of them are missing."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from MaskSAMCore.zoo import base_weights
from MaskSAMCore.zoo.base_weights import seems_here

Kind = Literal["slicer", "torch", "package", "base"]
"""Who provides it: Slicer itself, the extension PyTorch, pip, or the engine's own download."""
MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that the engine imports.

    Attributes:
        name: Name on the Python package index.
        at_least: Oldest version that works.
        module: Name of the imported module.
        megabytes: Approximate download size, dependencies included.
    """

    name: str
    at_least: str
    module: str
    megabytes: int = 0


PACKAGES: dict[Kind, tuple[Package, ...]] = {
    "slicer": (
        Package(name="numpy", at_least="1.26", module="numpy"),
        Package(name="SimpleITK", at_least="2.3", module="SimpleITK"),
    ),
    "torch": (
        Package(name="torch", at_least="2.4", module="torch"),
        Package(name="torchvision", at_least="0.19", module="torchvision"),
    ),
    "package": (
        Package(name="scipy", at_least="1.11", module="scipy", megabytes=38),
        Package(name="segment-anything", at_least="1.0", module="segment_anything", megabytes=1),
        Package(name="timm", at_least="1.0.9", module="timm", megabytes=9),
        Package(name="monai", at_least="1.4", module="monai", megabytes=2),
        Package(name="einops", at_least="0.7", module="einops", megabytes=1),
        Package(name="pillow", at_least="10", module="PIL", megabytes=7),
        Package(name="pydicom", at_least="3.0", module="pydicom", megabytes=3),
        Package(name="highdicom", at_least="0.24", module="highdicom", megabytes=4),
        Package(name="safetensors", at_least="0.4.3", module="safetensors", megabytes=1),
        Package(name="matplotlib", at_least="3.8", module="matplotlib", megabytes=16),
        Package(name="psutil", at_least="5.9", module="psutil", megabytes=1),
        Package(name="tqdm", at_least="4.66", module="tqdm", megabytes=1),
    ),
}
"""Packages of the kind "slicer" are never installed from here: Slicer works with its own versions only."""
HELD = ("numpy", "SimpleITK", "scipy", "torch", "torchvision")
"""Compiled packages that others build on; pip must keep the installed versions."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Something that is missing or too old.

    Attributes:
        kind: Who provides it.
        name: Name of the package or of the base weights.
        found: Installed version that is too old; "" if there is none.
    """

    kind: Kind
    name: str
    found: str = ""


def missing(found: Mapping[str, str], base: str) -> tuple[Need, ...]:
    """What is missing or too old.

    Args:
        found: Installed packages; see `installed_packages`.
        base: Base weights that are needed.
    """
    needs = [
        Need(kind=kind, name=package.name, found=found.get(canonical(package.name), ""))
        for kind, packages in PACKAGES.items()
        for package in packages
        if not is_satisfied(package, found)
    ]
    if not seems_here(base):
        needs.append(Need(kind="base", name=base))
    return tuple(needs)


def is_satisfied(package: Package, found: Mapping[str, str]) -> bool:
    """Whether the package is installed and new enough."""
    version = found.get(canonical(package.name), "")
    return bool(version) and _numbers(version) >= _numbers(package.at_least)


def installed_packages(paths: Iterable[str] | None = None) -> dict[str, str]:
    """Installed packages with their versions, by canonical name. Opens no file.

    Args:
        paths: Folders to search; None for those of this Python.
    """
    found: dict[str, str] = {}
    for folder in map(Path, sys.path if paths is None else paths):
        for entry in folder.glob("*.dist-info"):
            name, _, version = entry.stem.partition("-")
            found.setdefault(canonical(name), version)  # the first one is imported
    return found


def canonical(name: str) -> str:
    """The canonical spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints(found: Mapping[str, str]) -> str:
    """pip constraints: one line for each package whose version must not change."""
    return "".join(f"{name}=={found[canonical(name)]}\n" for name in HELD if canonical(name) in found)


def describe(needs: Sequence[Need]) -> list[str]:
    """One line for each provider: what it installs, from where, and its size."""
    ways = (_slicer_line, _torch_line, _package_line)
    lines = [way([need for need in needs if need.kind == kind]) for way, kind in zip(ways, PACKAGES, strict=True)]
    return [*filter(None, lines), *(_base_line(need) for need in needs if need.kind == "base")]


def _slicer_line(needs: Sequence[Need]) -> str:
    lacking = ", ".join(f"{need.name} ({need.found or 'missing'})" for need in needs)
    return f"Slicer 5.10 or newer: too old or missing in this one: {lacking}" if needs else ""


def _torch_line(needs: Sequence[Need]) -> str:
    wanted = " and ".join(f"{package.name} {package.at_least} or newer" for package in PACKAGES["torch"])
    old = " and ".join(f"{need.name} {need.found}" for need in needs if need.found)
    replaced = f", in place of {old}" if old else ""
    size = "0.2 GB for the CPU, up to 3 GB for a GPU"
    return f"{wanted}{replaced}, from the extension PyTorch: {size}" if needs else ""


def _package_line(needs: Sequence[Need]) -> str:
    names = ", ".join(f"{need.name} (in place of {need.found})" if need.found else need.name for need in needs)
    wanted = {need.name for need in needs}
    size = sum(package.megabytes for package in PACKAGES["package"] if package.name in wanted)
    kept = "numpy and SimpleITK are not changed"
    return f"packages from the Python package index, about {size} MB: {names}; {kept}" if needs else ""


def _base_line(need: Need) -> str:
    base = base_weights.BASES[need.name]
    sources = " or ".join(map(str, base.sources))
    size = f"{base.size / MB:.1f} MB"
    return f"base weights {base.file}, {size}, licence {base.licence}, sha256 {base.sha256}, from {sources}"


def _numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version, for comparison: (2, 5, 1) for "2.5.1+cu121"."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()
