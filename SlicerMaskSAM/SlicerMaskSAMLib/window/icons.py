"""Icons of the panel for light and dark windows, with Qt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt

from MaskSAMCore.config.resources import resource

NAMES = ("point", "box", "exclude", "include", "mask")
"""Icons of the tools and of the prompts."""
DARK_BELOW = 128


def is_dark() -> bool:
    """Whether the application's windows are dark."""
    return qt.QApplication.palette().color(qt.QPalette.Window).lightness() < DARK_BELOW


def icon_file(name: str) -> Path:
    """Path of the icon that suits the application's windows."""
    return resource("Icons", f"{name}-dark.svg" if is_dark() else f"{name}.svg")


def icons() -> dict[str, Any]:
    """All icons of the panel by name."""
    return {name: qt.QIcon(str(icon_file(name))) for name in NAMES}
