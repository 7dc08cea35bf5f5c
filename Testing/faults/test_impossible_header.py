"""faults.md row 4: sizes that are huge, zero, negative or beyond the file are refused before anything is allocated."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.errors import InputError
from MaskSAMCore.io import images, nifti
from MaskSAMCore.io.images import read_volume


@pytest.fixture
def no_allocation(monkeypatch):
    """Whatever is refused, is refused before an array of its size is made."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("allocated")

    monkeypatch.setattr(nifti.np, "empty", refuse)
    monkeypatch.setattr(sitk.ImageFileReader, "Execute", refuse)


def header(tmp_path, *dims, packed=False):
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(path))
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    struct.pack_into("<8h", data, 40, *dims)
    path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "dims",
    [
        (3, 32767, 32767, 32767, 1, 1, 1, 1),
        (3, 0, 3, 2, 1, 1, 1, 1),
        (3, 4, -3, 2, 1, 1, 1, 1),
        (9, 4, 3, 2, 1, 1, 1, 1),
        (0, 4, 3, 2, 1, 1, 1, 1),
        (4, 4, 3, 2, 30000, 1, 1, 1),
        (7, 4, 3, 2, 1, 1, 2, 1),
    ],
)
def test_nifti(tmp_path, no_allocation, dims, packed):
    with pytest.raises(InputError, match=r"a\.nii"):
        read_volume(header(tmp_path, *dims, packed=packed))


@pytest.mark.parametrize(("at", "value"), [(108, float("nan")), (108, -5.0), (108, 1e30)])
def test_nifti_offset(tmp_path, no_allocation, at, value):
    path = header(tmp_path, 3, 4, 3, 2, 1, 1, 1, 1)
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, at, value)
    path.write_bytes(bytes(data))
    with pytest.raises(InputError):
        read_volume(path)


@pytest.mark.parametrize("sizes", ["100000 100000 100000", "0 3 2", "-4 3 2", "4 3 3", "a b c", ""])
def test_text_headers(tmp_path, no_allocation, sizes):
    (tmp_path / "a.nrrd").write_bytes(
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nencoding: raw\nendian: little\n\n".encode() + bytes(48)
    )
    (tmp_path / "a.mha").write_bytes(
        f"ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n".encode()
        + bytes(48)
    )
    for name in ("a.nrrd", "a.mha"):
        with pytest.raises(InputError, match=name):
            read_volume(tmp_path / name)


def test_the_same_headers_with_true_sizes_are_read(tmp_path):
    (tmp_path / "a.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        + bytes(48)
    )
    assert images.read_volume(tmp_path / "a.mha").array.shape == (2, 3, 4)


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/passwd", "C:\\secret.raw", "sub/../../secret.raw"])
def test_voxels_outside_the_folder(tmp_path, name):
    (tmp_path / "secret.raw").write_bytes(bytes(48))
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.mhd").write_text(
        f"ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementType = MET_SHORT\nElementDataFile = {name}\n"
    )
    (folder / "a.nhdr").write_text(
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 3 2\nencoding: raw\nendian: little\ndata file: {name}\n\n"
    )
    for header_name in ("a.mhd", "a.nhdr"):
        with pytest.raises(InputError, match="outside its folder"):
            read_volume(folder / header_name)
