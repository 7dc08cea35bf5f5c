"""What the buttons do, without Qt: a real worker process whose engine answers by rule, on Slicer's own scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.errors import InputError, MaskSAMError
from MaskSAMCore.progress import Cancelled
from SlicerMaskSAMLib import controller
from SlicerMaskSAMLib.status import CaseRow, Lesson, Phase
from SlicerMaskSAMLib.tasks import Steps
from SlicerMaskSAMLib.work import MESSAGES
from Testing.slicer import environment
from Testing.slicer import rig as rigs
from Testing.slicer.rig import BRIGHT, CORNER, Library, Rig, bright, fake_model, voxels
from Testing.workers import alive

MIDDLE = (12.0, 10.0, 3.0)
"""A place inside of the volume, mm RAS."""


@pytest.fixture
def scan(rig: Rig) -> Any:
    """A volume that was chosen, with a model."""
    return rig.choose(rigs.volume())


# -- segment ---------------------------------------------------------------------------------------------------------


def test_segment_puts_the_structures_into_the_scene(rig: Rig, scan: Any) -> None:
    found = rig.segment()
    assert list(rigs.segments(found)) == [CORNER, BRIGHT]
    np.testing.assert_array_equal(voxels(found, BRIGHT, scan), bright(scan))
    assert rig.status.headline == "Ready" and rig.status.can_export


def test_the_state_is_told_all_the_way(rig: Rig, scan: Any) -> None:
    rig.controller.choose_model("slow")
    assert (rig.status.phase, rig.status.can_segment, rig.status.can_export) == (Phase.IDLE, True, False)
    assert rig.working()
    now = rig.status
    assert (now.phase, now.task, now.headline, now.can_segment) == (Phase.WORKING, "segment", "Segmenting", False)
    assert now.progress.total == scan.GetImageData().GetDimensions()[2], "in slices"
    assert rig.until(lambda: rig.status.progress is None or rig.status.progress.seconds_left is not None)
    assert rig.idle() and rig.status.progress is None


def test_pressed_a_second_time_it_cancels(rig: Rig, scan: Any) -> None:
    rig.controller.choose_model("slow")
    assert rig.working()
    rig.controller.segment()
    assert (rig.status.phase, rig.status.headline) == (Phase.CANCELLING, "Stopping")
    assert rig.idle()
    assert rigs.segmentations() == [] and rig.status.undo == ""
    assert rig.segment(), "and it can be pressed again"


def test_the_timer_never_waits(rig: Rig, scan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from MaskSAMCore.worker.jobs import Job

    result = Job.result

    def at_once(job: Job, timeout: float | None = None) -> Any:
        assert job.done(), "this would wait"
        return result(job, timeout)

    monkeypatch.setattr(Job, "result", at_once)
    assert rig.segment()


def test_the_panel_is_told_when_there_is_something_new_and_else_left_alone(rig: Rig, scan: Any) -> None:
    before = rig.changes
    assert rig.segment() and rig.changes > before
    assert rig.until(lambda: not rig.controller._work._machine.background)
    rig.until(lambda: not rig.engines[0]._jobs)
    for _ in range(3):
        rig.controller.tick()
    before = rig.changes
    for _ in range(5):
        rig.controller.tick()
    assert rig.changes == before


def test_undo_and_redo_of_a_segmentation_are_exact(rig: Rig, scan: Any) -> None:
    found = rig.segment()
    assert rig.status.undo == "Segmentation of Scan" and rig.status.redo == ""
    rig.controller.undo()
    assert rigs.segments(found) == {} and rig.status.redo == "Segmentation of Scan"
    rig.controller.redo()
    assert list(rigs.segments(found)) == [CORNER, BRIGHT]
    np.testing.assert_array_equal(voxels(found, BRIGHT, scan), bright(scan))


def test_an_order_that_lacks_something_is_told(rig: Rig) -> None:
    assert not rig.status.can_segment and rig.status.headline == "Choose a volume first."
    rig.controller.segment()
    assert rig.said("no volume is chosen") and rig.status.phase is Phase.IDLE and not rig.engines
    rig.controller.choose_volume(rigs.volume())
    assert rig.status.headline == "Choose a model first."


def test_only_wanted_structures_are_listed_so_and_segmented(rig: Rig, scan: Any) -> None:
    rig.controller.want([BRIGHT], False)
    assert [(row.name, row.wanted) for row in rig.status.structures] == [(BRIGHT, False), (CORNER, True)]
    assert list(rigs.segments(rig.segment())) == [CORNER]
    rig.controller.want([BRIGHT], True)
    assert all(row.wanted for row in rig.status.structures)


def test_an_error_of_the_engine_is_told(scene: Any) -> None:
    with Rig(scene, library=Library(fake_model("nonsense"))) as rig:
        rig.choose(rigs.volume(), "nonsense")
        rig.segment()
        assert rig.said("no such model") and rig.status.phase is Phase.IDLE


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


def phase_image(node: Any) -> Any:
    """A volume of values from -4096 to 4095, which MR scanners make of the phase."""
    import slicer.util

    array = slicer.util.arrayFromVolume(node)
    array[:] = np.random.default_rng(0).uniform(-4096, 4095, array.shape)
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
        (rigs.volume, []),
        (lambda: None, []),
    ],
    ids=["CT", "MR", "PET", "other", "units", "air", "MR, whatever its values", "phase", "unknown", "no volume"],
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


def test_a_model_that_does_not_suit_segments_nothing(scene: Any) -> None:
    with Rig(scene, library=Library(*MODELS)) as rig:
        rig.choose(tagged(rigs.volume(), "CT"), "for-mr")
        assert not rig.status.can_segment and not rig.status.can_refine
        assert rig.status.headline == "It was made for MR; this volume is CT."
        rig.controller.segment()
        rig.controller.click(MIDDLE, True, None)
        assert rig.said("does not suit") and rig.idle() and not rig.engines


def test_damaged_models_and_those_of_several_channels_are_grey(scene: Any) -> None:
    library = Library(rigs.damaged_model("broken"), fake_model("two", channels=2), fake_model("plain"))
    with Rig(scene, library=library) as rig:
        rig.controller.choose_volume(rigs.volume())
        reasons = {row.name: row.reason for row in rig.status.models}
        assert "damaged" in reasons["broken"] and "2 images" in reasons["two"] and reasons["plain"] == ""
        rig.controller.enter()
        assert rig.parameters.model == "plain", "the first that can be used"


def test_models_are_read_when_the_module_is_entered(scene: Any) -> None:
    library = Library(fake_model("plain"))
    with Rig(scene, library=library) as rig:
        assert len(rig.status.models) == 1
        library.models.append(fake_model("slow"))
        assert len(rig.status.models) == 1
        rig.controller.enter()
        assert len(rig.status.models) == 2


# -- in the background -----------------------------------------------------------------------------------------------


def test_what_is_shown_is_encoded_as_soon_as_volume_and_model_are_chosen(rig: Rig) -> None:
    rig.controller.choose_volume(rigs.volume())
    for _ in range(3):
        rig.controller.tick()
    assert not rig.engines, "there is no model yet"
    rig.controller.choose_model("slow")
    assert rig.until(lambda: "encode" in rig.asked)
    assert rig.asked == ["open", "encode"]
    now = rig.status
    assert (now.phase, now.task, now.headline) == (Phase.IDLE, "", "Encoding the visible slice")
    assert now.can_segment and now.can_refine
    assert rig.until(lambda: rig.status.headline == "Ready") and rig.asked == ["open", "encode"]


def test_it_is_encoded_again_when_volume_or_view_are_others(scene: Any, views: Any) -> None:
    from SlicerMaskSAMLib.views import Views

    view = views.slice("Red", "Axial")
    with Rig(scene, views=Views(scene)) as rig:
        node = rig.choose(rigs.volume())
        view.show(node)
        assert rig.until(lambda: rig.asked.count("encode") == 1 and rig.status.headline == "Ready")
        view.node.JumpSliceByOffsetting(0, 0, 4)
        assert rig.until(lambda: rig.asked.count("encode") == 2 and rig.status.headline == "Ready")
        rigs.edit_volume(node)
        assert rig.until(lambda: rig.asked.count("encode") == 3)
        assert rig.asked.count("open") == 2


def test_segment_does_not_wait_for_the_background(rig: Rig, scan: Any) -> None:
    rig.controller.choose_model("slow")
    assert rig.until(lambda: "encode" in rig.asked)
    rig.controller.segment()
    assert rig.until(lambda: rig.parameters.segmentation is not None and not rig.status.task)
    assert rig.asked.count("open") == 1


def test_the_background_rests_when_the_module_is_left(rig: Rig, scan: Any) -> None:
    rig.controller.choose_model("deaf")
    assert rig.until(lambda: "encode" in rig.asked)
    rig.controller.exit()
    assert rig.status.headline == "Ready"


# -- one thing at a time ---------------------------------------------------------------------------------------------


def test_other_work_has_to_wait(rig: Rig, scan: Any) -> None:
    found = rig.segment()
    rig.controller.choose_model("slow")
    assert rig.working()
    rig.controller.volumes_table()
    assert rig.said("Segmenting: wait for the end, or cancel.")
    assert rig.idle() and environment.nodes("vtkMRMLTableNode") == []
    rig.controller.volumes_table()
    assert rig.idle() and len(environment.nodes("vtkMRMLTableNode")) == 1
    assert rig.parameters.segmentation is found


def test_clicks_are_not_lost_while_something_else_goes_on(rig: Rig, scan: Any, views: Any) -> None:
    view = views.slice("Red", "Axial")
    view.show(scan)
    rig.controller.choose_model("slow")
    rig.controller.want([BRIGHT], False)
    assert rig.working()
    rig.controller.new_structure("Kidney")
    rig.controller.click(MIDDLE, True, view.node)
    assert rig.status.task == "segment" and len(rig.status.prompts) == 1
    assert rig.until(lambda: "prompt" in rig.asked) and rig.idle()
    kidney = voxels(rig.parameters.segmentation, "Kidney", scan)
    assert kidney[3, 10, 12] and kidney.sum() == 125, "what the fake engine answers"


def test_segment_begins_after_the_answer_that_is_on_its_way(rig: Rig, scan: Any, views: Any) -> None:
    view = views.slice("Red", "Axial")
    view.show(scan)
    rig.controller.click(MIDDLE, True, view.node)
    assert rig.until(lambda: rig.status.task == "refine")
    rig.controller.segment()
    assert rig.until(lambda: rig.status.task == "segment") and "prompt" in rig.asked
    assert rig.idle() and {BRIGHT, CORNER} < set(rigs.segments(rig.parameters.segmentation))


def test_pressed_twice_before_it_begins_it_does_not_begin(rig: Rig, scan: Any, views: Any) -> None:
    view = views.slice("Red", "Axial")
    view.show(scan)
    rig.controller.click(MIDDLE, True, view.node)
    assert rig.until(lambda: rig.status.task == "refine")
    rig.controller.segment()
    rig.controller.segment()
    assert rig.idle() and "segment" not in rig.asked


# -- what is told ----------------------------------------------------------------------------------------------------


def test_the_device_is_told_once_the_engine_stands(rig: Rig, scan: Any) -> None:
    assert rig.status.device == ""
    assert rig.until(lambda: rig.status.device == "none"), "what the fake engine calls its device"


def test_only_the_last_messages_are_kept(rig: Rig) -> None:
    for _ in range(MESSAGES + 5):
        rig.controller.segment()
    assert len(rig.status.messages) == MESSAGES


def test_what_cannot_be_done_by_a_command_is_told(rig: Rig, scan: Any) -> None:
    assert rig.controller.command_line() == ""
    assert rig.said("no command gives this segmentation")


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


def test_nothing_begins_before_it_is_set_up(bare: Rig) -> None:
    assert (bare.status.phase, bare.status.headline) == (Phase.NEEDS_SETUP, "Set-up is needed")
    assert not bare.status.can_segment and not bare.status.can_refine
    bare.controller.segment()
    bare.controller.click(MIDDLE, True, None)
    assert bare.said("Press Set up") and bare.idle() and not bare.engines
    assert bare.controller.setup_text() == "torch and mobile, 200 MB"


def test_once_it_is_set_up_it_is_used(bare: Rig, setup: Setup) -> None:
    setup.fails = True
    bare.controller.set_up()
    assert bare.idle() and bare.said("no network") and bare.status.phase is Phase.NEEDS_SETUP
    setup.fails = False
    bare.controller.set_up()
    assert bare.status.task == "setup" and bare.idle() and bare.status.phase is Phase.IDLE
    assert bare.said("Restart Slicer.") and bare.segment()


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
    assert bare.idle() and "new" in [row.name for row in bare.status.models]
    assert bare.segment()
    worker = bare.worker
    bare.controller.remove_model("new")
    assert bare.idle() and "new" not in [row.name for row in bare.status.models]
    assert not alive(worker), "the engine lets go of the files first"
    bare.controller.remove_everything()
    assert bare.idle() and bare.status.models == ()


# -- teach -----------------------------------------------------------------------------------------------------------


class Lessons:
    """Lessons that take as long as the test wants; the model that is taught is called `taught`."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.over = self.withdrawn = self.enough = False
        self.lesson: Lesson | None = None
        self.progress: tuple[int, int, str] | None = (1, 9, "training")

    def cases(self) -> tuple[CaseRow, ...]:
        return (CaseRow(name="first", structures=(BRIGHT,)),)

    def remove_case(self, name: str) -> None:
        raise InputError("no such case", where=name)

    def teach(self, name: str) -> Steps:
        yield self
        self.library.models.append(fake_model(name))
        self.lesson = Lesson(model=name, dice={}, left_out=(), worst_case="", overlay="", seconds=1.0)
        return self.lesson

    def done(self) -> bool:
        return self.over or self.withdrawn

    def result(self) -> None:
        if self.withdrawn:
            raise Cancelled

    def cancel(self) -> None:
        self.withdrawn = True


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> Lessons:
    made = Lessons(Library())
    monkeypatch.setattr(controller, "Lessons", lambda context: made)
    return made


