"""A model in minutes: what stands behind SAM's frozen encoder, trained against the clock (model.md §14.4)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from MaskSAMCore.config.schema import TOKEN_STRIDE, Config, ModelConfig
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.data.sampling import PatchSampler
from MaskSAMCore.data.splits import Split
from MaskSAMCore.device import autocast_dtype, trains_in_bf16
from MaskSAMCore.errors import ResourceError
from MaskSAMCore.losses.set_loss import build_loss
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.network.types import Features
from MaskSAMCore.preprocessing.plan import Shape, fit_patch, mirror_rule
from MaskSAMCore.progress import CancelToken, Progress
from MaskSAMCore.training.batches import Batch, prefetch
from MaskSAMCore.training.learner import Learner, Practice
from MaskSAMCore.training.pool import PatchPool

FIRST_STEPS = 6
"""After so many steps the speed is known; the first of them is slower and does not count."""

TINY_PLANE = 32
"""A slice of so many pixels is enlarged four times for SAM, one of twice as many twice, and others are not."""


@dataclass(frozen=True)
class Size:
    """Of the patches and the trunk: a step on a CPU takes about a second, by the kernels at the finest size.

    Attributes:
        depth: Slices that a patch has, where the scan has them.
        voxels: Most of them; whole slices where `depth` of them are no more, else the longer side is shortened.
        trunks: `source.widths` and `source.image_widths` by what the scan is enlarged by; all reach its size.
    """

    depth: int
    voxels: int
    trunks: dict[int, tuple[tuple[int, ...], tuple[int, ...]]]


SLICES = Size(
    8,
    150_000,
    {
        1: ((96, 96, 64, 48, 32), (16, 32, 64, 96)),
        2: ((96, 96, 64, 32), (16, 48, 96)),
        4: ((128, 64, 32), (16, 32, 64)),
    },
)
"""For convolutions within slices, and for single slices."""
VOLUMES = Size(24, 81_000, {**SLICES.trunks, 1: ((64, 64, 48, 32, 16), (16, 32, 48, 64))})
"""For those in three dimensions, whose kernels have three times as many weights. Smaller patches, more of them around
structures, found more of a neck's small ones in the same time (docs/EXPERIMENTS.md)."""
SPARSE, FOREGROUND = 0.2, 0.8
"""Patches smaller than the one share of a scan are centred on a structure in the other share of the draws."""

WORTH_IT = 0.8
"""Share of float32's time below which a CPU trains in bf16; CPUs that cannot compute in it take longer, not less."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a lesson uses its time.

    Attributes:
        encoding: Share of the time that is left, at most, for encoding patches.
        patches: Fewest and most of them.
        steps: Fewest that make a model, and most that still help.
        rate: Learning rate, in multiples of the preset's, which is for longer runs.
        warm_up: Share of the learning in which it rises.
        generator_first: Share of the learning that begins with the generator alone: a step without the decoder takes
            a third of the time, and the decoder then begins with sensible prompts (as in §9.4).
        auto_chance: Of an automatic step after it.
        generator_kept: The same share where automatic mode ends with the generator, and prompts leave it as it is: the
            rest is for prompts.
    """

    encoding: float = 0.2
    patches: tuple[int, int] = (8, 160)
    steps: tuple[int, int] = (60, 1600)
    rate: float = 2.0
    warm_up: float = 0.05
    generator_first: float = 0.3
    auto_chance: float = 0.5
    generator_kept: float = 0.7


