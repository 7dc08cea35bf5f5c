"""Refining with the real engine in its own process, the bundled model and a real scan of a patient."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.evaluation.metrics import dice
from MaskSAMCore.io.images import read_labels
from MaskSAMCore.preprocessing.masks import interior_voxel
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.worker.results import Case
from MaskSAMCore.zoo.installed import find_model, installed_models
from MaskSAMCore.zoo.model_folder import load_card
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.choices import OverlapPolicy, Scope
from Testing.slicer import environment
from Testing.slicer.desk import Desk

MODEL = "hippocampus-mr"
ANTERIOR, POSTERIOR = "Anterior hippocampus", "Posterior hippocampus"

# What another process makes of a saved scene: the same click as here.
REOPENED = """
import json, sys
from pathlib import Path
import numpy as np
from Testing.slicer import environment
from Testing.slicer.work.test_refine_worker import engine_of_its_own, real_desk
from Testing.slicer.desk import Desk

environment.start()
with engine_of_its_own() as engine:
    desk = Desk.reopened(Path(sys.argv[1]), **real_desk(engine))
    rows = desk.rows
    desk.click(*json.loads(sys.argv[2]), positive=False)
    np.save(sys.argv[3], desk.voxels())
    print(json.dumps({"rows": rows, "said": desk.messages}))
