"""Small labelled phantoms in nnU-Net's raw format, for tests of the whole chain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

LABELS = {"background": 0, "ball": 1, "cube": 2}


def phantom_case(seed: int, shape: tuple[int, int, int] = (10, 32, 32)) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball and a dark cube at random places in noise: image and labels (Z, Y, X)."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    centre = np.array([shape[0] / 2, rng.uniform(8, 12), rng.uniform(8, 24)])
    ball = (z - centre[0]) ** 2 * 4 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 36
    corner = rng.integers(18, 22), rng.integers(6, 20)
    cube = (abs(z - shape[0] / 2) < 3) & (y >= corner[0]) & (y < corner[0] + 8) & (x >= corner[1]) & (x < corner[1] + 8)
    labels = np.zeros(shape, np.uint8)
    labels[ball], labels[cube] = 1, 2
    image = rng.normal(100, 5, shape) + 80 * (labels == 1) - 60 * (labels == 2)
    return image.astype(np.float32), labels


def write_dataset(folder: Path, *, cases: int = 4, spacing: tuple[float, float, float] = (1.0, 1.0, 2.0)) -> Path:
    """A data set of `cases` phantoms in `folder`; spacing (i, j, k) in mm."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(cases):
        for name, array in zip(("imagesTr/case_{:03}_0000", "labelsTr/case_{:03}"), phantom_case(index), strict=True):
            picture = sitk.GetImageFromArray(array)
            picture.SetSpacing(spacing)
            sitk.WriteImage(picture, str(folder / (name.format(index) + ".nii.gz")))
    description = {
        "name": "Phantom",
        "licence": "CC0",
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder
