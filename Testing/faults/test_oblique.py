"""faults.md row 14: oblique and negated orientations take their geometry from the vectors; a centroid comes back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.errors import GeometryError
from MaskSAMCore.io.dicom import read_series
from MaskSAMCore.io.formats import grid_of
from Testing.dicom_phantom import dicom_series

PAIRS = [
    (a, sa, b, sb)
    for a, b in itertools.permutations(range(3), 2)
    for sa, sb in itertools.product((1.0, -1.0), repeat=2)
]


def turned(pair, angle):
    a, sa, b, sb = pair
    row, column = np.eye(3)[a] * sa, np.eye(3)[b] * sb
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return turn @ row, turn @ column


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("angle", [0.0, 0.35])
def test_centroid(tmp_path, pair, angle):
    row, column = turned(pair, angle)
    normal = np.cross(row, column)
    origin, spacing = np.array([11.0, -22.0, 33.0]), (0.8, 1.3)
    array = np.zeros((6, 9, 8), np.int16)
    array[4, 1:3, 5:8] = 100
    dicom_series(
        tmp_path,
        array,
        heights=[2.0 * k for k in range(6)],
        orientation=(*row, *column),
        origin=tuple(origin),
        spacing=spacing,
    )
    volume = read_series(tmp_path)
    k, j, i = np.nonzero(volume.array)
    found = volume.grid.to_ras(np.stack([i, j, k], axis=-1)).mean(axis=0)
    wanted = origin + 6 * spacing[1] * row + 1.5 * spacing[0] * column + 8 * normal
    assert np.allclose(found, wanted * (-1, -1, 1), atol=1e-4)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    assert grid_of(image).distance_mm(volume.grid) < 1e-3


@pytest.mark.parametrize("orientation", [(0.0,) * 6, (1.0, 0, 0, 1.0, 0, 0)])
def test_singular(tmp_path, orientation):
    array = np.zeros((1, 4, 4), np.int16)
    dicom_series(tmp_path, array, orientation=orientation)
    with pytest.raises(GeometryError, match=r"s001\.dcm"):
        read_series(tmp_path)
