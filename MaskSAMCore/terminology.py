"""Common structure names with their DICOM codes, side and usual colour."""

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
_SAY_NOTHING = {(TISSUE.scheme, TISSUE.value), ("SRT", "T-D0050")}
_SIDES = {"left": "Left", "right": "Right", "l": "Left", "r": "Right", "lt": "Left", "rt": "Right"}
_BLANKS = re.compile(r"[\s_\-.,()/]+")
_SEPARATORS = str.maketrans({"~": " ", "^": " ", "|": " ", "\n": " ", "\r": " "})


@dataclass(frozen=True, kw_only=True)
class Term:
    """One structure as DICOM and Slicer know it.

    Attributes:
        name: As shown to the user.
        color: (r, g, b), 0 to 255, as Slicer shows it.
        category, type: DICOM SegmentedPropertyCategory and Type.
        modifier: Laterality, where the name has a side.
    """

    name: str
    color: tuple[int, int, int]
    category: Code
    type: Code
    modifier: Code | None = None

    def label(self, number: int, *, mirror: str = "") -> Label:
        """The structure as an entry of a label table."""
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
    """Entries by every name they go by, the categories, and the sides."""
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
            "the installation lacks a file", where=path, why=str(error), remedy="Install it again"
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
    """The structure that a name means, in any case and with any separators, or None if it is not known.

    A side is taken from a first or last word: "left kidney", "Kidney_L", "parotid right".
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
    """The table with codes, and colours of coded structures, filled in where its labels have none.

    Names stay, but for those that mean something only within their data set: "anterior" of a data set
    about the hippocampus becomes "Anterior hippocampus".

    The colours that go with the codes are nearly one within an organ, such as the chambers of the heart: where two
    would look alike, the second gets another. Two sides of a pair may look alike.

    Args:
        table: Labels as a data set names them.
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
    """The label's codes as Slicer serialises them; an uncoded label is Slicer's own default, Tissue."""
    category, kind = (label.category, label.type) if label.category and label.type else (TISSUE, TISSUE)
    return "~".join((CONTEXT, _triple(category), _triple(kind), _triple(label.modifier), ANATOMY, "^^", "^^"))


def parse_terminology(entry: str) -> tuple[Code | None, Code | None, Code | None]:
    """Category, type and modifier of a serialised entry; None where one is empty or malformed."""
    codes = []
    for part in (entry.split("~") + [""] * 4)[1:4]:
        fields = part.split("^")
        full = len(fields) == 3 and all(fields)
        codes.append(Code(scheme=fields[0], value=fields[1], meaning=fields[2]) if full else None)
    return codes[0], codes[1], codes[2]


def has_codes(label: Label) -> bool:
    """Whether its codes say what it is; Tissue, which Slicer gives to every new segment, does not."""
    if label.category is None or label.type is None:
        return False
    return (label.type.scheme, label.type.value) not in _SAY_NOTHING
