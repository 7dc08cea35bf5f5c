"""Slicer and the engine read the same file as the same voxels in the same places, whatever is odd about it.

What is known to differ: Slicer reverses the slices of left-handed files, so that only the order of the voxels is
another one; 64-bit numbers are rounded to 32 bits by the engine; NaN and Inf are replaced by it; an intercept beside a
slope of 0 is ignored by it, as NIfTI says, and added by Slicer; tilted DICOM stacks are straightened by a transform
above the volume in Slicer, and refused or resampled by the engine.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.io.images import read_volume, write_array
from MaskSAMCore.volume import Grid, Volume, reorient
from SlicerMaskSAMLib.mrml import bridge
from Testing.slicer import environment

SCANNER = environment.affine(spacing=(0.8, 0.9, 2.5), angles=(20, -12, 5), origin=(-40, 17, -333))
OTHER = environment.affine(spacing=(0.8, 0.9, 2.5), angles=(3, 0, 0), origin=(1, 2, 3))
LEFT_HANDED = SCANNER @ np.diag([1, 1, -1, 1])
SHEARED = SCANNER + np.outer(SCANNER[:, 0], (0, 0, 0.4, 0))
RNG = np.random.default_rng(0)
WHOLE = RNG.integers(0, 1000, (9, 8, 7)).astype(np.int16)


def both(path: Path) -> tuple[Volume, Volume]:
    """A file as Slicer and as the engine read it."""
    return of_slicer(environment.load_volume(path)), read_volume(path)


def of_slicer(node: Any) -> Volume:
    place = bridge.geometry(node)
    return Volume(array=bridge.scalars(node), grid=Grid(shape=place.shape, affine=place.affine))


def straight(volume: Volume) -> tuple[np.ndarray, Grid]:
    array, grid, _ = reorient(volume.array, volume.grid)
    return array, grid


def assert_same(slicer: Volume, engine: Volume, *, turned: bool = False, tolerance: float = 0.0) -> None:
    """The same numbers in the same places; `turned` where the order of the axes' voxels differs."""
    assert slicer.grid.same_as(engine.grid) is not turned
    (ours, place), (theirs, other) = straight(engine), straight(slicer)
    assert place.same_as(other)
    assert np.allclose(theirs.astype(np.float64), ours, rtol=tolerance, atol=0)


def nifti(folder: Path, data: np.ndarray, *, sform: Any = None, qform: Any = None, **fields: Any) -> Path:
    """A file with these transforms, each an affine and its code, and header fields as they are given."""
    header = nibabel.Nifti1Image(data, None).header
    header.set_qform(*(qform or (None, 0)))
    header.set_sform(*(sform or (None, 0)))
    for name, value in ({"vox_offset": 352, "magic": b"n+1"} | fields).items():
        header[name] = value
    path = folder / "odd.nii.gz"
    with gzip.open(path, "wb") as file:
        file.write(header.binaryblock + bytes(4) + data.tobytes(order="F"))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "hippocampus/imagesTr/hippocampus_001_0000.nii.gz",
        "hippocampus/imagesTr/hippocampus_003_0000.nii.gz",
        "acdc/patient001/patient001_frame01.nii.gz",
        "headneck_ct/imagesTr/hn_004_0000.nii.gz",
    ],
)
def test_real_files(scene: Any, shared: Path, name: str) -> None:
    assert_same(*both(shared / "data" / name))


@pytest.mark.parametrize("name", ["siemens_mr", "ge_mr", "rle", "jpeg2000", "ct_head"])
def test_real_series(scene: Any, shared: Path, name: str) -> None:
    folder = shared / "data" / "dicom" / name
    node, _ = environment.load_dicom(sorted(folder.glob("*.dcm")))
    assert_same(of_slicer(node), read_volume(folder))


def test_a_tilted_series_lies_elsewhere_in_slicer_and_is_refused_by_the_engine(scene: Any, shared: Path) -> None:
    folder = shared / "data" / "dicom" / "gantry_tilt"
    node, _ = environment.load_dicom(sorted(folder.glob("*.dcm")))
    with pytest.raises(GeometryError, match="gantry tilt"):
        read_volume(folder)
    assert bridge.geometry(node).skew > 0.1, "Slicer keeps the tilt; the DICOM module puts a transform above it"


