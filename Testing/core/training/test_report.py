"""Overlays lie as their readers expect them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.training.report import save_overlay

RED = LabelTable(labels=(Label(id=1, name="spot", color=(255, 0, 0)),))


def red_at(path: Path) -> tuple[float, float]:
    """Mean row and column of what is red."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    rows, columns = np.nonzero((pixels[..., 0] > 200) & (pixels[..., 1:].max(-1) < 80))
    return float(rows.mean()), float(columns.mean())


def test_pictures_stand_upright_and_scans_as_radiologists_see_them(tmp_path: Path) -> None:
    spot = np.zeros((1, 32, 32), int)
    spot[0, 2:8, 2:8] = 1
    for picture in (True, False):
        save_overlay(spot.astype(float), spot, spot, RED, tmp_path / f"{picture}.png", picture=picture)
    (up, left), (down, right) = (red_at(tmp_path / f"{picture}.png") for picture in (True, False))
    assert up + 100 < down
    assert left + 100 < right
