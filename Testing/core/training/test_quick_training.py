"""A lesson against the clock: how it spends its time, on a clock that the tests turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from MaskSAMCore.config import presets
from MaskSAMCore.config.check import check_config
from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import leaf_keys, override, value_at
from MaskSAMCore.data.build import prepare
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.data.splits import Split, leave_out
from MaskSAMCore.errors import InputError, ResourceError
from MaskSAMCore.evaluation.hold_out import plan_hold_out
from MaskSAMCore.network.build import build_model
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.network.types import Features
from MaskSAMCore.preprocessing.postprocess import suggest_largest
from MaskSAMCore.progress import Cancelled, CancelToken, no_progress
from MaskSAMCore.training import pool
from MaskSAMCore.training.batches import Batch
from MaskSAMCore.training.fit import fit_config
from MaskSAMCore.training.learner import Learner, Objective
from MaskSAMCore.training.pool import PatchPool
from MaskSAMCore.training.quick_training import (
    FIRST_STEPS,
    QuickTraining,
    TimeBudget,
    TimeShares,
    check_quick_settings,
    for_quick_training,
)
from MaskSAMCore.training.run import new_model
from Testing.toy_model import BRIGHT, make_plan

TINY = presets.get("tiny")
MIXED = replace(TINY, train=replace(TINY.train, mode="mixed"))
PRODUCT = override(
    presets.get("core-mobile"),
    [
        "model.backbone.arch=tiny",
        "model.patch=[4,16,16]",
        "model.source.widths=[16,8,8]",
        "model.source.image_widths=[]",
        "data.fit_patch=false",
    ],
)
"""The product on the backbone for tests."""


class Time:
    """A clock's seconds, which pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def costs(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, seconds: float, work: Callable) -> None:
        """Replace a method by `work`, which takes so many seconds."""

        def method(self_: object, *args: object, **words: object) -> object:
            self.now += seconds
            return work(self_, *args, **words)

        monkeypatch.setattr(owner, name, method)


@pytest.fixture(scope="module")
def prepared(phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepare(phantom_data, tmp_path_factory.mktemp("prepared") / "cache", MIXED)[0]


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch, time: Time) -> list[SimpleNamespace]:
    """The steps of the lesson; each takes one second and computes nothing."""
    steps: list[SimpleNamespace] = []

    def optimise(learner: Learner, batches: object, *, lr: float, objective: Objective) -> dict[str, float]:
        steps.append(SimpleNamespace(lr=lr, objective=objective, batch=next(batches)))  # type: ignore[call-overload]
        return {"loss": 1.0}

    time.costs(monkeypatch, Learner, "optimise", 1.0, optimise)
    return steps


def lesson(
    prepared: PreparedDataset,
    folder: Path,
    time: Time,
    *,
    seconds: float = 100.0,
    shares: TimeShares | None = None,
    config: Config = MIXED,
    cancel: CancelToken | None = None,
) -> QuickTraining:
    config = fit_config(config, prepared)
    model, _ = new_model(config, None, log=lambda text: None)
    return QuickTraining(
        model,
        config,
        dataset=prepared,
        split=Split(train=prepared.ids[:3], val=prepared.ids[3:]),
        folder=folder,
        device=torch.device("cpu"),
        clock=TimeBudget(seconds, now=time),
        shares=shares or TimeShares(patches=(2, 4), steps=(20, 1000)),
        log=lambda text: None,
        progress=no_progress,
        cancel=cancel or CancelToken(),
    )


def test_learning_ends_when_only_the_reserve_is_left(prepared, tmp_path, time, taught):
    course = lesson(prepared, tmp_path, time)
    course.encode()
    course.learn(reserve=25)
    assert course.clock.left == 25
    assert course.steps == len(taught) == 75


def test_the_learning_rate_rises_and_then_falls_to_nothing_with_the_clock(prepared, tmp_path, time, taught):
    course = lesson(prepared, tmp_path, time)
    course.encode()
    course.learn(reserve=0)
    rates = np.array([step.lr for step in taught])
    peak = int(rates.argmax())
    assert 0 < peak < 10
    assert 0.9 * MIXED.train.lr < rates.max() <= MIXED.train.lr
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert rates[-1] < 0.01 * rates.max()


