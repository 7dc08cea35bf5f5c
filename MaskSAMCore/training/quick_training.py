"""Quick training: what follows SAM's frozen encoder is trained against the clock (model.md §14.4)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import split_assignment
from MaskSAMCore.config.settings import Overruled, check_kept
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.data.sampling import PatchSampler
from MaskSAMCore.data.splits import Split
from MaskSAMCore.device import autocast_dtype, trains_in_bf16
from MaskSAMCore.errors import InputError, ResourceError
from MaskSAMCore.losses.set_loss import build_loss
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.network.types import Features
from MaskSAMCore.preprocessing.plan import mirror_rule
from MaskSAMCore.progress import CancelToken, Progress
from MaskSAMCore.training.batches import Batch, prefetch
from MaskSAMCore.training.fit import FITTED_SETTINGS, IN_PLANE, PatchSize, fit_config
from MaskSAMCore.training.learner import Learner, Objective
from MaskSAMCore.training.pool import PatchPool

FIRST_STEPS = 6
"""Steps after which the speed is known; the first of them is slower and does not count."""

VOLUMES = PatchSize(24, 81_000, {**IN_PLANE.trunks, 1: ((64, 64, 48, 32, 16), (16, 32, 48, 64))})
"""For convolutions in three dimensions. Smaller patches, more of them around structures, found more of a neck's small
structures in the same time (docs/EXPERIMENTS.md)."""
SPARSE, FOREGROUND = 0.2, 0.8
"""Patches smaller than the one share of a scan are centred on a structure in the other share of the draws."""

WORTH_IT = 0.8
"""Share of float32's time below which a CPU trains in bf16; CPUs that cannot compute in it take longer, not less."""
OR_TRAIN = "Leave it out, or use the command train."
_BY_THE_CLOCK = Overruled(why="the training follows the clock (--minutes, --steps)", remedy=OR_TRAIN)
_BY_THE_CASES = Overruled(why="cases are left out by --left-out", remedy=OR_TRAIN)
_NO_STUDENT = Overruled(why="there is no teacher", remedy=OR_TRAIN)
UNUSED: dict[str, Overruled] = {
    **dict.fromkeys(
        (
            "train.schedule",
            "train.warmup_steps",
            "train.warmup_epochs",
            "train.epochs",
            "train.iterations",
            "train.stop_epoch",
            "train.frozen_epochs",
            "train.frozen_copies",
            "train.generator_epochs",
            "train.validate_every",
            "train.validate_cases",
        ),
        _BY_THE_CLOCK,
    ),
    **dict.fromkeys(("train.folds", "data.split_seed"), _BY_THE_CASES),
    **dict.fromkeys(("train.seg_share", "train.teacher", "train.answers"), _NO_STUDENT),
}
"""Settings without any effect on quick training."""
DECIDED: dict[str, Overruled] = {
    "model.loss.generator_dice": Overruled(why="quick training uses log, for few steps", remedy=OR_TRAIN),
    "data.foreground": Overruled(
        why="patches are a small part of these scans", remedy="Leave it out, or set data.fit_patch=false as well."
    ),
}
"""Settings that quick training decides."""


@dataclass(frozen=True, kw_only=True)
class TimeShares:
    """How quick training uses its time.

    Attributes:
        encoding: Share of the time that is left, at most, for encoding patches.
        patches: Fewest and most of them.
        steps: Fewest that make a model, and most that still help.
        warm_up: Share of the training in which the learning rate rises.
        generator_first: First share of the training, for the generator alone: a step without the decoder takes a third
            of the time, and the decoder then starts with sensible prompts (model.md §9.4).
        auto_chance: Probability of an automatic step after that.
        generator_kept: The same first share where prompts leave the generator as it is (`train.keep_generator`); all
            later steps are for prompts.
    """

    encoding: float = 0.2
    patches: tuple[int, int] = (8, 160)
    steps: tuple[int, int] = (60, 1600)
    warm_up: float = 0.05
    generator_first: float = 0.3
    auto_chance: float = 0.5
    generator_kept: float = 0.7


