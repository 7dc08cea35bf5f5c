"""Volumes and the models that suit them, set-up and teaching, through the controller's buttons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.errors import InputError, MaskSAMError
from MaskSAMCore.progress import Cancelled
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.status import CaseRow, Phase, TrainingResult
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work import controller, prefetch
from Testing.slicer import environment
from Testing.slicer import rig as rigs
from Testing.slicer.rig import BRIGHT, Library, Rig, bright, fake_model, voxels
from Testing.workers import alive

SEGMENTATION = "vtkMRMLSegmentationNode"
MIDDLE = (12.0, 10.0, 3.0)
"""A place inside of the volume, mm RAS."""


@pytest.fixture
def scan(rig: Rig) -> Any:
    """A volume that was chosen, with a model."""
    return rig.choose(rigs.volume())


# -- volumes and models ----------------------------------------------------------------------------------------------


def test_the_segmentation_goes_with_the_volume(rig: Rig, scan: Any) -> None:
    first = rig.segment()
    other = rig.choose(rigs.volume(name="Other"))
    assert rig.parameters.segmentation is None, "results of one volume never go to the other's"
    second = rig.segment()
    assert second is not first
    rig.controller.choose_volume(scan)
    assert rig.parameters.segmentation is first
    rig.controller.choose_volume(other)
    assert rig.parameters.segmentation is second
    rig.controller.choose_volume(None)
    assert rig.parameters.segmentation is None


def test_a_segmentation_that_the_user_chose_stays(rig: Rig, scan: Any) -> None:
    rig.segment()
    for mine in (bridge.new_segmentation(rig.scene, "Mine", volume=scan), rig.scene.AddNewNodeByClass(SEGMENTATION)):
        rig.parameters.segmentation = mine
        rig.controller.choose_volume(scan)
        assert rig.parameters.segmentation is mine


def test_a_new_segmentation_of_the_node_selector_becomes_one_of_the_volume(rig: Rig, scan: Any) -> None:
    transform = environment.add_transform(environment.affine(origin=(9, 8, 7)), scan)
    rig.parameters.segmentation = mine = rig.scene.AddNewNodeByClass(SEGMENTATION, "New segmentation")
    mine.CreateDefaultDisplayNodes()
    assert rig.segment() is mine
    assert rigs.segmentations() == [mine]
    assert mine.GetParentTransformNode() is transform
    np.testing.assert_array_equal(voxels(mine, BRIGHT, scan), bright(scan))
    other = rig.choose(rigs.volume(name="Other"))
    assert rig.parameters.segmentation is None, "it belongs to the first volume now"
    assert rig.segment() is not mine
    assert other is rig.parameters.inputVolume


def tagged(node: Any, modality: str) -> Any:
    """A volume in the subject hierarchy, in a series of a modality, as the DICOM module leaves it."""
    import slicer

    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = tree.CreateItem(tree.GetSceneItemID(), node)
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    tree.SetItemAttribute(item, name, modality)
    return node


def hounsfield(node: Any) -> Any:
    """A volume whose voxels have Hounsfield units as their unit."""
    import slicer

    unit = slicer.vtkCodedEntry()
    unit.SetValueSchemeMeaning("[hnsf'U]", "UCUM", "Hounsfield unit")
    node.SetVoxelValueUnits(unit)
    return node


def with_air(node: Any) -> Any:
    """A volume a quarter of which is air, in Hounsfield units."""
    import slicer.util

    slicer.util.arrayFromVolume(node)[:, :, :6] = -1000
    slicer.util.arrayFromVolumeModified(node)
    return node


def phase_image(node: Any, most: int = 4096) -> Any:
    """A volume of values from -4096 to 4096, or less, which MR scanners make of the phase."""
    import slicer.util

    array = slicer.util.arrayFromVolume(node)
    array[:] = np.random.default_rng(0).uniform(-most, most, array.shape)
    slicer.util.arrayFromVolumeModified(node)
    return node


MODELS = [fake_model("for-ct", modality="CT"), fake_model("for-mr", modality="MR"), fake_model("for-any")]


@pytest.mark.parametrize(
    ("made", "greyed"),
    [
        (lambda: tagged(rigs.volume(), "CT"), ["for-mr"]),
        (lambda: tagged(rigs.volume(), "MR"), ["for-ct"]),
        (lambda: tagged(rigs.volume(), "PT"), ["for-ct", "for-mr"]),
        (lambda: tagged(rigs.volume(), "OT"), []),
        (lambda: hounsfield(rigs.volume()), ["for-mr"]),
        (lambda: with_air(rigs.volume()), ["for-mr"]),
        (lambda: tagged(with_air(rigs.volume()), "MR"), ["for-ct"]),
        (lambda: phase_image(rigs.volume()), []),
        (lambda: phase_image(rigs.volume(), 3000), []),
        (rigs.volume, []),
        (lambda: None, []),
    ],
    ids=[
        "CT",
        "MR",
        "PET",
        "other",
        "units",
        "air",
        "MR, whatever its values",
        "phase",
        "less phase",
        "unknown",
        "no volume",
    ],
)
def test_models_for_another_modality_are_grey_and_the_unknown_greys_none(
    scene: Any, made: Any, greyed: Sequence[str]
) -> None:
    with Rig(scene, library=Library(*MODELS)) as rig:
        rig.controller.choose_volume(made())
        rows = rig.status.models
        assert [row.name for row in rows] == ["for-ct", "for-mr", "for-any"]
        assert [row.name for row in rows if not row.usable] == greyed
        assert all(("It was made for" in row.reason) != row.usable for row in rows)


def test_a_model_that_does_not_suit_segments_nothing(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "INTERVAL_S", 0)
    with Rig(scene, library=Library(*MODELS)) as rig:
        rig.choose(tagged(rigs.volume(), "CT"), "for-mr")
        assert not rig.status.can_segment
        assert not rig.status.can_refine
        assert rig.status.headline == "It was made for MR; this volume is CT."
        rig.controller.segment()
        rig.controller.click(MIDDLE, True, None)
        assert rig.has_message("cannot be used on this volume")
        assert rig.idle()
        for _ in range(5):
            rig.controller.tick()
        assert not rig.engines, "nothing is encoded for it either"


def test_damaged_models_and_those_of_several_channels_are_grey(scene: Any) -> None:
    library = Library(rigs.damaged_model("broken"), fake_model("two", channels=2), fake_model("plain"))
    with Rig(scene, library=library) as rig:
        rig.controller.choose_volume(rigs.volume())
        reasons = {row.name: row.reason for row in rig.status.models}
        assert "damaged" in reasons["broken"]
        assert "2 images" in reasons["two"]
        assert reasons["plain"] == ""
        rig.controller.enter()
        assert rig.parameters.model == "plain", "the first that can be used"
        rig.controller.choose_model("two")
        rig.controller.enter()
        assert rig.parameters.model == "two", "what was chosen stays"


def test_models_are_read_when_the_module_is_entered(scene: Any) -> None:
    library = Library(fake_model("plain"))
    with Rig(scene, library=library) as rig:
        assert len(rig.status.models) == 1
        library.models.append(fake_model("slow"))
        assert len(rig.status.models) == 1
        rig.controller.enter()
        assert len(rig.status.models) == 2


# -- set up ----------------------------------------------------------------------------------------------------------


class Setup:
    """Something that has to be installed first, and can be; models that come and go."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.absent, self.fails, self.bases = True, False, []

    def missing(self, base: str) -> bool:
        self.bases.append(base)
        return self.absent

    def text(self, base: str) -> str:
        return f"torch and {base}, 200 MB"

    def steps(self, base: str) -> Steps:
        yield None
        if self.fails:
            raise MaskSAMError("no network")
        self.absent = False
        return "Restart Slicer."

    def import_model(self, path: str) -> Steps:
        yield None
        self.library.models.append(fake_model(path))

    def remove_model(self, name: str) -> Steps:
        yield None
        self.library.models = [model for model in self.library.models if model.name != name]

    def remove_everything(self) -> Steps:
        yield None
        self.library.models.clear()


