"""DICOM series: real scanners' files against ITK's own reader, and series made to be difficult."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.uid import RLELossless

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.io.dicom import list_series, read_series
from MaskSAMCore.io.formats import grid_of
from MaskSAMCore.io.images import read_volume
from MaskSAMCore.volume import reorient
from Testing.dicom_phantom import dicom_series, dicom_slice, ramp


@pytest.mark.parametrize("name", ["ct_head", "siemens_mr", "ge_mr", "jpeg2000", "rle"])
def test_real_series_read_as_itk_reads_them(shared, name):
    folder = shared / "data" / "dicom" / name
    volume = read_volume(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    assert grid_of(image).distance_mm(volume.grid) < 1e-3
    assert np.array_equal(sitk.GetArrayFromImage(image), volume.array)
    assert volume.modality == ("CT" if name == "ct_head" else "MR")
    assert volume.array.dtype == np.float32


@pytest.mark.parametrize(("name", "truth"), [("jpeg2000", "001"), ("rle", "001"), ("siemens_mr", "001_implicit")])
def test_real_series_match_their_published_conversion(shared, name, truth):
    folder = shared / "data" / "dicom" / name
    volume, known = read_volume(folder), read_volume(folder / f"{truth}_ground_truth.nii.gz")
    ours, our_grid, _ = reorient(volume.array, volume.grid)
    theirs, their_grid, _ = reorient(known.array, known.grid)
    assert our_grid.same_as(their_grid)
    assert np.array_equal(ours, theirs)


def test_enhanced_multiframe_files_are_two_volumes(shared):
    folder = shared / "data" / "dicom" / "enhanced_multiframe"
    series = list_series(folder)
    assert [len(s.slices) for s in series] == [8, 8]
    assert not any(s.problem for s in series)
    for one in series:
        volume = read_series(folder, series=one.key)
        image = sitk.ReadImage(str(one.files[0]))
        assert grid_of(image).distance_mm(volume.grid) < 1e-3
        assert np.abs(sitk.GetArrayFromImage(image) - volume.array).max() < 1e-3
    with pytest.raises(InputError, match="offers 2 volumes"):
        read_volume(folder)


def test_rescale_is_applied_per_slice(tmp_path):
    array = ramp()
    dicom_series(tmp_path, array, RescaleSlope="0.5", RescaleIntercept="-100")
    assert np.array_equal(read_series(tmp_path).array, array * 0.5 - 100)


def test_signed_12_bits_with_rubbish_above_them(tmp_path):
    wanted = np.array([[-2048, -1, 0], [1, 1000, 2047]], np.int16)
    stored = (wanted.astype(np.uint16) & 0x0FFF) | 0x3000
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1}
    dicom_series(tmp_path, stored[None], **tags)
    assert np.array_equal(read_series(tmp_path).array[0], wanted)


@pytest.mark.parametrize("syntax", ["rle", "JPEG2000", "JPEG"])
def test_compressed_pixels_get_their_rescale_once(tmp_path, syntax):
    array = ramp((1, 16, 16))
    data = dicom_slice(
        tmp_path / "a.dcm",
        array[0],
        series="1.2.3",
        position=(0, 0, 0),
        modality="MR",
        RescaleSlope="2",
        RescaleIntercept="-7",
    )
    if syntax == "rle":
        data.compress(RLELossless)
        data.save_as(tmp_path / "a.dcm")
    else:
        image = sitk.ReadImage(str(tmp_path / "a.dcm"))
        plain = sitk.Cast((image + 7) / 2, sitk.sitkInt16)
        for key in image.GetMetaDataKeys():
            plain.SetMetaData(key, image.GetMetaData(key))
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(tmp_path / "a.dcm"))
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor(syntax)
        plain.EraseMetaData("0028|1052")
        plain.EraseMetaData("0028|1053")
        writer.Execute(plain)
        from Testing.dicom_phantom import edit

        edit(tmp_path / "a.dcm", RescaleSlope="2", RescaleIntercept="-7")
    assert np.array_equal(read_series(tmp_path).array, array * 2.0 - 7)


def test_one_slice_takes_its_thickness_and_says_so(tmp_path):
    dicom_series(tmp_path, ramp((1, 4, 5)), SliceThickness="3.5")
    volume = read_series(tmp_path)
    assert volume.grid.spacing[2] == pytest.approx(3.5)
    assert "one slice" in volume.warnings[0]


def test_a_repeated_file_is_left_out(tmp_path):
    dicom_series(tmp_path, ramp())
    first = next(iter(sorted(tmp_path.iterdir())))
    (tmp_path / "copy.dcm").write_bytes(first.read_bytes())
    volume = read_series(tmp_path)
    assert np.array_equal(volume.array, ramp())
    assert "is a duplicate of" in volume.warnings[0]


def test_a_single_file_and_a_list_position_can_be_named(tmp_path):
    dicom_series(tmp_path, ramp())
    assert read_volume(next(iter(sorted(tmp_path.iterdir())))).array.shape == (1, 6, 7)
    dicom_series(tmp_path, ramp() + 1000, name="t")
    assert read_series(tmp_path, series="1").array.shape == (5, 6, 7)
    with pytest.raises(InputError, match="no volume that is named elsewhere"):  # any digit may end an identifier
        read_series(tmp_path, series="elsewhere")


def test_slices_that_wander_sideways_are_refused(tmp_path):
    dicom_series(tmp_path, ramp())
    from Testing.dicom_phantom import edit

    edit(tmp_path / "s003.dcm", ImagePositionPatient=["0.5", "0", "2"])
    with pytest.raises(GeometryError, match=r"s003.dcm is 0.5 mm off"):
        read_series(tmp_path)
