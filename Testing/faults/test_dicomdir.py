"""faults.md row 8: a DICOMDIR that refers outside its folder is rejected."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.images import read_volume
from Testing.dicom_phantom import dicom_series, ramp

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")


def dicomdir(folder, *names):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = FileDataset(str(folder / "DICOMDIR"), {}, file_meta=meta, preamble=b"\0" * 128)
    records = []
    for name in names:
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        record.add_new("ReferencedFileID", "CS", name)
        records.append(record)
    data.DirectoryRecordSequence = Sequence(records)
    data.save_as(folder / "DICOMDIR", enforce_file_format=True)


def test_inside_is_read(tmp_path):
    dicom_series(tmp_path / "IMAGES", ramp())
    dicomdir(tmp_path, ["IMAGES", "s001.dcm"])
    assert np.array_equal(read_volume(tmp_path).array, ramp())
    assert np.array_equal(read_volume(tmp_path / "DICOMDIR").array, ramp())


@pytest.mark.parametrize("name", [["..", "other", "s001.dcm"], "/etc/passwd", ["IMAGES", "..", "..", "x"], "C:\\X\\Y"])
def test_outside_is_rejected(tmp_path, name):
    dicom_series(tmp_path / "in" / "IMAGES", ramp())
    dicom_series(tmp_path / "other", ramp())
    dicomdir(tmp_path / "in", name)
    for path in (tmp_path / "in", tmp_path / "in" / "DICOMDIR"):
        with pytest.raises(InputError, match="outside its folder"):
            read_volume(path)
