"""Files that an older version wrote: one small one of each kind. What is packed is unpacked for a test."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).resolve().parent / "d6d6e8e"


def unpack(name: str, folder: Path) -> Path:
    """Unpack the archive of a folder into `folder`; returns its path there."""
    with tarfile.open(SAMPLES / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


def read_json(*names: str) -> Any:
    """The content of a JSON file."""
    return json.loads(SAMPLES.joinpath(*names).read_text(encoding="utf-8"))


def leaves(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Every value of a configuration by its key, as --set spells it."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= leaves(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found
