"""Batches are pure functions of (seed, step, rank) and hold what they should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.config.schema import AugmentConfig, Config, DataConfig, TrainConfig
from MaskSAMCore.data.build import prepare
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.data.sampling import PatchSampler, place_patch
from MaskSAMCore.errors import InputError
from MaskSAMCore.preprocessing.plan import mirror_rule
from Testing.phantom import write_dataset

PATCH = (4, 16, 16)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("sampling")
    config = Config(model=ModelConfig(patch=PATCH), data=DataConfig(view="axial"), train=TrainConfig(folds=2))
    return prepare(write_dataset(folder / "raw"), folder / "cache", config)[0]


def sampler(cache: PreparedDataset, *, augmented: bool = True, **settings) -> PatchSampler:
    rule = mirror_rule(cache.plan, cache.labels, DataConfig())
    extra = {"augment": AugmentConfig(), "mirror": rule} if augmented else {}
    return PatchSampler(cache, cache.ids, **{"patch": PATCH, "batch": 2, "seed": 7} | extra | settings)


def test_a_batch_depends_on_nothing_but_seed_step_and_rank(cache) -> None:
    one, other = sampler(cache), sampler(PreparedDataset(cache.folder))
    for step in (5, 2, 9):
        a, b = one.batch(step, rank=1, world=2), other.batch(step, rank=1, world=2)
        assert a.cases == b.cases
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)
        assert torch.equal(a.valid, b.valid)
    assert not torch.equal(one.batch(2).image, one.batch(3).image)
    assert not torch.equal(one.batch(2).image, sampler(cache, seed=8).batch(2).image)


def test_shapes_and_types(cache) -> None:
    drawn = sampler(cache).batch(0)
    assert drawn.image.shape == (2, 1, *PATCH)
    assert drawn.image.dtype == torch.float32
    assert drawn.label.shape == (2, *PATCH)
    assert drawn.label.dtype == torch.int64
    assert drawn.valid.shape == (2, 4)
    assert drawn.valid.dtype == torch.bool
    assert drawn.label.unique().tolist()[-1] <= 2


def test_every_case_comes_once_before_any_comes_again(cache) -> None:
    plain = sampler(cache, augmented=False)
    for epoch in range(3):
        steps = range(2 * epoch, 2 * epoch + 2)
        assert sorted(c for step in steps for c in plain.batch(step).cases) == sorted(cache.ids)
    together = [plain.batch(0, rank=r, world=2).cases for r in range(2)]
    assert sorted(c for cases in together for c in cases) == sorted(cache.ids), "processes share the cases out"


def test_the_last_third_of_a_batch_holds_a_structure(cache) -> None:
    plain = sampler(cache, augmented=False, patch=(2, 6, 6), batch=3)
    drawn = [plain.batch(step) for step in range(40)]
    assert all((b.label[2] > 0).any() for b in drawn)
    assert {int(v) for b in drawn for v in b.label[2].unique()} == {0, 1, 2}, "every structure has its turn"
    assert any((b.label[:2] == 0).all() for b in drawn), "the others lie anywhere"


def test_a_batch_of_one_holds_a_structure_with_that_probability(cache) -> None:
    settings = {"augmented": False, "patch": (2, 4, 4), "batch": 1}
    share = [
        np.mean([bool((sampler(cache, **settings, foreground=f).batch(s).label > 0).any()) for s in range(60)])
        for f in (0.0, 1.0)
    ]
    assert share[1] == 1
    assert share[0] < 0.7


def test_a_short_case_is_padded_with_slices_that_do_not_count(cache) -> None:
    depth = cache.case(cache.ids[0]).label.shape[0]
    plain = sampler(cache, augmented=False, patch=(depth + 4, 16, 16), batch=1)
    drawn = plain.batch(0)
    assert drawn.valid[0].tolist() == [False] * 2 + [True] * depth + [False] * 2
    assert torch.equal(drawn.image[0, :, 0], drawn.image[0, :, 2]), "the border is repeated"
    warped = sampler(cache, patch=(depth + 4, 16, 16), batch=1, augment=AugmentConfig(rotation=1, scaling=1))
    counts = [int(warped.batch(step).valid.sum()) for step in range(12)]
    assert all(0 < c <= depth + 4 for c in counts)
    assert min(counts) < depth + 4


def test_scores_are_cut_warped_and_mirrored_like_the_labels(cache) -> None:
    def one_hot(case: str) -> np.ndarray:
        return np.stack([np.asarray(cache.case(case).label) == k for k in range(3)]).astype(np.float16)

    sides = replace(mirror_rule(cache.plan, cache.labels, DataConfig()), axes=(0, 1, 2), left_right=2, swap=(0, 2, 1))
    strong = AugmentConfig(rotation=0.5, scaling=0.5, mirror=0.5)
    assert sampler(cache).batch(0).scores is None
    for settings in ({"augmented": False}, {"augment": strong, "mirror": sides}):
        given = sampler(cache, **settings, scores=one_hot, foreground=1.0)
        drawn = [given.batch(step) for step in range(8)]
        assert all(torch.equal(b.scores.argmax(1), b.label) for b in drawn)
        assert len(torch.cat([b.label.unique() for b in drawn]).unique()) == 3
        assert drawn[0].scores.dtype == torch.float32
        assert torch.equal(drawn[3].image, sampler(cache, **settings, foreground=1.0).batch(3).image)


def test_patches_lie_inside_where_there_is_room() -> None:
    rng = np.random.default_rng(0)
    starts = np.array([place_patch((10, 20, 6), (4, 20, 8), None, rng) for _ in range(50)])
    assert set(starts[:, 0]) == set(range(7))
    assert (starts[:, 1] == 0).all()
    assert (starts[:, 2] == -1).all()
    corner = place_patch((10, 20, 30), (4, 8, 8), np.array([9, 0, 15]), rng)
    assert corner == (6, 0, 11)


def test_what_cannot_work_is_refused(cache) -> None:
    with pytest.raises(InputError, match="no case"):
        PatchSampler(cache, (), patch=PATCH, batch=1)
    with pytest.raises(InputError, match="mirroring"):
        PatchSampler(cache, cache.ids, patch=PATCH, batch=1, augment=AugmentConfig())
