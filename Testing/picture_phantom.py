"""Small colour pictures with labels in nnU-Net's raw format: a stand-in for fundus photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture_case(seed: int, shape: tuple[int, int] = (40, 48)) -> tuple[np.ndarray, np.ndarray]:
    """A yellow disc with a white cup on red: picture (H, W, 3) uint8 and labels (H, W), 1 the disc and 2 the cup."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    cy, cx = rng.uniform(14, shape[0] - 14), rng.uniform(14, shape[1] - 14)
    away = np.hypot(y - cy, x - cx)
    labels = (away < 11).astype(np.uint8) + (away < 5)
    colours = np.array([[150, 60, 30], [220, 180, 60], [250, 245, 220]], np.float64)[labels]
    return np.clip(colours + rng.normal(0, 6, colours.shape), 0, 255).astype(np.uint8), labels.astype(np.uint8)


def write_pictures(folder: Path, *, cases: int = 4, ending: str = ".png", grey: bool = False) -> Path:
    """A data set of pictures of two sizes; labels are .png beside .jpg pictures."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    kept = ".png" if ending == ".jpg" else ending
    for index in range(cases):
        picture, labels = picture_case(index, (40, 48) if index % 2 else (48, 40))
        image = Image.fromarray(picture)
        (image.convert("L") if grey else image).save(folder / f"imagesTr/eye_{index:03}_0000{ending}")
        Image.fromarray(labels).save(folder / f"labelsTr/eye_{index:03}{kept}")
    description = {
        "name": "Eyes",
        "licence": "CC0",
        "channel_names": {"0": "ultrasound"} if grey else {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "disc": 1, "cup": 2},
        "numTraining": cases,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder
