"""model.md §13.3: from the slab of a click to the whole structure, slab by slab, until it ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.inference.session import Session
from MaskSAMCore.inference.sliding_window import gaussian
from MaskSAMCore.network.types import PromptBatch, Prompted, Slab
from MaskSAMCore.progress import Cancelled, CancelToken
from MaskSAMCore.volume import Grid, Volume
from Testing.toy_session import Flood, click, open_session, whole_plan


def scan(mask: np.ndarray) -> Volume:
    """A scan that is bright where `mask` is, with one sure contrast, so that nothing is constant."""
    noise = np.random.default_rng(0).normal(20, 1, mask.shape)
    return Volume(array=(noise + 150 * mask).astype(np.float32), grid=Grid(shape=mask.shape, affine=np.eye(4)))


def column(shape: tuple[int, int, int] = (20, 16, 16), first: int = 1, last: int = 18) -> np.ndarray:
    out = np.zeros(shape, bool)
    out[first:last, 4:12, 4:12] = True
    return out


def found(session: Session, structure: int = 1) -> list[int]:
    return np.flatnonzero(session.mask(structure).any(axis=(1, 2))).tolist()


class Doubtful(Flood):
    """Its quality is 0.4 where it finds less than `least` pixels."""

    least = 0

    def prompted(self, slab: Slab, prompts: PromptBatch, *, multimask: bool = False) -> Prompted:
        answer = super().prompted(slab, prompts, multimask=multimask)
        area = (answer.masks[..., 0, :, :] > 0).sum(dim=(-2, -1))
        return Prompted(
            masks=answer.masks, quality=torch.where(area[..., None] < self.least, 0.4, answer.quality), cls=answer.cls
        )


class Constant(Flood):
    """Everything is the structure, with logits of 8 at the first call, then 7, 6 and so on."""

    def prompted(self, slab: Slab, prompts: PromptBatch, *, multimask: bool = False) -> Prompted:
        answer = super().prompted(slab, prompts)
        return Prompted(
            masks=torch.full_like(answer.masks, 9.0 - self.decoded),
            quality=torch.full_like(answer.quality, 1 - self.decoded / 10),
            cls=None,
        )


def test_a_structure_is_followed_to_both_ends_and_across_windows():
    mask = np.zeros((20, 40, 40), bool)
    for k in range(2, 18):
        mask[k, 3 + k : 12 + k, 22 - k : 31 - k] = True
    session = open_session(scan(mask))
    update = session.prompt(1, [click(17, 16, 9, scope="volume")])
    assert np.array_equal(session.mask(1) > 0, mask)
    assert update.encoded > 5
    assert set(update.quality) == set(range(2, 18))
    assert update.voxels == mask.sum()


def test_it_ends_at_a_gap_and_at_the_ends_of_the_scan():
    mask = column()
    mask[12:14] = False
    session = open_session(scan(mask))
    session.prompt(1, [click(8, 8, 9, scope="volume")])
    assert found(session) == list(range(1, 12))
    full = np.ones((9, 16, 16), bool)
    full[:, :4] = False
    session = open_session(scan(full))
    session.prompt(1, [click(8, 8, 4, scope="volume")])
    assert np.array_equal(session.mask(1) > 0, full)


def test_it_ends_where_the_area_is_below_a_hundredth_of_the_first():
    mask = column()
    mask[:, 3:14, 3:14] = True
    mask[14:] = False
    mask[14:18, 8, 8] = True
    session = open_session(scan(mask), Flood())
    session.prompt(1, [click(8, 8, 8, scope="volume")])
    assert found(session) == list(range(14))


def test_it_ends_where_the_estimated_quality_is_below_one_half():
    mask = column()
    mask[13:] = False
    mask[13:18, 6:9, 6:9] = True
    network = Doubtful()
    session = open_session(scan(mask), network)
    session.prompt(1, [click(8, 8, 6, scope="volume")])
    assert found(session) == list(range(1, 18)), "9 of 64 pixels are enough"
    network = Doubtful()
    network.least = 10
    session = open_session(scan(mask), network)
    session.prompt(1, [click(8, 8, 6, scope="volume")])
    assert found(session) == list(range(1, 13))


def test_the_next_slab_is_asked_with_what_training_knows():
    """The mask in the shared slices alone; box, grown by a twentieth, and inner point of the outermost of them."""
    network = Flood()
    session = open_session(scan(column()), network)
    session.prompt(1, [click(8, 8, 7, scope="volume")])
    start = session._slabs.deep(7)
    after = session._slabs.starts[0][session._slabs.starts[0].index(start) + 1]
    batch, shared = network.batches[1], start + 4 - after
    assert batch.masks_known[0, 0].tolist() == [z < shared for z in range(4)]
    assert batch.offsets[0, 0].tolist() == [z - (shared - 1) for z in range(4)]
    assert batch.boxes[0, 0, 3].tolist() == pytest.approx([3.6 / 16, 3.6 / 16, 12.4 / 16, 12.4 / 16])
    assert batch.labels[0, 0, 3].tolist() == [1]
    assert (batch.points[0, 0, 3, 0] * 16).tolist() == [7.5, 7.5]
    assert float(batch.masks[0, 0, 0].max()) == 8.0


def test_slabs_are_fused_with_the_gaussian_along_depth_but_not_in_the_slice_of_the_click():
    session = open_session(scan(column((10, 16, 16), 0, 10)), Constant())
    session.prompt(1, [click(8, 8, 3, scope="volume")])
    state = session._structures[1].shown
    weight = gaussian((4, 1, 1))[:, 0, 0].numpy()
    starts = session._slabs.starts[0]
    assert starts == [0, 2, 4, 6]
    assert session._slabs.deep(3) == 2

    def fused(z: int, calls: dict[int, int], top: float, step: float) -> float:
        inside = {s: top - step * n for s, n in calls.items() if s <= z < s + 4}
        return sum(weight[z - s] * v for s, v in inside.items()) / sum(weight[z - s] for s in inside)

    calls = {2: 1, 4: 2, 6: 3, 0: 4}
    for z in range(10):
        expected = 8.0 if z == 3 else fused(z, calls, 9, 1)
        assert float(state.planes[z].array[8, 8]) == pytest.approx(expected, abs=1e-2), z
        assert state.quality[z] == pytest.approx(0.9 if z == 3 else fused(z, calls, 1, 0.1), abs=1e-5)


def test_slices_that_were_prompted_stay_and_others_belong_to_the_nearest_prompt():
    mask = column((30, 16, 16), 1, 29)
    mask[10, 4:12, 8] = False
    session = open_session(scan(mask))
    prompts = [click(5, 8, 10, scope="slice"), click(8, 8, 4, scope="volume"), click(9, 9, 24, scope="volume")]
    session.prompt(1, prompts[:1])
    corrected = session.mask(1)[10].copy()
    assert 0 < corrected.sum() < mask[10].sum()
    session.prompt(1, prompts[:2])
    assert np.array_equal(session.mask(1)[10], corrected)
    assert found(session) == list(range(1, 29))
    before = session.mask(1)
    session.prompt(1, prompts)
    assert np.array_equal(session.mask(1)[:15], before[:15])


def test_a_slice_that_was_prompted_is_not_written_for_another():
    session = open_session(scan(column((10, 16, 16), 0, 10)), Constant())
    session.prompt(1, [click(8, 8, 4, scope="slice"), click(8, 8, 5, scope="volume")])
    planes = session._structures[1].shown.planes
    assert float(planes[4].array[8, 8]) == 8.0
    assert float(planes[5].array[8, 8]) == 7.0
    assert all(float(planes[z].array[8, 8]) < 7.0 for z in (0, 1, 8, 9)), "others were"


def test_a_second_walk_does_not_hear_of_the_first():
    """What it is about to replace would only be repeated by the network."""
    network = Flood()
    session = open_session(scan(column()), network)
    session.prompt(1, [click(8, 8, 7, scope="volume")])
    first = [batch.masks_known for batch in network.batches[1:]]
    network.batches.clear()
    session.prompt(1, [click(8, 8, 7, scope="volume"), click(9, 9, 7, scope="volume")])
    second = [batch.masks_known for batch in network.batches[1:]]
    assert len(first) == len(second) > 4
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_a_later_click_denies_is_taken_back_as_far_as_it_is_the_nearest():
    session = open_session(scan(column((20, 16, 16), 1, 19)))
    first = click(8, 8, 3, scope="volume")
    session.prompt(1, [first])
    assert found(session) == list(range(1, 19))
    session.prompt(1, [first, click(8, 8, 14, positive=False, scope="volume")])
    assert found(session) == list(range(1, 9)), "8 is as near to either, and goes to the lower"


def test_a_given_mask_is_not_taken_back_where_the_walk_ends():
    mask = column((20, 16, 16), 1, 19)
    mask[12:14] = False
    session = open_session(scan(mask))
    given = Prompt(kind="mask", mask=np.ones((18, 8, 8), bool), mask_box=(1, 4, 4))
    session.prompt(1, [given, click(8, 8, 3, scope="volume")])
    assert set(range(14, 19)) <= set(found(session))


def test_patches_of_one_slice_share_none_and_are_followed_all_the_same():
    mask = column((7, 16, 16), 1, 6)
    session = open_session(scan(mask), plan=whole_plan(scan(mask), patch=(1, 16, 16)))
    session.prompt(1, [click(8, 8, 3, scope="volume")])
    assert np.array_equal(session.mask(1) > 0, mask)


def test_progress_is_told_and_cancel_asked_before_every_slab():
    session = open_session(scan(column()))
    told: list[tuple[int, int, str]] = []
    session.prompt(1, [click(8, 8, 9, scope="volume")], progress=lambda *a: told.append(a))
    assert len(told) > 4
    assert all(done < total for done, total, _ in told[:-1])
    assert told[-1][0] == told[-1][1]
    for stop in range(len(told) - 2):
        token, fresh = CancelToken(), open_session(scan(column()))
        with pytest.raises(Cancelled):
            fresh.prompt(
                1,
                [click(8, 8, 9, scope="volume")],
                cancel=token,
                progress=lambda done, *_, stop=stop, token=token: token.cancel() if done >= stop else None,
            )
        assert fresh.encodes == stop + 1
        assert fresh.structures == ()
        assert not fresh.mask(1).any()
