"""Output of the module, from Slicer's own scene through a real worker process to files that others read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
import slicer
import vtk

from MaskSAMCore.data.raw import read_case, read_dataset
from MaskSAMCore.data.verify import verify_dataset
from MaskSAMCore.errors import InputError, MaskSAMError, ResourceError
from MaskSAMCore.label_statistics import measure_structures
from MaskSAMCore.labels import Label
from MaskSAMCore.terminology import lookup
from MaskSAMCore.volume import Grid, LabelMap, Volume
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.worker.results import SavedCase
from SlicerMaskSAMLib.engine.engine_link import EngineLink
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.history import History
from SlicerMaskSAMLib.values.tasks import Steps, Task
from SlicerMaskSAMLib.work.catalogue import Catalogue
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.output import Output, training_folder
from Testing.dicom_phantom import dicom_series, ramp
from Testing.faults.test_file_kept_open import HOLD
from Testing.slicer import environment, rig
from Testing.workers import SHAPE, eventually, fake

OBLIQUE = environment.affine(spacing=(0.8, 1.1, 2.5), angles=(10, -20, 30), origin=(5, -7, 11))
LIVER, SPLEEN = lookup("liver").label(1), lookup("spleen").label(2)
BLOB = Label(id=3, name="Blob", color=(10, 20, 30))
LOW, HIGH = (0, 2, 3, 8, 4, 9), (3, 6, 2, 12, 5, 20)


class Desk:
    """Volume, segmentation, parameters, and a worker that writes without segmenting anything itself."""

    def __init__(self, scene: Any) -> None:
        self.messages: list[str] = []
        self.changes = 0
        self.parameters, self.engine_link = rig.parameters(), EngineLink(lambda on_event: fake(on_event=on_event))
        self.context = Context(
            scene=scene,
            parameters=self.parameters,
            history=History(),
            prompts=SimpleNamespace(),
            engine_link=self.engine_link,
            models=Catalogue(rig.Library(rig.fake_model("plain", modality="MR"))).models,
            log=self.messages.append,
            changed=self._change,
        )
        self.parameters.model = "plain"
        self.files: dict[str, str] = {}
        self.output = Output(self.context, dicom_files=lambda uid: self.files.get(uid, ""))

    def _change(self) -> None:
        self.changes += 1

    def show(self, volume: Any, **segments: tuple[Label, tuple[int, ...]]) -> Any:
        """Choose a volume with a new segmentation of boxes; returns that."""
        self.parameters.inputVolume = volume
        segmentation = bridge.new_segmentation(self.context.scene, "Segmentation", volume=volume)
        for label, box in segments.values():
            self.draw(segmentation, label, box)
        self.parameters.segmentation = segmentation
        return segmentation

    def draw(self, segmentation: Any, label: Label, box: tuple[int, ...]) -> str:
        size = [high - low for low, high in zip(box[::2], box[1::2], strict=True)]
        geometry = bridge.geometry(self.parameters.inputVolume)
        segment_id = bridge.add_segment(segmentation, label)
        bridge.write_segment(segmentation, segment_id, geometry, box, np.ones(size, np.uint8))
        return segment_id


@pytest.fixture
def desk(scene: Any, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(scene)
    desk.parameters.trainingFolder = str(tmp_path / "set")
    yield desk
    desk.engine_link.close()


@pytest.fixture
def series(desk: Desk, tmp_path: Path) -> Any:
    """A volume that the DICOM module loaded."""
    dicom_series(tmp_path / "ct", ramp(SHAPE), origin=(10.0, -20.0, 30.0))
    volume, desk.files = environment.load_dicom(sorted((tmp_path / "ct").iterdir()))
    return volume


def done(steps: Steps) -> Any:
    """What steps return, with the waiting done for them."""
    answers: list[Any] = []
    errors: list[MaskSAMError] = []

    def keeping() -> Steps:
        answers.append((yield from steps))

    task = Task("output", keeping(), on_error=errors.append)
    assert eventually(lambda: task.tick() and task.ended)
    if errors:
        raise errors[0]
    return answers[0]


def rows(table: Any) -> list[list[str]]:
    columns = range(table.GetNumberOfColumns())
    return [[table.GetCellText(row, column) for column in columns] for row in range(table.GetNumberOfRows())]


# -- the table -------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_segment(desk: Desk) -> None:
    volume = rig.volume(affine=OBLIQUE)
    segmentation = desk.show(volume, a=(LIVER, LOW), b=(BLOB, HIGH))
    bridge.add_segment(segmentation, SPLEEN)
    table = done(desk.output.volumes_table())
    assert table.IsA("vtkMRMLTableNode")
    assert table.GetName() == "Segmentation volumes"
    names = [table.GetColumnName(n) for n in range(table.GetNumberOfColumns())]
    assert names[:3] == ["Structure", "Voxels", "Volume [mL]"]
    assert slicer.app.applicationLogic().GetSelectionNode().GetActiveTableID() == table.GetID()
    voxel = 0.8 * 1.1 * 2.5 / 1000
    liver, blob, spleen = rows(table)
    assert liver[:2] == ["Liver", "50"]
    assert blob[:2] == ["Blob", "450"]
    assert spleen[:3] == ["Spleen", "0", "0"]
    assert float(liver[2]) == pytest.approx(50 * voxel)
    assert float(blob[2]) == pytest.approx(450 * voxel)
    middle = OBLIQUE @ ((4 + 8) / 2, (3 + 7) / 2, 0.5, 1)
    assert [float(text) for text in liver[7:]] == pytest.approx(middle[:3].tolist(), rel=1e-4)
    assert spleen[3:] == ["nan"] * 7


def test_the_table_has_the_numbers_of_the_command(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = rig.volume(affine=OBLIQUE)
    segmentation = desk.show(volume, a=(LIVER, LOW), b=(BLOB, HIGH))
    monkeypatch.setattr("SlicerMaskSAMLib.work.output.VOXELS_PER_STEP", 1)
    table = done(desk.output.volumes_table())
    geometry = bridge.geometry(volume)
    grid = Grid(shape=geometry.shape, affine=geometry.affine)
    labels = np.zeros(grid.shape, np.uint8)
    for number, name in enumerate(segmentation.GetSegmentation().GetSegmentIDs(), start=1):
        labels[bridge.read_segment(segmentation, name, geometry) > 0] = number
    told = measure_structures(LabelMap(array=labels, grid=grid), Volume(array=bridge.scalars(volume), grid=grid))
    for row, each in zip(rows(table), told.values(), strict=True):
        assert float(row[2]) == pytest.approx(each.volume_ml)
        assert [float(text) for text in row[3:7]] == pytest.approx(each.intensities[0], rel=1e-4)
        assert [float(text) for text in row[7:]] == pytest.approx(each.centroid_ras, rel=1e-4)


def test_a_color_volume_has_no_intensities(desk: Desk) -> None:
    volume = rig.volume()
    desk.show(volume, a=(LIVER, LOW))
    volume.GetImageData().AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    (liver,) = rows(done(desk.output.volumes_table()))
    assert liver[1] == "50"
    assert liver[3:7] == ["nan"] * 4
    assert "nan" not in liver[7:]


def test_the_centroid_is_where_the_world_sees_it(desk: Desk) -> None:
    volume = rig.volume(affine=OBLIQUE)
    segmentation = desk.show(volume, a=(LIVER, LOW))
    (before,) = rows(done(desk.output.volumes_table()))
    environment.add_transform(environment.affine(origin=(100, 0, -50)), volume, segmentation)
    (after,) = rows(done(desk.output.volumes_table()))
    moved = [float(b) - float(a) for a, b in zip(before[7:], after[7:], strict=True)]
    assert moved == pytest.approx([100, 0, -50], abs=1e-3)
    assert after[:7] == before[:7]


def test_segments_that_are_read_in_several_parts_are_whole(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.show(rig.volume(affine=OBLIQUE), a=(LIVER, LOW), b=(BLOB, HIGH))
    before = rows(done(desk.output.volumes_table()))
    monkeypatch.setattr("SlicerMaskSAMLib.work.output.VOXELS_PER_STEP", 1)
    assert rows(done(desk.output.volumes_table())) == before
    done(desk.output.save_case())
    dataset = read_dataset(tmp_path / "set")
    assert np.bincount(read_case(dataset, dataset.cases[0])[1].array.ravel())[1:].tolist() == [50, 450]


def test_the_table_of_a_segmentation_is_filled_anew(desk: Desk) -> None:
    segmentation = desk.show(rig.volume(), a=(LIVER, LOW))
    table = done(desk.output.volumes_table())
    desk.draw(segmentation, BLOB, HIGH)
    assert done(desk.output.volumes_table()) is table
    assert len(rows(table)) == 2
    desk.show(rig.volume(name="Other"), a=(LIVER, LOW))
    assert done(desk.output.volumes_table()) is not table
    assert len(environment.nodes("vtkMRMLTableNode")) == 2


# -- DICOM SEG -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_segmentation_goes_out_as_dicom_seg(desk: Desk, series: Any, tmp_path: Path) -> None:
    segmentation = desk.show(series, a=(LIVER, LOW), b=(SPLEEN, HIGH))
    bridge.add_segment(segmentation, lookup("kidney").label(4))
    exported = done(desk.output.export_dicom(str(tmp_path / "s.dcm")))
    assert exported.structures == ("Liver", "Spleen")
    assert desk.messages == ["Kidney is empty and was left out.", f"Exported Liver, Spleen to {tmp_path / 's.dcm'}."]
    made = pydicom.dcmread(tmp_path / "s.dcm")
    kinds = [each.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for each in made.SegmentSequence]
    assert kinds == ["Liver", "Spleen"]
    assert made.SeriesDescription == "plain segmentation"
    assert painted(made) == pytest.approx(boxes(series, LOW, HIGH))


def painted(made: pydicom.Dataset) -> np.ndarray:
    """Sum of the places, RAS mm, of each segment's voxels, from the frames alone."""
    shared, sums = made.SharedFunctionalGroupsSequence[0], np.zeros((len(made.SegmentSequence), 3))
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    down, right = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    planes = made.pixel_array.reshape(-1, made.Rows, made.Columns)
    for frame, pixels in zip(made.PerFrameFunctionalGroupsSequence, planes, strict=True):
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        corner = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        for j, i in np.argwhere(pixels):
            sums[number - 1] += (corner + i * right * row + j * down * column) * (-1, -1, 1)
    return sums


