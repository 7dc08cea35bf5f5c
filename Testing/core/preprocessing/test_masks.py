"""Boxes, interior points and components of binary masks (model.md §19, check 10)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from MaskSAMCore.preprocessing.masks import (
    bounds,
    dilate_box,
    enforce_clicks,
    interior_point,
    interior_voxel,
    largest_component,
    tight_box,
)


def disc(size: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.ogrid[: size[0], : size[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def by_brute_force(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[int, ...]:
    """The same by definition: for every voxel the nearest background voxel, those around the array included."""
    framed = np.pad(mask, 1)
    outside = np.argwhere(~framed) * spacing
    depth = {
        tuple(int(i) - 1 for i in place): round(float(((outside - place * np.array(spacing)) ** 2).sum(1).min()), 9)
        for place in np.argwhere(framed)
    }
    return max(depth, key=lambda place: (depth[place], [-i for i in place]))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 0.5)])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_the_interior_point_is_that_of_the_definition(share: float, spacing: tuple[float, float]) -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        mask = rng.random((16, 16)) < share
        point = interior_point(mask, spacing)
        assert point is not None
        assert mask[point]
        assert point == by_brute_force(mask, spacing)
        assert all(type(i) is int for i in point)


def test_the_interior_voxel_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(4)
    for spacing in ((1.0, 1.0, 1.0), (5.0, 1.0, 1.5)):
        mask = rng.random((4, 7, 6)) < 0.85
        assert interior_voxel(mask, spacing) == by_brute_force(mask, spacing)


def test_the_interior_point_of_a_disc_is_its_centre() -> None:
    for centre, radius in itertools.product([(20, 30), (11.5, 40.5)], [1, 4, 9.5]):
        point = interior_point(disc((48, 64), centre, radius))
        assert point is not None
        assert np.abs(np.subtract(point, centre)).max() <= 1


def test_the_edge_of_the_picture_is_background() -> None:
    mask = np.zeros((20, 30), bool)
    mask[:, :9] = True
    assert interior_point(mask) == (4, 4), "not at the edge, and the first of the equals"
    assert interior_voxel(np.ones((3, 5, 5), bool)) == (1, 1, 1)


def test_spacing_decides_where_the_inside_is() -> None:
    mask = np.zeros((12, 40), bool)
    mask[1:4, 1:39] = True
    mask[5:11, 1:6] = True
    assert interior_point(mask) == (7, 3)
    assert interior_point(mask, (10.0, 1.0)) == (2, 19)


def test_boxes_are_half_open_and_x_comes_first() -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[2, 5] = mask[4, 11] = 1
    assert tight_box(mask) == (5, 2, 12, 5)
    assert tight_box(np.ones((3, 4), bool)) == (0, 0, 4, 3)
    assert bounds(np.ones((2, 3, 4), bool)) == (slice(0, 2), slice(0, 3), slice(0, 4))


def test_an_empty_mask_has_no_box_and_no_inside() -> None:
    empty = np.zeros((4, 5), bool)
    assert tight_box(empty) is None
    assert interior_point(empty) is None
    assert interior_voxel(np.zeros((2, 3, 4), bool)) is None
    assert bounds(empty) is None
    assert not largest_component(empty).any()


def test_the_largest_component_touches_by_faces() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 1:3] = 1
    mask[3, 3] = 1  # Touches by a corner only.
    mask[5, 2:7] = 1
    kept = largest_component(mask)
    assert kept.dtype == bool
    assert kept.sum() == 5
    assert kept[5, 2:7].all()
    mask[5, 6] = 0
    kept = largest_component(mask)
    assert kept.sum() == 4
    assert kept[1:3, 1:3].all(), "the first of the equals"
    volume = np.zeros((3, 4, 4), bool)
    volume[:, 0, 0] = volume[2, 2:, 2] = True
    assert largest_component(volume).sum() == 3
    assert largest_component(volume)[:, 0, 0].all()


def test_a_dilated_box_stays_in_the_picture() -> None:
    assert dilate_box((10, 20, 30, 60), 0.05, (100, 100)) == (9.0, 18.0, 31.0, 62.0)
    assert dilate_box((1, 0, 21, 40), 0.1, (42, 22)) == (0.0, 0.0, 22.0, 42.0)
    assert dilate_box((3, 4, 5, 6), 0.0, (9, 9)) == (3.0, 4.0, 5.0, 6.0)


def test_every_click_is_honoured_with_as_little_change_as_it_takes():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (40, 50)).astype(np.float32)
    for count in (1, 2, 6, 20):
        places = rng.choice(40 * 50, count, replace=False)
        clicks = [(p // 50, p % 50, bool(rng.random() < 0.5)) for p in places]
        out = enforce_clicks(logits, clicks)
        assert all((out[y, x] > 0) == positive for y, x, positive in clicks)
        far = np.ones(out.shape, bool)
        for y, x, _ in clicks:
            far[max(y - 9, 0) : y + 10, max(x - 9, 0) : x + 10] = False
        np.testing.assert_allclose(out[far], logits[far], atol=1e-5)


def test_clicks_that_are_followed_change_nothing():
    logits = np.full((8, 8), -2.0, np.float32)
    logits[2:5, 2:5] = 2
    assert enforce_clicks(logits, [(3, 3, True), (6, 6, False), (30, 3, True)]) is logits
    assert enforce_clicks(logits, []) is logits


def test_opposite_clicks_side_by_side_are_both_honoured():
    out = enforce_clicks(np.zeros((9, 9), np.float32) - 4, [(4, 4, True), (4, 5, False), (4, 3, True)])
    assert out[4, 4] > 0
    assert out[4, 3] > 0
    assert out[4, 5] < 0
    assert np.abs(out).max() < 30
