"""DICOM codes, side and usual colour of common structures, by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from MaskSAMCore.config.resources import resource
from MaskSAMCore.errors import InputError
from MaskSAMCore.labels import Code, Label, LabelTable, distinct

CONTEXT = "Segmentation category and type - DICOM master list"
ANATOMY = "Anatomic codes - DICOM master list"
TISSUE = Code(scheme="SCT", value="85756007", meaning="Tissue")
_UNSPECIFIC = {(TISSUE.scheme, TISSUE.value), ("SRT", "T-D0050")}
_SIDES = {"left": "Left", "right": "Right", "l": "Left", "r": "Right", "lt": "Left", "rt": "Right"}
_BLANKS = re.compile(r"[\s_\-.,()/]+")
_SEPARATORS = str.maketrans({"~": " ", "^": " ", "|": " ", "\n": " ", "\r": " "})


@dataclass(frozen=True, kw_only=True)
class Term:
    """A structure of the terminology.

    Attributes:
        name: Name shown to the user.
        color: (r, g, b), 0 to 255, as in Slicer.
        category, type: DICOM SegmentedPropertyCategory and Type.
        modifier: Laterality, or None if the structure has no side.
    """

    name: str
    color: tuple[int, int, int]
    category: Code
    type: Code
    modifier: Code | None = None

    def label(self, number: int, *, mirror: str = "") -> Label:
        """The structure as the label with id `number`."""
        return Label(
            id=number,
            name=self.name,
            color=self.color,
            category=self.category,
            type=self.type,
            modifier=self.modifier,
            mirror=mirror,
        )


def _words(name: str) -> list[str]:
    return [w for w in _BLANKS.split(name.strip().lower()) if w]


def _code(value: Mapping[str, str]) -> Code:
    return Code(scheme=value["scheme"], value=value["value"], meaning=value["meaning"])


@cache
def _table() -> tuple[dict[str, dict], dict[str, Code], dict[str, Code]]:
    """Entries by name and alias, the categories, and the sides."""
    path = resource("Terminology", "structures.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = {k: _code(v) for k, v in content["categories"].items()}
        sides = {k: _code(v) for k, v in content["sides"].items()}
        entries: dict[str, dict] = {}
        for entry in content["structures"]:
            for alias in (entry["name"], *entry.get("aliases", ())):
                entries.setdefault(" ".join(_words(alias)), entry)
    except OSError as error:
        raise InputError(
            "a file of the installation is missing", where=path, why=str(error), remedy="Install MaskSAM again"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("the table of structures is damaged", where=path, why=str(error)) from error
    return entries, categories, sides


def _term(entry: dict, side: str | None) -> Term:
    _, categories, sides = _table()
    own = entry.get("side")
    name = entry["name"]
    if side is not None:
        name = f"{side} {name[0].lower()}{name[1:]}"
    return Term(
        name=name,
        color=tuple(entry["color"]),
        category=categories[entry["category"]],
        type=_code({"scheme": "SCT", **entry["type"]}),
        modifier=sides[side or str(own)] if side or own else None,
    )


def lookup(name: str) -> Term | None:
    """Look a structure up by name, ignoring case and separators; None if it is not known.

    The first or last word may name the side: "left kidney", "Kidney_L", "parotid right".
    """
    entries, _, _ = _table()
    words = _words(name)
    if not words:
        return None
    if entry := entries.get(" ".join(words)):
        return _term(entry, None)
    for rest, word in ((words[1:], words[0]), (words[:-1], words[-1])):
        side = _SIDES.get(word)
        entry = entries.get(" ".join(rest)) if side else None
        if entry and entry.get("paired"):
            return _term(entry, side)
    return None


def describe(table: LabelTable, *, about: str = "") -> LabelTable:
    """Fill in missing codes, and the usual colours of the coded structures.

    A name is completed if it is clear only within its data set: "anterior" in a data set named "hippocampus" becomes
    "Anterior hippocampus". Structures of one organ often have nearly the same usual colour; a colour that is too
    similar to an earlier one is replaced, except within a left-right pair.

    Args:
        table: Labels of a data set.
        about: Name of the data set.
    """
    labels: list[Label] = []
    for label in table.labels:
        term, name = lookup(label.name), label.name
        if term is None and about and (term := lookup(f"{about} {label.name}")) is not None:
            name = label.name if label.mirror else term.name
        if term is not None and label.type is None:
            color = distinct(term.color, [other.color for other in labels if other.name != label.mirror])
            label = replace(
                label, name=name, category=term.category, type=term.type, modifier=term.modifier, color=color
            )
        labels.append(label)
    return replace(table, labels=tuple(labels))


def _triple(code: Code | None) -> str:
    if code is None:
        return "^^"
    return "^".join(v.translate(_SEPARATORS) for v in (code.scheme, code.value, code.meaning))


def terminology_entry(label: Label) -> str:
    """Serialise the codes of a label as Slicer does; a label without codes becomes Tissue, Slicer's default."""
    category, kind = (label.category, label.type) if label.category and label.type else (TISSUE, TISSUE)
    return "~".join((CONTEXT, _triple(category), _triple(kind), _triple(label.modifier), ANATOMY, "^^", "^^"))


def parse_terminology(entry: str) -> tuple[Code | None, Code | None, Code | None]:
    """Category, type and modifier of a serialised entry; None for each that is empty or malformed."""
    codes = []
    for part in (entry.split("~") + [""] * 4)[1:4]:
        fields = part.split("^")
        full = len(fields) == 3 and all(fields)
        codes.append(Code(scheme=fields[0], value=fields[1], meaning=fields[2]) if full else None)
    return codes[0], codes[1], codes[2]


def has_codes(label: Label) -> bool:
    """Whether a label has specific codes; Tissue, Slicer's default for new segments, is not."""
    if label.category is None or label.type is None:
        return False
    return (label.type.scheme, label.type.value) not in _UNSPECIFIC
