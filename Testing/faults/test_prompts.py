"""faults.md row 31: none, NaN, outside, inverted, contradicting: PromptError with the prompt's number and position."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.errors import PromptError
from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.volume import Grid, Volume
from Testing.toy_model import bright_scan
from Testing.toy_session import Flood, box, click, open_session

GOOD = click(8, 15, 5)
NAN, INF = float("nan"), float("inf")


def mask(shape: tuple[int, ...], corner: tuple[int, int, int] = (0, 0, 0), **changes) -> Prompt:
    return Prompt(kind="mask", mask=np.ones(shape, changes.pop("dtype", np.uint8)), mask_box=corner, **changes)


BAD = [
    (click(NAN, 5, 5), "finite", "nan"),
    (click(5, -INF, 5), "finite", "-inf"),
    (click(-0.6, 5, 5), "outside", "(-0.6, 5, 5)"),
    (click(39.6, 5, 5), "outside", "(39.6, 5, 5)"),
    (click(5, 5, 12), "outside", "(5, 5, 12)"),
    (click(5, 5, 1e9), "outside", "1000000000.0"),
    (Prompt(kind="point"), "three numbers", "None"),
    (Prompt(kind="point", position=(1.0, 2.0)), "three numbers", "(1.0, 2.0)"),
    (Prompt(kind="point", position=("a", 1, 2)), "three numbers", "a"),
    (Prompt(kind="point", position=5), "three numbers", "5"),
    (box((5, 5, 5), (4, 9, 5)), "swapped", "((5, 5, 5), (4, 9, 5))"),
    (box((5, 5, 5), (5, 9, NAN)), "finite", "nan"),
    (box((50, 5, 5), (60, 9, 5)), "outside", "(50, 5, 5)"),
    (box((-9, -9, 5), (-3, -3, 5)), "outside", "(-9, -9, 5)"),
    (Prompt(kind="box"), "three numbers", "None"),
    (Prompt(kind="box", corners=((1, 2, 3),)), "three numbers", "1, 2, 3"),
    (Prompt(kind="circle"), "unknown kind", "circle"),
    (click(5, 5, 5, scope="world"), "unknown kind or scope", "world"),
    (click(5, 5, 5, candidate=1), "first, positive click", "candidate 1"),
    (Prompt(kind="mask"), "block", "none"),
    (mask((3, 3)), "block", "(3, 3)"),
    (mask((3, 3, 3), dtype=np.float32), "block", "float32"),
    (mask((3, 3, 3), (10, 0, 0)), "reaches beyond", "(13, 3, 3)"),
    (mask((3, 3, 3), (0, -1, 0)), "reaches beyond", "(0, -1, 0)"),
    (Prompt(kind="mask", mask=np.zeros((2, 2, 2), np.uint8)), "empty", "(0, 0, 0)"),
]


@pytest.mark.parametrize(("bad", "what", "where"), BAD)
def test_bad_prompts_are_named_and_change_nothing(bad: Prompt, what: str, where: str):
    volume, _ = bright_scan()
    network = Flood()
    session = open_session(volume, network)
    session.prompt(1, [GOOD])
    before, calls = session.mask(1), network.decoded
    with pytest.raises(PromptError, match=what) as error:
        session.prompt(1, [GOOD, bad])
    assert "prompt 2 of 2" in str(error.value)
    assert where in str(error.value)
    assert np.array_equal(session.mask(1), before)
    assert network.decoded == calls
    assert session.prompt(1, [GOOD]).box is None


def test_no_prompt_at_all():
    with pytest.raises(PromptError, match="no prompt was given"):
        open_session(bright_scan()[0]).prompt(1, [])


def test_clicks_of_opposite_sign_on_one_voxel():
    session = open_session(bright_scan()[0])
    with pytest.raises(PromptError, match="contradict") as error:
        session.prompt(1, [GOOD, click(9, 15, 5), click(8.4, 14.6, 5.2, positive=False)])
    assert "prompt 3 of 3" in str(error.value)
    assert "prompt 1 " in str(error.value)
    assert "(8, 15, 5)" in str(error.value)
    session.prompt(1, [GOOD, click(8.6, 15, 5, positive=False)])


def test_candidates_are_of_positive_clicks_alone():
    session = open_session(bright_scan()[0])
    for wrong in (click(8, 15, 5, candidate=3), click(8, 15, 5, candidate=0, positive=False)):
        with pytest.raises(PromptError, match="candidates"):
            session.prompt(1, [wrong])


def test_boxes_that_reach_over_the_border_are_cut_to_the_scan():
    volume, block = bright_scan((4, 16, 16), at=(slice(0, 4), slice(0, 5), slice(0, 6)))
    session = open_session(volume)
    session.prompt(1, [box((-0.4, -0.4, 1), (8, 7, 1))])
    assert np.array_equal(session.mask(1) > 0, block)
    wide = session.prompt(2, [box((-30, -30, 1), (8, 7, 1))])
    assert wide.voxels == block.sum()


def test_where_the_scan_is_empty_a_click_is_refused():
    """A large margin of zeros is cropped before the network; what lies there cannot be a structure."""
    array = np.zeros((12, 40, 40), np.float32)
    array[3:9, 10:30, 10:30] = np.random.default_rng(0).normal(100, 5, (6, 20, 20))
    array[4:8, 15:20, 15:20] = 300
    session = open_session(Volume(array=array, grid=Grid(shape=array.shape, affine=np.eye(4))))
    for bad in (click(2, 2, 5), click(20, 20, 0), box((1, 1, 5), (5, 5, 5)), box((12, 12, 0), (20, 20, 0))):
        with pytest.raises(PromptError, match="scan is empty") as error:
            session.prompt(1, [bad])
        assert "prompt 1 of 1" in str(error.value)
    good = click(17, 17, 5)
    update = session.prompt(1, [good, click(2, 2, 5, positive=False)])
    assert update.voxels > 0
    assert "empty" in update.messages[0]
    assert session.prompt(1, [good]).box is None
