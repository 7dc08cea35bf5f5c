"""The label table: what it refuses, and how classes swap when left and right do."""

from __future__ import annotations

import pytest

from MaskSAMCore.config.serialize import from_dict, to_dict
from MaskSAMCore.errors import InputError
from MaskSAMCore.labels import PALETTE, Code, Label, LabelTable


def label(number: int, name: str, mirror: str = "") -> Label:
    return Label(id=number, name=name, color=PALETTE[number % len(PALETTE)], mirror=mirror)


def test_a_good_table_passes_and_survives_json() -> None:
    code = Code(scheme="SCT", value="45793000", meaning="Parotid gland")
    table = LabelTable(
        labels=(label(4, "right", "left"), Label(id=5, name="left", color=(1, 2, 3), type=code, mirror="right")),
        mirrored=True,
    )
    table.check()
    assert table.classes == 3
    assert from_dict(LabelTable, to_dict(table)) == table


def test_left_and_right_swap_classes_not_ids() -> None:
    table = LabelTable(labels=(label(9, "stem"), label(4, "right", "left"), label(5, "left", "right")))
    assert table.mirror_classes() == [0, 1, 3, 2]


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ((label(1, " "),), "empty"),
        ((label(1, "a"), label(2, "a")), "name is used twice"),
        ((label(1, "a"), label(1, "b")), "id is used twice"),
        ((label(0, "a"),), "1 to 65535"),
        ((label(70000, "a"),), "1 to 65535"),
        ((label(1, "right", "left"), label(2, "left")), "not mutual"),
        ((label(1, "right", "nowhere"),), "not mutual"),
    ],
)
def test_a_bad_table_is_refused(labels: tuple[Label, ...], word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        LabelTable(labels=labels).check(where="dataset.json")
    assert caught.value.where == "dataset.json"


def test_a_table_of_some_structures_keeps_their_ids_and_pairs() -> None:
    table = LabelTable(labels=(label(9, "stem"), label(4, "right", "left"), label(5, "left", "right")), mirrored=True)
    some = table.only(["Left", "stem"])
    assert [(each.id, each.name, each.mirror) for each in some.labels] == [(9, "stem", ""), (5, "left", "")]
    assert not some.mirrored
    some.check()
    assert table.only(["left", "right", "stem"]) == table


def test_capitals_matter_where_names_differ_by_them() -> None:
    table = LabelTable(labels=(label(1, "a"), label(2, "A"), label(3, "b")))
    assert [each.id for each in table.only(["A", "B"]).labels] == [2, 3]


@pytest.mark.parametrize(("names", "word"), [(["a", "x"], "x: no such structure.*There are a, b"), ([], "was named")])
def test_only_known_structures_can_be_asked_for(names: list[str], word: str) -> None:
    with pytest.raises(InputError, match=word):
        LabelTable(labels=(label(1, "a"), label(2, "b"))).only(names)