@pytest.fixture
def school(scene: Any, lessons: Lessons) -> Iterator[Rig]:
    """A controller that can teach."""
    with Rig(scene, library=lessons.library) as made:
        made.choose(rigs.volume())
        yield made


def test_a_taught_model_is_listed_and_chosen(school: Rig, lessons: Lessons) -> None:
    assert not school.status.can_teach
    lessons.enough = True
    assert school.status.can_teach and school.status.cases == lessons.cases() and school.status.lesson is None
    school.controller.teach("taught")
    assert (school.status.task, school.status.headline, school.status.can_teach) == ("teach", "Teaching", False)
    assert school.until(lambda: school.status.progress is not None)
    lessons.over = True
    assert school.idle() and school.parameters.model == "taught" and school.status.lesson is lessons.lesson
    assert "taught" in [row.name for row in school.status.models]


def test_a_second_press_cancels_the_lesson(school: Rig, lessons: Lessons) -> None:
    school.controller.teach("taught")
    school.controller.tick()
    school.controller.teach("taught")
    assert school.idle() and lessons.withdrawn and school.parameters.model == "plain"


def test_a_case_that_cannot_be_removed_is_told(school: Rig) -> None:
    school.controller.remove_case("second")
    assert school.said("second: no such case")


# -- the end ---------------------------------------------------------------------------------------------------------


def test_another_scene_brings_another_parameter_node(rig: Rig, scan: Any) -> None:
    rig.segment()
    rig.scene.Clear(False)
    rig.parameters = rigs.parameters()
    rig.controller.set_parameters(rig.parameters)
    assert rig.status.headline == "Choose a volume first." and rig.status.undo == ""
    assert rig.segment() is None and rig.said("no volume")
    rig.choose(rigs.volume())
    assert rig.segment()


def test_close_ends_the_engine_and_listens_no_more(rig: Rig, scan: Any) -> None:
    rig.segment()
    worker = rig.worker
    rig.controller.close()
    assert not alive(worker)
    before = rig.changes
    rig.scene.Clear(False)
    assert rig.changes == before
