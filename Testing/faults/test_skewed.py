"""faults.md row 17: a direction matrix that is not orthonormal is shown, and resampled on request."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.errors import GeometryError
from MaskSAMCore.io.images import read_labels, read_volume, write_volume
from MaskSAMCore.volume import Grid, Volume

SKEWED = np.array([[1.0, 0.0, 0.5, -3], [0, 1.0, 0, 4], [0, 0, 2.0, 5], [0, 0, 0, 1]])


def skewed_ball(path):
    k, j, i = np.indices((20, 30, 30))
    place = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ SKEWED.T
    ball = (np.linalg.norm(place[..., :3] - (14, 19, 25), axis=-1) < 8).astype(np.int16) * 100
    sitk.WriteImage(sitk.GetImageFromArray(ball), str(path))
    data = bytearray(path.read_bytes())
    struct.pack_into("<2h", data, 252, 0, 1)
    struct.pack_into("<12f", data, 280, *SKEWED[:3].ravel())
    path.write_bytes(bytes(data))
    return path


def test_nifti_is_refused_with_its_matrix(tmp_path):
    path = skewed_ball(tmp_path / "a.nii")
    for read in (read_volume, read_labels):
        with pytest.raises(GeometryError, match=r"(?s)a\.nii: its axes are not at right angles.*0\.2425"):
            read(path)


def test_resampled_on_request_everything_stays_in_place(tmp_path):
    volume = read_volume(skewed_ball(tmp_path / "a.nii"), resample=True)
    assert volume.grid.skew < 1e-9
    assert "resampled" in volume.warnings[-1]
    k, j, i = np.nonzero(volume.array > 50)
    ras = volume.grid.to_ras(np.stack([i, j, k], axis=-1))
    assert np.allclose(ras.mean(axis=0), (14, 19, 25), atol=0.2)
    assert np.linalg.norm(ras - (14, 19, 25), axis=1).max() < 8.8


def test_metaimage_and_nrrd(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\n"
        b"space directions: (1,0,0) (0.4,1,0) (0,0,1)\nkinds: domain domain domain\nencoding: raw\n"
        b"space origin: (0,0,0)\n\n" + bytes(24)
    )
    with pytest.raises(GeometryError, match=r"a\.nrrd"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_a_skewed_grid_is_never_written(tmp_path, suffix):
    volume = Volume(array=np.zeros((2, 3, 4), np.float32), grid=Grid(shape=(2, 3, 4), affine=SKEWED))
    with pytest.raises(GeometryError, match="skewed"):
        write_volume(volume, tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())