def test_the_generator_learns_first_once_the_speed_of_slower_steps_is_known(prepared, tmp_path, time, taught):
    shares = TimeShares(patches=(2, 2), steps=(20, 1000), generator_first=0.3)
    config = override(for_quick_training(PRODUCT, prepared), ["train.keep_generator=false"])
    course = lesson(prepared, tmp_path, time, shares=shares, config=config)
    course.encode()
    course.learn(reserve=0)
    done = [step.objective for step in taught]
    assert set(done[:FIRST_STEPS]) == {Objective.AUTOMATIC}
    assert set(done[FIRST_STEPS:30]) == {Objective.GENERATOR}
    assert set(done[30:]) == {Objective.AUTOMATIC, Objective.PROMPTS}
    assert 20 < done.count(Objective.PROMPTS) < 60


def test_clicks_are_taught_behind_a_generator_that_is_kept(prepared, tmp_path, time, taught):
    config = for_quick_training(PRODUCT, prepared)
    assert config.train.keep_generator
    assert config.model.decoder.kind == "none"
    assert config.model.decoder.click_masks
    shares = TimeShares(patches=(2, 2), steps=(20, 1000), generator_kept=0.6)
    course = lesson(prepared, tmp_path, time, shares=shares, config=config)
    course.encode()
    course.learn(reserve=0)
    done = [step.objective for step in taught]
    assert set(done[:FIRST_STEPS]) == {Objective.AUTOMATIC}
    assert set(done[FIRST_STEPS:60]) == {Objective.GENERATOR}
    assert set(done[60:]) == {Objective.PROMPTS}
    rates = np.array([step.lr for step in taught])
    assert rates[59] < 0.01 * rates.max() < rates[70], "the generator comes to rest, then prompts begin anew"


def test_masks_without_a_class_are_not_taught_alone(prepared, tmp_path, time, taught):
    course = lesson(prepared, tmp_path, time, shares=TimeShares(patches=(2, 2), steps=(20, 1000), generator_first=0.3))
    course.encode()
    course.learn(reserve=0)
    done = [step.objective for step in taught]
    assert set(done[:30]) == {Objective.AUTOMATIC}
    assert set(done[30:]) == {Objective.AUTOMATIC, Objective.PROMPTS}


def test_a_model_without_prompts_is_never_taught_them(prepared, tmp_path, time, taught):
    course = lesson(prepared, tmp_path, time, config=presets.get("tiny"))
    course.encode()
    course.learn(reserve=0)
    assert {step.objective for step in taught} == {Objective.AUTOMATIC}


def test_enough_steps_end_the_lesson_before_its_time(prepared, tmp_path, time, taught):
    course = lesson(prepared, tmp_path, time, shares=TimeShares(patches=(2, 4), steps=(10, 30)))
    course.encode()
    course.learn(reserve=0)
    assert len(taught) == 30
    assert course.clock.left == 70
    assert taught[-1].lr < 0.01 * MIXED.train.lr


def test_a_time_that_is_too_short_is_told_after_the_first_steps(prepared, tmp_path, time, taught):
    course = lesson(prepared, tmp_path, time, seconds=60, shares=TimeShares(patches=(2, 4), steps=(240, 1000)))
    course.encode()
    with pytest.raises(ResourceError, match="too short") as raised:
        course.learn(reserve=0)
    assert len(taught) == 6
    assert "240 are needed" in raised.value.why
    assert "--minutes 5" in raised.value.remedy


def test_time_that_is_over_already_makes_no_model(prepared, tmp_path, time, taught):
    course = lesson(prepared, tmp_path, time, seconds=10)
    course.encode()
    with pytest.raises(ResourceError, match="too short"):
        course.learn(reserve=10)
    assert not taught


def test_patches_are_encoded_for_a_share_of_the_time(prepared, tmp_path, time, monkeypatch):
    encode = MaskSAM.encode_frozen
    time.costs(monkeypatch, MaskSAM, "encode_frozen", 5.0, encode)
    course = lesson(prepared, tmp_path, time, shares=TimeShares(encoding=0.3, patches=(2, 50), steps=(1, 100)))
    course.encode()
    assert course.pool.count == 6
    assert time.now == 30


def test_some_patches_are_encoded_however_slow_the_machine(prepared, tmp_path, time, monkeypatch):
    time.costs(monkeypatch, MaskSAM, "encode_frozen", 90.0, MaskSAM.encode_frozen)
    course = lesson(prepared, tmp_path, time, shares=TimeShares(patches=(2, 50), steps=(1, 100)))
    course.encode()
    assert course.pool.count == 2


def test_no_patch_is_encoded_that_no_step_would_see(prepared, tmp_path, time):
    course = lesson(prepared, tmp_path, time, shares=TimeShares(patches=(2, 50), steps=(1, 3)))
    course.encode()
    assert course.pool.count == 3


