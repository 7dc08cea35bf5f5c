"""What every button of the panel does, without Qt: a facade over the parts, which do the work.

`segment`, `export_dicom` and all that takes time only begin work; `tick`, called by a timer, goes on with it and never
waits. Errors are told as messages of the status, not raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.zoo import base_weights, installed
from SlicerMaskSAMLib.engine.engine_link import EngineLink, StartEngine
from SlicerMaskSAMLib.engine.install import BASE
from SlicerMaskSAMLib.mrml.prompts import PromptNodes
from SlicerMaskSAMLib.values.choices import Scope
from SlicerMaskSAMLib.values.history import History
from SlicerMaskSAMLib.values.status import CaseRow, Phase, Status
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work import sample_data
from SlicerMaskSAMLib.work.automatic import AutomaticRun
from SlicerMaskSAMLib.work.catalogue import Catalogue, Library, structure_rows
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.output import Output
from SlicerMaskSAMLib.work.refine import Refinement
from SlicerMaskSAMLib.work.scheduler import MessageLog, Scheduler
from SlicerMaskSAMLib.work.segment_request import SegmentRequest, adopt, segment_ids, segmentation_of
from SlicerMaskSAMLib.work.teaching import Teaching


class Controller:
    """The module without its panel.

    Args:
        scene: The MRML scene.
        parameters: The module's parameter node.
        start_engine: Starts the engine; see `engine_link.StartEngine`.
        views: The slice views (`views.Views`); None where there are none.
        setup: What has to be installed first (`install.Setup`); None where nothing has.
        library: Where models come from.
        changed: Called whenever the status may have changed.
    """

    def __init__(
        self,
        scene: Any,
        parameters: Any,
        *,
        start_engine: StartEngine,
        views: Any = None,
        setup: Any = None,
        library: Library = installed,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._setup, self._views, self._changed = setup, views, changed
        self._messages = MessageLog(changed)
        self._catalogue = Catalogue(library)
        self._context = Context(
            scene=scene,
            parameters=parameters,
            history=History(),
            prompts=PromptNodes(scene),
            engine_link=EngineLink(start_engine, log=self._messages),
            models=self._catalogue.models,
            log=self._messages,
            changed=changed,
        )
        self._refinement = Refinement(self._context, views)
        self._output = Output(self._context)
        self._teaching = Teaching(self._context)
        self._scheduler = Scheduler(self._context, self._messages, self._catalogue, self._refinement, views)

    # -- life --------------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """The user opened the module: look what is there."""
        self._catalogue.refresh()
        if not self._context.parameters.model:
            usable = (row.name for row in self._catalogue.model_rows(self._volume) if row.usable)
            self._context.parameters.model = next(usable, "")
        self._check_setup()

    def exit(self) -> None:
        """The user opened another module. What was begun goes on."""
        self._scheduler.pause_background()

    def close(self) -> None:
        """The module, or the application, ends: so does every process that was started here."""
        self._scheduler.close()
        self._context.prompts.close()

    def set_parameters(self, parameters: Any) -> None:
        """Go on with another parameter node: the scene was closed or read."""
        self._context.parameters = parameters
        self.enter()

    def tick(self) -> None:
        """Go on with what was begun, as far as that is possible without waiting; called by a timer."""
        self._scheduler.tick()

    # -- segment -----------------------------------------------------------------------------------------------------

    def choose_volume(self, node: Any) -> None:
        """Work on a volume, and on the segmentation that belongs to it."""
        parameters = self._context.parameters
        parameters.inputVolume = node
        parameters.segmentation = segmentation_of(self._context.scene, node, parameters.segmentation)
        self._changed()

    def try_sample(self) -> None:
        """Bring the sample scan, with a region and a model for it, and choose it."""
        self._scheduler.begin("setup", self._load_sample)

    def choose_model(self, name: str) -> None:
        """Segment by a model."""
        self._context.parameters.model = name
        self._check_setup()

    def set_wanted(self, names: Iterable[str], on: bool) -> None:
        """Have structures of the model segmented, or not."""
        skipped, named = set(self._context.parameters.skippedStructures), set(names)
        self._context.parameters.skippedStructures = sorted(skipped - named if on else skipped | named)
        self._changed()

    def segment(self) -> None:
        """Segment the volume; pressed a second time, cancel."""
        if self._scheduler.is_running("segment"):
            self._scheduler.cancel()
            return
        with self._logging_errors():
            self._ready()
            request = SegmentRequest.of(self._context, self._slice_node)
            self._scheduler.begin("segment", lambda: AutomaticRun(self._context, request).steps())

    def cancel(self) -> None:
        """Ask for the end of what is going on."""
        self._scheduler.cancel()

    # -- refine ------------------------------------------------------------------------------------------------------

    def click(self, world: Sequence[float], positive: bool, slice_node: Any) -> None:
        """Include or exclude a place, (3,) mm RAS, that was clicked in a slice view (None: in another one)."""
        with self._logging_errors():
            self._ready()
            self._refinement.click(world, positive, slice_node)

    def draw_box(self, corner: Sequence[float], opposite: Sequence[float], slice_node: Any) -> None:
        """Prompt by a box, drawn in a slice view between two corners, (3,) mm RAS each."""
        with self._logging_errors():
            self._ready()
            self._refinement.draw_box(corner, opposite, slice_node)

    def choose_segment(self, segment_id: str) -> None:
        """Refine another segment."""
        self._refinement.choose_segment(segment_id)

    def new_structure(self, name: str = "") -> None:
        """Begin a structure."""
        self._refinement.new_structure(name)

    def next_structure(self, name: str = "") -> None:
        """Accept this structure and go on with another, by its name."""
        self._refinement.next_structure(name)

    def accept(self) -> None:
        """Keep the voxels of this structure and let go of its prompts."""
        self._refinement.accept()

    def start_from(self, segment_id: str) -> None:
        """Let this structure start from a segment as it is."""
        self._refinement.start_from(segment_id)

    def set_scope(self, scope: Scope) -> None:
        """How far the last prompt, and those to come, reach."""
        self._refinement.set_scope(scope)

    def delete_prompt(self, key: str) -> None:
        """Delete the prompt of a row of the status."""
        self._refinement.delete_prompt(key)

    def clear_prompts(self) -> None:
        """Delete all prompts of this structure."""
        self._refinement.clear_prompts()

    def next_candidate(self) -> None:
        """Show another meaning of a single click."""
        self._refinement.next_candidate()

    def take_suggestion(self) -> None:
        """Name this structure as the model suggests."""
        self._refinement.take_suggestion()

    def show_automatic(self, on: bool) -> None:
        """Show the model's own prompts in this slice, or hide them."""
        self._refinement.show_automatic(on)

    def run_automatic(self) -> None:
        """Prompt by the model's own prompts as they were dragged."""
        self._refinement.run_automatic()

    def jump_to_worst(self) -> None:
        """Show the slice of which the model is least sure."""
        self._refinement.jump_to_worst()

    def jump_to(self, index: int) -> None:
        """Show a slice by its index along the status's `quality_axis`."""
        self._refinement.jump_to(index)

    def undo(self) -> None:
        """Take back the last step."""
        self._refinement.undo()

    def redo(self) -> None:
        """Do again what was taken back last."""
        self._refinement.redo()

    # -- output ------------------------------------------------------------------------------------------------------

    def volumes_table(self) -> None:
        """Put the volumes of the segments into a table."""
        self._scheduler.begin("output", self._output.volumes_table)

    def export_dicom(self, path: str, allow_uncoded: bool = False) -> None:
        """Write the segmentation as DICOM SEG."""
        self._scheduler.begin("output", lambda: self._output.export_dicom(path, allow_uncoded=allow_uncoded))

    def command_line(self) -> str:
        """The command that gives the same segmentation; "" where none does, and the reason is told."""
        with self._logging_errors():
            return self._output.command_line(self._slice_node)
        return ""

    def save_case(self, name: str = "") -> None:
        """Save volume and segmentation as a training case."""
        self._scheduler.begin("output", lambda: self._output.save_case(name))

    # -- teach -------------------------------------------------------------------------------------------------------

    def cases(self) -> tuple[CaseRow, ...]:
        """The training cases."""
        return self._teaching.cases()

    def remove_case(self, name: str) -> None:
        """Delete a training case."""
        with self._logging_errors():
            self._teaching.remove_case(name)

    def teach(self, name: str) -> None:
        """Train a model from the cases; pressed a second time, cancel."""
        if self._scheduler.is_running("teach"):
            self._scheduler.cancel()
        else:
            self._scheduler.begin("teach", lambda: self._teach(name))

    # -- set up ------------------------------------------------------------------------------------------------------

    def setup_text(self) -> str:
        """What would be installed, with sizes, for the user's consent."""
        return self._setup.text(self._base) if self._setup is not None else ""

    def set_up(self) -> None:
        """Install what is missing."""
        self._scheduler.begin("setup", lambda: self._run_setup(self._setup.steps(self._base)))

    def import_model(self, path: str) -> None:
        """Add a model, or base weights, from a folder or a file."""
        self._scheduler.begin("setup", lambda: self._run_setup(self._setup.import_model(path)))

    def remove_model(self, name: str) -> None:
        """Delete one of the user's models."""
        self._scheduler.begin("setup", lambda: self._run_setup(self._setup.remove_model(name), stop=True))

    def remove_everything(self) -> None:
        """Delete all that was downloaded or taught."""
        self._scheduler.begin("setup", lambda: self._run_setup(self._setup.remove_everything(), stop=True))

    # -- status ------------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Everything that the panel shows, as it is now."""
        parameters, scheduler, history = self._context.parameters, self._scheduler, self._context.history
        idle, usable = scheduler.phase is Phase.IDLE, not scheduler.missing and not scheduler.mismatch
        refined = self._refinement.fields()
        return Status(
            **refined
            | {
                "phase": scheduler.phase,
                "task": scheduler.task,
                "headline": scheduler.headline,
                "device": self._context.engine_link.device,
                "progress": scheduler.progress,
                "messages": self._messages.lines,
                "models": self._catalogue.model_rows(self._volume),
                "structures": structure_rows(self._context.labels, parameters.skippedStructures),
                "undo": history.undo_text,
                "redo": history.redo_text,
                "cases": self._teaching.cases(),
                "training_result": self._teaching.result,
                "can_segment": idle and usable,
                "can_refine": usable and refined["can_refine"],
                "can_export": idle and bool(segment_ids(parameters.segmentation)),
                "can_teach": idle and self._teaching.enough,
            }
        )

    @property
    def _volume(self) -> Any:
        return self._context.parameters.inputVolume

    @property
    def _slice_node(self) -> Any:
        return self._views.slice_node() if self._views is not None else None

    @property
    def _base(self) -> str:
        """The base weights that the chosen model needs."""
        model = self._context.model
        base = model.card.base if model is not None and model.card is not None else None
        return base.name if base is not None and base.name in base_weights.BASES else BASE

    def _ready(self) -> None:
        """Raise InputError where the engine cannot be used; else the chosen segmentation is one of the volume's."""
        self._scheduler.check()
        adopt(self._context.parameters.segmentation, self._volume)

    def _check_setup(self) -> None:
        self._scheduler.missing = self._setup is not None and bool(self._setup.missing(self._base))
        self._changed()

    def _load_sample(self) -> Steps:
        """Bring the sample scan and choose it."""
        volume = yield from sample_data.steps(self._context.scene, self._context.parameters)
        self.choose_volume(volume)

    def _run_setup(self, steps: Steps, *, stop: bool = False) -> Steps:
        """Work after which models and packages may be others; with `stop` the engine, which may use them, is ended."""
        try:
            if stop:
                yield self._context.engine_link.abandon()
            advice = yield from steps
        finally:
            self.enter()
        if advice:
            self._messages(advice)

    def _teach(self, name: str) -> Steps:
        """Teach, and use the new model."""
        result = yield from self._teaching.teach(name)
        self._context.engine_link.forget_model(result.model)
        self._catalogue.refresh()
        self._context.parameters.model = result.model

    @contextmanager
    def _logging_errors(self) -> Iterator[None]:
        """Errors inside are told to the user."""
        try:
            yield
        except MaskSAMError as error:
            self._messages(str(error))