@pytest.fixture
def setup() -> Setup:
    return Setup(Library())


@pytest.fixture
def bare(scene: Any, setup: Setup) -> Iterator[Rig]:
    """A controller that needs a set-up, with a volume."""
    with Rig(scene, setup=setup, library=setup.library) as made:
        made.controller.enter()
        made.choose(rigs.volume())
        yield made


def test_nothing_begins_before_it_is_set_up(bare: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "INTERVAL_S", 0)
    assert (bare.status.phase, bare.status.headline) == (Phase.NEEDS_SETUP, "Setup is needed")
    assert not bare.status.can_segment
    assert not bare.status.can_refine
    bare.controller.segment()
    assert bare.status.messages[-1].endswith("Press Set up.")
    bare.controller.click(MIDDLE, True, None)
    bare.controller.draw_box(MIDDLE, MIDDLE, None)
    assert [line.endswith("Press Set up.") for line in bare.status.messages] == [True] * 3
    assert bare.idle()
    for _ in range(5):
        bare.controller.tick()
    assert not bare.engines
    assert bare.controller.setup_text() == "torch and mobile, 200 MB"


def test_once_it_is_set_up_it_is_used(bare: Rig, setup: Setup) -> None:
    setup.fails = True
    bare.controller.set_up()
    assert bare.idle()
    assert bare.has_message("no network")
    assert bare.status.phase is Phase.NEEDS_SETUP
    setup.fails = False
    bare.controller.set_up()
    assert bare.status.task == "setup"
    assert bare.idle()
    assert bare.status.phase is Phase.IDLE
    assert bare.has_message("Restart Slicer.")
    assert bare.segment()


