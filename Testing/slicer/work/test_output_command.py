"""The printed command: what a shell does with it is what Segment did in the scene, voxel for voxel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import slicer.util

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.images import read_labels, read_volume, write_array
from MaskSAMCore.volume import Grid, LabelMap, reorient
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.zoo import installed
from SlicerMaskSAMLib.engine.engine_link import EngineLink
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values import shell
from SlicerMaskSAMLib.values.choices import Region, Speed
from SlicerMaskSAMLib.values.history import History
from SlicerMaskSAMLib.work.automatic import AutomaticRun
from SlicerMaskSAMLib.work.catalogue import Catalogue
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.output import Output
from SlicerMaskSAMLib.work.segment_request import SegmentRequest
from Testing.dicom_phantom import dicom_series
from Testing.slicer import environment, rig
from Testing.slicer.work.test_output import done

MODEL = "hippocampus-mr"
ANTERIOR, POSTERIOR = "Anterior hippocampus", "Posterior hippocampus"


class Desk:
    """Volume, parameters, the models of this computer and the real engine."""

    def __init__(self, scene: Any, start: Callable[..., EngineClient]) -> None:
        self.parameters, self.files = rig.parameters(), {}
        self.parameters.model = MODEL
        self.context = Context(
            scene=scene,
            parameters=self.parameters,
            history=History(),
            prompts=SimpleNamespace(),
            engine_link=EngineLink(start),
            models=Catalogue(installed).models,
            log=lambda line: None,
            changed=lambda: None,
        )
        self.output = Output(self.context, dicom_files=lambda uid: self.files.get(uid, ""))

    def choose(self, path: Path, name: str = "My scan") -> Any:
        self.parameters.inputVolume = environment.load_volume(path, name)
        return self.parameters.inputVolume

    def choose_series(self, folder: Path) -> Any:
        self.parameters.inputVolume, self.files = environment.load_dicom(sorted(folder.iterdir()), "My scan")
        return self.parameters.inputVolume

    def segment(self) -> dict[str, np.ndarray]:
        """Press Segment; the structures, bool (K, J, I) on the volume's grid."""
        done(AutomaticRun(self.context, SegmentRequest.of(self.context)).steps())
        found, volume = self.parameters.segmentation, self.parameters.inputVolume
        return {name: rig.voxels(found, name, volume) for name in rig.segments(found)}


@pytest.fixture(scope="module")
def start(mobile_sam: Path) -> Iterator[Callable[..., EngineClient]]:
    """Gives the one real engine of these tests to whoever starts one."""
    with EngineClient(device="cpu", threads=1) as engine:
        yield lambda on_event: engine


@pytest.fixture
def desk(scene: Any, start: Callable[..., EngineClient]) -> Desk:
    return Desk(scene, start)


@pytest.fixture
def scan(shared: Path) -> Path:
    return shared / "data" / "hippocampus" / "imagesTr" / "hippocampus_003_0000.nii.gz"


def typed(command: str, folder: Path) -> LabelMap:
    """What a person gets who pastes the command into a terminal."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(command, shell=True, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{command}\n{ran.stderr}"
    (path,) = folder.iterdir()
    return read_labels(path)


def on_volume(found: LabelMap, volume: Any) -> dict[str, np.ndarray]:
    """The structures of a label map, by name, bool (K, J, I) in the order of the volume's axes."""
    geometry = bridge.geometry(volume)
    straight, grid, _ = reorient(found.array, found.grid)
    _, wanted, way = reorient(np.zeros(geometry.shape, np.uint8), geometry)
    assert grid.same_as(wanted)
    array = way.undo(straight)
    return {label.name: array == label.id for label in found.labels.labels}


def check(desk: Desk, folder: Path, *names: str) -> None:
    """Segment, run the command, compare."""
    folder.mkdir()
    segmented = desk.segment()
    assert sorted(segmented) == sorted(names)
    assert all(mask.any() for mask in segmented.values())
    found = on_volume(typed(desk.output.command_line(), folder), desk.parameters.inputVolume)
    assert sorted(found) == sorted(names)
    for name in names:
        assert np.array_equal(found[name], segmented[name]), f"{name}: {(found[name] != segmented[name]).sum()} differ"


@pytest.mark.slow
def test_a_file_gives_the_same_voxels(desk: Desk, scan: Path, tmp_path: Path) -> None:
    desk.choose(scan)
    check(desk, tmp_path / "out", ANTERIOR, POSTERIOR)


@pytest.mark.slow
def test_a_region_and_some_structures_give_the_same_voxels(desk: Desk, scan: Path, tmp_path: Path) -> None:
    volume = desk.choose(scan)
    environment.add_transform(environment.affine(angles=(20, 0, 30), origin=(3, 4, 5)), volume)
    place = bridge.geometry(volume)
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenter(*bridge.ijk_to_world(volume, [(np.array(place.shape[::-1]) - 1) / 2])[0])
    roi.SetSize(19.3, 27.1, 17.7)
    desk.parameters.roi, desk.parameters.region = roi, Region.ROI
    desk.parameters.speed, desk.parameters.skippedStructures = Speed.FAST, [POSTERIOR]
    check(desk, tmp_path / "out", ANTERIOR)
    assert "--roi=" in desk.output.command_line()
    assert "--step 1.0" in desk.output.command_line()


