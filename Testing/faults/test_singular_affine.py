"""faults.md row 18: a singular, NaN or zero-spacing affine is a GeometryError."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.errors import GeometryError
from MaskSAMCore.io.images import read_volume, write_volume
from MaskSAMCore.volume import Grid, Volume, reorient

FLAT = np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
NANS = np.diag([1.0, np.nan, 1.0, 1.0])
ZERO = np.diag([1.0, 0.0, 1.0, 1.0])
HUGE = np.diag([1.0, np.inf, 1.0, 1.0])


@pytest.mark.parametrize("affine", [FLAT, NANS, ZERO, HUGE])
def test_grid(affine):
    grid = Grid(shape=(2, 3, 4), affine=affine)
    with pytest.raises(GeometryError, match="here"):
        grid.check(where="here")
    with pytest.raises(GeometryError):
        reorient(np.zeros((2, 3, 4)), grid)


@pytest.mark.parametrize("affine", [FLAT, NANS, ZERO, HUGE])
def test_nifti_sform(tmp_path, affine):
    path = tmp_path / "a.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(path))
    data = bytearray(path.read_bytes())
    struct.pack_into("<2h", data, 252, 0, 1)
    struct.pack_into("<12f", data, 280, *affine[:3].ravel())
    path.write_bytes(bytes(data))
    with pytest.raises(GeometryError, match=r"a\.nii"):
        read_volume(path)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_nifti_spacing(tmp_path, value):
    path = tmp_path / "a.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(path))
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, 80, value)
    path.write_bytes(bytes(data))
    with pytest.raises(GeometryError, match="spacing"):
        read_volume(path)


@pytest.mark.parametrize("spacing", ["0 1 1", "nan 1 1"])
def test_metaimage(tmp_path, spacing):
    (tmp_path / "a.mha").write_bytes(
        f"ObjectType = Image\nNDims = 3\nElementSpacing = {spacing}\nDimSize = 4 3 2\nElementType = MET_UCHAR\n"
        "ElementDataFile = LOCAL\n".encode()
        + bytes(24)
    )
    with pytest.raises(GeometryError, match=r"a\.mha"):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize(
    "directions", ["(1,0,0) (1,0,0) (0,0,1)", "(0,0,0) (0,1,0) (0,0,1)", "(nan,0,0) (0,1,0) (0,0,1)"]
)
def test_nrrd(tmp_path, directions):
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\n"
        + f"space directions: {directions}\n".encode()
        + b"encoding: raw\nspace origin: (0,0,0)\n\n"
        + bytes(24)
    )
    with pytest.raises(GeometryError, match=r"a\.nrrd"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_never_written(tmp_path, suffix):
    volume = Volume(array=np.zeros((2, 3, 4), np.float32), grid=Grid(shape=(2, 3, 4), affine=FLAT))
    with pytest.raises(GeometryError):
        write_volume(volume, tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())
