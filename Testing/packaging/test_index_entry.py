"""MaskSAM.json, the entry for Slicer's Extensions Index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest

# The fields of the entry as Slicer publishes them, version 1.0.1 of the schema.
SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema",
    "type": "object",
    "additionalProperties": False,
    "required": ["$schema", "category", "scm_url"],
    "properties": {
        "$schema": {"type": "string"},
        "category": {"type": "string"},
        "scm_url": {"type": "string"},
        "scm_revision": {"type": "string"},
        "scm_type": {"type": "string", "enum": ["git", "local"]},
        "build_dependencies": {"type": "array", "items": {"type": "string"}},
        "build_subdirectory": {"type": "string"},
        "enabled": {"type": "boolean"},
        "tier": {"type": "integer", "enum": [1, 3, 5]},
    },
}


@pytest.fixture
def entry(repo: Path) -> dict[str, Any]:
    return json.loads((repo / "MaskSAM.json").read_text(encoding="utf-8"))


def test_the_entry_keeps_to_the_published_schema(entry: dict[str, Any]):
    jsonschema.validate(entry, SCHEMA)
    assert entry["$schema"].endswith("/Schemas/slicer-extension-catalog-entry-schema-v1.0.1.json#")


@pytest.mark.parametrize(
    "change", [{"description": "x"}, {"tier": 2}, {"category": 1}, {"build_dependencies": "PyTorch"}]
)
def test_the_schema_refuses_what_the_index_refuses(entry: dict[str, Any], change: dict[str, Any]):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(entry | change, SCHEMA)


def test_the_entry_keeps_to_the_rules_that_no_schema_knows(repo: Path, entry: dict[str, Any]):
    name = next(repo.glob("*.json")).stem
    assert name == "MaskSAM"
    assert not name.startswith("Slicer")
    address = urlsplit(entry["scm_url"])
    assert address.scheme == "https"
    assert address.path.split("/")[-1] == f"Slicer{name}"
    assert entry["scm_type"] == "git"
    assert entry["scm_revision"] == "main", "a branch, so that no update needs a new entry"
    assert entry["build_dependencies"] == ["PyTorch"]
    assert entry["category"] == "Segmentation"
