"""What the panel shows: one snapshot of the controller, in plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

Color = tuple[int, int, int]


class Phase(Enum):
    """Where the one state machine stands."""

    NEEDS_SETUP = "needs set-up"
    IDLE = "idle"
    WORKING = "working"
    CANCELLING = "cancelling"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the work has come; `seconds_left` is None while nothing can be said."""

    done: int
    total: int
    text: str
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """A model of the list; one that does not suit the volume is shown grey with the reason."""

    name: str
    modality: str
    licence: str
    structures: tuple[str, ...]
    usable: bool = True
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class StructureRow:
    """A structure that the chosen model finds."""

    label: int
    name: str
    color: Color
    wanted: bool


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A prompt of the current structure, in the order given; `key` deletes it."""

    key: str
    text: str
    kind: str
    positive: bool = True


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """A training case that was saved here."""

    name: str
    structures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What teaching brought: the model, its Dice on the cases left out, and the picture of the worst of them."""

    model: str
    dice: Mapping[str, float]
    left_out: tuple[str, ...]
    worst_case: str
    overlay: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Status:
    """Everything that the panel shows and which of its buttons can be pressed.

    Attributes:
        headline: The state in plain words: "Ready", "Segmenting", "Encoding the visible slice".
        device: Where the engine computes, with its free memory; a CPU fall-back is told here.
        messages: What the user should know, the newest last; a line each.
        task: Which work is going on: "", "setup", "segment", "refine", "output" or "teach".
        quality: Per slice along `quality_axis` of (K, J, I) the model's estimate of the IoU, 0 to 1.
        suggestion: The structure that the model takes the current one for.
        candidates: How many meanings the last click has; `candidate` is the one shown.
    """

    phase: Phase = Phase.IDLE
    task: str = ""
    headline: str = ""
    device: str = ""
    progress: Progress | None = None
    messages: tuple[str, ...] = ()
    models: tuple[ModelRow, ...] = ()
    structures: tuple[StructureRow, ...] = ()
    segment_id: str = ""
    prompts: tuple[PromptRow, ...] = ()
    candidates: int = 0
    candidate: int = 0
    suggestion: str = ""
    quality: Mapping[int, float] = field(default_factory=dict)
    quality_axis: int = 0
    slices: int = 0
    worst: int | None = None
    undo: str = ""
    redo: str = ""
    cases: tuple[CaseRow, ...] = ()
    training_result: TrainingResult | None = None
    can_segment: bool = False
    can_refine: bool = False
    can_export: bool = False
    can_teach: bool = False
