"""MaskSAM: automatic and interactive segmentation of CT and MRI with an adapted Segment Anything Model."""

from __future__ import annotations

__version__ = "0.1.0"