def boxes(volume: Any, *each: tuple[int, ...]) -> np.ndarray:
    """Sum of the places, RAS mm, of each box's voxels."""
    ijk = [np.stack(np.mgrid[box[4] : box[5], box[2] : box[3], box[0] : box[1]], -1).reshape(-1, 3) for box in each]
    return np.array([bridge.geometry(volume).to_ras(places).sum(axis=0) for places in ijk])


def test_files_that_were_dragged_into_the_window_are_dicom_too(desk: Desk, tmp_path: Path) -> None:
    dicom_series(tmp_path / "ct", ramp(SHAPE))
    desk.show(environment.load_volume(next((tmp_path / "ct").iterdir())), a=(LIVER, LOW))
    done(desk.output.export_dicom(str(tmp_path / "s.dcm")))
    assert (tmp_path / "s.dcm").is_file()


def test_everything_missing_for_dicom_is_in_one_message(desk: Desk, tmp_path: Path) -> None:
    volume = rig.volume()
    segmentation = desk.show(volume, a=(BLOB, LOW), b=(LIVER, HIGH))
    environment.add_transform(np.eye(4), segmentation)
    with pytest.raises(InputError) as caught:
        done(desk.output.export_dicom(str(tmp_path / "s.dcm")))
    said = str(caught.value)
    assert "Scan does not come from DICOM: it was never saved to a file" in said
    assert "have different parent transforms" in said
    assert "no DICOM code for Blob" in said
    assert "Liver" not in said
    assert not list(tmp_path.glob("*.dcm"))


