"""faults.md row 12: several series, duplicate positions, localisers and secondary captures are split and listed."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.io.dicom import choose_series, list_series, read_series
from Testing.dicom_phantom import dicom_series, dicom_slice, ramp


def test_several_series_are_listed_and_one_is_picked(tmp_path):
    first = dicom_series(tmp_path / "a", ramp(), SeriesDescription="arterial")
    second = dicom_series(tmp_path / "b", ramp() + 500, SeriesDescription="venous")
    with pytest.raises(InputError, match="offers 2 volumes") as caught:
        read_series(tmp_path)
    for text in (first, second, "arterial", "venous", "7x6x5", "--series"):
        assert text in str(caught.value)
    assert np.array_equal(read_series(tmp_path, series=second).array, ramp() + 500)


def test_echoes_of_one_series_are_told_apart(tmp_path):
    uid = dicom_series(tmp_path, ramp(), EchoTime="10", name="a", modality="MR")
    dicom_series(tmp_path, ramp() + 500, EchoTime="20", name="b", series=uid, modality="MR")
    assert [s.part for s in list_series(tmp_path)] == ["EchoTime 10", "EchoTime 20"]
    assert np.array_equal(read_series(tmp_path, series=f"{uid}#2").array, ramp() + 500)
    with pytest.raises(InputError, match="EchoTime 20"):
        read_series(tmp_path)


def test_what_cannot_be_told_apart_is_refused(tmp_path):
    uid = dicom_series(tmp_path, ramp(), name="a")
    dicom_series(tmp_path, ramp() + 500, name="b", series=uid)
    with pytest.raises(GeometryError, match=r"several slices lie at one position .*a005.dcm, b005.dcm"):
        read_series(tmp_path)


def test_localisers_and_captures_are_not_the_scan(tmp_path):
    uid = dicom_series(tmp_path, ramp())
    dicom_series(
        tmp_path,
        ramp((1, 6, 7)),
        orientation=(0, 1, 0, 0, 0, -1),
        name="loc",
        series=uid,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    dicom_slice(tmp_path / "shot.dcm", ramp((1, 6, 7))[0], series="1.9", position=(0, 0, 0), ImagePositionPatient=None)
    assert np.array_equal(read_series(tmp_path).array, ramp())
    problems = sorted(s.problem for s in list_series(tmp_path))
    assert problems[0] == ""
    assert problems[1] == "localiser"
    assert problems[2].startswith("no position")
    with pytest.raises(InputError, match="no volume"):
        read_series(tmp_path / "shot.dcm")


def test_two_orientations_in_one_series_are_two_volumes(tmp_path):
    uid = dicom_series(tmp_path, ramp(), name="a")
    dicom_series(tmp_path, ramp() + 500, name="b", series=uid, orientation=(0, 1, 0, 0, 0, -1))
    assert [len(s.slices) for s in list_series(tmp_path)] == [5, 5]


def test_a_volume_is_named_by_one_of_its_files(tmp_path):
    uid = dicom_series(tmp_path / "in", ramp(), EchoTime="10", name="a", modality="MR")
    dicom_series(tmp_path / "in", ramp() + 500, EchoTime="20", name="b", series=uid, modality="MR")
    dicom_series(tmp_path / "in", ramp() + 900, name="", modality="MR")
    for name, series in (("a002.dcm", 0), ("b002.dcm", 500), ("./b001.dcm", 500), ("./002.dcm", 900)):
        assert np.array_equal(read_series(tmp_path / "in", series=name).array, ramp() + series)
    assert np.array_equal(read_series(tmp_path, series="in/b002.dcm").array, ramp() + 500)
    for path in (tmp_path / "in").glob("0*"):
        path.rename(path.with_suffix(""))
    assert np.array_equal(read_series(tmp_path / "in", series="./002").array, ramp() + 900)


def test_files_that_were_picked_are_one_volume(tmp_path):
    dicom_series(tmp_path / "a", ramp())
    dicom_series(tmp_path / "b", ramp() + 500)
    (found,) = list_series(sorted((tmp_path / "a").iterdir()))
    assert len(found.slices) == 5
    assert len(list_series([tmp_path / "a", tmp_path / "b"])) == 2
    with pytest.raises(InputError, match=f"{tmp_path.name}: offers 2 volumes"):
        choose_series([tmp_path / "a", tmp_path / "b"])
