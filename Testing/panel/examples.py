"""Statuses as a controller would tell them, for tests and for pictures of the panel."""

from __future__ import annotations

from typing import Any

from SlicerMaskSAMLib.values.status import CaseRow, ModelRow, Phase, Progress, PromptRow, StructureRow, TrainingResult

MODELS = (
    ModelRow(
        name="hippocampus-mr",
        modality="MR",
        licence="CC-BY-SA-4.0",
        structures=("Anterior hippocampus", "Posterior hippocampus"),
    ),
    ModelRow(
        name="headneck-ct",
        modality="CT",
        licence="research use",
        structures=("Brainstem", "Mandible"),
        usable=False,
        reason="It was made for CT; this volume is MR.",
    ),
)
STRUCTURES = (
    StructureRow(label=1, name="Anterior hippocampus", color=(216, 101, 79), wanted=True),
    StructureRow(label=2, name="Posterior hippocampus", color=(111, 184, 210), wanted=True),
)
PROMPTS = (
    PromptRow(key="start", text="Start: Anterior hippocampus", kind="start"),
    PromptRow(key="p1", text="Include, slice 18", kind="point"),
    PromptRow(key="b2", text="Box, slices 14 to 22", kind="box"),
    PromptRow(key="p3", text="Exclude, slice 20", kind="point", positive=False),
)
QUALITY = {k: 0.95 - abs(k - 19) * 0.03 for k in range(10, 32)}
IDLE: dict[str, Any] = {
    "headline": "Ready",
    "device": "CPU, 2 threads, 12.3 GB free",
    "models": MODELS,
    "structures": STRUCTURES,
    "can_segment": True,
    "can_refine": True,
    "can_export": True,
}
NEEDS_SETUP: dict[str, Any] = {
    "phase": Phase.NEEDS_SETUP,
    "headline": "The engine is not installed yet: PyTorch and the base weights are missing.",
    "models": MODELS,
}
WORKING: dict[str, Any] = IDLE | {
    "phase": Phase.WORKING,
    "task": "segment",
    "headline": "Segmenting",
    "progress": Progress(done=12, total=40, text="Slices", seconds_left=20.0),
    "messages": ("No GPU was found: the engine computes on the CPU, which takes about ten times as long.",),
}
PROMPTED: dict[str, Any] = IDLE | {
    "prompts": PROMPTS,
    "candidates": 3,
    "candidate": 1,
    "suggestion": "Posterior hippocampus",
    "quality": QUALITY,
    "slices": 40,
    "worst": 31,
    "undo": "Click in Anterior hippocampus",
}
TAUGHT: dict[str, Any] = IDLE | {
    "can_teach": True,
    "cases": (
        CaseRow(name="hippocampus_003", structures=("Anterior hippocampus", "Posterior hippocampus")),
        CaseRow(name="hippocampus_017", structures=("Anterior hippocampus", "Posterior hippocampus")),
        CaseRow(name="hippocampus_204", structures=("Anterior hippocampus",)),
    ),
    "training_result": TrainingResult(
        model="our-hippocampus",
        dice={"Anterior hippocampus": 0.84, "Posterior hippocampus": 0.81},
        left_out=("hippocampus_017", "hippocampus_204"),
        worst_case="hippocampus_204",
        overlay="",
        seconds=252.0,
    ),
}