@pytest.mark.slow
def test_structures_without_a_code_go_out_as_tissue_where_that_is_allowed(
    desk: Desk, series: Any, tmp_path: Path
) -> None:
    desk.show(series, a=(BLOB, LOW))
    with pytest.raises(InputError, match="no DICOM code for Blob"):
        done(desk.output.export_dicom(str(tmp_path / "s.dcm")))
    done(desk.output.export_dicom(str(tmp_path / "s.dcm"), allow_uncoded=True))
    kind = pydicom.dcmread(tmp_path / "s.dcm").SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodeMeaning == "Tissue"


def test_overlapping_segments_are_named(desk: Desk, series: Any, tmp_path: Path) -> None:
    desk.show(series, a=(LIVER, LOW), b=(SPLEEN, (1, 3, 3, 8, 4, 9)))
    with pytest.raises(InputError, match="Liver and Spleen share 25 voxels"):
        done(desk.output.export_dicom(str(tmp_path / "s.dcm")))


def test_a_changed_grid_is_named(desk: Desk, series: Any, tmp_path: Path) -> None:
    segmentation = desk.show(series, a=(LIVER, LOW))
    series.SetSpacing(1, 1, 2)
    with pytest.raises(InputError, match="Liver lies on another grid than Series"):
        done(desk.output.export_dicom(str(tmp_path / "s.dcm")))
    segmentation.GetSegmentation().RemoveAllSegments()
    desk.draw(segmentation, LIVER, LOW)
    with pytest.raises(InputError, match=r"voxels lie up to .* mm apart"):
        done(desk.output.export_dicom(str(tmp_path / "s.dcm")))


