"""Files that belong to the program: found in a checkout, in an installed wheel and in the installed extension."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def resource_roots() -> list[Path]:
    """Folders that may hold resources: the wheel's `_resources` inside the package, `Resources` beside it."""
    return [_PACKAGE / "_resources", _PACKAGE.parent / "Resources"]


def resource(*parts: str) -> Path:
    """Path of a resource, `resource("Terminology", "structures.json")`: the first that exists.

    A wheel packs the folder as `MaskSAMCore/_resources`; in a checkout, and in the extension, which installs both
    side by side, it is `Resources`. Where neither has it, the path in the likelier place is returned, for the
    caller's message.
    """
    roots = resource_roots()
    for root in roots:
        if root.joinpath(*parts).exists():
            return root.joinpath(*parts)
    home = next((root for root in roots if root.is_dir()), roots[-1])
    return home.joinpath(*parts)
