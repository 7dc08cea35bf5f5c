"""Folders of what a run computes once and can compute again: kept as long as they fit, replaced as soon as not."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

KEY = "key.txt"


def folder_for(folder: Path, key: dict[str, Any]) -> Path:
    """The folder, empty unless all that it holds was made under the same key.

    Args:
        folder: May be missing, or be another key's.
        key: Everything that the contents depend on, as JSON values.
    """
    stamp = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    file = folder / KEY
    if folder.exists() and (not file.exists() or file.read_text(encoding="utf-8") != stamp):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(stamp, encoding="utf-8")
    return folder