environment.stop()
"""


def engine_of_its_own() -> EngineClient:
    return EngineClient(device="cpu", threads=1)


def real_desk(engine: EngineClient) -> dict[str, Any]:
    """What a desk with the real engine is made of."""
    models = [model for model in installed_models() if model.name == MODEL]
    return {"models": models, "engine": engine}


@pytest.fixture(scope="module")
def engine(mobile_sam: Path) -> Iterator[EngineClient]:
    with engine_of_its_own() as client:
        yield client


@pytest.fixture(scope="module")
def scan(shared: Path) -> tuple[Path, np.ndarray]:
    """A scan that the model was not trained on, and its reference labels."""
    name = load_card(find_model(MODEL)).provenance["validation_cases"][0]
    folder = shared / "data" / "hippocampus"
    labels = read_labels(folder / "labelsTr" / f"{name}.nii.gz").array
    return folder / "imagesTr" / f"{name}_0000.nii.gz", labels


@pytest.fixture
def desk(scene: Any, engine: EngineClient, scan: tuple[Path, np.ndarray]) -> Iterator[Desk]:
    desk = Desk(scene, volume=environment.load_volume(scan[0], "scan"), **real_desk(engine))
    yield desk
    desk.context.engine_link.keep_scans(lambda node: False)  # the engine is everybody's


@pytest.fixture(scope="module")
def posterior(scan: tuple[Path, np.ndarray]) -> np.ndarray:
    return scan[1] == 2


def inside(mask: np.ndarray) -> tuple[int, int, int]:
    """The voxel (i, j, k) that lies deepest in a mask."""
    k, j, i = interior_voxel(mask)
    return i, j, k


def mistake(found: np.ndarray, wanted: np.ndarray) -> tuple[tuple[int, int, int], bool]:
    """Where a user would click next: the middle of what is wrong, and whether it is missing."""
    place = inside(found != wanted)
    return place, bool(wanted[place[::-1]])


class Reference:
    """The engine asked directly, about the same scan."""

    def __init__(self, engine: EngineClient, desk: Desk) -> None:
        self._engine = engine
        volume, affine = bridge.scalars(desk.volume), bridge.geometry(desk.volume).affine
        self._case: Case = engine.submit("open", case=9000, volume=volume, affine=affine, model=MODEL).result()

    def __call__(self, prompts: Sequence[dict[str, Any]], *, multimask: bool = False) -> np.ndarray:
        update = self._engine.prompt(self._case, 1, prompts, multimask=multimask)
        self._engine.drop(self._case, 1)
        mask = np.zeros(self._case.shape, bool)
        k0, k1, j0, j1, i0, i1 = update.box
        mask[k0:k1, j0:j1, i0:i1] = update.mask
        return mask

    def close(self) -> None:
        self._engine.release(self._case)


@pytest.fixture
def reference(engine: EngineClient, desk: Desk) -> Iterator[Reference]:
    asked = Reference(engine, desk)
    yield asked
    asked.close()


def correct(desk: Desk, wanted: np.ndarray, clicks: int) -> list[dict[str, Any]]:
    """Click into what is wrong, again and again; returns the prompts as the engine must have got them."""
    place, positive = inside(wanted), True
    prompts: list[dict[str, Any]] = []
    for number in range(clicks):
        scope = (Scope.VOLUME, Scope.SLAB, Scope.SLICE)[number % 3]
        desk.parameters.scope = scope
        desk.click(*place, positive=positive)
        prompts.append({"kind": "point", "position": place, "positive": positive, "scope": scope.value})
        place, positive = mistake(desk.voxels(), wanted)
    prompts[0]["candidate"] = 0
    return prompts


@pytest.mark.slow
def test_the_voxels_are_the_engines_answer(desk: Desk, posterior: np.ndarray, reference: Reference) -> None:
    prompts = correct(desk, posterior, 6)
    assert np.array_equal(desk.voxels(), reference(prompts))
    assert dice(desk.voxels(), posterior) > 0.75


@pytest.mark.slow
def test_undo_and_redo_go_through_all_answers_exactly(desk: Desk, posterior: np.ndarray) -> None:
    desk.refinement.new_structure(POSTERIOR)
    states = [desk.voxels()]
    place, positive = inside(posterior), True
    for _ in range(5):
        desk.click(*place, positive=positive)
        states.append(desk.voxels())
        place, positive = mistake(states[-1], posterior)
    rows = desk.rows
    for number in reversed(range(5)):
        desk.refinement.undo()
        assert np.array_equal(desk.voxels(), states[number])
        assert desk.rows == rows[:number]
    for number in range(1, 6):
        desk.refinement.redo()
        assert np.array_equal(desk.voxels(), states[number])
        assert desk.rows == rows[:number]
    desk.settle()
    assert desk.messages == []


@pytest.mark.slow
def test_the_last_click_s_scope_grows_from_slice_to_slab_to_volume(desk: Desk, posterior: np.ndarray) -> None:
    desk.parameters.scope = Scope.SLICE
    desk.click(*inside(posterior))
    reached = [set(desk.shown.quality)]
    for scope in (Scope.SLAB, Scope.VOLUME):
        desk.refinement.set_scope(scope)
        desk.settle()
        reached.append(set(desk.shown.quality))
    assert len(reached[0]) == 1
    assert reached[0] < reached[1] <= reached[2]
    axis = desk.shown.quality_axis
    slices = np.flatnonzero(np.any(desk.voxels(), axis=tuple({0, 1, 2} - {axis})))
    assert set(slices.tolist()) == reached[2]
    assert desk.shown.worst in reached[2]


@pytest.mark.slow
def test_a_first_click_has_three_candidates(desk: Desk, posterior: np.ndarray, reference: Reference) -> None:
    place = inside(posterior)
    desk.click(*place)
    assert desk.shown.candidates == 3, desk.messages
    for candidate in (1, 2, 0):
        desk.refinement.next_candidate()
        desk.settle()
        prompt = {"kind": "point", "position": place, "scope": "slab", "candidate": candidate}
        assert np.array_equal(desk.voxels(), reference([prompt], multimask=True))


@pytest.mark.slow
def test_the_model_suggests_what_was_clicked_on(desk: Desk, posterior: np.ndarray) -> None:
    desk.click(*inside(posterior))
    assert desk.shown.suggestion == POSTERIOR
    desk.refinement.take_suggestion()
    assert desk.name == POSTERIOR


@pytest.mark.slow
def test_a_box_in_one_slice(desk: Desk, posterior: np.ndarray, reference: Reference) -> None:
    i, j, k = inside(posterior)
    rows, columns = (np.flatnonzero(posterior[k].any(axis=axis)) for axis in (1, 0))
    low, high = (int(columns[0]), int(rows[0]), k), (int(columns[-1]), int(rows[-1]), k)
    desk.view.SetDimensions(200, 200, 1)
    desk.view.SetFieldOfView(200, 200, 1)
    desk.view.JumpSliceByCentering(*desk.world(i, j, k))
    desk.refinement.draw_box(
        desk.world(low[0] - 0.5, low[1] - 0.5, k), desk.world(high[0] + 0.5, high[1] + 0.5, k), desk.view
    )
    desk.settle()
    shown = desk.voxels()
    assert np.array_equal(shown, reference([{"kind": "box", "corners": (low, high), "scope": "slab"}])), desk.rows
    assert dice(shown[k], posterior[k]) > 0.7


@pytest.mark.slow
def test_segments_made_by_clicks_do_not_overlap(desk: Desk, scan: tuple[Path, np.ndarray]) -> None:
    anterior, posterior = scan[1] == 1, scan[1] == 2
    desk.parameters.scope = Scope.VOLUME
    desk.refinement.new_structure(ANTERIOR)
    desk.click(*inside(anterior))
    first = desk.voxels(ANTERIOR)
    desk.refinement.next_structure(POSTERIOR)
    desk.click(*inside(posterior))
    assert np.array_equal(desk.voxels(ANTERIOR), first)
    assert desk.voxels(POSTERIOR).any()
    assert not (first & desk.voxels(POSTERIOR)).any()
    desk.parameters.neighbours = OverlapPolicy.REPLACE
    missing = inside(first & posterior)
    desk.click(*missing)
    assert desk.voxels(POSTERIOR)[missing[::-1]]
    assert not desk.voxels(ANTERIOR)[missing[::-1]]
    desk.refinement.undo()
    assert np.array_equal(desk.voxels(ANTERIOR), first)


@pytest.mark.slow
def test_automatic_prompts_find_the_structures_of_a_slice(desk: Desk, scan: tuple[Path, np.ndarray]) -> None:
    both = (scan[1] == 1).sum(axis=(1, 2)) * (scan[1] == 2).sum(axis=(1, 2))
    k = int(both.argmax())
    desk.view.SetDimensions(200, 200, 1)
    desk.view.SetFieldOfView(200, 200, 1)
    desk.view.JumpSliceByCentering(*desk.world(15, 20, k))
    desk.parameters.scope, desk.parameters.neighbours = Scope.SLICE, OverlapPolicy.OVERLAP
    desk.refinement.show_automatic(True)
    desk.settle()
    desk.refinement.run_automatic()
    desk.settle()
    for label, name in enumerate((ANTERIOR, POSTERIOR), start=1):
        found = desk.voxels(name)
        assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [k]
        assert dice(found[k], scan[1][k] == label) > 0.7, (name, desk.messages)


@pytest.mark.slow
def test_a_worker_that_dies_between_and_during_answers_changes_nothing(
    desk: Desk, posterior: np.ndarray, reference: Reference, engine: EngineClient
) -> None:
    prompts = correct(desk, posterior, 3)
    os.kill(engine.hello["pid"], getattr(signal, "SIGKILL", signal.SIGTERM))
    place, positive = mistake(desk.voxels(), posterior)
    desk.press(*place, positive=positive)
    desk.tick(5)
    os.kill(engine.hello["pid"], getattr(signal, "SIGKILL", signal.SIGTERM))
    desk.settle()
    prompts.append({"kind": "point", "position": place, "positive": positive, "scope": "slice"})
    assert desk.messages == []
    assert np.array_equal(desk.voxels(), reference(prompts))


@pytest.mark.slow
def test_in_another_process_a_saved_scene_goes_on_as_here(desk: Desk, posterior: np.ndarray, tmp_path: Path) -> None:
    correct(desk, posterior, 3)
    rows = desk.rows
    saved = environment.save_scene(tmp_path / "scene.mrb")
    place = inside(desk.voxels() & ~posterior)
    desk.click(*place, positive=False)

    here = Path(__file__).resolve().parents[3]
    paths = os.pathsep.join([str(here), str(here / "SlicerMaskSAM")])
    words = [str(saved), json.dumps(place), str(tmp_path / "voxels.npy")]
    done = subprocess.run(
        [sys.executable, "-c", REOPENED, *words],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False, cwd=here,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"rows": rows, "said": []}
    assert np.array_equal(np.load(tmp_path / "voxels.npy"), desk.voxels())
