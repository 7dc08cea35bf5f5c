"""Controller of the MaskSAM module: one method per user action, no Qt.

`segment`, `export_dicom` and other long actions only start a task; `tick`, called by a timer, continues it without
blocking. Errors are shown as messages of the status, not raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from MaskSAMCore.errors import InputError, MaskSAMError
from MaskSAMCore.zoo import base_weights, installed
from SlicerMaskSAMLib.engine.engine_link import EngineLink, StartEngine
from SlicerMaskSAMLib.engine.install import BASE, Setup
from SlicerMaskSAMLib.mrml.parameters import MaskSAMParameterNode
from SlicerMaskSAMLib.mrml.prompts import PromptNodes
from SlicerMaskSAMLib.mrml.views import Views
from SlicerMaskSAMLib.mrml.volumes import WorldPoint
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
        start_engine: Starts the engine.
        views: The slice views; None if there are none.
        setup: Installation of missing packages; None if nothing needs to be installed.
        library: Source of models.
        changed: Called whenever the status may have changed.
    """

    def __init__(
        self,
        scene: Any,
        parameters: MaskSAMParameterNode,
        *,
        start_engine: StartEngine,
        views: Views | None = None,
        setup: Setup | None = None,
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

    # -- lifetime ----------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Called when the user opens the module. Looks for models and packages."""
        self._catalogue.refresh()
        if not self._context.parameters.model:
            usable = (row.name for row in self._catalogue.model_rows(self._volume) if row.usable)
            self._context.parameters.model = next(usable, "")
        self._check_setup()

    def exit(self) -> None:
        """Called when the user opens another module. Running tasks continue."""
        self._scheduler.pause_background()

    def close(self) -> None:
        """Called when the module or the application ends. Ends all its processes."""
        self._scheduler.close()
        self._context.prompts.close()

    def set_parameters(self, parameters: MaskSAMParameterNode) -> None:
        """Use another parameter node, after a scene was closed or loaded."""
        self._context.parameters = parameters
        self.enter()

    def tick(self) -> None:
        """Continue the running task without blocking; called by a timer."""
        self._scheduler.tick()

    # -- segment -----------------------------------------------------------------------------------------------------

    def choose_volume(self, node: Any) -> None:
        """Choose a volume, and the segmentation that belongs to it."""
        parameters = self._context.parameters
        parameters.inputVolume = node
        parameters.segmentation = segmentation_of(self._context.scene, node, parameters.segmentation)
        self._changed()

    def try_sample(self) -> None:
        """Download and choose the sample scan, with a region and a model for it."""
        self._scheduler.begin("setup", self._load_sample)

    def choose_model(self, name: str) -> None:
        """Choose a model."""
        self._context.parameters.model = name
        self._check_setup()

    def set_wanted(self, names: Iterable[str], on: bool) -> None:
        """Include structures in the segmentation, or leave them out."""
        skipped, named = set(self._context.parameters.skippedStructures), set(names)
        self._context.parameters.skippedStructures = sorted(skipped - named if on else skipped | named)
        self._changed()

    def segment(self) -> None:
        """Segment the volume; if that is already running, cancel it."""
        if self._scheduler.is_running("segment"):
            self._scheduler.cancel()
            return
        with self._logging_errors():
            self._ready()
            request = SegmentRequest.of(self._context, self._slice_node)
            self._scheduler.begin("segment", lambda: AutomaticRun(self._context, request).steps())

    def cancel(self) -> None:
        """Cancel the running task."""
        self._scheduler.cancel()

    # -- refine ------------------------------------------------------------------------------------------------------

    def click(self, world: WorldPoint, positive: bool, slice_node: Any) -> None:
        """Include or exclude a position.

        Args:
            world: (3,) mm RAS.
            positive: Whether it is included.
            slice_node: Slice node of the clicked view; None for a 3-D view.
        """
        with self._logging_errors():
            self._ready()
            self._refinement.click(world, positive, slice_node)

    def draw_box(self, corner: WorldPoint, opposite: WorldPoint, slice_node: Any) -> None:
        """Add a box drawn in a slice view between two corners, (3,) mm RAS each."""
        with self._logging_errors():
            self._ready()
            self._refinement.draw_box(corner, opposite, slice_node)

    def choose_segment(self, segment_id: str) -> None:
        """Choose the segment to refine."""
        self._refinement.choose_segment(segment_id)

    def new_structure(self, name: str = "") -> None:
        """Add an empty structure and choose it."""
        self._refinement.new_structure(name)

    def next_structure(self, name: str = "") -> None:
        """Accept this structure and choose the next, by name."""
        self._refinement.next_structure(name)

    def accept(self) -> None:
        """Keep the voxels of this structure and remove its prompts."""
        self._refinement.accept()

    def start_from(self, segment_id: str) -> None:
        """Start this structure from a copy of a segment."""
        self._refinement.start_from(segment_id)

    def set_scope(self, scope: Scope) -> None:
        """Set how far the last prompt, and those to come, reach."""
        self._refinement.set_scope(scope)

    def delete_prompt(self, key: str) -> None:
        """Delete a prompt by the key of its row."""
        self._refinement.delete_prompt(key)

    def clear_prompts(self) -> None:
        """Delete all prompts of this structure."""
        self._refinement.clear_prompts()

    def next_candidate(self) -> None:
        """Show the next candidate mask of a single click."""
        self._refinement.next_candidate()

    def take_suggestion(self) -> None:
        """Name this structure as the model suggests."""
        self._refinement.take_suggestion()

    def show_automatic(self, on: bool) -> None:
        """Show or hide the automatic prompts in the visible slice."""
        self._refinement.show_automatic(on)

    def run_automatic(self) -> None:
        """Answer the automatic prompts at the positions they were dragged to."""
        self._refinement.run_automatic()

    def jump_to_worst(self) -> None:
        """Show the slice with the lowest estimated quality."""
        self._refinement.jump_to_worst()

    def jump_to(self, index: int) -> None:
        """Show a slice by its index along the status's `quality_axis`."""
        self._refinement.jump_to(index)

    def undo(self) -> None:
        """Undo the last step."""
        self._refinement.undo()

    def redo(self) -> None:
        """Redo the last undone step."""
        self._refinement.redo()

    # -- output ------------------------------------------------------------------------------------------------------

    def volumes_table(self) -> None:
        """Put the volumes of the segments into a table."""
        self._scheduler.begin("output", self._output.volumes_table)

    def export_dicom(self, path: str, allow_uncoded: bool = False) -> None:
        """Write the segmentation as DICOM SEG."""
        self._scheduler.begin("output", lambda: self._output.export_dicom(path, allow_uncoded=allow_uncoded))

    def command_line(self) -> str:
        """The command that gives the same segmentation; "", with a message, if none."""
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
        """Train a model on the cases; if that is already running, cancel it."""
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
        self._scheduler.begin("setup", lambda: self._run_setup(self._installation.steps(self._base)))

    def import_model(self, path: str) -> None:
        """Import a model, or base weights, from a folder or a file."""
        self._scheduler.begin("setup", lambda: self._run_setup(self._installation.import_model(path)))

    def remove_model(self, name: str) -> None:
        """Delete one of the user's models."""
        self._scheduler.begin("setup", lambda: self._run_setup(self._installation.remove_model(name), stop=True))

    def remove_everything(self) -> None:
        """Delete everything that was downloaded or trained."""
        self._scheduler.begin("setup", lambda: self._run_setup(self._installation.remove_everything(), stop=True))

    # -- status ------------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """The present state, as the panel shows it."""
        scheduler, history = self._scheduler, self._context.history
        refinement = self._refinement.status()
        idle, usable = scheduler.phase is Phase.IDLE, not scheduler.missing and not scheduler.mismatch
        parameters = self._context.parameters
        return replace(
            refinement,
            phase=scheduler.phase,
            task=scheduler.task,
            headline=scheduler.headline,
            device=self._context.engine_link.device,
            progress=scheduler.progress,
            messages=self._messages.lines,
            models=self._catalogue.model_rows(self._volume),
            structures=structure_rows(self._context.labels, parameters.skippedStructures),
            undo=history.undo_text,
            redo=history.redo_text,
            cases=self._teaching.cases(),
            training_result=self._teaching.last_result,
            can_segment=idle and usable,
            can_refine=usable and refinement.can_refine,
            can_export=idle and bool(segment_ids(parameters.segmentation)),
            can_teach=idle and self._teaching.enough,
        )

    @property
    def _volume(self) -> Any:
        return self._context.parameters.inputVolume

    @property
    def _installation(self) -> Setup:
        if self._setup is None:
            raise InputError("nothing can be installed or removed here")
        return self._setup

    @property
    def _slice_node(self) -> Any:
        return self._views.slice_node() if self._views is not None else None

    @property
    def _base(self) -> str:
        """Name of the base weights that the chosen model needs."""
        model = self._context.model
        base = model.card.base if model is not None and model.card is not None else None
        return base.name if base is not None and base.name in base_weights.BASES else BASE

    def _ready(self) -> None:
        """Raise InputError if the engine cannot be used; adopt the segmentation."""
        self._scheduler.check()
        adopt(self._context.parameters.segmentation, self._volume)

    def _check_setup(self) -> None:
        self._scheduler.missing = self._setup is not None and bool(self._setup.missing(self._base))
        self._changed()

    def _load_sample(self) -> Steps:
        """Steps that load the sample scan and choose it."""
        volume = yield from sample_data.steps(self._context.scene, self._context.parameters)
        self.choose_volume(volume)

    def _run_setup(self, steps: Steps, *, stop: bool = False) -> Steps:
        """Steps of an installation; then models and packages are looked up again.

        Args:
            steps: The installation. It returns advice for the user, or "".
            stop: Whether to end the engine first, because it may use what is removed.
        """
        try:
            if stop:
                yield self._context.engine_link.abandon()
            advice = yield from steps
        finally:
            self.enter()
        if advice:
            self._messages(advice)

    def _teach(self, name: str) -> Steps:
        """Steps that train a model and choose it."""
        result = yield from self._teaching.teach(name)
        self._context.engine_link.forget_model(result.model)
        self._catalogue.refresh()
        self._context.parameters.model = result.model

    @contextmanager
    def _logging_errors(self) -> Iterator[None]:
        """Context in which errors are shown as messages."""
        try:
            yield
        except MaskSAMError as error:
            self._messages(str(error))
