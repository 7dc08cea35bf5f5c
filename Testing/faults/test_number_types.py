"""faults.md row 29: scale factors of 0 or NaN and all number types go through one conversion."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.images import read_volume
from MaskSAMCore.io.nifti import to_real

CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280}


def nifti(path, array, *, order="<", slope=1.0, inter=0.0, code=None):
    head = bytearray(352)
    struct.pack_into(order + "i", head, 0, 348)
    struct.pack_into(order + "8h", head, 40, 3, *array.shape[::-1], 1, 1, 1, 1)
    struct.pack_into(order + "2h", head, 70, code or CODES[array.dtype.str[1:]], 8 * array.dtype.itemsize)
    struct.pack_into(order + "8f", head, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into(order + "3f", head, 108, 352, slope, inter)
    struct.pack_into(order + "2h", head, 252, 1, 0)
    head[344:348] = b"n+1\0"
    path.write_bytes(bytes(head) + array.astype(array.dtype.newbyteorder(order)).tobytes())
    return path


@pytest.mark.parametrize("kind", sorted(CODES))
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_in_both_byte_orders(tmp_path, kind, order):
    low, high = (0, 200) if kind[0] == "u" else (-100, 100)
    array = np.random.default_rng(0).integers(low, high, (2, 3, 4)).astype(kind)
    path = nifti(tmp_path / "a.nii", array, order=order)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, array)
    assert not volume.warnings
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), array)


@pytest.mark.parametrize(
    ("slope", "inter", "factor", "offset", "warned"),
    [
        (0.0, 5.0, 1, 0, False),
        (np.nan, 5.0, 1, 0, False),
        (np.inf, 5.0, 1, 0, True),
        (2.0, np.nan, 2, 0, False),
        (2.5, -7.0, 2.5, -7, False),
        (-1.0, 0.0, -1, 0, False),
    ],
)
def test_scale_factors(tmp_path, slope, inter, factor, offset, warned):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    volume = read_volume(nifti(tmp_path / "a.nii", array, slope=slope, inter=inter))
    assert np.array_equal(volume.array, array * np.float32(factor) + offset)
    assert bool(volume.warnings) == warned


def test_the_extremes_of_uint16_and_int16_do_not_wrap(tmp_path):
    for kind in ("u2", "i2"):
        limits = np.iinfo(kind)
        array = np.array([[[limits.min, limits.max]]], dtype=kind)
        volume = read_volume(nifti(tmp_path / f"{kind}.nii", array, slope=2.0, inter=-1024.0))
        assert volume.array.ravel().tolist() == [limits.min * 2.0 - 1024, limits.max * 2.0 - 1024]


def test_the_conversion_keeps_double_precision():
    out = np.empty(1, np.float32)
    to_real(np.array([2**31 - 1], np.int32), 1.0, -(2.0**31 - 2), out)
    assert out[0] == 1.0


@pytest.mark.parametrize("code", [0, 1, 32, 1536, 1792, 255])
def test_other_types_are_refused(tmp_path, code):
    path = nifti(tmp_path / "a.nii", np.zeros((2, 3, 4), np.int16), code=code or 4)
    if code == 0:
        data = bytearray(path.read_bytes())
        struct.pack_into("<h", data, 70, 0)
        path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=f"datatype {code}"):
        read_volume(path)
