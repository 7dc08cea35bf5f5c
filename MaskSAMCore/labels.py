"""Label tables: names, DICOM codes and colours of the integers of a label map."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from MaskSAMCore.errors import InputError, did_you_mean

PALETTE = (
    (128, 174, 128), (241, 214, 145), (177, 122, 101), (111, 184, 210), (216, 101, 79),
    (221, 130, 101), (144, 238, 144), (192, 104, 88), (220, 245, 20), (78, 63, 0),
    (255, 250, 220), (230, 220, 70), (200, 200, 235), (250, 250, 210), (244, 214, 49), (0, 151, 206),
)  # fmt: skip

APART = 75.0
"""Smallest RGB distance of two colours that can be distinguished on a grey scan."""

Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Code:
    """A coded concept of DICOM."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Label:
    """One structure of a label map.

    Attributes:
        id: The integer in the label map, from 1; 0 is the background.
        name: Name shown to the user.
        color: (r, g, b), 0 to 255.
        category, type, modifier: DICOM SegmentedPropertyCategory, Type and laterality; None if not known.
        mirror: Name of the label that it becomes when left and right are exchanged; "" if it stays the same.
    """

    id: int
    name: str
    color: Color
    category: Code | None = None
    type: Code | None = None
    modifier: Code | None = None
    mirror: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """All structures of a model or data set, in the order of the network's classes 1, 2, ...

    Attributes:
        labels: The structures; class c of the network is `labels[c - 1]`.
        mirrored: Whether left-right mirroring is allowed, because the data set declares its pairs, or that no label has
            a side.
    """

    labels: tuple[Label, ...]
    mirrored: bool = False

    def check(self, *, where: object = "") -> None:
        """Check the table.

        Raises:
            InputError: A name is empty, a name or id occurs twice, an id is not 1 to 65535, or a pair is not mutual.
        """
        names = [label.name for label in self.labels]
        ids = [label.id for label in self.labels]
        if any(not name.strip() for name in names):
            raise InputError("a label has an empty name", where=where)
        for values, what in ((names, "name"), ([str(i) for i in ids], "id")):
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise InputError(f"a label {what} is used twice", where=where, why=", ".join(twice))
        if any(i < 1 or i > 65535 for i in ids):
            raise InputError("label ids must be 1 to 65535", where=where, why=f"found {ids}")
        partner = {label.name: label.mirror for label in self.labels}
        for name, other in partner.items():
            if other and partner.get(other) != name:
                raise InputError("a left-right pair is not mutual", where=where, why=f"{name} mirrors to {other}")

    def only(self, names: Iterable[str]) -> LabelTable:
        """The table of the named structures only, with unchanged ids; case is ignored unless names differ by it.

        Raises:
            InputError: A structure does not exist, or none was named; lists all structures.
        """
        kept, unknown = [], []
        for name in names:
            same = [label for label in self.labels if label.name == name]
            same = same or [label for label in self.labels if label.name.casefold() == name.casefold()]
            kept += same
            unknown += [] if same else [name]
        if unknown or not kept:
            what = "no such structure" if unknown else "no structure was named"
            known = [label.name for label in self.labels]
            guess = did_you_mean(unknown[0], known) if unknown else ""
            remedy = f"{guess} There are {', '.join(known)}.".strip()
            raise InputError(what, where=", ".join(unknown), remedy=remedy)
        there = {label.name for label in kept}
        labels = tuple(
            replace(label, mirror=label.mirror if label.mirror in there else "")
            for label in self.labels
            if label.name in there
        )
        return LabelTable(labels=labels, mirrored=self.mirrored and len(labels) == len(self.labels))

    def paired(self, pairs: Iterable[Sequence[str]]) -> LabelTable:
        """The table with the given pairs of names as left and right, and all other labels without a side.

        Raises:
            InputError: A name is not a label, or is in more than one pair.
        """
        flat = [name for pair in pairs for name in pair]
        names = {label.name for label in self.labels}
        wrong = [name for name in flat if name not in names] or sorted({n for n in flat if flat.count(n) > 1})
        if wrong or len(flat) % 2:
            why = f"{wrong[0]} is not a label, or is in more than one pair" if wrong else "a pair has two names"
            remedy = f"The labels are {', '.join(sorted(names))}."
            raise InputError("left-right pairs do not fit the labels", where="left_right_pairs", why=why, remedy=remedy)
        other = dict(zip(flat[::2], flat[1::2], strict=True)) | dict(zip(flat[1::2], flat[::2], strict=True))
        labels = tuple(replace(label, mirror=other.get(label.name, "")) for label in self.labels)
        return LabelTable(labels=labels, mirrored=True)

    @property
    def classes(self) -> int:
        """Number of classes K, background included."""
        return len(self.labels) + 1

    def mirror_classes(self) -> list[int]:
        """Classes after left and right are exchanged: entry c is the class that c becomes."""
        index = {label.name: i for i, label in enumerate(self.labels, start=1)}
        return [0] + [index[label.mirror or label.name] for label in self.labels]


def distinct(color: Color, others: Collection[Color]) -> Color:
    """The colour itself, or the palette colour farthest from the others if one of them is too similar."""
    if _nearest(color, others) >= APART:
        return color
    return max(PALETTE, key=lambda one: _nearest(one, others))


def _nearest(color: Color, others: Collection[Color]) -> float:
    return min((math.dist(color, other) for other in others), default=math.inf)
