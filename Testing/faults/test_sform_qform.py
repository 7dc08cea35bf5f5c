"""faults.md row 16: sform and qform that differ: one rule (ITK's), a warning, and both written equal."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.io.formats import grid_of
from MaskSAMCore.io.images import read_volume, write_volume

S = np.array([[1.0, 0, 0, 10], [0, 2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])


def with_forms(path, scode, qcode, sform=S):
    """qform: axes to R, A, S from (-1, -2, -3), quaternion of a half turn about z."""
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)), str(path))
    data = bytearray(path.read_bytes())
    struct.pack_into("<4f", data, 76, 1, 1, 2, 3)
    struct.pack_into("<2h", data, 252, qcode, scode)
    struct.pack_into("<6f", data, 256, 0, 0, 1, -1, -2, -3)
    struct.pack_into("<12f", data, 280, *np.asarray(sform)[:3].ravel())
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize("scode", range(5))
@pytest.mark.parametrize("qcode", range(5))
def test_the_rule_is_itks(tmp_path, scode, qcode):
    path = with_forms(tmp_path / "a.nii", scode, qcode)
    volume = read_volume(path)
    assert grid_of(sitk.ReadImage(str(path))).same_as(volume.grid)
    taken = "sform" if scode == 1 or (scode and not qcode) else "qform"
    assert any(f"the {taken} is used" in w for w in volume.warnings) == bool(scode and qcode)
    assert any("left and right" in w for w in volume.warnings) == (not scode and not qcode)


def test_equal_forms_give_no_warning(tmp_path):
    path = with_forms(tmp_path / "a.nii", 1, 1, [[-1, 0, 0, -1], [0, -2, 0, -2], [0, 0, 3, -3]])
    assert read_volume(path).warnings == ()


def test_pixdim_gives_the_voxel_size(tmp_path):
    """Real heart scans carry an sform of ones beside the true voxel size."""
    path = with_forms(tmp_path / "a.nii", 2, 0, np.diag([-1.0, -1.0, 1.0, 1.0]))
    volume = read_volume(path)
    assert volume.grid.spacing == (1.0, 2.0, 3.0)
    assert any("pixdim is used" in w for w in volume.warnings)
    assert grid_of(sitk.ReadImage(str(path))).same_as(volume.grid)


def test_both_are_written_equal(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = read_volume(with_forms(tmp_path / "a.nii", 1, 2))
    write_volume(volume, tmp_path / "b.nii.gz")
    header = nibabel.load(tmp_path / "b.nii.gz").header
    assert np.allclose(header.get_sform(), header.get_qform(), atol=1e-5)
    assert int(header["sform_code"]) == int(header["qform_code"]) == 1
    assert np.allclose(header.get_sform(), volume.grid.affine, atol=1e-5)
    assert np.allclose(header.get_sform(), S)


def test_real_files(shared):
    heads = sorted((shared / "data" / "headneck_ct" / "imagesTr").glob("*.nii.gz"))[:3]
    hearts = sorted((shared / "data" / "acdc" / "patient001").glob("*frame01.nii.gz"))
    for path in heads + hearts:
        assert grid_of(sitk.ReadImage(str(path))).same_as(read_volume(path).grid)
