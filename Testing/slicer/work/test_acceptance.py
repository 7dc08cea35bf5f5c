"""The whole module without its panel: real MRML, the real engine, the bundled model, real scans of patients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.evaluation.metrics import dice
from MaskSAMCore.io.images import read_labels, read_volume
from MaskSAMCore.preprocessing.masks import interior_voxel
from MaskSAMCore.zoo.installed import find_model
from MaskSAMCore.zoo.model_folder import load_card
from SlicerMaskSAMLib.mrml import bridge
from Testing.dicom_phantom import dicom_series
from Testing.slicer import environment, rig
from Testing.slicer.seat import MODEL, Seat

ANTERIOR, POSTERIOR = "Anterior hippocampus", "Posterior hippocampus"
SAME_PLACE_MM = 0.5

# What another process finds in a saved scene, and what a further click does there.
REOPENED = """
import json, sys
from pathlib import Path
from Testing.slicer import environment

environment.start()
from Testing.slicer.seat import Seat

environment.open_scene(Path(sys.argv[1]))
with Seat() as seat:
    found = {
        "volume": seat.volume.GetName(),
        "model": seat.parameters.model,
        "scope": seat.parameters.scope.name,
        "skipped": list(seat.parameters.skippedStructures),
        "prompts": [row.text for row in seat.status.prompts],
        "voxels": {name: int(mask.sum()) for name, mask in seat.voxels().items()},
    }
    before = seat.voxels()
    seat.click(json.loads(sys.argv[2]), positive=False)
    after = seat.voxels()
    found["prompts after"] = [row.text for row in seat.status.prompts]
    found["changed"] = {name: int((before[name] != after[name]).sum()) for name in before}
    found["hit"] = bool(after[sys.argv[3]][tuple(reversed(json.loads(sys.argv[2])))])
    found["messages"] = list(seat.status.messages)
environment.stop()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def scan(shared: Path, mobile_sam: Path) -> tuple[Path, np.ndarray]:
    """A scan that the model was not trained on, and its reference labels."""
    name = load_card(find_model(MODEL)).provenance["validation_cases"][0]
    folder = shared / "data" / "hippocampus"
    labels = read_labels(folder / "labelsTr" / f"{name}.nii.gz").array
    return folder / "imagesTr" / f"{name}_0000.nii.gz", labels


def other_process(path: Path, ijk: list[int], name: str) -> dict[str, Any]:
    """The scene as a new process finds it, and after a click of it."""
    here = Path(__file__).resolve().parents[3]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here / "SlicerMaskSAM")])}
    done = subprocess.run(
        [sys.executable, "-c", REOPENED, str(path), json.dumps(ijk), name],
        capture_output=True, text=True, env=environ, check=False, cwd=here,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_scan_is_segmented_corrected_undone_saved_and_gone_on_with(scene: Any, scan, tmp_path: Path) -> None:
    path, reference = scan
    with Seat() as seat:
        seat.choose(environment.load_volume(path, "scan"))
        seat.segment()
        found = seat.voxels()
        assert list(found) == [ANTERIOR, POSTERIOR]
        assert all(dice(found[name], reference == label) > 0.75 for label, name in enumerate(found, start=1))
        labels = [bridge.segment_label(seat.parameters.segmentation, each) for each in
                  rig.segments(seat.parameters.segmentation).values()]  # fmt: skip
        assert [(label.type.value, label.modifier.meaning) for label in labels] == [
            ("5366008", "Anterior"),
            ("5366008", "Posterior"),
        ]

        # An excluding click into the middle of what was found: it changes there, and nowhere else.
        seat.controller.choose_segment(rig.segments(seat.parameters.segmentation)[ANTERIOR])
        k, j, i = interior_voxel(found[ANTERIOR])
        seat.click((i, j, k), positive=False)
        clicked = seat.voxels()
        assert not clicked[ANTERIOR][k, j, i]
        assert (clicked[POSTERIOR] == found[POSTERIOR]).all()
        changed = np.argwhere(clicked[ANTERIOR] != found[ANTERIOR])
        assert 0 < len(changed) < 0.9 * found[ANTERIOR].sum()
        seat.controller.undo()
        seat.settle()
        undone = seat.voxels()
        assert all((undone[name] == found[name]).all() for name in found)
        assert seat.status.prompts == ()
        seat.controller.redo()
        seat.settle()
        assert (seat.voxels()[ANTERIOR] == clicked[ANTERIOR]).all()

        rows = [row.text for row in seat.status.prompts]
        seat.controller.set_wanted([POSTERIOR], False)
        environment.save_scene(tmp_path / "saved.mrb")
        centre = [int(v) for v in reversed(interior_voxel(clicked[ANTERIOR]))]
    again = other_process(tmp_path / "saved.mrb", centre, ANTERIOR)
    assert (again["volume"], again["model"], again["scope"]) == ("scan", MODEL, "SLAB")
    assert again["skipped"] == [POSTERIOR]
    assert again["prompts"] == rows
    assert len(again["prompts after"]) == len(rows) + 1
    assert again["voxels"] == {name: int(mask.sum()) for name, mask in clicked.items()}
    assert again["changed"][ANTERIOR] > 0, again["messages"]
    assert again["changed"][POSTERIOR] == 0
    assert not again["hit"]


def oblique(affine: np.ndarray) -> np.ndarray:
    """The same scan lying obliquely in the scanner."""
    return environment.affine(angles=(12, -9, 15), origin=(40, -25, 60)) @ affine


def as_it_was(path: Path, _folder: Path) -> Any:
    return environment.load_volume(path, "scan")


def turned(path: Path, _folder: Path) -> Any:
    volume = read_volume(path)
    return environment.add_volume(volume.array, oblique(volume.grid.affine), "turned")


def under_a_transform(path: Path, _folder: Path) -> Any:
    node = environment.load_volume(path, "moved")
    environment.add_transform(environment.affine(angles=(20, 5, -30), origin=(-80, 10, 33)), node)
    return node


def from_dicom(path: Path, folder: Path) -> Any:
    """The scan as a scanner would have stored it, slice by slice, lying obliquely."""
    volume = read_volume(path)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ oblique(volume.grid.affine)
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    assert np.allclose(steps, 1)
    grey = np.round((volume.array - volume.array.min()) * (4000 / np.ptp(volume.array))).astype(np.int16)
    row, column, normal = lps[:3, 0], lps[:3, 1], lps[:3, 2]
    if np.dot(np.cross(row, column), normal) < 0:  # a series counts along the normal of its slices
        grey, lps = grey[::-1], lps @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, len(grey) - 1], [0, 0, 0, 1.0]])
    dicom_series(
        folder, np.ascontiguousarray(grey), orientation=(*row, *column), origin=tuple(lps[:3, 3]), modality="MR"
    )
    node, _ = environment.load_dicom(sorted(folder.glob("*.dcm")))
    return node


