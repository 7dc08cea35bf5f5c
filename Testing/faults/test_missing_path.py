"""faults.md row 1: a missing or unreadable path is named, and ends the command with 2."""

from __future__ import annotations

import os

import pytest

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.dicom import read_series
from MaskSAMCore.io.images import read_labels, read_volume


@pytest.mark.parametrize("read", [read_volume, read_labels, read_series])
def test_missing(tmp_path, read):
    with pytest.raises(InputError, match=r"nowhere\.nii\.gz") as caught:
        read(tmp_path / "nowhere.nii.gz")
    assert caught.value.exit_code == 2


def test_name_that_no_system_accepts(tmp_path):
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(InputError):
            read_volume(str(tmp_path / name))


def test_unreadable(tmp_path):
    path = tmp_path / "locked.nii"
    path.write_bytes(b"x" * 400)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(InputError, match=r"locked\.nii"):
        read_volume(path)


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match="no DICOM"):
        read_volume(tmp_path)