def test_a_volume_without_its_files_is_named(desk: Desk, series: Any, tmp_path: Path) -> None:
    desk.show(series, a=(LIVER, LOW))
    desk.files.clear()
    for path in (tmp_path / "ct").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"Series does not come from DICOM: .*import the series again"):
        done(desk.output.export_dicom(str(tmp_path / "s.dcm")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ct_head", "ge_mr"])
@pytest.mark.filterwarnings("ignore::UserWarning:highdicom.*")
def test_real_series_carry_a_dicom_seg_that_dcmqi_reads(desk: Desk, shared: Path, tmp_path: Path, name: str) -> None:
    import SimpleITK as sitk

    folder = tmp_path / name
    folder.mkdir()
    for path in (shared / "data" / "dicom" / name).rglob("*.dcm"):
        scan = pydicom.dcmread(path)
        scan.setdefault("FrameOfReferenceUID", "2.25.1")  # anonymised away in some
        scan.save_as(folder / path.name)
    volume, desk.files = environment.load_dicom(sorted(folder.iterdir()))
    k, j, i = bridge.geometry(volume).shape
    low, high = (0, k // 2, 3, j // 2, 4, i // 2), (k // 2, k, j // 2, j, i // 2, i - 9)
    desk.show(volume, a=(LIVER, low), b=(SPLEEN, high))
    done(desk.output.export_dicom(str(tmp_path / "s.dcm")))
    made = pydicom.dcmread(tmp_path / "s.dcm")
    assert made.FrameOfReferenceUID == pydicom.dcmread(next(folder.iterdir())).FrameOfReferenceUID
    search = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    tool = shutil.which("segimage2itkimage", path=search)
    if tool is None:
        pytest.skip("NOT TESTED HERE: dcmqi is not installed (pip install dcmqi)")
    words = [tool, "--inputDICOM", str(tmp_path / "s.dcm"), "--outputDirectory", str(tmp_path), "-t", "nii"]
    subprocess.run([*words, "-p", "out"], check=True, capture_output=True)
    for number, box in ((1, low), (2, high)):
        image = sitk.ReadImage(str(tmp_path / f"out-{number}.nii.gz"))
        places = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1].tolist()
        found = np.sum([image.TransformIndexToPhysicalPoint(place) for place in places], axis=0) * (-1, -1, 1)
        assert found == pytest.approx(boxes(volume, box)[0], rel=1e-5)


# -- training cases --------------------------------------------------------------------------------------------------


def test_volumes_become_training_cases(desk: Desk, tmp_path: Path) -> None:
    for seed, name in enumerate(("Brain: T1", "Brain: T1", "Third")):
        volume = rig.volume(name=name, seed=seed, affine=OBLIQUE)
        desk.show(volume, **{"a": (LIVER, LOW)} | ({"b": (BLOB, HIGH)} if seed else {}))
        saved = done(desk.output.save_case())
    assert isinstance(saved, SavedCase)
    assert saved.labels == {"Liver": 1, "Blob": 2}
    assert desk.messages[-1] == "Saved as training case Third: Liver, Blob."
    assert desk.changes == 3
    dataset = verify_dataset(tmp_path / "set")
    assert [case.id for case in dataset.cases] == ["Brain_T1", "Brain_T1-2", "Third"]
    assert dataset.channels == ("MR",), "the modality of the chosen model, as the volume's is not known"
    scan, labels = read_case(dataset, dataset.cases[2])
    assert scan.grid.same_as(bridge.geometry(volume))
    assert np.array_equal(scan.array, bridge.scalars(volume))
    assert np.argwhere(labels.array == 1).min(axis=0).tolist() == list(LOW[::2])
    assert dataset.labels.labels[0].type == LIVER.type
    assert dataset.labels.labels[1].color == BLOB.color


def test_a_case_is_saved_on_the_volumes_own_grid_whatever_lies_above_it(desk: Desk, tmp_path: Path) -> None:
    volume = rig.volume(affine=OBLIQUE)
    segmentation = desk.show(volume, a=(LIVER, LOW))
    environment.add_transform(environment.affine(angles=(0, 0, 90)), volume, segmentation)
    done(desk.output.save_case("mine"))
    dataset = read_dataset(tmp_path / "set")
    assert dataset.cases[0].id == "mine"
    scan, _ = read_case(dataset, dataset.cases[0])
    assert scan.grid.same_as(bridge.geometry(volume))


def test_overlaps_and_empty_segments_of_a_case_are_reported(desk: Desk) -> None:
    segmentation = desk.show(rig.volume(), a=(LIVER, LOW), b=(BLOB, (1, 3, 3, 8, 4, 9)))
    bridge.add_segment(segmentation, SPLEEN)
    done(desk.output.save_case())
    assert "Spleen is empty and was left out." in desk.messages
    assert desk.messages[-1] == "Liver and Blob share 25 voxels, saved as Blob"


def test_saving_again_replaces_the_case(desk: Desk) -> None:
    segmentation = desk.show(rig.volume(), a=(LIVER, LOW))
    done(desk.output.save_case())
    desk.draw(segmentation, BLOB, HIGH)
    saved = done(desk.output.save_case())
    assert saved.replaced
    assert saved.labels == {"Liver": 1, "Blob": 2}


def test_segments_of_another_volume_make_no_case(desk: Desk, tmp_path: Path) -> None:
    desk.show(rig.volume(), a=(LIVER, LOW))
    desk.parameters.inputVolume = rig.volume(name="Other", affine=OBLIQUE)
    with pytest.raises(InputError, match="Liver lies on another grid than Other"):
        done(desk.output.save_case())
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("press", ["volumes_table", "save_case", "export_dicom"])
def test_nothing_to_write_is_reported(desk: Desk, press: str) -> None:
    words = ["s.dcm"] if press == "export_dicom" else []
    with pytest.raises(InputError, match="no volume"):
        done(getattr(desk.output, press)(*words))
    desk.parameters.inputVolume = rig.volume()
    with pytest.raises(InputError, match="nothing is segmented"):
        done(getattr(desk.output, press)(*words))


def test_without_a_chosen_folder_cases_lie_with_the_users_own_data(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKSAM_HOME", str(tmp_path / "home"))
    desk.parameters.trainingFolder = ""
    assert training_folder(desk.parameters) == tmp_path / "home" / "training"


# -- row 60 ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_place_of_a_kept_result_is_reported(
    desk: Desk, series: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.dcm").write_bytes(b"old")
    monkeypatch.setenv("HELD", str(tmp_path / "s.dcm"))
    command = [sys.executable, "-c", HOLD]
    desk.context.engine_link = EngineLink(lambda on_event: EngineClient(command=command, on_event=on_event))
    desk.show(series, a=(LIVER, LOW))
    with pytest.raises(ResourceError, match=r"kept as .*s-new\.dcm"):
        done(desk.output.export_dicom(str(tmp_path / "s.dcm")))
    desk.context.engine_link.close()
    assert pydicom.dcmread(tmp_path / "s-new.dcm").Modality == "SEG"
    assert not desk.messages