@pytest.mark.slow
def test_a_file_that_slicer_turns_round_gives_the_same_voxels(desk: Desk, scan: Path, tmp_path: Path) -> None:
    """Slicer reverses the slices of a left-handed file; the engine does not."""
    read = read_volume(scan)
    array, affine = read.array[::-1].copy(), read.grid.affine @ np.diag([1.0, 1, -1, 1])
    affine[:3, 3] = read.grid.to_ras((0, 0, len(array) - 1))
    path = tmp_path / "left 'handed'.nii.gz"
    write_array(array, Grid(shape=array.shape, affine=affine), path)
    volume = desk.choose(path)
    desk.parameters.speed = Speed.FAST
    assert not bridge.geometry(volume).same(Grid(shape=array.shape, affine=affine))
    check(desk, tmp_path / "out", ANTERIOR, POSTERIOR)


@pytest.mark.slow
def test_a_dicom_folder_gives_the_same_voxels(desk: Desk, scan: Path, tmp_path: Path) -> None:
    """Another series of the same kind lies in the same folder."""
    array = np.rint(read_volume(scan).array).astype(np.int16)
    folder = tmp_path / "dicom files"
    dicom_series(folder, array, origin=(-20.0, 30.0, 10.0), modality="MR")
    desk.choose_series(folder)
    desk.parameters.speed = Speed.FAST
    dicom_series(folder, array[:, ::-1], origin=(-20.0, 30.0, 10.0), modality="MR", name="other")
    check(desk, tmp_path / "out", ANTERIOR, POSTERIOR)


@pytest.mark.parametrize("name", ["siemens_mr", "ge_mr", "rle", "jpeg2000"])
def test_real_series_are_found_again(desk: Desk, shared: Path, tmp_path: Path, name: str) -> None:
    files = sorted((shared / "data" / "dicom" / name).glob("*.dcm"))
    desk.parameters.inputVolume, desk.files = environment.load_dicom(files)
    assert (
        f"--series ./{files[0].name}" in desk.output.command_line()
        or f"--series ./{files[-1].name}" in desk.output.command_line()
    )
    assert str(files[0].parent) in desk.output.command_line()


def test_choices_are_in_the_command_and_names_are_quoted(desk: Desk, tmp_path: Path, scan: Path) -> None:
    folder = tmp_path / "it's $HOME; a&b"
    folder.mkdir()
    path = folder / "scan é.nii.gz"
    path.write_bytes(scan.read_bytes())
    desk.choose(path, "A/B: c")
    desk.parameters.device = "cpu"
    command = desk.output.command_line()
    assert command.startswith("PYTHONPATH=")
    for text in ("-m MaskSAMCore.segment", f"-m {MODEL}", "-o './A_B_ c.seg.nrrd'", "--step 0.5", "--device cpu"):
        assert text in command
    assert "--structures" not in command
    assert "--series" not in command
    shown = subprocess.run(
        f"set -- {command}; printf '%s\\n' \"$@\"", shell=True, capture_output=True, encoding="utf-8"
    )
    assert str(path) in shown.stdout.splitlines()


def changed(volume: Any) -> None:
    rig.edit_volume(volume)


def moved(volume: Any) -> None:
    environment.add_transform(environment.affine(origin=(0, 0, 9)), volume)
    volume.HardenTransform()


@pytest.mark.parametrize("change", [changed, moved])
@pytest.mark.parametrize("kind", ["file", "dicom"])
def test_a_volume_that_was_changed_has_no_command(
    desk: Desk, scan: Path, tmp_path: Path, change: Callable[[Any], None], kind: str
) -> None:
    if kind == "file":
        volume = desk.choose(scan)
    else:
        dicom_series(tmp_path / "ct", np.rint(read_volume(scan).array).astype(np.int16)[:5], modality="MR")
        volume = desk.choose_series(tmp_path / "ct")
    assert "MaskSAMCore.segment" in desk.output.command_line()
    slicer.util.arrayFromVolume(volume)[2] += 1
    change(volume)
    with pytest.raises(InputError, match="changed since it was read"):
        desk.output.command_line()


def test_a_volume_that_was_never_saved_has_no_command(desk: Desk) -> None:
    desk.parameters.inputVolume = rig.volume()
    with pytest.raises(InputError, match=r"Scan: no command gives this segmentation \(it was never saved"):
        desk.output.command_line()


def test_a_volume_of_several_pictures_has_no_command(desk: Desk, tmp_path: Path) -> None:
    for number, plane in enumerate(np.random.default_rng(0).integers(0, 255, (2, 20, 30), np.uint8), start=1):
        sitk.WriteImage(sitk.GetImageFromArray(plane), str(tmp_path / f"slice{number}.mha"))
    desk.choose(tmp_path / "slice1.mha")
    with pytest.raises(InputError, match="read from 2 files"):
        desk.output.command_line()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["python", "-m", "x"], "python -m x"),
        ([r"C:\Program Files\Slicer\python.exe", "a b"], r'"C:\Program Files\Slicer\python.exe" "a b"'),
        ([r"C:\scans\a&b.nii", "--roi=1.5,-2"], r'"C:\scans\a&b.nii" --roi=1.5,-2'),
        (['say "hi"', "end\\ "], r'"say \"hi\"" "end\ "'),
        (["my folder\\"], '"my folder\\\\"'),
        ([""], '""'),
    ],
)
def test_words_are_quoted_for_windows(words: list[str], line: str) -> None:
    assert shell.shell_command(words, {}, windows=True) == line


def test_settings_stand_before_the_command() -> None:
    assert (
        shell.shell_command(["run", "a b"], {"X": r"C:\my files"}, windows=True) == r'set "X=C:\my files" && run "a b"'
    )
    assert shell.shell_command(["run", "a b"], {"X": "/my files"}, windows=False) == "X='/my files' run 'a b'"
