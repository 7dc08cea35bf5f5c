"""The controller with the real engine, the bundled model and a real scan, in one process for all tests of this file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.evaluation.metrics import dice
from MaskSAMCore.io.images import read_labels
from MaskSAMCore.zoo import installed
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.choices import Region, Speed
from SlicerMaskSAMLib.values.status import Phase
from Testing.slicer import environment
from Testing.slicer import rig as rigs
from Testing.slicer.rig import KeptEngine, Rig, voxels
from Testing.workers import script

MODEL = "hippocampus-mr"
CASE = "hippocampus_003"
PATIENCE_S = 600.0
"""Far more than a scan takes, on a machine that is busy with something else."""
NAMES = ("Anterior hippocampus", "Posterior hippocampus")


@pytest.fixture(scope="module")
def engine(mobile_sam: Path) -> Iterator[KeptEngine]:
    engine = KeptEngine()
    yield engine
    engine.end()


@pytest.fixture
def real(scene: Any, engine: KeptEngine) -> Iterator[Rig]:
    """A controller with the real engine and the models of this computer."""
    with Rig(scene, start=engine.start, library=installed, patience=PATIENCE_S) as made:
        made.controller.enter()
        yield made


@pytest.fixture
def scan_file(shared: Path) -> Path:
    """A real scan."""
    return shared / "data" / "hippocampus" / "imagesTr" / f"{CASE}_0000.nii.gz"


@pytest.fixture
def truth(shared: Path) -> np.ndarray:
    """Its structures, as people drew them, (K, J, I)."""
    return read_labels(shared / "data" / "hippocampus" / "labelsTr" / f"{CASE}.nii.gz").array


@pytest.fixture
def scan(real: Rig, scan_file: Path) -> Any:
    """The scan in the scene, chosen with the bundled model."""
    return real.choose(environment.load_volume(scan_file, CASE), MODEL)


@pytest.mark.slow
def test_a_real_scan_is_segmented(real: Rig, scan: Any, truth: np.ndarray) -> None:
    assert [row.name for row in real.status.structures] == list(NAMES)
    found = real.segment()
    assert list(rigs.segments(found)) == list(NAMES)
    for label, name in enumerate(NAMES, start=1):
        assert dice(voxels(found, name, scan), truth == label) > 0.75
        there = bridge.segment_label(found, rigs.segments(found)[name])
        assert there.type.meaning == "Hippocampus"
        assert there.category.meaning == "Anatomical Structure"


@pytest.mark.slow
def test_the_device_is_the_one_in_use(real: Rig, scan: Any) -> None:
    assert real.until(lambda: real.status.device)
    assert real.status.device.startswith("CPU, 2 thread(s)")
    assert "GiB of memory free" in real.status.device
    assert "no GPU is used, so this is slower" in real.status.device


@pytest.mark.slow
def test_the_slice_that_is_shown_is_encoded_before_anybody_clicks(real: Rig, scan: Any) -> None:
    assert real.until(lambda: real.status.headline == "Encoding the visible slice")
    assert real.status.phase is Phase.IDLE
    assert real.status.can_segment
    assert encoded(real)
    assert real.asked == ["open", "encode"]


def encoded(real: Rig) -> bool:
    """Whether the engine has encoded the visible slice, and so works."""
    return real.until(lambda: "encode" in real.asked and real.status.headline == "Ready")


@pytest.mark.slow
def test_a_region_is_segmented_and_nothing_beyond_it(real: Rig, scan: Any, truth: np.ndarray) -> None:
    middle = bridge.ijk_to_world(scan, [np.argwhere(truth == 1).mean(axis=0)[::-1]])[0]
    real.parameters.roi = roi = real.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenterWorld(*middle)
    roi.SetSizeWorld(12, 12, 12)
    real.parameters.region, real.parameters.speed = Region.ROI, Speed.FAST
    part = voxels(real.segment(), NAMES[0], scan)
    inside = bridge.ijk_to_world(scan, np.argwhere(part)[:, ::-1])
    assert part.any()
    assert np.abs(inside - middle).max() <= 6.5


@pytest.fixture
def large(real: Rig) -> Any:
    """A volume that takes long enough to be interrupted, chosen with the bundled model."""
    return real.choose(rigs.volume((120, 160, 120)), MODEL)


@pytest.mark.slow
def test_cancel_leaves_the_scene_alone_and_the_engine_ready(real: Rig, large: Any, engine: KeptEngine) -> None:
    worker = engine.hello["pid"]
    assert real.working()
    real.controller.segment()
    assert real.idle()
    assert rigs.segmentations() == []
    assert encoded(real)
    assert engine.hello["pid"] == worker


@pytest.mark.slow
def test_a_scene_that_is_closed_leaves_the_engine_ready(
    real: Rig, large: Any, engine: KeptEngine, scan_file: Path
) -> None:
    worker = engine.hello["pid"]
    assert real.working()
    real.scene.Clear(False)
    assert real.status.phase is Phase.IDLE
    assert rigs.segmentations() == []
    real.parameters = rigs.parameters()
    real.controller.set_parameters(real.parameters)
    assert real.parameters.model == real.status.models[0].name, "the first that there is"
    real.controller.choose_volume(environment.load_volume(scan_file, CASE))
    assert encoded(real)
    assert engine.hello["pid"] == worker


WITHOUT_TORCH = """
import sys
sys.path.insert(0, "SlicerMaskSAM")
from Testing.slicer import environment
scene = environment.start()
from SlicerMaskSAMLib.work.controller import Controller
from Testing.slicer import rig
controller = Controller(scene, rig.parameters(), start_engine=None)
controller.enter()
print([row.name for row in controller.status().models], "torch" in sys.modules)
controller.close()
environment.stop()
"""


@pytest.mark.slow
def test_models_are_listed_without_torch_and_without_the_engine() -> None:
    program = script(WITHOUT_TORCH)
    told, _ = program.communicate(timeout=120)
    assert told.splitlines()[-1] == f"{[model.name for model in installed.installed_models()]} False"