class Clock:
    """The seconds that a lesson may take.

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

    def told_to(self, progress: Progress) -> Progress:
        """A progress that tells stages by their text, and how much of the whole time is over."""

        def tell(done: int, total: int, text: str) -> None:
            whole = max(1, round(self.seconds))
            progress(min(max(0, int(self.passed)), whole), whole, text)

        return tell


class Lesson:
    """Trains one network from a prepared data set; nothing is kept but the network.

    Args:
        model: With its base weights, and nothing trained yet.
        config: The preset, fitted to the data set.
        dataset: Prepared.
        split: Cases to learn from; the others are not looked at.
        folder: For the encoded patches.
        device: Where to compute.
        clock: The time for everything.
        rules: How to use it.
        note: Receives lines for the user.
        progress: Told after every patch and step.
        cancel: Asked before every patch and step.

    Attributes:
        steps: Done.
        pool: The patches.
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
        clock: Clock,
        rules: Rules | None = None,
        note: Callable[[str], None],
        progress: Progress,
        cancel: CancelToken,
    ) -> None:
        self.rules, self.clock, self.note, self.cancel = rules or Rules(), clock, note, cancel
        self._progress = clock.told_to(progress)
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
        return self._learner.model

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return self._learner.step

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._learner.device

    @property
    def averaged(self) -> Any:
        """A context in which the network has its averaged weights, the ones to keep, and is ready for inference."""
        return self._learner.averaged

    @property
    def precision(self) -> str:
        """What it computes in."""
        dtype = self._learner.dtype
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32") if dtype is not None else "fp32"

    def choose_precision(self) -> None:
        """Train in bf16 where this CPU is faster with it, and safe; what was asked for, or suits a GPU, stays."""
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
        """Fill the pool, as far as its time and the disk allow.

        Raises:
            ResourceError: The disk takes too little.
            Cancelled: `cancel` was set.
        """
        least, most = self.rules.patches
        most = min(most, self.rules.steps[1])
        end = self.clock.passed + self.rules.encoding * self.clock.left
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
        """What one window takes in use; measured on a patch of the pool."""
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
            ResourceError: The speed of the first steps tells that the time is too short for a model.
            MaskSAMError: The loss is no number.
            Cancelled: `cancel` was set.
        """
        learner = self._learner
        learner.model.train()
        learner.model.set_adapters(False)
        began, length = self.clock.passed, self.clock.left - reserve
        batches = prefetch(self.pool.batch, range(self.rules.steps[1]))
        first = began
        try:
            while (done := self._done(began, length)) < 1:
                self.cancel.check()
                learner.optimise(batches, lr=self._rate(done), practice=self._practice(done))
                learner.step += 1
                self._progress(0, 0, "learning")
                if learner.step == 1:
                    first = self.clock.passed
                elif learner.step == FIRST_STEPS:
                    self._look_ahead((self.clock.passed - first) / (FIRST_STEPS - 1), began + length)
        finally:
            batches.close()  # type: ignore[attr-defined]
            learner.model.set_adapters(True)
        if self.steps < FIRST_STEPS:
            self._look_ahead((self.clock.passed - began) / max(self.steps, 1), began + length)

    def _done(self, began: float, length: float) -> float:
        """Share of the learning that is over, by the clock or by the number of steps."""
        by_clock = (self.clock.passed - began) / length if length > 0 else 1.0
        return max(by_clock, self.steps / self.rules.steps[1])

    def _rate(self, done: float) -> float:
        """The rate: a short rise, then half a cosine to zero; for prompts behind a kept generator once more."""
        if self._learner.cfg.keep_generator:
            kept = self.rules.generator_kept
            done = done / kept if done < kept else (done - kept) / (1 - kept)
        rise = min(1.0, done / self.rules.warm_up + 1e-2)
        return self.rules.rate * self._learner.cfg.lr * rise * 0.5 * (1 + math.cos(math.pi * done))

    def _practice(self, done: float) -> Practice:
        """What the next step trains; the first steps take the decoder where automatic mode does, to know their pace."""
        cfg, rules = self._learner.cfg, self.rules
        first = rules.generator_kept if cfg.keep_generator else rules.generator_first
        if self._learner.config.model.names_masks and self.steps >= FIRST_STEPS and done < first:
            return Practice.GENERATOR
        prompts = cfg.mode == "prompt" or (cfg.keep_generator and done >= first)
        if cfg.mode == "mixed" and not cfg.keep_generator and done >= first:
            chance = np.random.default_rng([cfg.seed, 6, self.steps]).random()
            prompts = bool(chance >= rules.auto_chance)
        return Practice.PROMPTS if prompts else Practice.AUTOMATIC

    def _look_ahead(self, pace: float, end: float) -> None:
        least, most = self.rules.steps
        expected = min(most, self.steps + max(0, int((end - self.clock.passed) / max(pace, 1e-6))))
        self.note(f"{self.pool.count} patches, {self.precision}, {pace:.2f} s per step: {expected} steps or more")
        if expected < least:
            missing = (least - expected) * pace
            minutes = math.ceil((self.clock.seconds + 1.2 * missing) / 60)
            raise ResourceError(
                "the time is too short for a model",
                why=f"about {expected} steps fit into it, {least} are needed at least",
                remedy=f"Give it {minutes} minutes (--minutes {minutes}), or use a GPU.",
            )


def for_lesson(config: Config, median_shape: Shape | None = None) -> Config:
    """A fitted preset that learns from few steps: a query of its own for every class, and no more of them.

    What is to be matched first, and a query that stands for nothing, cost steps and time. So does a decoder between the
    generator's masks and the result: automatic mode ends with those masks, and clicks are learned behind them, starting
    from the one that is meant. Scans come in one orientation, and a few hundred steps do not suffice to tell a front
    from a back that are exchanged in every other patch; so left and right alone are.

    Where the trunk reads the scan itself, SAM sees it smaller than the preset would show it, and patches are deeper,
    with parts of large slices in them, as in the recipes, so that a step stays short; where they are a small part of a
    scan, most lie around a structure (docs/EXPERIMENTS.md).

    Args:
        config: Fitted to the cases.
        median_shape: (D, H, W) of the prepared cases, for the patch; None leaves it as it is.
    """
    config = replace(config, data=replace(config.data, mirroring="sides"))
    model = config.model
    if model.source.kind != "query":
        return config
    if not model.source.mask:
        loss = replace(model.loss, assignment="own")
        source = replace(model.source, queries=model.classes)
        return replace(config, model=replace(model, source=source, loss=loss))
    model = replace(
        model,
        enc_adapter=replace(model.enc_adapter, kind="none"),
        depth=replace(model.depth, pe_encoder=False),
        source=replace(model.source, queries=model.classes, box=False, fusion="mask", class_tokens=False),
        decoder=replace(model.decoder, kind="none", click_masks=model.decoder.click_maps),
        loss=replace(model.loss, assignment="own", generator=1.0, generator_dice="log"),
    )
    if median_shape is not None and config.data.fit_patch and model.source.image_widths:
        model = _smaller(model, median_shape)
        if math.prod(model.patch) < SPARSE * math.prod(median_shape):
            config = replace(config, data=replace(config.data, foreground=FOREGROUND))
    return replace(config, model=model, train=replace(config.train, keep_generator=config.train.mode == "mixed"))


def _smaller(model: ModelConfig, median_shape: Shape) -> ModelConfig:
    """The patch, what it is enlarged by for SAM, and the trunk that goes with it."""
    longest = max(median_shape[1:])
    upsample: Literal[1, 2, 4] = 4 if longest <= TINY_PLANE else 2 if longest <= 2 * TINY_PLANE else 1
    size = SLICES if model.source.in_plane or median_shape[0] == 1 else VOLUMES
    depth, height, width = fit_patch(median_shape, upsample=upsample, depth=size.depth)
    while depth * height * width > size.voxels:
        # Of equal sides the one of which the scan has less.
        if (height, -median_shape[1]) > (width, -median_shape[2]):
            height -= TOKEN_STRIDE
        else:
            width -= TOKEN_STRIDE
    depth = min(median_shape[0], size.voxels // (height * width))
    widths, image_widths = size.trunks[upsample]
    source = replace(model.source, widths=widths, image_widths=image_widths)
    patch = (depth, height, width)
    return replace(model, patch=patch, stem=replace(model.stem, upsample=upsample), source=source)


def as_done(config: Config, steps: int) -> Config:
    """A configuration as the card tells it: what was done, rather than what the preset would do."""
    train = replace(
        config.train, epochs=1, iterations=steps, frozen_epochs=1, frozen_copies=1, generator_epochs=0, warmup_steps=0
    )
    return replace(config, train=train)
