"""Snapshot of the controller's state for the panel, in plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

Color = tuple[int, int, int]


class Phase(Enum):
    """Phase of the state machine."""

    NEEDS_SETUP = "needs set-up"
    IDLE = "idle"
    WORKING = "working"
    CANCELLING = "cancelling"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of the running task; `seconds_left` is None while unknown."""

    done: int
    total: int
    text: str
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """A row of the list of models; grey, with the reason, if it is not usable."""

    name: str
    modality: str
    licence: str
    structures: tuple[str, ...]
    usable: bool = True
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class StructureRow:
    """A structure that the chosen model segments."""

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
    """A saved training case."""

    name: str
    structures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Result of teaching: model, Dice on held-out cases, picture of the worst."""

    model: str
    dice: Mapping[str, float]
    left_out: tuple[str, ...]
    worst_case: str
    overlay: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Status:
    """Everything that the panel shows, and which buttons are enabled.

    Attributes:
        headline: The state in words: "Ready", "Segmenting", "Encoding the visible slice".
        device: Device of the engine with its free memory, or the reason why it fell back to the CPU.
        messages: Messages to the user, one line each, the newest last.
        task: The running task: "", "setup", "segment", "refine", "output" or "teach".
        quality: Estimated IoU (0 to 1) of each slice along `quality_axis` of (K, J, I).
        suggestion: Name of the structure that the current one looks like to the model.
        candidates: Number of candidate masks of the last click; `candidate` is the one shown.
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
