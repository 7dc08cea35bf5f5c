"""What the user chooses between; kept in the parameter node by name."""

from __future__ import annotations

from enum import Enum


class Region(Enum):
    """Which part of the volume is segmented."""

    WHOLE = "Whole volume"
    ROI = "Region of interest"
    VIEW = "Current view"


class Speed(Enum):
    """Whether the engine's windows lie side by side or overlap by half."""

    FAST = "Fast"
    ACCURATE = "Accurate"


class Scope(Enum):
    """How far a click or a box reaches."""

    SLICE = "slice"
    SLAB = "slab"
    VOLUME = "volume"


class OverlapPolicy(Enum):
    """What happens where a structure meets the other segments."""

    PROTECT = "Protect other segments"
    REPLACE = "Take from other segments"
    OVERLAP = "Allow overlap"


class Tool(Enum):
    """What a click in a slice view does."""

    NONE = ""
    POINT = "point"
    BOX = "box"
