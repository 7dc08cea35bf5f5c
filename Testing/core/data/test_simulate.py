"""The simulated user clicks where a user would, and draws the same from the same generator (model.md §19, check 11)."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.data.simulate import (
    Click,
    box_with_overlap,
    error_click,
    jitter_box,
    random_clicks,
    ring_clicks,
)
from MaskSAMCore.errors import InputError

BOX = (12.0, 30.0, 52.0, 40.0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def square() -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[15:25, 20:35] = True
    return mask


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_random_clicks_lie_in_the_mask_and_reach_all_of_it(rng) -> None:
    mask = np.zeros((9, 11), bool)
    mask[2:4, 5:8] = True
    seen = set()
    for _ in range(60):
        clicks = random_clicks(mask, 3, rng)
        assert clicks.shape == (3, 2)
        assert clicks.dtype == float
        assert len({tuple(c) for c in clicks}) == 3
        seen |= {(int(y), int(x)) for y, x in clicks}
    assert seen == {(int(y), int(x)) for y, x in np.argwhere(mask)}
    assert len(random_clicks(mask, 99, rng)) == 6
    assert random_clicks(np.zeros_like(mask), 2, rng).shape == (0, 2)


def test_ring_clicks_lie_outside_but_near(rng, square) -> None:
    clicks = ring_clicks(square, 10**6, rng)
    inside = np.argwhere(square)
    apart = np.sqrt(((clicks[:, None] - inside[None]) ** 2).sum(-1)).min(1)
    every = np.argwhere(~square)
    near = np.sqrt(((every[:, None] - inside[None]) ** 2).sum(-1)).min(1) <= 10
    assert apart.min() == 1
    assert apart.max() == 10, "the whole ring, and nothing else"
    assert {tuple(c) for c in clicks.astype(int)} == {tuple(c) for c in every[near]}
    assert ring_clicks(square, 2, rng).shape == (2, 2)
    assert np.abs(ring_clicks(square, 500, rng, ring=1)[:, 0] - 19.5).max() <= 5.5


def test_ring_clicks_avoid_what_is_forbidden(rng, square) -> None:
    left = np.zeros_like(square)
    left[:, :35] = True
    assert (ring_clicks(square, 500, rng, forbidden=left)[:, 1] >= 35).all()
    assert ring_clicks(square, 3, rng, forbidden=np.ones_like(square)).shape == (0, 2)
    assert ring_clicks(np.zeros_like(square), 3, rng).shape == (0, 2)
    assert ring_clicks(np.ones_like(square), 3, rng).shape == (0, 2), "there is no background"


def test_the_next_click_goes_to_the_largest_error(rng, square) -> None:
    predicted = square.copy()
    predicted[15:18, 20:27] = False  # 21 pixels are missing,
    predicted[30:35, 40:45] = True  # 25 are too many, in one piece,
    predicted[0:2, 0:12] = True  # and 24 in another.
    assert error_click(predicted, square) == Click(position=(32, 42), positive=False)
    predicted[34, 42:44] = predicted[0, 0] = False
    predicted[0, 11] = predicted[1, 11] = False
    predicted[30, 40:43] = False  # 20 are left of the 25.
    assert error_click(predicted, square) == Click(position=(16, 21), positive=True)
    for _ in range(20):
        click = error_click(predicted, square, rng=rng)
        assert click is not None
        assert click.positive
        assert 15 <= click.position[0] < 18
        assert 20 <= click.position[1] < 27


def test_first_and_last_click(square) -> None:
    assert error_click(square, square) is None
    first = error_click(np.zeros_like(square), square)
    assert first == Click(position=(19, 24), positive=True), "the middle of the structure"
    over = error_click(square, np.zeros_like(square))
    assert over == Click(position=(19, 24), positive=False)


def test_an_error_of_missing_and_superfluous_voxels_side_by_side_is_two() -> None:
    target, predicted = np.zeros((8, 20), bool), np.zeros((8, 20), bool)
    target[2:6, 0:9] = True
    predicted[2:6, 9:17] = True
    click = error_click(predicted, target)
    assert click is not None
    assert click.positive
    assert click.position[1] < 9
    target[:, 0] = False  # Of equals, the missing one.
    click = error_click(predicted, target)
    assert click is not None
    assert click.positive


def test_a_random_error_click_reaches_the_whole_component(rng) -> None:
    target = np.zeros((3, 6, 7), bool)
    target[1, 2:4, 3:6] = True
    clicks = [error_click(np.zeros_like(target), target, rng=rng) for _ in range(80)]
    assert {c.position for c in clicks if c} == {tuple(int(i) for i in p) for p in np.argwhere(target)}


def test_error_clicks_in_three_dimensions() -> None:
    target = np.zeros((12, 30, 30), bool)
    target[2:9, 4:25, 5:16] = True
    predicted = target.copy()
    predicted[4:9, 4:9, 5:10] = False
    assert error_click(predicted, target) == Click(position=(6, 6, 7), positive=True)
    predicted = np.zeros_like(target)
    predicted[0:5, 26:29, 20:25] = True
    assert error_click(predicted, predicted & False, spacing=(0.1, 9, 9)) == Click(position=(2, 26, 20), positive=False)


def test_masks_of_different_shapes_are_refused(square) -> None:
    with pytest.raises(InputError, match=r"\(40, 60\) and \(40, 59\)"):
        error_click(square, square[:, 1:])
    with pytest.raises(InputError, match="cannot be compared"):
        error_click(square[0], square[0])


def test_the_same_generator_draws_the_same(square) -> None:
    def everything(seed: int) -> list[object]:
        rng = np.random.default_rng(seed)
        clicks = [random_clicks(square, 3, rng).tolist(), ring_clicks(square, 2, rng).tolist()]
        last = error_click(~square, square, rng=rng)
        return [*clicks, last, jitter_box(BOX, (64, 64), rng), box_with_overlap(BOX, 0.5, rng)]

    assert everything(1) == everything(1)
    assert all(a != b for a, b in zip(everything(1), everything(2), strict=True))


def test_jitter_follows_the_sides(rng) -> None:
    boxes = np.array([jitter_box((200, 300, 250, 420), (1000, 1000), rng) for _ in range(2000)])
    np.testing.assert_allclose(boxes.mean(0), [200, 300, 250, 420], atol=1)
    np.testing.assert_allclose(boxes.std(0), [5, 11.3, 5, 11.3], rtol=0.08)  # 12, less what is cut at 20.
    assert np.abs(boxes - [200, 300, 250, 420]).max() == 20


def test_jittered_boxes_stay_boxes_in_the_picture(rng) -> None:
    for box in ((0, 0, 30, 20), (29, 19, 30, 20), (0, 5, 1, 6), (10, 10, 12, 11)):
        for share in (0.1, 3.0):
            drawn = np.array([jitter_box(box, (20, 30), rng, share=share) for _ in range(200)])
            assert (drawn[:, :2] >= 0).all()
            assert (drawn[:, 2:] <= [30, 20]).all()
            assert (drawn[:, 2:] - drawn[:, :2] >= 1 - 1e-9).all()
    assert jitter_box(BOX, (64, 64), rng, share=0) == BOX
    crossed = np.array([jitter_box((45, 45, 55, 55), (100, 100), rng, share=1) for _ in range(200)])
    assert (crossed[:, 2:] - crossed[:, :2] == 1).mean() < 0.1, "edges that pass each other change places"


@pytest.mark.parametrize("wanted", [0.05, 0.5, 0.75, 0.999])
def test_boxes_have_the_overlap_asked_for(wanted: float, rng) -> None:
    drawn = [box_with_overlap(BOX, wanted, rng) for _ in range(200)]
    assert max(abs(iou(b, BOX) - wanted) for b in drawn) < 1e-9
    assert all(b[0] < b[2] and b[1] < b[3] for b in drawn)
    shifts = np.array(drawn) - BOX
    assert (shifts.min(0) < 0).all(), "every edge moves both ways"
    assert (shifts.max(0) > 0).all()
    assert 2 < np.abs(shifts[:, ::2]).mean() / np.abs(shifts[:, 1::2]).mean() < 8, "by a share of its side"
    assert box_with_overlap((0, 0, 1, 1), 1.0, rng) == pytest.approx((0, 0, 1, 1))


@pytest.mark.parametrize(("box", "wanted"), [((3, 3, 3, 9), 0.5), (BOX, 0.0), (BOX, 1.1), (BOX, float("nan"))])
def test_an_overlap_that_no_box_has_is_refused(box: tuple[float, ...], wanted: float, rng) -> None:
    with pytest.raises(InputError, match="overlap"):
        box_with_overlap(box, wanted, rng)
