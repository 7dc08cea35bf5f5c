"""faults.md row 3: what a file is, is decided by its content, and said where the name claims otherwise."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.images import read_volume


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)), str(path))
    return path


def test_plain_nifti_named_gz(plain, tmp_path):
    path = tmp_path / "b.nii.gz"
    path.write_bytes(plain.read_bytes())
    volume = read_volume(path)
    assert volume.array[1, 2, 3] == 23
    assert "not compressed" in volume.warnings[0]


def test_gzip_named_nii(plain, tmp_path):
    path = tmp_path / "b.nii"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_volume(path).array[1, 2, 3] == 23
    assert "compressed" in read_volume(path).warnings[0]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html>" + b" " * 400, "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"PK\x03\x04" + b"\0" * 400, "ZIP"),
        (b"", "empty"),
        (b"\x01\x02\x03" * 200, "not gzip"),
    ],
)
def test_something_else_named_gz(tmp_path, content, kind):
    path = tmp_path / "b.nii.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=kind):
        read_volume(path)
