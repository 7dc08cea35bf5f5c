"""What region growing from the prompts finds, as channels of the click model."""

from __future__ import annotations

import numpy as np

from MaskSAMCore.config.network_schema import GROWN_MAPS
from MaskSAMCore.preprocessing.prompt_maps import draw_points, draw_region, empty_maps
from MaskSAMCore.preprocessing.region_growing import grown_maps

SIZE = (8, 32, 32)
LIKE, REACHED, NEGATIVE_LIKE, NEGATIVE_REACHED = range(4)


def rooms() -> np.ndarray:
    """Two bright rooms with a dark wall between them."""
    image = np.full(SIZE, -1.0, np.float32)
    image[1:7, 4:28, 2:14] = 1
    image[1:7, 4:28, 18:30] = 1
    return image


def clicked(*places: tuple[int, int, int], positive: bool = True) -> np.ndarray:
    maps = empty_maps(SIZE)
    draw_points(maps, np.array(places, float), positive=positive)
    return maps


def test_a_region_grows_to_the_wall_and_not_behind_it() -> None:
    found = grown_maps(rooms(), clicked((4, 16, 8)))
    assert found.shape == (len(GROWN_MAPS), *SIZE)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert found[LIKE, 4, 16, 8] > 0.9
    assert found[LIKE, 4, 16, 24] > 0.9, "it looks alike"
    assert found[REACHED, 4, 8, 6] > 0.9
    assert found[REACHED, 4, 16, 24] < 0.05, "but a wall lies between"
    assert found[LIKE, 4, 16, 16] < 0.05
    assert not found[NEGATIVE_LIKE:].any()


def test_without_prompts_there_is_nothing_to_grow_from() -> None:
    assert not grown_maps(rooms(), empty_maps(SIZE)).any()


def test_prompts_outside_grow_channels_of_their_own() -> None:
    found = grown_maps(rooms(), clicked((4, 16, 24), positive=False))
    assert not found[:NEGATIVE_LIKE].any()
    assert found[NEGATIVE_REACHED, 4, 10, 26] > 0.9
    assert found[NEGATIVE_REACHED, 4, 16, 8] < 0.05


def test_a_negative_click_does_not_speak_against_what_looks_like_the_structure() -> None:
    maps = clicked((4, 16, 8))
    draw_points(maps, np.array([[4.0, 16, 24]]), positive=False)
    found = grown_maps(rooms(), maps)
    assert found[LIKE, 4, 10, 26] > 0.9
    assert found[NEGATIVE_LIKE, 4, 10, 26] < 0.1, "it looks like both"
    assert found[NEGATIVE_REACHED, 4, 10, 26] > 0.9, "but only the negative click reaches it"
    assert found[NEGATIVE_REACHED, 4, 16, 8] < 0.1


def test_every_click_is_compared_with_what_is_near_to_it() -> None:
    image = rooms()
    image[:, :, 18:30][image[:, :, 18:30] > 0] = 3
    found = grown_maps(image, clicked((4, 16, 8), (4, 16, 24)))
    assert found[LIKE, 4, 16, 6] > 0.9
    assert found[LIKE, 4, 16, 26] > 0.9


def test_a_region_grows_from_its_inner_part() -> None:
    maps = empty_maps(SIZE)
    lasso = np.ones((1, 26, 14), bool)  # wider than the room, so its rim lies on the wall
    draw_region(maps, lasso, (4, 3, 1), positive=True)
    found = grown_maps(rooms(), maps)
    assert found[REACHED, 2, 16, 8] > 0.9
    assert found[REACHED, 4, 16, 24] < 0.05
