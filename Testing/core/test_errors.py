"""Typos get the word that was meant."""

from __future__ import annotations

import pytest

from MaskSAMCore.errors import InputError, did_you_mean
from MaskSAMCore.labels import Label, LabelTable


@pytest.mark.parametrize(
    ("word", "known", "text"),
    [
        ("hipocampus-mr", ["hippocampus-mr", "headneck-ct"], 'Did you mean "hippocampus-mr"?'),
        ("LIVR", ["Spleen", "Liver"], 'Did you mean "Liver"?'),
        (" rtstuct ", {"rtstruct": 1}, 'Did you mean "rtstruct"?'),
        ("x", ["Spleen"], ""),
        ("", ["Spleen"], ""),
        ("x", [], ""),
    ],
)
def test_did_you_mean(word, known, text):
    assert did_you_mean(word, known) == text


def test_a_misspelt_structure_is_named():
    table = LabelTable(labels=tuple(Label(id=n, name=v, color=(1, 1, 1)) for n, v in ((1, "Liver"), (2, "Spleen"))))
    with pytest.raises(InputError, match=r'splen: no such structure. Did you mean "Spleen"\? There are Liver, Spleen'):
        table.only(["liver", "splen"])