@pytest.mark.parametrize(
    ("sform", "qform"),
    [
        ((SCANNER, 1), (SCANNER, 1)),
        ((SCANNER, 2), None),
        (None, (SCANNER, 1)),
        (None, None),
        ((SCANNER, 1), (OTHER, 1)),
        ((SCANNER, 2), (OTHER, 1)),
        ((SCANNER, 2), (OTHER, 2)),
        ((SCANNER, 4), None),
        ((SHEARED, 1), (SCANNER, 1)),
    ],
)
def test_odd_transforms(scene: Any, tmp_path: Path, sform: Any, qform: Any) -> None:
    assert_same(*both(nifti(tmp_path, WHOLE, sform=sform, qform=qform)))


@pytest.mark.parametrize(
    "fields",
    [
        {"pixdim": (1, 1, 1, 1, 0, 0, 0, 0)},
        {"xyzt_units": 3},
        {"scl_slope": 0.37, "scl_inter": -5.1},
        {"scl_slope": 1, "scl_inter": -1024},
    ],
)
def test_odd_headers(scene: Any, tmp_path: Path, fields: dict[str, Any]) -> None:
    assert_same(*both(nifti(tmp_path, WHOLE, sform=(SCANNER, 1), qform=(SCANNER, 1), **fields)))


def test_an_intercept_without_a_slope_differs(scene: Any, tmp_path: Path) -> None:
    slicer, engine = both(nifti(tmp_path, WHOLE, sform=(SCANNER, 1), scl_slope=0, scl_inter=7))
    assert np.array_equal(slicer.array, engine.array + 7)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.float64])
def test_types_of_numbers(scene: Any, tmp_path: Path, kind: type) -> None:
    numbers = WHOLE % 100 if np.issubdtype(kind, np.integer) else RNG.normal(size=WHOLE.shape)
    tolerance = 1e-6 if kind is np.float64 else 0.0
    assert_same(*both(nifti(tmp_path, numbers.astype(kind), sform=(SCANNER, 1))), tolerance=tolerance)


def test_a_fourth_axis_of_one_frame(scene: Any, tmp_path: Path) -> None:
    assert_same(*both(nifti(tmp_path, WHOLE[..., None], sform=(SCANNER, 1))))


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii"])
@pytest.mark.parametrize("affine", [SCANNER, LEFT_HANDED], ids=["right-handed", "left-handed"])
def test_other_formats_and_left_handed_files(scene: Any, tmp_path: Path, ending: str, affine: np.ndarray) -> None:
    array = WHOLE.transpose(2, 1, 0).copy()
    write_array(array, Grid(shape=array.shape, affine=affine), tmp_path / f"x{ending}")
    assert_same(*both(tmp_path / f"x{ending}"), turned=affine is LEFT_HANDED)


@pytest.mark.parametrize("what", ["frames", "sheared"])
def test_what_slicer_does_not_load_the_engine_does_not_either(scene: Any, tmp_path: Path, what: str) -> None:
    data = RNG.integers(0, 9, (9, 8, 7, 3)).astype(np.int16) if what == "frames" else WHOLE
    path = nifti(tmp_path, data, sform=(SHEARED if what == "sheared" else SCANNER, 1))
    with pytest.raises(OSError, match="was not loaded"):
        environment.load_volume(path)
    with pytest.raises(InputError):
        read_volume(path)


def test_a_file_whose_neighbours_have_numbers_is_itself(scene: Any, shared: Path, tmp_path: Path) -> None:
    """Slicer looks for series of numbered pictures; volumes with numbers in their names are none."""
    for number in (1, 3):
        name = f"hippocampus_{number:03d}_0000.nii.gz"
        shutil.copy(shared / "data" / "hippocampus" / "imagesTr" / name, tmp_path / f"scan{number}.nii.gz")
    assert_same(*both(tmp_path / "scan1.nii.gz"))
