"""faults.md row 22, in Slicer: the left structure lies on the left and is coded left."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.terminology import lookup
from SlicerMaskSAMLib.mrml import bridge
from Testing.dicom_phantom import dicom_series
from Testing.slicer import environment

SHAPE = (4, 12, 20)


def sided(volume: Any) -> dict[str, np.ndarray]:
    """Masks of two kidneys, by where their voxels lie in the patient: left is where R is negative."""
    k, j, i = np.indices(SHAPE)
    right = bridge.ijk_to_world(volume, np.stack([i, j, k], axis=-1).reshape(-1, 3))[:, 0].reshape(SHAPE)
    return {"left kidney": (right < -2) & (right > -6), "right kidney": (right > 2) & (right < 8)}


def side_of(segmentation: Any, segment_id: str) -> float:
    """R of the segment's middle in the world, mm, as Slicer finds it."""
    return float(segmentation.GetSegmentCenterRAS(segment_id)[0])


def check_sides(scene: Any, volume: Any) -> None:
    segmentation = bridge.new_segmentation(scene, "Segmentation", volume=volume)
    grid = bridge.geometry(volume)
    for name, mask in sided(volume).items():
        new = bridge.add_segment(segmentation, lookup(name).label(1))
        bridge.write_segment(segmentation, new, grid, grid.box, mask)
        modifier = bridge.segment_label(segmentation, new).modifier
        assert modifier is not None
        assert modifier.meaning == name.split()[0].capitalize()
        assert (
            -5.5 < side_of(segmentation, new) < -2.5 if modifier.meaning == "Left" else side_of(segmentation, new) > 3
        )


@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_left_stays_left_whichever_way_the_axes_run(scene: Any, signs: tuple[int, int, int]) -> None:
    affine = np.diag([*np.array(signs, float), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (9.5, 5.5, 1.5)
    check_sides(scene, environment.add_volume(np.zeros(SHAPE, np.int16), affine))


@pytest.mark.parametrize("row", [1.0, -1.0])
def test_left_stays_left_in_a_series(scene: Any, tmp_path: Path, row: float) -> None:
    dicom_series(
        tmp_path,
        np.zeros(SHAPE, np.int16),
        orientation=(row, 0, 0, 0, 1, 0),
        origin=(-9.5 * row, -5.5, 0),
    )
    volume, _ = environment.load_dicom(sorted(tmp_path.glob("*.dcm")))
    check_sides(scene, volume)


def test_a_mirroring_transform_carries_the_segments_with_the_picture(scene: Any) -> None:
    affine = np.eye(4)
    affine[:3, 3] = -9.5, -5.5, -1.5
    volume = environment.add_volume(np.zeros(SHAPE, np.int16), affine)
    masks = sided(volume)
    environment.add_transform(np.diag([-1.0, 1, 1, 1]), volume)
    segmentation = bridge.new_segmentation(scene, "Segmentation", volume=volume)
    grid = bridge.geometry(volume)
    new = bridge.add_segment(segmentation, lookup("left kidney").label(1))
    bridge.write_segment(segmentation, new, grid, grid.box, masks["left kidney"])
    world = bridge.ijk_to_world(volume, np.argwhere(masks["left kidney"])[:, ::-1])
    assert np.isclose(side_of(segmentation, new), world[:, 0].mean(), atol=0.51)
    assert world[:, 0].min() > 0
