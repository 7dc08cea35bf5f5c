"""What a session answers, as plain values: for the session itself, and for clients of the worker without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Bounds = tuple[int, int, int, int, int, int]
"""(k0, k1, j0, j1, i0, i1) of an array (K, J, I), each upper one exclusive."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One of the three masks that a single click may mean.

    Attributes:
        box: Bounding box of the mask; None where it is empty.
        mask: uint8 0/1 (k, j, i) inside the box; of shape (0, 0, 0) without one.
        quality: The model's estimate of its IoU in the slice of the click, 0 to 1.
    """

    box: Bounds | None
    mask: np.ndarray
    quality: float


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """The label that the model takes the structure for; `label` is its id in the model's table."""

    label: int
    name: str
    probability: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Update:
    """What a call changed in one structure.

    Attributes:
        structure: Its number.
        box: Bounding box of the voxels that differ from the structure's last answer; None where none does.
        mask: uint8 0/1 (k, j, i), the structure inside `box`; of shape (0, 0, 0) without one.
        extent: Bounding box of the whole structure; None where it is empty.
        voxels: Number of voxels of the whole structure.
        axis: Axis of (K, J, I) along which the model's slices are counted.
        quality: The model's estimate of the IoU, 0 to 1, of every slice (index along `axis`) that it answered and that
            holds some of the structure.
        worst: The slice with the lowest estimate; None without estimates.
        candidates: With `multimask`, the three meanings of a single click, the best first; `mask` is the best one's.
            `Prompt.candidate` chooses one for good.
        suggestion: The label that fits; None where the model has no opinion.
        encoded: Runs of the encoder in this call.
        seconds: Duration of this call, in the worker if there is one.
        messages: For the user, one line each.
    """

    structure: int
    box: Bounds | None
    mask: np.ndarray
    extent: Bounds | None = None
    voxels: int = 0
    axis: int = 0
    quality: dict[int, float] = field(default_factory=dict)
    worst: int | None = None
    candidates: tuple[Candidate, ...] = ()
    suggestion: Suggestion | None = None
    encoded: int = 0
    seconds: float = 0.0
    messages: tuple[str, ...] = ()