def test_a_small_disk_limits_the_patches_and_a_full_one_is_told(prepared, tmp_path, time, monkeypatch):
    course = lesson(prepared, tmp_path / "measure", time)
    course.encode()
    one = next((tmp_path / "measure").iterdir()).stat().st_size
    disk(monkeypatch, 3.5 * one / pool.DISK_SHARE)
    small = lesson(prepared, tmp_path / "small", time)
    small.encode()
    assert small.pool.count == 3
    disk(monkeypatch, 1.5 * one / pool.DISK_SHARE)
    with pytest.raises(ResourceError, match="too little space"):
        lesson(prepared, tmp_path / "full", time).encode()


def disk(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(pool.shutil, "disk_usage", lambda path: SimpleNamespace(free=int(free)))


@pytest.mark.parametrize(
    ("fp32_s", "bf16_s", "asked", "safe", "chosen"),
    [
        (2.0, 1.0, "auto", True, "bf16"),
        (2.0, 1.0, "auto", False, "fp32"),
        (2.0, 1.9, "auto", True, "fp32"),
        (1.0, 9.0, "auto", True, "fp32"),
        (2.0, 1.0, "fp32", True, "fp32"),
    ],
)
def test_a_cpu_learns_in_what_it_is_faster_with_and_safe(
    prepared, tmp_path, time, monkeypatch, fp32_s, bf16_s, asked, safe, chosen
):
    def encode(model: MaskSAM, image: torch.Tensor) -> None:
        time.now += bf16_s if torch.is_autocast_enabled("cpu") else fp32_s

    monkeypatch.setattr(MaskSAM, "encode_frozen", encode)
    monkeypatch.setattr("MaskSAMCore.training.quick_training.trains_in_bf16", lambda device: safe)
    course = lesson(prepared, tmp_path, time, config=replace(MIXED, train=replace(MIXED.train, precision=asked)))
    course.choose_precision()
    assert course.precision == chosen


@pytest.mark.parametrize(
    ("median", "spacing", "patch", "upsample", "foreground", "finest"),
    [
        ((36, 50, 35), 1.0, (36, 56, 40), 2, 0.33, 32),  # hippocampus
        ((10, 250, 220), 10.0, (8, 144, 128), 1, 0.33, 32),  # ACDC
        ((118, 58, 105), 1.0, (26, 48, 64), 1, 0.8, 16),  # head and neck at 4.7 mm
        ((200, 512, 512), 1.0, (26, 64, 48), 1, 0.8, 16),
        ((40, 512, 512), 5.0, (8, 144, 128), 1, 0.8, 32),
        ((1, 512, 512), 1.0, (1, 384, 384), 1, 0.33, 32),
        ((30, 30, 30), 1.0, (30, 32, 32), 4, 0.33, 32),
    ],
)
def test_patches_of_a_lesson_are_deep_and_a_step_is_short(median, spacing, patch, upsample, foreground, finest):
    plan = make_plan(median_shape=median, spacing=(spacing, 1.0, 1.0))
    dataset = SimpleNamespace(plan=plan, labels=BRIGHT)
    config = for_quick_training(presets.get("core-mobile"), dataset)
    check_config(config)
    assert (config.model.patch, config.model.stem.upsample) == (patch, upsample)
    assert config.data.foreground == foreground
    with torch.device("meta"):
        trunk = build_model(config.model).generator.trunk
    assert len(trunk.channels) >= trunk.doublings + 1
    assert trunk.channels[-1] == finest
    fixed = override(presets.get("core-mobile"), ["data.fit_patch=false"])
    assert for_quick_training(fixed, dataset).model.patch == fixed.model.patch
    assert for_quick_training(fixed, dataset).data == fixed.data


@pytest.mark.parametrize("preset", ["core-mobile-whole", "core-acdc", "masksam-acdc", "B2", "selfprompt-acdc", "tiny"])
def test_other_networks_are_trained_as_they_are(preset):
    dataset = SimpleNamespace(plan=make_plan(), labels=BRIGHT)
    config = fit_config(presets.get(preset), dataset)
    assert for_quick_training(presets.get(preset), dataset).model == config.model


def test_the_product_differs_by_patch_sampling_and_one_term_of_the_loss():
    dataset = SimpleNamespace(plan=make_plan(median_shape=(118, 58, 105)), labels=BRIGHT)
    long, quick = (fit(presets.get("core-mobile"), dataset) for fit in (fit_config, for_quick_training))
    different = {key for key in leaf_keys(Config) if value_at(long, key) != value_at(quick, key)}
    assert different == {
        "model.patch",
        "model.source.widths",
        "model.source.image_widths",
        "model.loss.generator_dice",
        "data.foreground",
    }


@pytest.mark.parametrize(
    "setting",
    [
        "train.epochs=3",
        "train.schedule=poly",
        "data.split_seed=4",
        "train.teacher=x",
        "data.foreground=0.5",
        "model.patch=[8,32,32]",
        "model.stem.upsample=4",
        "model.source.queries=5",
    ],
)
def test_a_setting_that_would_be_ignored_is_refused_with_the_reason(setting):
    dataset = SimpleNamespace(plan=make_plan(median_shape=(118, 58, 105)), labels=BRIGHT)
    asked = override(presets.get("core-mobile"), [setting])
    with pytest.raises(InputError) as raised:
        check_quick_settings([setting], asked, for_quick_training(asked, dataset))
    assert raised.value.where == f"--set {setting.partition('=')[0]}"
    assert raised.value.why
    assert raised.value.remedy


def test_settings_that_are_used_are_taken():
    dataset = SimpleNamespace(plan=make_plan(median_shape=(118, 58, 105)), labels=BRIGHT)
    settings = ["train.lr=1e-3", "data.fit_patch=false", "model.patch=[8,32,32]", "train.seed=3", "data.foreground=0.5"]
    asked = override(presets.get("core-mobile"), settings)
    check_quick_settings(settings, asked, for_quick_training(asked, dataset))


@pytest.mark.parametrize(("left_right", "axes"), [("always", (2,)), ("never", ())])
def test_patches_are_mirrored_from_side_to_side_alone(prepared, tmp_path, time, left_right, axes):
    config = override(PRODUCT, [f"data.left_right={left_right}"])
    used = lesson(prepared, tmp_path, time, config=for_quick_training(config, prepared))._sampler.mirror
    assert used is not None
    assert used.axes == axes


def test_cancel_stops_both_halves(prepared, tmp_path, time, taught):
    token = CancelToken()
    course = lesson(prepared, tmp_path, time, cancel=token)
    course.encode()
    token.cancel()
    with pytest.raises(Cancelled):
        course.learn(reserve=0)
    unbegun = lesson(prepared, tmp_path / "other", time, cancel=token)
    with pytest.raises(Cancelled):
        unbegun.encode()
    assert not taught
    assert not unbegun.pool.count


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, PRODUCT], ids=["tiny", "product"])
def test_it_lowers_the_loss_and_leaves_the_encoder_alone(prepared, tmp_path, time, monkeypatch, config):
    losses: list[float] = []
    optimise = Learner.optimise

    def listen(learner: Learner, *args: object, **words: object) -> dict[str, float]:
        terms = optimise(learner, *args, **words)  # type: ignore[arg-type]
        losses.append(terms["loss"])
        return terms

    time.costs(monkeypatch, Learner, "optimise", 1.0, listen)
    course = lesson(prepared, tmp_path, time, seconds=30, config=for_quick_training(config, prepared))
    before = {name: value.clone() for name, value in course.model.state_dict().items() if name.startswith("encoder.")}
    course.encode()
    course.learn(reserve=0)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    with course.averaged():
        after = course.model.state_dict()
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_every_patch_of_a_pool_comes_once_before_any_comes_again(tmp_path):
    made = PatchPool(tmp_path, seed=3)
    for number in range(4):
        made.add(batch(number))
    turns = [[int(made.batch(turn * 4 + i).label[0, 0, 0, 0]) for i in range(4)] for turn in range(6)]
    assert all(sorted(turn) == [0, 1, 2, 3] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1


def test_a_patch_comes_back_as_it_was(tmp_path):
    made = PatchPool(tmp_path, seed=0)
    given = batch(300)
    made.add(given)
    found = made.batch(0)
    assert found.label.dtype == torch.int64
    assert torch.equal(found.label, given.label)
    assert torch.equal(found.image, given.image)
    assert torch.equal(found.valid, given.valid)
    assert given.features
    assert found.features
    assert [level.shape for level in found.features.levels] == [level.shape for level in given.features.levels]
    assert torch.equal(found.features.embed.float(), given.features.embed)


def batch(number: int) -> Batch:
    """One whose labels are all `number`; the floats are exact in fp16."""
    levels = tuple(torch.full((1, c, 2, 3, 3), float(c)) for c in range(1, 13))
    features = Features(levels=levels, embed=torch.full((1, 2, 2, 3, 3), 0.5))
    label = torch.full((1, 2, 4, 4), number, dtype=torch.int64)
    return Batch(torch.full((1, 1, 2, 4, 4), 0.25), label, torch.tensor([[True, False]]), features)


# -- who is left out ---------------------------------------------------------------------------------------------------


def test_as_many_cases_are_left_out_as_asked_for_always_the_same_ones():
    held = {f"case{i}": {1, 2} for i in range(10)}
    patients = {case: case for case in held}
    split = leave_out(held, 3, patient=patients)
    assert len(split.val) == 3
    assert sorted(split.train + split.val) == sorted(held)
    assert split == leave_out(dict(reversed(held.items())), 3, patient=patients)
    assert split != leave_out(held, 3, seed=1, patient=patients)


def test_the_cases_of_a_patient_stay_together():
    held = {f"p{i}_{j}": {1} for i in range(4) for j in range(2)}
    for seed in range(8):
        split = leave_out(held, 3, seed, patient={case: case[:2] for case in held})
        assert len(split.val) == 2
        assert not {c[:2] for c in split.val} & {c[:2] for c in split.train}
        assert len(leave_out(held, 1, seed, patient={case: case[:2] for case in held}).val) == 2


def test_the_only_case_of_a_structure_is_learned_from():
    held = {"a": {1}, "b": {1, 2}, "c": {1, 3}}
    for seed in range(6):
        split = leave_out(held, 2, seed, patient={case: case for case in held})
        assert split.val == ("a",)


def test_one_case_at_least_is_learned_from():
    held = {"a": {1}, "b": {1}}
    assert len(leave_out(held, 5, patient={"a": "a", "b": "b"}).train) == 1
    assert leave_out(held, 0, patient={"a": "a", "b": "b"}).val == ()


# -- what they are asked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most_s", "cases", "step"), [(1000, 2, 0.5), (40, 2, 1.0), (20, 1, 1.0), (0.1, 1, 1.0)])
def test_an_exam_fits_into_its_time(prepared, most_s, cases, step):
    """A case is 10x32x32 voxels, of windows 4x16x16: 36 of them with overlap, 12 without, and 6 for its users."""
    config = fit_config(MIXED, prepared)
    exam = plan_hold_out(prepared, config, prepared.ids[:2], window_s=1.0, most_s=most_s)
    assert (len(exam.cases), exam.step) == (cases, step)
    windows = {0.5: 36, 1.0: 12}[step]
    assert exam.seconds == cases * (windows + 6)


def test_a_model_without_prompts_has_no_users(prepared):
    config = fit_config(presets.get("tiny"), prepared)
    assert plan_hold_out(prepared, config, prepared.ids[:1], window_s=1.0, most_s=100).seconds == 36


def test_without_cases_there_is_no_exam(prepared):
    exam = plan_hold_out(prepared, fit_config(MIXED, prepared), (), window_s=1.0, most_s=100)
    assert exam.cases == ()
    assert exam.seconds == 0


# -- what is one piece -------------------------------------------------------------------------------------------------


def ball(*centres: tuple[int, int, int], value: int = 1) -> np.ndarray:
    array: np.ndarray = np.zeros((12, 24, 24), np.uint8)
    for centre in centres:
        away = sum((axis - c) ** 2 for axis, c in zip(np.indices(array.shape), centre, strict=True))
        array[away <= 16] = value
    return array


@pytest.mark.parametrize(
    ("maps", "mode"),
    [
        ([ball((6, 6, 6)), ball((6, 12, 12))], "both"),
        ([ball((6, 6, 6)) + ball((6, 18, 18), value=2)], "each"),
        ([ball((6, 6, 6)), ball((6, 6, 6), (6, 18, 18))], "none"),
        ([np.maximum(ball((6, 6, 5), (6, 6, 18)), ball((6, 6, 11), value=2))], "foreground"),
        ([ball() + 0, ball((6, 6, 6))], "both"),
        ([ball((6, 6, 6))] * 59 + [ball((6, 6, 6), (6, 18, 18))], "both"),
        ([ball((6, 6, 6))] * 9 + [ball((6, 6, 6), (6, 18, 18))], "none"),
    ],
)
def test_labels_tell_what_is_in_one_piece(maps, mode):
    assert suggest_largest(maps) == mode


def test_a_stray_voxel_does_not_make_two_pieces():
    array = ball((6, 12, 12))
    array[0, 0, 0] = 1
    assert suggest_largest([array]) == "both"


def test_the_clock_tells_how_much_of_the_whole_time_is_over(time):
    told: list[tuple[int, int, str]] = []
    clock = TimeBudget(60, began=-6.0, now=time)
    tell = clock.progress_of_time(lambda *event: told.append(event))
    for now in (0.0, 30.5, 90.0):
        time.now = now
        tell(1, 3, "learning")
    assert told == [(6, 60, "learning"), (36, 60, "learning"), (60, 60, "learning")]
    assert math.isclose(clock.left, -36)
