"""faults.md row 33: label ids above 255, duplicate names, empty names: validated; the type widens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.data.build import prepare
from MaskSAMCore.data.raw import read_dataset
from MaskSAMCore.errors import DatasetError
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.preprocessing.preprocess import classes_to_ids, ids_to_classes
from Testing.core.data.test_data import CONFIG
from Testing.phantom import write_dataset


def with_labels(raw: Path, text: str) -> Path:
    data = json.loads((raw / "dataset.json").read_text())
    body = json.dumps(data | {"labels": "HERE"}).replace('"HERE"', text)
    (raw / "dataset.json").write_text(body)
    return raw


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"background": 0, "ball": 1, "ball": 2}', "'ball' is defined twice"),
        ('{"background": 0, "ball": 1, "cube": 1}', "id is used twice"),
        ('{"background": 0, "": 1}', "empty name"),
        ('{"background": 0, "ball": 70000}', "1 to 65535"),
        ('{"background": 0, "ball": -1}', "1 to 65535"),
        ('{"background": 0, "ball": 1.5}', "expected one integer"),
        ('{"background": 0, "ball": [1, 2]}', "expected one integer"),
        ('{"background": 0}', "no structure"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    raw = with_labels(write_dataset(tmp_path / "raw", cases=1), text)
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(raw)
    assert "dataset.json" in caught.value.where


def test_ids_above_255_go_through_the_whole_chain(tmp_path: Path) -> None:
    raw = write_dataset(tmp_path / "raw")
    for path in (raw / "labelsTr").iterdir():
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image).astype(np.uint16)
        wide = sitk.GetImageFromArray(np.choose(array, (0, 300, 7)).astype(np.uint16))
        wide.CopyInformation(image)
        sitk.WriteImage(wide, str(path))
    with_labels(raw, '{"background": 0, "ball": 300, "cube": 7}')
    cache, _ = prepare(raw, tmp_path / "cache", CONFIG)
    assert [label.id for label in cache.labels.labels] == [7, 300]
    label = cache.case("case_000").label
    assert label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 1, 2}
    ids = classes_to_ids(label, cache.labels)
    assert ids.dtype == np.uint16
    assert set(np.unique(ids)) == {0, 7, 300}


def test_more_classes_than_a_byte_holds() -> None:
    table = LabelTable(labels=tuple(Label(id=i, name=f"s{i}", color=(0, 0, 0)) for i in range(1, 400)))
    ids = np.arange(400, dtype=np.int32)
    classes = ids_to_classes(ids, table)
    assert classes.dtype == np.uint16
    np.testing.assert_array_equal(classes_to_ids(classes, table), ids)