class TimeBudget:
    """Seconds that something may take, all in all.

    Args:
        seconds: From `began` to the end.
        began: When `now` counted from; None for this moment.
        now: Seconds that only grow.
    """

    def __init__(
        self, seconds: float, *, began: float | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds, self._now = seconds, now
        self._began = now() if began is None else began

    @property
    def passed(self) -> float:
        """Seconds since the beginning."""
        return self._now() - self._began

    @property
    def left(self) -> float:
        """Seconds until the end; negative behind it."""
        return self.seconds - self.passed

    def progress_of_time(self, progress: Progress) -> Progress:
        """A progress that shows the stage's text, and how much of the whole time is over."""

        def report(done: int, total: int, text: str) -> None:
            whole = max(1, round(self.seconds))
            progress(min(max(0, int(self.passed)), whole), whole, text)

        return report


class QuickTraining:
    """Trains one network from a prepared data set against the clock; only the network is kept.

    Args:
        model: With its base weights, and nothing trained yet.
        config: The preset, fitted to the data set.
        dataset: Prepared.
        split: Its training cases are used; the others are not read.
        folder: For the encoded patches.
        device: Where to compute.
        clock: The time for everything.
        shares: How to use it.
        log: Called with lines of text for the user.
        progress: Called after every patch and step.
        cancel: Checked before every patch and step.

    Attributes:
        pool: The encoded patches.
    """

    def __init__(
        self,
        model: Segmenter,
        config: Config,
        *,
        dataset: PreparedDataset,
        split: Split,
        folder: Path,
        device: torch.device,
        clock: TimeBudget,
        shares: TimeShares | None = None,
        log: Callable[[str], None],
        progress: Progress,
        cancel: CancelToken,
    ) -> None:
        self.shares, self.clock, self.log, self.cancel = shares or TimeShares(), clock, log, cancel
        self._progress = clock.progress_of_time(progress)
        self._model = model
        self._learner = Learner(
            model=model,
            config=config,
            criterion=build_loss(config.model),
            device=device,
            dtype=autocast_dtype(device, config.train.precision),
        )
        self.pool = PatchPool(folder, seed=config.train.seed)
        self._sampler = PatchSampler(
            dataset,
            split.train,
            patch=config.model.patch,
            batch=config.train.batch,
            foreground=config.data.foreground,
            seed=config.train.seed,
            augment=config.data.augment,
            mirror=mirror_rule(dataset.plan, dataset.labels, config.data),
        )

    @property
    def model(self) -> Segmenter:
        """The network; see `averaged` for its weights."""
        return self._model

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return self._learner.step

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._learner.device

    @property
    def averaged(self) -> Callable[[], AbstractContextManager[None]]:
        """Makes a context in which the network has its averaged weights, which are saved, ready for inference."""
        return self._learner.averaged

    @property
    def precision(self) -> str:
        """Number format of the training."""
        dtype = self._learner.dtype
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32") if dtype is not None else "fp32"

    def choose_precision(self) -> None:
        """Train in bf16 where this CPU is faster with it, and safe; an explicit setting and a GPU's choice are kept."""
        if self.device.type != "cpu" or self._learner.cfg.precision != "auto" or not trains_in_bf16(self.device):
            return
        image = self._sampler.batch(0).image
        seconds: dict[torch.dtype | None, float] = {}
        for dtype in (None, torch.bfloat16, None, torch.bfloat16):
            self._learner.dtype = dtype
            began = self.clock.passed
            self._frozen(image)
            seconds[dtype] = min(self.clock.passed - began, seconds.get(dtype, math.inf))
        if seconds[torch.bfloat16] >= WORTH_IT * seconds[None]:
            self._learner.dtype = None

    def encode(self) -> None:
        """Fill the pool as far as time and disk allow.

        Raises:
            ResourceError: The disk is too small.
            Cancelled: `cancel` was set.
        """
        least, most = self.shares.patches
        most = min(most, self.shares.steps[1])
        end = self.clock.passed + self.shares.encoding * self.clock.left
        while self.pool.count < most:
            self.cancel.check()
            if self.pool.count >= least and (self.clock.passed >= end or self.pool.full):
                break
            drawn = self._sampler.batch(self.pool.count)
            batch = Batch(drawn.image, drawn.label, drawn.valid)
            batch.features = self._frozen(drawn.image.to(self.device))
            self.pool.add(batch)
            self._progress(0, 0, "encoding patches")

    @torch.inference_mode()
    def _frozen(self, image: torch.Tensor) -> Features:
        self.model.eval()
        dtype = self._learner.dtype
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            return self.model.encode_frozen(image)

    def seconds_per_window(self) -> float:
        """Seconds of one window of inference; measured on a patch of the pool."""
        self.model.eval()
        image = self.pool.batch(0).image[:1].to(self.device)
        times = []
        for _ in range(2):  # the first is slower
            began = self.clock.passed
            with torch.inference_mode():
                self.model.segment_patch(image).sum().item()
            times.append(self.clock.passed - began)
        return times[-1]

    def learn(self, *, reserve: float) -> None:
        """Train until only `reserve` seconds are left; the schedule follows the clock.

        Raises:
            ResourceError: By the speed of the first steps, the time is too short for a model.
            MaskSAMError: The loss is not finite.
            Cancelled: `cancel` was set.
        """
        learner, model = self._learner, self._model
        model.train()
        model.set_adapters(False)
        began, length = self.clock.passed, self.clock.left - reserve
        batches = prefetch(self.pool.batch, range(self.shares.steps[1]))
        first = began
        try:
            while (done := self._done(began, length)) < 1:
                self.cancel.check()
                learner.optimise(batches, lr=self._rate(done), objective=self._objective(done))
                learner.step += 1
                self._progress(0, 0, "learning")
                if learner.step == 1:
                    first = self.clock.passed
                elif learner.step == FIRST_STEPS:
                    self._look_ahead((self.clock.passed - first) / (FIRST_STEPS - 1), began + length)
        finally:
            batches.close()
            model.set_adapters(True)
        if self.steps < FIRST_STEPS:
            self._look_ahead((self.clock.passed - began) / max(self.steps, 1), began + length)

    def _done(self, began: float, length: float) -> float:
        """Share of the learning that is over, by the clock or by the number of steps."""
        by_clock = (self.clock.passed - began) / length if length > 0 else 1.0
        return max(by_clock, self.steps / self.shares.steps[1])

    def _rate(self, done: float) -> float:
        """The rate: a short rise, then half a cosine to zero; for prompts behind a kept generator once more."""
        if self._learner.cfg.keep_generator:
            kept = self.shares.generator_kept
            done = done / kept if done < kept else (done - kept) / (1 - kept)
        rise = min(1.0, done / self.shares.warm_up + 1e-2)
        return self._learner.cfg.lr * rise * 0.5 * (1 + math.cos(math.pi * done))

    def _objective(self, done: float) -> Objective:
        """What the next step trains; the first steps run all of automatic mode, to measure their speed."""
        cfg, shares = self._learner.cfg, self.shares
        first = shares.generator_kept if cfg.keep_generator else shares.generator_first
        if self._learner.config.model.names_masks and self.steps >= FIRST_STEPS and done < first:
            return Objective.GENERATOR
        prompts = cfg.mode == "prompt" or (cfg.keep_generator and done >= first)
        if cfg.mode == "mixed" and not cfg.keep_generator and done >= first:
            chance = np.random.default_rng([cfg.seed, 6, self.steps]).random()
            prompts = bool(chance >= shares.auto_chance)
        return Objective.PROMPTS if prompts else Objective.AUTOMATIC

    def _look_ahead(self, pace: float, end: float) -> None:
        least, most = self.shares.steps
        expected = min(most, self.steps + max(0, int((end - self.clock.passed) / max(pace, 1e-6))))
        self.log(f"{self.pool.count} patches, {self.precision}, {pace:.2f} s per step: {expected} steps or more")
        if expected < least:
            missing = (least - expected) * pace
            minutes = math.ceil((self.clock.seconds + 1.2 * missing) / 60)
            raise ResourceError(
                "the time is too short for a model",
                why=f"about {expected} steps fit into it, {least} are needed at least",
                remedy=f"Give it {minutes} minutes (--minutes {minutes}), or use a GPU.",
            )


def for_quick_training(config: Config, dataset: PreparedDataset) -> Config:
    """A preset fitted to a data set, with what makes a few hundred steps go further (docs/EXPERIMENTS.md).

    Patches in three dimensions are smaller than those of a long training, so that a step is short; where they are a
    small part of a scan, most lie around a structure. The generator's loss makes more of structures that it has not
    found yet.

    Args:
        config: The preset, with the settings of the user.
        dataset: Prepared.
    """
    config = fit_config(config, dataset, volumes=VOLUMES)
    model = config.model
    if model.owns_masks and model.loss.generator:
        model = replace(model, loss=replace(model.loss, generator_dice="log"))
    data = config.data
    if data.fit_patch and math.prod(model.patch) < SPARSE * math.prod(dataset.plan.median_shape):
        data = replace(data, foreground=FOREGROUND)
    return replace(config, model=model, data=data)


def check_quick_settings(settings: Sequence[str], asked: Config, used: Config) -> None:
    """Refuse settings that quick training does not use, or decides itself.

    Args:
        settings: KEY=VALUE, as the user gave them.
        asked: The configuration with these settings.
        used: The result of `for_quick_training`.

    Raises:
        InputError: Names the setting and the reason.
    """
    for key in (split_assignment(text)[0] for text in settings):
        if key in UNUSED:
            raise InputError("not used by quick training", where=f"--set {key}", why=UNUSED[key].why, remedy=OR_TRAIN)
    check_kept(settings, asked, used, FITTED_SETTINGS | DECIDED)


def as_trained(config: Config, steps: int) -> Config:
    """The configuration for the model's card: the training that was done, in place of the preset's."""
    train = replace(
        config.train, epochs=1, iterations=steps, frozen_epochs=1, frozen_copies=1, generator_epochs=0, warmup_steps=0
    )
    return replace(config, train=train)
