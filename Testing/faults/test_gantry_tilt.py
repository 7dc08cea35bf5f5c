"""faults.md row 11: gantry tilt is announced and resampled on request, else refused; never silently sheared."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.errors import GeometryError
from MaskSAMCore.io.dicom import read_series
from Testing.dicom_phantom import dicom_series

ANGLE = np.radians(20)
TILTED = (1.0, 0.0, 0.0, 0.0, float(np.cos(ANGLE)), float(-np.sin(ANGLE)))


def tilted_ball(folder):
    """A ball at (20, 18, 12) mm LPS seen in planes tilted by 20 degrees but stacked along z."""
    row, column = np.array(TILTED[:3]), np.array(TILTED[3:])
    normal = np.cross(row, column)
    step = np.array([0.0, 0.0, 1.5])
    k, j, i = np.indices((18, 40, 40))
    place = i[..., None] * row + j[..., None] * column + k[..., None] * step
    ball = (np.linalg.norm(place - (20, 18, 12), axis=-1) < 7).astype(np.int16) * 1000
    height = float(step @ normal)
    sideways = (step - height * normal) / height
    shift = (float(sideways @ row), float(sideways @ column))
    dicom_series(folder, ball, heights=[height * n for n in range(18)], orientation=TILTED, shift=shift)
    return ball


def test_refused_with_angle_and_matrix(tmp_path):
    tilted_ball(tmp_path)
    with pytest.raises(GeometryError, match=r"(?s)gantry tilt 20\.00 degrees.*directions.*resampl"):
        read_series(tmp_path)


def test_resampled_the_ball_is_round_and_in_place(tmp_path):
    ball = tilted_ball(tmp_path)
    volume = read_series(tmp_path, resample=True)
    assert any("tilt of 20.00 degrees" in w for w in volume.warnings)
    assert volume.grid.skew < 1e-9
    k, j, i = np.nonzero(volume.array > 500)
    ras = volume.grid.to_ras(np.stack([i, j, k], axis=-1))
    assert np.allclose(ras.mean(axis=0), (-20, -18, 12), atol=0.2)
    assert np.linalg.norm(ras - (-20, -18, 12), axis=1).max() < 7.6
    size = len(i) * volume.grid.voxel_volume_ml
    assert size == pytest.approx(np.count_nonzero(ball) * 1.5 * np.cos(ANGLE) / 1000, rel=0.03)


def test_real_series(shared):
    folder = shared / "data" / "dicom" / "gantry_tilt"
    with pytest.raises(GeometryError, match=r"14\.00 degrees"):
        read_series(folder)
    volume = read_series(folder, resample=True)
    assert volume.grid.skew < 1e-9
    assert volume.grid.spacing[2] == pytest.approx(5 * np.cos(np.radians(14)), rel=1e-3)
