"""faults.md row 5: non-ASCII characters, spaces and long paths work."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.io.dicom import read_series
from MaskSAMCore.io.dicomseg import write_dicom_seg
from MaskSAMCore.io.images import read_labels, read_volume, write_labels
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.volume import Grid, LabelMap
from Testing.dicom_phantom import dicom_series, ramp


def awkward(tmp_path):
    folder = tmp_path / "Ünï cødé – 脑 海马" / ("long " * 40).strip() / ("x" * 200)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".mha"])
def test_images(tmp_path, suffix):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    name = "Größe 中文 ö"
    labels = LabelTable(labels=(Label(id=1, name=name, color=(1, 2, 3)),))
    path = awkward(tmp_path) / f"скан 1 é{suffix}"
    write_labels(LabelMap(array=array, grid=Grid(shape=(2, 3, 4), affine=np.eye(4)), labels=labels), path)
    back = read_labels(path)
    assert np.array_equal(back.array, array)
    assert np.array_equal(read_volume(path).array, array)
    assert suffix != ".seg.nrrd" or back.labels.labels[0].name == name


@pytest.mark.slow
def test_dicom(tmp_path):
    folder = awkward(tmp_path)
    dicom_series(folder / "série", ramp(), name="Schnitt ß ")
    volume = read_series(folder / "série")
    assert np.array_equal(volume.array, ramp())
    labels = LabelTable(labels=(Label(id=1, name="liver", color=(1, 2, 3)),))
    array = (ramp() > 100).astype(np.uint8)
    write_dicom_seg(LabelMap(array=array, grid=volume.grid, labels=labels), folder / "série", folder / "sé g.dcm")
    assert (folder / "sé g.dcm").is_file()
