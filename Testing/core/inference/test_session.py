"""model.md §13.3: interactive sessions; clicks, boxes and masks in, changed voxels of the scan out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from MaskSAMCore.errors import InputError, PromptError
from MaskSAMCore.inference.cache import SlabCache
from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.inference.session import Session
from MaskSAMCore.progress import Cancelled, CancelToken
from MaskSAMCore.volume import Volume
from Testing.toy_model import bright_scan
from Testing.toy_session import Flood, at, box, click, dice, open_session

IN = (8.0, 15.0, 5.0)
"""(i, j, k) inside of the bright block of `bright_scan`, whose k are 3 to 7."""


def two_blocks() -> tuple[Volume, np.ndarray, np.ndarray]:
    """A scan with two bright blocks side by side, and the blocks."""
    first = at((slice(2, 9), slice(4, 10), slice(4, 10)), (12, 16, 16))
    second = at((slice(2, 9), slice(4, 10), slice(12, 15)), (12, 16, 16))
    volume, _ = bright_scan((12, 16, 16), at=(slice(2, 9), slice(4, 10), slice(4, 10)))
    volume.array[second] += 150
    return volume, first, second


# -- what a click does


def test_a_click_gives_the_slab_around_it_voxel_by_voxel():
    volume, block = bright_scan()
    network = Flood()
    update = open_session(volume, network).prompt(1, [click(*IN)])
    assert update.box == update.extent == (4, 8, 12, 22, 5, 15)
    assert update.mask.dtype == np.uint8
    assert update.mask.shape == (4, 10, 10)
    assert update.mask.all()
    assert update.voxels == 400
    assert update.encoded == network.encoded == 1
    assert update.quality == {4: 0.9, 5: 0.9, 6: 0.9, 7: 0.9}
    assert update.axis == 0
    assert update.worst == 4
    assert update.suggestion.label == 3
    assert update.suggestion.name == "bright"
    assert update.messages == ()
    assert update.candidates == ()
    assert block[4:8].sum() == 400


def test_the_second_click_in_a_slab_runs_no_encoder_and_equals_the_uncached_result():
    volume, _, _ = two_blocks()
    network = Flood()
    clicks = [click(5, 5, 5), click(13, 5, 5)]
    session = open_session(volume, network)
    session.prompt(1, clicks[:1])
    update = session.prompt(1, clicks)
    assert update.encoded == 0
    assert network.encoded == 1
    assert update.voxels > 0
    bare = open_session(volume, Flood(), cache=SlabCache(0, 0))
    again = bare.prompt(1, clicks)
    assert again.encoded == 1
    assert np.array_equal(session.mask(1), bare.mask(1))


def test_a_list_gives_the_same_at_once_bit_by_bit_and_after_undo():
    volume, _, _ = two_blocks()
    clicks = [
        click(5, 5, 5),
        click(13, 5, 5, scope="volume"),
        click(13, 9, 8, positive=False, scope="slice"),
        click(13, 9, 3, positive=False),
        box((11, 3, 2), (15, 11, 2), scope="slice"),
    ]
    session, seen = open_session(volume), []
    for count in range(1, len(clicks) + 1):
        session.prompt(1, clicks[:count])
        seen.append(session.mask(1))
    assert len({mask.tobytes() for mask in seen}) == len(seen), "every prompt of this test should matter"
    for count in (len(clicks), 2, 4, 1, 3):
        fresh = open_session(volume)
        fresh.prompt(7, clicks[:count])
        assert np.array_equal(fresh.mask(7), seen[count - 1])
        session.prompt(1, clicks[:count])
        assert np.array_equal(session.mask(1), seen[count - 1])


def test_undo_decodes_nothing_and_tells_what_it_took_away():
    volume, _, _ = two_blocks()
    network = Flood()
    session = open_session(volume, network)
    session.prompt(1, [click(5, 5, 5)])
    session.prompt(1, [click(5, 5, 5), click(13, 5, 5)])
    before = network.decoded
    update = session.prompt(1, [click(5, 5, 5)])
    assert network.decoded == before
    assert update.box == (4, 8, 4, 10, 12, 15)
    assert not update.mask.any()


def test_the_same_list_changes_nothing():
    volume, _ = bright_scan()
    session = open_session(volume)
    session.prompt(1, [click(*IN)])
    update = session.prompt(1, [click(*IN)])
    assert update.box is None
    assert update.mask.shape == (0, 0, 0)
    assert update.voxels == 400
    assert update.encoded == 0


def test_more_prompts_than_snapshots_are_kept():
    volume, _, _ = two_blocks()
    clicks = [click(5 + n % 4, 5, 5) for n in range(12)]
    session = open_session(volume)
    for count in range(1, 13):
        session.prompt(1, clicks[:count])
    fresh = open_session(volume)
    for count in (2, 11):
        session.prompt(1, clicks[:count])
        fresh.prompt(1, clicks[:count])
        assert np.array_equal(session.mask(1), fresh.mask(1))


@pytest.mark.parametrize(("scope", "expected"), [("slice", {5}), ("slab", {4, 5, 6, 7}), ("volume", {3, 4, 5, 6, 7})])
def test_scope_is_how_far_a_prompt_reaches(scope: str, expected: set[int]):
    volume, block = bright_scan()
    session = open_session(volume)
    session.prompt(1, [click(*IN, scope=scope)])
    mask = session.mask(1) > 0
    assert set(np.flatnonzero(mask.any(axis=(1, 2)))) == expected
    kept = at((sorted(expected), slice(None), slice(None)), block.shape)
    assert np.array_equal(mask, block & kept)


def test_a_prompt_leaves_slices_alone_that_were_prompted_themselves_or_are_nearer_to_others():
    volume, _, _ = two_blocks()
    session = open_session(volume)
    clicks = [click(5, 5, 5, scope="volume"), click(13, 5, 3, scope="slice"), click(13, 5, 7, scope="volume")]
    session.prompt(1, clicks[:2])
    session.prompt(1, clicks)
    both = np.flatnonzero(session.mask(1)[:, 5, 13])
    assert both.tolist() == [3, 7, 8], "3 by its own click, 7 and 8 by the last, 4 to 6 belong to the first"
    assert np.array_equal(np.flatnonzero(session.mask(1)[:, 5, 5]), np.arange(2, 9))


def test_negative_clicks_take_away():
    volume, first, _ = two_blocks()
    session = open_session(volume)
    session.prompt(1, [box((3, 3, 5), (15, 11, 5))])
    assert session.mask(1)[5, 5, 5]
    assert session.mask(1)[5, 5, 13]
    session.prompt(1, [box((3, 3, 5), (15, 11, 5)), click(13, 6, 5, positive=False)])
    assert np.array_equal(session.mask(1) > 0, first & at((slice(4, 8),), first.shape))


def test_a_negative_click_alone_says_so():
    volume, _ = bright_scan()
    session = open_session(volume)
    update = session.prompt(1, [click(*IN, positive=False)])
    assert update.voxels == 0
    assert "positive" in update.messages[0]
    assert update.encoded == 0
    session.prompt(1, [click(*IN, positive=False), click(9, 16, 4)])
    assert session.mask(1)[4].any()


def test_structures_do_not_know_each_other():
    volume, first, second = two_blocks()
    session = open_session(volume)
    session.prompt(1, [click(5, 5, 5, scope="volume")])
    update = session.prompt(2, [click(13, 5, 5, scope="volume")])
    assert update.encoded == 0
    assert session.structures == (1, 2)
    assert np.array_equal(session.mask(1) > 0, first)
    assert np.array_equal(session.mask(2) > 0, second)
    gone = session.drop(1)
    assert gone.box == (2, 9, 4, 10, 4, 10)
    assert not gone.mask.any()
    assert session.structures == (2,)
    assert not session.mask(1).any()
    assert session.drop(1).box is None
    session.release()
    with pytest.raises(InputError, match="released"):
        session.prompt(2, [click(13, 5, 5)])


# -- candidates


def test_a_single_click_has_three_meanings_and_the_choice_lasts():
    volume, block = bright_scan()
    session = open_session(volume)
    update = session.prompt(1, [click(*IN)], multimask=True)
    assert [round(c.quality, 2) for c in update.candidates] == [0.95, 0.9, 0.2]
    assert [None if c.box is None else c.mask.sum() for c in update.candidates] == [4 * 64, 400, 1]
    assert update.voxels == 4 * 64, "the best is shown"
    again = session.prompt(1, [click(*IN, candidate=0)])
    assert again.box is None
    chosen = session.prompt(1, [click(*IN, candidate=1)])
    assert chosen.voxels == 400
    assert chosen.candidates == ()
    session.prompt(1, [click(*IN, candidate=1), click(9, 16, 5)])
    assert np.array_equal(session.mask(1)[4:8] > 0, block[4:8])
    assert not session.prompt(2, [click(*IN), click(9, 16, 5)], multimask=True).candidates
    session.prompt(3, [click(*IN, candidate=1, scope="volume")])
    assert np.array_equal(session.mask(3) > 0, block), "the chosen one is the one that is continued"


# -- existing masks


def test_an_existing_mask_comes_back_exactly_and_is_changed_only_in_the_slab_of_a_click():
    volume, block = bright_scan((12, 40, 40), np.diag([0.9, 0.8, 1.7, 1]))
    given = np.random.default_rng(0).random((5, 9, 8)) > 0.4
    prompt = Prompt(kind="mask", mask=given.astype(np.uint8) * 3, mask_box=(3, 13, 6))
    session = open_session(volume)
    update = session.prompt(1, [prompt])
    expected = np.zeros(block.shape, bool)
    expected[3:8, 13:22, 6:14] = given
    assert np.array_equal(session.mask(1) > 0, expected)
    assert update.encoded == 0
    assert update.quality == {}
    session.prompt(1, [prompt, click(8, 15, 5, scope="slice")])
    assert dice(session.mask(1)[5] > 0, block[5]) > 0.8
    others = [k for k in range(12) if k != 5]
    assert np.array_equal(session.mask(1)[others] > 0, expected[others])


@pytest.mark.parametrize("flip", [1, -1])
def test_the_network_sees_the_existing_mask_as_it_lies(flip: int):
    volume, block = bright_scan(
        (6, 16, 16), np.diag([flip, flip, flip, 1.0]), at=(slice(1, 5), slice(4, 9), slice(3, 12))
    )
    network = Flood()
    session = open_session(volume, network)
    prompt = Prompt(kind="mask", mask=block[1:5, 4:9, 3:12].astype(np.uint8), mask_box=(1, 4, 3))
    session.prompt(1, [prompt, click(8, 6, 2, scope="slice")])
    batch = network.batches[-1]
    known = torch.ones(4, dtype=torch.bool) if batch.masks_known is None else batch.masks_known[0, 0]
    seen = torch.nn.functional.interpolate(batch.masks[0], size=(16, 16), mode="bilinear")[0] > 0
    z = {1: 2, -1: 3}[flip]
    start = min(session._slabs.starts[0], key=lambda s: abs(s + 1.5 - z))
    expected = session.frame.turned(block)[z]
    assert known[z - start]
    assert dice(seen[z - start].numpy(), expected) > 0.7


def test_a_mask_later_in_the_list_starts_anew():
    volume, _, second = two_blocks()
    session = open_session(volume)
    mask = Prompt(kind="mask", mask=np.ones((1, 2, 2), bool), mask_box=(5, 4, 12))
    session.prompt(1, [click(5, 5, 5), mask])
    assert session.mask(1).sum() == 4
    session.prompt(1, [click(5, 5, 5), mask, click(13, 5, 5, scope="slice")])
    assert np.array_equal(session.mask(1)[5] > 0, second[5])


# -- ahead, and what the model proposes


def test_encoding_ahead_begins_in_view_and_makes_the_first_click_cheap():
    volume, _ = bright_scan()
    network = Flood()
    session = open_session(volume, network)
    assert session.encode(IN, slabs=1) == 1
    assert session.prompt(1, [click(*IN)]).encoded == 0
    done = []
    assert session.encode(IN, slabs=5, progress=lambda *a: done.append(a)) == 4
    assert done[-1] == (5, 5, "encoding")
    every = len(session._slabs.around((0, 0, 0)))
    assert session.encode() == every - 5
    assert session.encode() == 0


def test_encoding_ahead_ends_where_the_cache_is_full():
    volume, _ = bright_scan()
    network = Flood()
    session = open_session(volume, network)
    size = session._slabs.encoded((4, 8, 0)).nbytes
    small = open_session(volume, network, cache=SlabCache(2 * size, 2 * size))
    assert small.encode(IN) == 5
    assert small.prompt(1, [click(*IN)]).encoded == 0 or small._slabs.cache.state.slabs == 4


def test_encoding_ahead_is_cancelled_between_slabs():
    volume, _ = bright_scan()
    session, token = open_session(volume), CancelToken()
    with pytest.raises(Cancelled):
        session.encode(IN, cancel=token, progress=lambda done, *_: token.cancel() if done == 3 else None)
    assert session.encodes == 3


@pytest.mark.parametrize("flip", [1, -1])
def test_automatic_prompts_are_boxes_and_points_that_give_the_structure(flip: int):
    volume, block = bright_scan(
        (12, 16, 16), np.diag([flip, flip, flip, 1.0]), at=(slice(3, 8), slice(2, 8), slice(5, 14))
    )
    session = open_session(volume)
    found = session.automatic(3)
    assert [prompts[1].position[2] for prompts in found] == sorted([3, 4, 5, 6, 7], reverse=flip < 0)
    for drawn, point in found:
        assert drawn.corners[0][:2] == (5, 2)
        assert drawn.corners[1][:2] == (13, 7)
        assert block[tuple(round(v) for v in point.position[::-1])]
    session.prompt(1, [prompts[0] for prompts in found])
    assert np.array_equal(session.mask(1) > 0, block)
    assert len(session.automatic(3, [4, 9])) == 1
    with pytest.raises(PromptError, match="no such label"):
        session.automatic(77)
    with pytest.raises(PromptError, match="outside"):
        session.automatic(3, [12])


def test_an_interrupted_answer_leaves_the_structure_as_it_was():
    volume, _ = bright_scan((16, 16, 16), at=(slice(1, 15), slice(4, 12), slice(4, 12)))
    session = open_session(volume)
    session.prompt(1, [click(8, 8, 5)])
    before = session.mask(1)
    for stop in range(4):
        token = CancelToken()
        with pytest.raises(Cancelled):
            session.prompt(
                1,
                [click(8, 8, 5), click(8, 8, 6, scope="volume")],
                cancel=token,
                progress=lambda done, *_, stop=stop, token=token: token.cancel() if done >= stop else None,
            )
        assert np.array_equal(session.mask(1), before)
        assert session.prompt(1, [click(8, 8, 5)]).box is None


def test_two_sessions_share_a_cache_but_never_a_scan():
    first, _ = bright_scan()
    second, block = bright_scan(at=(slice(3, 8), slice(2, 9), slice(4, 12)))
    cache, network = SlabCache(), Flood()
    open_session(first, network, cache=cache).prompt(1, [click(*IN)])
    session = open_session(second, network, cache=cache)
    session.prompt(1, [click(6, 5, 5, scope="volume")])
    assert np.array_equal(session.mask(1) > 0, block)
    same = open_session(first, network, cache=cache)
    assert same.prompt(1, [click(*IN)]).encoded == 0


def test_open_refuses_what_the_model_cannot_take():
    volume, _ = bright_scan()
    double = Volume(array=np.stack([volume.array] * 2), grid=volume.grid)
    with pytest.raises(InputError, match="channels"):
        open_session(double)
    assert isinstance(open_session(volume), Session)


def test_no_click_is_left_unheard():
    """The toy network knows nothing but intensities; a click on the other side of a border is honoured all the same."""
    volume, _ = bright_scan()
    session = open_session(volume)
    clicks = [click(*IN), click(12, 17, 5, positive=False), click(30, 30, 5), click(31, 30, 5, positive=False)]
    session.prompt(1, clicks)
    found = session.mask(1) > 0
    assert not found[5, 17, 12]
    assert found[5, 30, 30]
    assert not found[5, 30, 31]


def test_an_answer_that_did_not_arrive_is_taken_back() -> None:
    volume, _ = bright_scan()
    session = open_session(volume)
    first, second = click(8, 15, 5), click(9, 16, 5, positive=False)
    session.prompt(1, [first])
    before = session.mask(1)
    for change in (
        lambda: session.prompt(1, [first, second]),
        lambda: session.propagate(1),
        lambda: session.drop(1),
    ):
        lost = change()
        assert not np.array_equal(session.mask(1), before)
        session.take_back(1)
        assert np.array_equal(session.mask(1), before)
        session.take_back(1)
        assert np.array_equal(session.mask(1), before), "once is enough"
        assert change().box == lost.box, "the same change again"
        session.take_back(1)
    session.prompt(2, [first])
    session.take_back(2)
    assert session.structures == (1,)


def test_propagating_answers_the_last_prompts_again() -> None:
    volume, block = bright_scan()
    session = open_session(volume)
    with pytest.raises(InputError, match="nothing to propagate"):
        session.propagate(1)
    session.prompt(1, [click(8, 15, 5)])
    session.propagate(1)
    assert np.array_equal(session.mask(1), block)
    session.drop(1)
    with pytest.raises(InputError, match="nothing to propagate"):
        session.propagate(1)


def test_a_change_that_cannot_be_returned_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, _ = bright_scan()
    session = open_session(volume)
    session.prompt(1, [click(8, 15, 5)])
    before = session.mask(1)

    def full(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("MaskSAMCore.inference.session.update", full)
        for change in (lambda: session.propagate(1), lambda: session.drop(1)):
            with pytest.raises(MemoryError):
                change()
    assert np.array_equal(session.mask(1), before)
    assert session.drop(1).voxels == 0