def test_the_base_weights_are_those_of_the_model(bare: Rig, setup: Setup) -> None:
    setup.library.models += [fake_model("larger", base="vit_b"), fake_model("homemade", base="mine")]
    bare.controller.enter()
    for model, base in (("larger", "vit_b"), ("homemade", "mobile"), ("plain", "mobile")):
        bare.controller.choose_model(model)
        assert setup.bases[-1] == base


def test_models_come_and_go(bare: Rig, setup: Setup) -> None:
    setup.absent = False
    bare.controller.enter()
    bare.controller.import_model("new")
    assert bare.idle()
    assert "new" in [row.name for row in bare.status.models]
    assert bare.segment()
    worker = bare.worker
    bare.controller.remove_model("new")
    assert bare.idle()
    assert "new" not in [row.name for row in bare.status.models]
    assert not alive(worker), "the engine lets go of the files first"
    bare.controller.remove_everything()
    assert bare.idle()
    assert bare.status.models == ()


# -- teach -----------------------------------------------------------------------------------------------------------


class Teaching:
    """Training that takes as long as the test wants; the model is called `taught`."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.over = self.withdrawn = self.enough = False
        self.last_result: TrainingResult | None = None
        self.progress: tuple[int, int, str] | None = (1, 9, "training")

    def cases(self) -> tuple[CaseRow, ...]:
        return (CaseRow(name="first", structures=(BRIGHT,)),)

    def remove_case(self, name: str) -> None:
        raise InputError("no such case", where=name)

    def teach(self, name: str) -> Steps:
        yield self
        self.library.models.append(fake_model(name))
        self.last_result = TrainingResult(model=name, dice={}, left_out=(), worst_case="", overlay="", seconds=1.0)
        return self.last_result

    def done(self) -> bool:
        return self.over or self.withdrawn

    def result(self) -> None:
        if self.withdrawn:
            raise Cancelled

    def cancel(self) -> None:
        self.withdrawn = True


@pytest.fixture
def teaching(monkeypatch: pytest.MonkeyPatch) -> Teaching:
    made = Teaching(Library())
    monkeypatch.setattr(controller, "Teaching", lambda context: made)
    return made


@pytest.fixture
def school(scene: Any, teaching: Teaching) -> Iterator[Rig]:
    """A controller that can teach."""
    with Rig(scene, library=teaching.library) as made:
        made.choose(rigs.volume())
        yield made


def test_a_taught_model_is_listed_and_chosen(school: Rig, teaching: Teaching) -> None:
    assert not school.status.can_teach
    teaching.enough = True
    assert school.status.can_teach
    assert school.status.cases == teaching.cases()
    assert school.status.training_result is None
    school.controller.teach("taught")
    assert (school.status.task, school.status.headline, school.status.can_teach) == ("teach", "Teaching", False)
    assert school.until(lambda: school.status.progress is not None)
    teaching.over = True
    assert school.idle()
    assert school.parameters.model == "taught"
    assert school.status.training_result is teaching.last_result
    assert "taught" in [row.name for row in school.status.models]


def test_a_second_press_cancels_teaching(school: Rig, teaching: Teaching) -> None:
    school.controller.teach("taught")
    school.controller.tick()
    school.controller.teach("taught")
    assert school.idle()
    assert teaching.withdrawn
    assert school.parameters.model == "plain"


def test_a_case_that_cannot_be_removed_is_reported(school: Rig) -> None:
    school.controller.remove_case("second")
    assert school.has_message("second: no such case")
