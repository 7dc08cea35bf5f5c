"""faults.md row 25: 4-D and colour input asks for the frame or channel; never silently the first."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.images import read_labels, read_volume

ARRAY = np.arange(3 * 24, dtype=np.int16).reshape(3, 2, 3, 4)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_frames(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(a) for a in ARRAY]), str(path))
    with pytest.raises(InputError, match=r"has 3 frames.*frame=0 to 2"):
        read_volume(path)
    with pytest.raises(InputError, match="3 frames"):
        read_labels(path)
    for frame in range(3):
        assert np.array_equal(read_volume(path, frame=frame).array, ARRAY[frame])
    for wrong in (3, -1):
        with pytest.raises(InputError, match="has no frame"):
            read_volume(path, frame=wrong)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("kind", ["vector", "rgb"])
def test_channels(tmp_path, suffix, kind):
    path = tmp_path / f"a{suffix}"
    array = np.moveaxis(ARRAY, 0, -1).astype(np.uint8 if kind == "rgb" else np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(path))
    with pytest.raises(InputError, match=r"has 3 channels"):
        read_volume(path)
    for channel in range(3):
        assert np.array_equal(read_volume(path, channel=channel).array, array[..., channel])


def test_a_single_frame_needs_no_choice(tmp_path):
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(ARRAY[0])]), str(tmp_path / "a.nii"))
    assert np.array_equal(read_volume(tmp_path / "a.nii").array, ARRAY[0])
