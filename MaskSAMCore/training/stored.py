"""Folders for intermediate results of a run: kept while their key stays the same, emptied when it changes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

KEY = "key.txt"


def folder_for(folder: Path, key: dict[str, Any]) -> Path:
    """Return the folder; what was made under another key is removed.

    Args:
        folder: May be missing.
        key: Everything that the contents depend on, as JSON values.
    """
    stamp = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    file = folder / KEY
    if folder.exists() and (not file.exists() or file.read_text(encoding="utf-8") != stamp):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(stamp, encoding="utf-8")
    return folder
