"""The user's choices; the parameter node stores them by member name."""

from __future__ import annotations

from enum import Enum


class Region(Enum):
    """The part of the volume that is segmented."""

    WHOLE = "Whole volume"
    ROI = "Region of interest"
    VIEW = "Current view"


class Speed(Enum):
    """Overlap of the sliding windows: none (fast) or half a window (accurate)."""

    FAST = "Fast"
    ACCURATE = "Accurate"


class Scope(Enum):
    """How far a click or a box reaches: one slice, the slab around it, or the volume."""

    SLICE = "slice"
    SLAB = "slab"
    VOLUME = "volume"


class OverlapPolicy(Enum):
    """What happens where a structure meets other segments."""

    PROTECT = "Protect other segments"
    REPLACE = "Take from other segments"
    OVERLAP = "Allow overlap"


class Tool(Enum):
    """What a click in a slice view does."""

    NONE = ""
    POINT = "point"
    BOX = "box"
