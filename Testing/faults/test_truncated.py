"""faults.md row 2: a truncated or damaged file is never a partial volume, wherever it was cut."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.images import read_volume


def whole(tmp_path, suffix, packed):
    array = np.random.default_rng(0).normal(0, 100, (12, 20, 30)).astype(np.float32)
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=packed)
    return path, path.read_bytes()


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [(".nii", False), (".nii.gz", True), (".nrrd", False), (".nrrd", True), (".mha", False), (".mha", True)],
)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.7, 0.999])
def test_cut(tmp_path, suffix, packed, share):
    path, data = whole(tmp_path, suffix, packed)
    read_volume(path)
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"a\.\w+"):
        read_volume(path)


def test_cut_gzip_says_truncated(tmp_path):
    path, data = whole(tmp_path, ".nii.gz", True)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="is truncated"):
        read_volume(path)


@pytest.mark.parametrize("at", [-8, -4, 0.5])
def test_wrong_checksum(tmp_path, at):
    path, data = whole(tmp_path, ".nii.gz", True)
    data = bytearray(data)
    data[at if isinstance(at, int) else int(at * len(data))] ^= 0x55
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"a\.nii\.gz"):
        read_volume(path)


def test_cut_dicom(tmp_path):
    from Testing.dicom_phantom import dicom_series, ramp

    dicom_series(tmp_path, ramp())
    path = tmp_path / "s003.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"s003\.dcm"):
        read_volume(tmp_path)
