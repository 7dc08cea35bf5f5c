"""Images and label maps: what is written comes back, and agrees with ITK."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.formats import grid_of
from MaskSAMCore.io.images import read_labels, read_volume, write_labels, write_volume
from MaskSAMCore.volume import Grid, LabelMap, Volume

COSINE, SINE = np.cos(0.3), np.sin(0.3)


def oblique() -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = np.array([[-COSINE, 0, SINE], [0, 1, 0], [SINE, 0, COSINE]]) * (0.7, 1.1, 2.5)
    affine[:3, 3] = (-101.3, 57.25, 8.5)
    return Grid(shape=(4, 5, 6), affine=affine)


def picture(dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(dtype)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_an_image_comes_back_on_its_grid_and_itk_agrees(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    write_volume(Volume(array=picture(), grid=oblique()), path)
    back = read_volume(path)
    assert np.array_equal(back.array, picture())
    assert back.grid.same_as(oblique())
    assert not back.warnings
    image = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), picture())
    assert grid_of(image).same_as(oblique())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".seg.nrrd"])
@pytest.mark.parametrize("top", [3, 300])
def test_labels_come_back_and_the_type_widens(tmp_path, suffix, top):
    labels = np.zeros((4, 5, 6), np.int64)
    labels[1, 2, 3] = top
    write_labels(LabelMap(array=labels, grid=oblique()), tmp_path / f"l{suffix}")
    back = read_labels(tmp_path / f"l{suffix}")
    assert np.array_equal(back.array, labels)
    assert back.grid.same_as(oblique())
    assert back.array.dtype == (np.uint8 if top < 256 else np.uint16)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("value", [0.5, -1.0, np.nan, 70000.0])
def test_what_is_no_label_is_refused_with_its_voxel(tmp_path, suffix, value):
    array = np.zeros((4, 5, 6), np.float32)
    array[1, 2, 3] = value
    write_volume(Volume(array=array, grid=oblique()), tmp_path / f"l{suffix}")
    with pytest.raises(InputError, match=r"\(i, j, k\) = \(3, 2, 1\)"):
        read_labels(tmp_path / f"l{suffix}")


def test_channels_are_files_on_one_grid(tmp_path):
    for c in range(2):
        write_volume(Volume(array=picture() + c, grid=oblique()), tmp_path / f"{c}.nii")
    both = read_volume([tmp_path / "0.nii", tmp_path / "1.nii"])
    assert both.array.shape == (2, 4, 5, 6)
    assert np.array_equal(both.array[1], picture() + 1)
    moved = oblique().affine.copy()
    moved[0, 3] += 1
    write_volume(Volume(array=picture(), grid=Grid(shape=(4, 5, 6), affine=moved)), tmp_path / "2.nii")
    with pytest.raises(InputError, match="differ"):
        read_volume([tmp_path / "0.nii", tmp_path / "2.nii"])
    with pytest.raises(InputError):
        read_volume([])


@pytest.mark.parametrize("pattern", ["hippocampus/imagesTr", "hippocampus/labelsTr", "headneck_ct/imagesTr"])
def test_real_files_read_as_itk_reads_them(shared, pattern):
    for path in sorted((shared / "data" / pattern).glob("*.nii.gz"))[::60]:
        volume, image = read_volume(path), sitk.ReadImage(str(path))
        assert np.array_equal(volume.array, sitk.GetArrayFromImage(image))
        assert grid_of(image).same_as(volume.grid)


def test_detached_voxels_are_found_beside_their_header(tmp_path):
    image = sitk.GetImageFromArray(picture(np.int16))
    for suffix in (".mhd", ".nhdr"):
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        assert np.array_equal(read_volume(tmp_path / f"a{suffix}").array, picture())


@pytest.mark.parametrize("code", [-1, 2, 4])
def test_nifti_2_and_units_are_read(tmp_path, code):
    """A NIfTI-2 header by hand: 540 bytes, sform in metres where the unit is 1, microns where it is 3."""
    head = bytearray(544)
    head[:4] = struct.pack("<i", 540)
    head[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into("<hh", head, 12, 4, 16)
    struct.pack_into("<8q", head, 16, 3, 6, 5, 4, 1, 1, 1, 1)
    struct.pack_into("<8d", head, 104, 1, 0.001, 0.002, 0.003, 1, 1, 1, 1)
    struct.pack_into("<q", head, 168, 544)
    struct.pack_into("<2d", head, 176, 2.0, code)
    struct.pack_into("<2i", head, 344, 0, 1)
    struct.pack_into("<12d", head, 400, 0.001, 0, 0, 0.01, 0, 0.002, 0, 0.02, 0, 0, 0.003, 0.03)
    struct.pack_into("<i", head, 500, 1)
    (tmp_path / "two.nii").write_bytes(bytes(head) + picture(np.int16).tobytes())
    volume = read_volume(tmp_path / "two.nii")
    assert np.array_equal(volume.array, picture() * 2 + code)
    assert np.allclose(volume.grid.affine, [[1, 0, 0, 10], [0, 2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])


def test_two_dimensional_images_have_one_slice(tmp_path):
    image = sitk.GetImageFromArray(picture()[0])
    for suffix in (".nii", ".nrrd", ".mha"):
        sitk.WriteImage(image, str(tmp_path / f"flat{suffix}"))
        assert np.array_equal(read_volume(tmp_path / f"flat{suffix}").array[0], picture()[0])