def world_centres(seat: Seat) -> dict[str, np.ndarray]:
    """Centre of every structure, world RAS mm, above all transforms."""
    return {
        name: bridge.ijk_to_world(seat.volume, np.argwhere(mask)[:, ::-1].astype(float)).mean(axis=0)
        for name, mask in seat.voxels().items()
    }


@pytest.fixture(scope="module")
def expected(slicer_process: Any, scan, tmp_path_factory) -> dict[str, np.ndarray]:
    """Centres of the structures in the scan as it was, in its own ijk."""
    environment.clear()
    with Seat() as seat:
        seat.choose(as_it_was(scan[0], Path()))
        seat.segment()
        return {name: np.argwhere(mask)[:, ::-1].mean(axis=0) for name, mask in seat.voxels().items()}


@pytest.mark.slow
@pytest.mark.parametrize("made", [turned, under_a_transform, from_dicom])
def test_it_lies_on_the_same_anatomy(
    scene: Any, scan, expected: dict[str, np.ndarray], tmp_path: Path, made: Callable[[Path, Path], Any]
) -> None:
    path, reference = scan
    grid = read_volume(path).grid
    with Seat() as seat:
        node = made(path, tmp_path / "series")
        seat.choose(node)
        seat.segment()
        move = {turned: oblique(np.eye(4)), from_dicom: oblique(np.eye(4))}.get(made)
        if move is None:
            move = environment.affine(angles=(20, 5, -30), origin=(-80, 10, 33))
        found = world_centres(seat)
        assert list(found) == [ANTERIOR, POSTERIOR]
        for name, ijk in expected.items():
            place = (move @ grid.affine @ np.append(ijk, 1))[:3]
            assert np.linalg.norm(found[name] - place) < SAME_PLACE_MM, (name, found[name], place)
        assert seat.parameters.segmentation.GetTransformNodeID() == node.GetTransformNodeID()

        # A click at a place of the world corrects the voxel that is shown there.
        inside = np.append(np.argwhere(reference == 2)[:, ::-1].mean(axis=0).round(), 1)
        world = (move @ grid.affine @ inside)[:3]
        seat.controller.choose_segment(rig.segments(seat.parameters.segmentation)[POSTERIOR])
        seat.controller.click(world, False, seat.view)
        seat.settle()
        i, j, k = (round(float(v)) for v in bridge.world_to_ijk(node, [world])[0])
        assert not seat.voxels()[POSTERIOR][k, j, i]


@pytest.mark.slow
def test_thick_slices_give_the_same_anatomy(scene: Any, scan, expected: dict[str, np.ndarray]) -> None:
    path, reference = scan
    volume = read_volume(path)
    affine = volume.grid.affine @ np.diag([1, 1, 3, 1.0])
    with Seat() as seat:
        seat.choose(environment.add_volume(volume.array[::3], affine, "thick"))
        seat.segment()
        found = world_centres(seat)
        for name, ijk in expected.items():
            place = (volume.grid.affine @ np.append(ijk, 1))[:3]
            assert np.linalg.norm(found[name] - place) < 3, name
        masks = seat.voxels()
        assert dice(masks[ANTERIOR] | masks[POSTERIOR], reference[::3] > 0) > 0.7
