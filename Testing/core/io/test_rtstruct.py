"""RTSTRUCT: contours that are the voxels again, names, colours and references, of series of every kind."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from MaskSAMCore.errors import GeometryError, InputError, PackageError
from MaskSAMCore.io.dicom import list_series, read_series
from MaskSAMCore.io.rtstruct import write_rtstruct
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.volume import Grid, LabelMap, Volume, ras_to_lps
from Testing.dicom_phantom import dicom_series, ramp

TABLE = LabelTable(
    labels=(
        Label(id=3, name="Gewebe ä", color=(255, 0, 10)),
        Label(id=7, name="脳 und Печень", color=(1, 2, 3)),
        Label(id=9, name="absent", color=(4, 5, 6)),
    )
)
OBLIQUE = (0.96, 0.28, 0.0, -0.28, 0.96, 0.0)


@pytest.fixture(autouse=True)
def package() -> None:
    pytest.importorskip("rt_utils", reason="NOT TESTED HERE: rt-utils is not installed")


def contours(data: Any, roi: int) -> Iterator[tuple[Any, np.ndarray]]:
    for contour in data.ROIContourSequence[roi].ContourSequence:
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
        assert contour.NumberOfContourPoints == len(points) >= 4
        yield contour, points


def masked(data: Any, roi: int, volume: Volume) -> np.ndarray:
    """Contours back to voxels (K, J, I): those whose centres lie inside an odd number of contours."""
    from matplotlib.path import Path as Outline

    out = np.zeros(volume.grid.shape, bool)
    j, i = np.mgrid[: out.shape[1], : out.shape[2]]
    centres = np.column_stack([i.ravel(), j.ravel()])
    for _, points in contours(data, roi):
        ijk = volume.grid.to_ijk(ras_to_lps(points))
        k = round(ijk[0, 2])
        assert np.abs(ijk[:, 2] - k).max() < 1e-3
        out[k] ^= Outline(ijk[:, :2]).contains_points(centres).reshape(j.shape)
    return out


def area_mm2(points: np.ndarray) -> float:
    return float(np.linalg.norm(np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)) / 2)


def structures(shape: tuple[int, int, int]) -> np.ndarray:
    """A block with holes, an island inside a hole, single voxels, voxels that touch by corners, and a staircase."""
    out = np.zeros(shape, np.uint8)
    out[2:6, 3:20, 4:28] = 3
    out[3, 5:12, 6:16] = 0
    out[3, 7:9, 9:12] = 3
    out[3, 15, 20] = out[3, 16, 21] = 0
    out[4, 22, 1] = out[4, 22, 3] = out[4, 23, 2] = 3
    for step in range(12):
        out[7, 3 + step, 3 : 5 + step] = 7
    out[0, 0, 0] = out[-1, -1, -1] = 7
    return out


def agree(folder: Path, out: Path, volume: Volume, array: np.ndarray, **options: Any) -> Any:
    """Write, read back, and compare every structure with its voxels, exactly."""
    write_rtstruct(LabelMap(array=array, grid=volume.grid, labels=TABLE), folder, out, **options)
    data = pydicom.dcmread(out)
    for roi, number in enumerate([3, 7]):
        assert np.array_equal(masked(data, roi, volume), array == number)
    return data


def test_the_data_set_names_its_structures_and_its_series(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    uid = dicom_series(tmp_path / "ct", ramp((9, 26, 30)), PatientName="Phantom^A", StudyDescription="Head")
    volume = read_series(tmp_path / "ct")
    data = agree(tmp_path / "ct", tmp_path / "r.dcm", volume, structures(volume.grid.shape), model="toy", version="1")
    assert data.Modality == "RTSTRUCT"
    assert [roi.ROIName for roi in data.StructureSetROISequence] == ["Gewebe ä", "脳 und Печень"]
    assert [list(roi.ROIDisplayColor) for roi in data.ROIContourSequence] == [[255, 0, 10], [1, 2, 3]]
    assert {roi.ROIGenerationAlgorithm for roi in data.StructureSetROISequence} == {"AUTOMATIC"}
    assert {roi.ReferencedFrameOfReferenceUID for roi in data.StructureSetROISequence} == {uid + ".2"}
    assert (data.PatientID, str(data.PatientName), data.StudyInstanceUID) == ("P", "Phantom^A", uid + ".1")
    assert data.SeriesInstanceUID != uid
    assert (data.StudyDescription, data.SeriesDescription) == ("Head", "toy segmentation")
    frame = data.ReferencedFrameOfReferenceSequence[0]
    assert frame.FrameOfReferenceUID == uid + ".2"
    referred = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == uid
    places = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, (tmp_path / "ct").iterdir())}
    assert {image.ReferencedSOPInstanceUID for image in referred.ContourImageSequence} == set(places)
    for roi in range(2):
        for contour, points in contours(data, roi):
            slice_ = places[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            assert np.allclose(points[:, 2], float(slice_.ImagePositionPatient[2]))
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("heights", "tags"),
    [
        (None, {}),
        ([-2.5 * k for k in range(9)], {"spacing": (0.7, 1.9), "orientation": OBLIQUE}),
        (None, {"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), "spacing": (2.0, 0.5), "origin": (-30.0, 5.0, 100.0)}),
    ],
)
def test_contours_are_the_voxels_again(tmp_path: Path, heights: list[float] | None, tags: dict[str, Any]) -> None:
    """Pixels that are not square, slices named and numbered against their order, holes, and single voxels."""
    dicom_series(tmp_path / "ct", ramp((9, 26, 30)), heights=heights, **tags)
    volume = read_series(tmp_path / "ct")
    array = structures(volume.grid.shape)
    data = agree(tmp_path / "ct", tmp_path / "r.dcm", volume, array)
    pixel = float(np.prod(volume.grid.spacing[:2]))
    stairs = [area_mm2(points) for _, points in contours(data, 1)]
    assert sum(stairs) == pytest.approx(int((array == 7).sum()) * pixel, rel=1e-3)


def test_a_label_map_with_its_axes_in_another_order(tmp_path: Path) -> None:
    dicom_series(tmp_path / "ct", ramp((9, 26, 30)), origin=(1.0, 2.0, 3.0))
    volume = read_series(tmp_path / "ct")
    array = structures(volume.grid.shape)
    affine = volume.grid.affine.copy()
    affine[:3, 3] = volume.grid.to_ras((0, 0, 8))
    affine[:3, 2] *= -1
    turned = Grid(shape=volume.grid.shape, affine=affine)
    write_rtstruct(LabelMap(array=array[::-1], grid=turned, labels=TABLE), tmp_path / "ct", tmp_path / "r.dcm")
    assert np.array_equal(masked(pydicom.dcmread(tmp_path / "r.dcm"), 0, volume), array == 3)


def test_one_series_of_several(tmp_path: Path) -> None:
    """Of the same size and place: only its key tells which one is meant."""
    folder = tmp_path / "ct"
    uids = [dicom_series(folder, ramp((9, 26, 30)), name=name) for name in "ab"]
    for uid in uids:
        volume = read_series(folder, series=uid)
        data = agree(folder, tmp_path / f"{uid}.dcm", volume, structures(volume.grid.shape), series=uid)
        study = data.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        assert study.RTReferencedSeriesSequence[0].SeriesInstanceUID == uid


@pytest.mark.parametrize("charset", ["ISO_IR 144", "GB18030", "ISO_IR 192", "ISO_IR 100"])
def test_names_in_any_character_set(tmp_path: Path, charset: str) -> None:
    name = {"ISO_IR 144": "Люкceмбypг", "GB18030": "Wang^小东", "ISO_IR 100": "Buc^Jérôme"}.get(charset, "ئاپۆ^脳")
    dicom_series(tmp_path / "ct", ramp((9, 26, 30)), SpecificCharacterSet=charset, PatientName=name, StudyID=name[:16])
    volume = read_series(tmp_path / "ct")
    data = agree(tmp_path / "ct", tmp_path / "r.dcm", volume, structures(volume.grid.shape))
    assert (str(data.PatientName), data.StudyID) == (name, name[:16])


def test_names_that_dicom_cannot_hold_are_made_to_fit(tmp_path: Path) -> None:
    dicom_series(tmp_path / "ct", ramp((9, 26, 30)))
    volume = read_series(tmp_path / "ct")
    table = LabelTable(labels=(Label(id=3, name="a\\b " * 30, color=(0, 0, 0)),))
    array = np.where(structures(volume.grid.shape) == 3, 3, 0).astype(np.uint8)
    write_rtstruct(LabelMap(array=array, grid=volume.grid, labels=table), tmp_path / "ct", tmp_path / "r.dcm")
    assert pydicom.dcmread(tmp_path / "r.dcm").StructureSetROISequence[0].ROIName == ("a/b " * 16).strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ct_head", "siemens_mr", "jpeg2000", "rle", "enhanced_multiframe"])
def test_real_series(shared: Path, tmp_path: Path, name: str) -> None:
    """Anonymised, compressed and multi-frame: only the frame of reference, which they lack, is added."""
    source = list_series(shared / "data" / "dicom" / name)[0]
    folder = tmp_path / name
    folder.mkdir()
    for file in source.files:
        shutil.copyfile(file, folder / file.name)
        image = pydicom.dcmread(folder / file.name)
        image.FrameOfReferenceUID = "2.25.1"
        image.save_as(folder / file.name)
    volume = read_series(folder)
    middle = tuple(slice(n // 3, n // 3 + max(2, n // 8)) for n in volume.grid.shape)
    array = np.zeros(volume.grid.shape, np.uint16)
    values = volume.array[middle]
    array[middle] = np.where(values > np.median(values), 3, 7)
    data = agree(folder, tmp_path / "r.dcm", volume, array)
    assert data.StudyInstanceUID == pydicom.dcmread(source.files[0]).StudyInstanceUID
    for roi in range(2):
        for contour, points in contours(data, roi):
            image = contour.ContourImageSequence[0]
            k = round(volume.grid.to_ijk(ras_to_lps(points[0]))[2])
            frames = "enhanced" in name
            assert ("ReferencedFrameNumber" in image) == frames
            if frames:
                groups = pydicom.dcmread(source.files[0]).PerFrameFunctionalGroupsSequence
                place = groups[image.ReferencedFrameNumber - 1].PlanePositionSequence[0].ImagePositionPatient
                assert np.allclose([float(v) for v in place], ras_to_lps(volume.grid.to_ras((0, 0, k))), atol=1e-3)


def test_rt_utils_reads_it(tmp_path: Path) -> None:
    """Its reader rounds the edges of voxels to whole voxels, so a block may grow by one on some sides."""
    from rt_utils import RTStructBuilder

    dicom_series(tmp_path / "ct", ramp((9, 26, 26)))
    volume = read_series(tmp_path / "ct")
    array = np.zeros(volume.grid.shape, np.uint8)
    array[2:6, 4:22, 4:22] = 3
    write_rtstruct(LabelMap(array=array, grid=volume.grid, labels=TABLE), tmp_path / "ct", tmp_path / "r.dcm")
    struct = RTStructBuilder.create_from(str(tmp_path / "ct"), str(tmp_path / "r.dcm"))
    assert struct.get_roi_names() == ["Gewebe ä"]
    found = np.moveaxis(struct.get_roi_mask_by_name("Gewebe ä"), 2, 0)
    assert 2 * (found & (array > 0)).sum() / (found.sum() + (array > 0).sum()) > 0.9


def test_what_is_refused(tmp_path: Path, shared: Path) -> None:
    dicom_series(tmp_path / "ct", ramp((9, 26, 30)))
    volume = read_series(tmp_path / "ct")
    array = structures(volume.grid.shape)
    moved = volume.grid.affine.copy()
    moved[2, 3] += 1
    elsewhere = LabelMap(array=array, grid=Grid(shape=volume.grid.shape, affine=moved), labels=TABLE)
    with pytest.raises(GeometryError, match="apart"):
        write_rtstruct(elsewhere, tmp_path / "ct", tmp_path / "r.dcm")
    empty = LabelMap(array=array * 0, grid=volume.grid, labels=TABLE)
    with pytest.raises(InputError, match="nothing is segmented"):
        write_rtstruct(empty, tmp_path / "ct", tmp_path / "r.dcm")
    folder = shared / "data" / "dicom" / "siemens_mr"
    real = read_series(folder)
    ones = LabelMap(array=np.ones(real.grid.shape, np.uint8), grid=real.grid)
    with pytest.raises(InputError, match="Frame of Reference"):
        write_rtstruct(ones, folder, tmp_path / "r.dcm")
    assert not (tmp_path / "r.dcm").exists()


def test_without_the_package_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "rt_utils":
            raise ModuleNotFoundError("No module named 'rt_utils'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    grid = Grid(shape=(1, 1, 1), affine=np.eye(4))
    with pytest.raises(PackageError, match=r'pip install ".\[rtstruct\]"'):
        write_rtstruct(LabelMap(array=np.ones((1, 1, 1), np.uint8), grid=grid), tmp_path, tmp_path / "r.dcm")
