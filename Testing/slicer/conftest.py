"""Fixtures of the tests in this folder; those that need Slicer's scene alone are in Testing/slicer/fixtures.py."""

from __future__ import annotations

from Testing.slicer.desk import desk as desk
from Testing.slicer.desk import liver as liver
from Testing.slicer.heart import heart as heart
from Testing.slicer.masks import grid as grid
from Testing.slicer.masks import segmentation as segmentation
from Testing.slicer.masks import volume as volume
