"""What the worker writes: DICOM SEG and training cases, without an open scan and without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from MaskSAMCore.data.raw import read_case, read_dataset
from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.io.dicom import read_series
from MaskSAMCore.progress import Cancelled, CancelToken, no_progress
from MaskSAMCore.volume import Grid
from MaskSAMCore.worker import exports
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.worker.results import Exported, SavedCase
from Testing.dicom_phantom import dicom_series, ramp
from Testing.workers import REPO, fake, place

SHAPE = (5, 6, 7)
EYE = np.eye(4)
SCT = {"scheme": "SCT"}
LIVER = {
    "category": SCT | {"value": "123037004", "meaning": "Anatomical Structure"},
    "type": SCT | {"value": "10200004", "meaning": "Liver"},
}


def segment(name: str, box: tuple[int, ...], mask: np.ndarray | None = None, **more: Any) -> dict[str, Any]:
    """A segment as the client takes it; without a mask it fills its box."""
    size = [high - low for low, high in zip(box[::2], box[1::2], strict=True)]
    return {"name": name, "color": [1, 2, 3], "box": box, "mask": np.ones(size, bool) if mask is None else mask, **more}


LOW, HIGH = segment("Low", (0, 2, 1, 4, 2, 5)), segment("High", (3, 5, 0, 6, 0, 7))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[EngineClient]:
    """The real server and writers, in a process that has no torch."""
    (tmp_path / "pipes").mkdir()
    place(monkeypatch, tmp_path / "pipes")
    with fake() as client:
        yield client


@pytest.fixture
def series(tmp_path: Path) -> tuple[list[str], Grid]:
    """The files of a DICOM series, and its grid."""
    dicom_series(tmp_path / "ct", ramp(SHAPE), origin=(10.0, -20.0, 30.0))
    return sorted(str(path) for path in (tmp_path / "ct").iterdir()), read_series(tmp_path / "ct").grid


def frames(path: Path, label: str) -> dict[float, np.ndarray]:
    """Pixels (j, i) of a segment by the height of their frame, mm."""
    made = pydicom.dcmread(path)
    (number,) = (each.SegmentNumber for each in made.SegmentSequence if each.SegmentLabel == label)
    shared, found = made.SharedFunctionalGroupsSequence[0], {}
    planes = made.pixel_array.reshape(-1, made.Rows, made.Columns)
    for frame, pixels in zip(made.PerFrameFunctionalGroupsSequence, planes, strict=True):
        (identity,) = (frame if "SegmentIdentificationSequence" in frame else shared).SegmentIdentificationSequence
        if identity.ReferencedSegmentNumber == number:
            found[float(frame.PlanePositionSequence[0].ImagePositionPatient[2])] = pixels
    return found


def export(engine: EngineClient, series: tuple[list[str], Grid], path: Path, *segments: Any, **more: Any) -> Exported:
    files, grid = series
    fields = {"files": files, "affine": grid.affine, "shape": grid.shape, "allow_uncoded": True} | more
    return engine.submit("export_seg", path=str(path), segments=list(segments), **fields).result()


def save(engine: EngineClient, folder: Path, *segments: Any, seed: int = 0, **more: Any) -> SavedCase:
    volume = np.random.default_rng(seed).integers(0, 200, SHAPE, np.uint8)
    fields = {"folder": str(folder), "name": "scan", "volume": volume, "affine": EYE, "modality": "MR"} | more
    return engine.submit("save_case", segments=list(segments), **fields).result()


def test_a_dicom_seg_holds_the_segments_with_their_codes(
    engine: EngineClient, series: tuple[list[str], Grid], tmp_path: Path
) -> None:
    done = export(engine, series, tmp_path / "s.dcm", segment("Lobe", (1, 3, 2, 5, 3, 4), **LIVER), HIGH, model="toy")
    assert done == Exported(path=str(tmp_path / "s.dcm"), structures=("Lobe", "High"))
    made = pydicom.dcmread(tmp_path / "s.dcm")
    assert made.Modality == "SEG"
    assert made.SeriesDescription == "toy segmentation"
    assert made.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == pydicom.dcmread(series[0][0]).SeriesInstanceUID
    lobe = frames(tmp_path / "s.dcm", "Lobe")
    assert sorted(lobe) == [31.0, 32.0]
    assert np.argwhere(lobe[31.0]).tolist() == [[2, 3], [3, 3], [4, 3]]
    assert sorted(frames(tmp_path / "s.dcm", "High")) == [33.0, 34.0]


@pytest.mark.slow
def test_a_dicom_seg_takes_a_grid_whose_axes_run_the_other_way(
    engine: EngineClient, series: tuple[list[str], Grid], tmp_path: Path
) -> None:
    """As Slicer may have read it: slices from the top, rows and columns swapped."""
    files, grid = series
    turn = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, SHAPE[0] - 1], [0, 0, 0, 1]])
    turned = files, Grid(shape=(SHAPE[0], SHAPE[2], SHAPE[1]), affine=grid.affine @ turn)
    export(engine, turned, tmp_path / "s.dcm", segment("Corner", (0, 1, 4, 7, 1, 2)))
    ((height, pixels),) = frames(tmp_path / "s.dcm", "Corner").items()
    assert height == 34.0
    assert np.argwhere(pixels).tolist() == [[1, 4], [1, 5], [1, 6]]


@pytest.mark.slow
def test_of_several_volumes_the_one_on_the_same_grid_is_meant(engine: EngineClient, tmp_path: Path) -> None:
    for name, height in (("a", 0.0), ("b", 100.0)):
        dicom_series(tmp_path / "both", ramp(SHAPE), origin=(0.0, 0.0, height), name=name)
    files = sorted(str(path) for path in (tmp_path / "both").iterdir())
    up = np.diag([-1.0, -1, 1, 1])
    up[2, 3] = 100
    export(engine, (files, Grid(shape=SHAPE, affine=up)), tmp_path / "s.dcm", LOW)
    assert sorted(frames(tmp_path / "s.dcm", "Low")) == [100.0, 101.0]
    up[2, 3] = 50
    with pytest.raises(GeometryError, match="no volume has the grid"):
        export(engine, (files, Grid(shape=SHAPE, affine=up)), tmp_path / "t.dcm", LOW)


@pytest.mark.slow
def test_what_no_dicom_seg_can_hold_is_named(
    engine: EngineClient, series: tuple[list[str], Grid], tmp_path: Path
) -> None:
    files, grid = series
    over = segment("Over", (1, 4, 0, 6, 0, 3))
    with pytest.raises(InputError, match="Low and Over share 3 voxels; High and Over share 18 voxels"):
        export(engine, series, tmp_path / "s.dcm", LOW, HIGH, over)
    with pytest.raises(InputError, match="none for Low"):
        export(engine, series, tmp_path / "s.dcm", LOW, allow_uncoded=False)
    shifted = grid.affine.copy()
    shifted[0, 3] += 1
    with pytest.raises(GeometryError, match="apart"):
        export(engine, (files, Grid(shape=SHAPE, affine=shifted)), tmp_path / "s.dcm", LOW)
    with pytest.raises(InputError, match="does not exist"):
        export(engine, ([*files, "/nowhere/x.dcm"], grid), tmp_path / "s.dcm", LOW)
    with pytest.raises(InputError, match="input files are not overwritten"):
        export(engine, series, Path(files[0]), LOW)
    assert not (tmp_path / "s.dcm").exists()


def test_a_training_case_arrives_with_its_voxels(engine: EngineClient, tmp_path: Path) -> None:
    mask = np.zeros((2, 3, 3), np.uint8)
    mask[0, 0, 0] = mask[1, 2, 2] = 1
    saved = save(engine, tmp_path / "set", segment("Low", (0, 2, 1, 4, 2, 5), mask, **LIVER), HIGH)
    assert saved == SavedCase(
        name="scan", folder=str(tmp_path / "set"), labels={"Low": 1, "High": 2}, replaced=False, notes=()
    )
    dataset = read_dataset(tmp_path / "set")
    volume, labels = read_case(dataset, dataset.cases[0])
    assert np.array_equal(volume.array, np.random.default_rng(0).integers(0, 200, SHAPE, np.uint8))
    assert np.argwhere(labels.array == 1).tolist() == [[0, 1, 2], [1, 3, 4]]
    assert (labels.array == 2).sum() == 84
    assert dataset.labels.labels[0].type.meaning == "Liver"
    assert dataset.channels == ("MR",)
    assert save(engine, tmp_path / "set", HIGH, seed=1).name == "scan-2"


def test_overlapping_voxels_go_to_the_later_segment_and_that_is_said(engine: EngineClient, tmp_path: Path) -> None:
    over = segment("Over", (0, 1, 1, 2, 2, 5))
    saved = save(engine, tmp_path / "set", LOW, over)
    assert saved.notes == ("Low and Over share 3 voxels, saved as Over",)
    dataset = read_dataset(tmp_path / "set")
    assert (read_case(dataset, dataset.cases[0])[1].array == 2).sum() == 3


@pytest.mark.parametrize(
    "wrong",
    [
        segment("X", (0, 2, 0, 2, 0, 8)),
        segment("X", (4, 4, 0, 2, 0, 2), np.ones((1, 2, 2), bool)),
        segment("X", (0, 2, 0, 2, 0, 2), np.ones((1, 2, 2), bool)),
    ],
)
def test_a_segment_outside_the_volume_is_refused(engine: EngineClient, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="X: the segment does not lie in the volume"):
        save(engine, tmp_path / "set", LOW, wrong)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64])
def test_volumes_of_any_number_type_are_opened(engine: EngineClient, kind: type) -> None:
    """Eight-bit ones were once refused, for looking like a mask."""
    assert engine.open(np.zeros(SHAPE, kind), EYE, "plain").shape == SHAPE


def test_more_segments_than_a_byte_counts() -> None:
    grid = Grid(shape=(1, 20, 20), affine=EYE)
    many = [segment(f"S{n}", (0, 1, n // 20, n // 20 + 1, n % 20, n % 20 + 1)) for n in range(300)]
    labels, overlaps = exports.to_label_map(
        [{**each, **dict.fromkeys(("category", "type", "modifier"))} for each in many], grid
    )
    assert not overlaps
    assert labels.array[0, 14, 19] == 300
    assert labels.labels.labels[299].name == "S299"


def test_a_cancelled_export_writes_nothing(series: tuple[list[str], Grid], tmp_path: Path) -> None:
    token = CancelToken()
    token.cancel()
    codes = dict.fromkeys(("category", "type", "modifier"))
    fields = {"files": series[0], "shape": SHAPE, "affine": series[1].affine, "segments": [{**LOW, **codes}]}
    with pytest.raises(Cancelled):
        exports.export("export_seg", {**fields, "path": str(tmp_path / "s.dcm")}, progress=no_progress, cancel=token)
    assert not (tmp_path / "s.dcm").exists()


@pytest.mark.slow
def test_neither_needs_torch(tmp_path: Path) -> None:
    dicom_series(tmp_path / "ct", ramp(SHAPE))
    code = """
import sys
from pathlib import Path
import numpy as np
from MaskSAMCore.io.dicom import read_series
from MaskSAMCore.progress import Cancelled, CancelToken, no_progress
from MaskSAMCore.worker.exports import export
folder = Path(sys.argv[1])
grid = read_series(folder / "ct").grid
one = {"name": "liver", "color": (1, 2, 3), "category": None, "type": None, "modifier": None,
       "box": (0, 1, 0, 1, 0, 2), "mask": np.ones((1, 1, 2), np.uint8)}
both = {"segments": [one], "affine": grid.affine.tolist()}
calls = {"progress": no_progress, "cancel": CancelToken()}
export("export_seg", {**both, "files": [str(folder / "ct")], "path": str(folder / "s.dcm"), "shape": grid.shape,
                      "model": "m", "allow_uncoded": False}, **calls)
volume = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
export("save_case", {**both, "volume": volume, "folder": str(folder / "set"), "name": "n", "modality": None}, **calls)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.dcm").is_file()
    assert (tmp_path / "set" / "dataset.json").is_file()
