"""The training loop: frozen phase, then the whole network; every step a function of its number (model.md §14)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from MaskSAMCore.config.schema import Config, TrainConfig
from MaskSAMCore.config.serialize import from_dict, leaf_keys, to_dict, value_at
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.build import is_frozen
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.progress import Cancelled, CancelToken, Progress
from MaskSAMCore.training import checkpoint as checkpoints
from MaskSAMCore.training.batches import Batch, prefetch
from MaskSAMCore.training.learner import Learner, Objective
from MaskSAMCore.training.run_record import CHECKPOINTS
from MaskSAMCore.training.schedule import learning_rate

AUTO_SHARE = 0.2
"""Share of the steps that begins a `mixed` training in automatic mode (model.md §14.3)."""
AUTO_CHANCE = 0.5
"""Probability of an automatic step after them."""


@dataclass(kw_only=True)
class Hooks:
    """Callbacks of the training loop.

    Attributes:
        validate: Takes the averaged model and the epoch; returns figures, "val dice" their mean.
        release: Called after every validation and at the end; writes the model folder.
        add_row: Called with every finished epoch's row of metrics.csv.
        log: Called with a line of text for the user.
        progress: Called after every step.
        cancel: Checked after every step.
    """

    validate: Callable[[Segmenter, int], dict[str, float]]
    release: Callable[[Segmenter, dict[str, float], int], None]
    add_row: Callable[[dict[str, Any]], None]
    log: Callable[[str], None]
    progress: Progress
    cancel: CancelToken = field(default_factory=CancelToken)


@dataclass(kw_only=True)
class Sources:
    """Where batches come from; both take (micro-step, rank).

    Attributes:
        full: Patches.
        frozen: Patches with the features of the frozen encoder, for the first phase; None to encode those of `full`.
    """

    full: Callable[[int, int], Batch]
    frozen: Callable[[int, int], Batch] | None = None


def objective_at(step: int, cfg: TrainConfig) -> Objective:
    """What a step trains (model.md §2.4, §9.4, §11, §14.3).

    A generator that prompts leave as it is (`keep_generator`) has finished its training when they begin.
    """
    if step < cfg.generator_epochs * cfg.iterations:
        return Objective.GENERATOR
    if cfg.mode == "distill":
        return Objective.DISTILLATION
    prompts = cfg.mode == "prompt"
    if cfg.mode == "mixed" and cfg.keep_generator and cfg.generator_epochs:
        prompts = True
    elif cfg.mode == "mixed" and step >= AUTO_SHARE * cfg.epochs * cfg.iterations:
        prompts = bool(np.random.default_rng([cfg.seed, 6, step]).random() >= AUTO_CHANCE)
    return Objective.PROMPTS if prompts else Objective.AUTOMATIC


class Trainer(Learner):
    """Trains one model into one folder.

    Args:
        sources: Where batches come from.
        hooks: Callbacks.
        folder: Folder of the run; receives the checkpoints.
        base: Name and hash of the base weights, kept in every checkpoint.
        learner: Arguments of `Learner`.
    """

    if_it_diverges = "The last checkpoint is kept. Start a new run with a lower train.lr, or with train.precision=fp32."

    def __init__(self, *, sources: Sources, hooks: Hooks, folder: Path, base: dict[str, str], **learner: Any) -> None:
        super().__init__(**learner)
        self.sources, self.hooks, self.folder, self.base = sources, hooks, folder / CHECKPOINTS, base
        self.best = 0.0

    @property
    def frozen_steps(self) -> int:
        """Steps of the first phase."""
        return self.cfg.frozen_epochs * self.cfg.iterations

    @property
    def generator_steps(self) -> int:
        """Steps that train the generator alone; until then the model's scores are the generator's own."""
        return self.cfg.generator_epochs * self.cfg.iterations

    def run(self) -> None:
        """Train to the end.

        Raises:
            Cancelled: Asked to stop; the state of the last finished step is saved.
            MaskSAMError: The loss is not finite; the last checkpoint is kept.
        """
        epochs = min(self.cfg.epochs, self.cfg.stop_epoch or self.cfg.epochs)
        for epoch in range(self.step // self.cfg.iterations, epochs):
            row = self._epoch(epoch)
            last = epoch + 1 == epochs
            due = self.cfg.validate_every and (epoch + 1) % self.cfg.validate_every == 0
            phase_ends = self.step in (self.frozen_steps, self.generator_steps)
            if self.rank == 0 and (last or due or phase_ends):
                with self.averaged():
                    figures = self.hooks.validate(self.model, epoch + 1)
                    self.best = max(self.best, figures.get("val dice", 0.0))
                    self.hooks.release(self.model, figures, self.step)
                row |= figures
            if self.rank == 0:
                # The row first: a resumed run drops rows ahead of its checkpoint, but cannot make a missing one.
                self.hooks.add_row({"epoch": epoch + 1, "step": self.step, **row})
                self.save()
            if self.world > 1:
                torch.distributed.barrier()

    def trial(self, steps: int = 3) -> None:
        """Run a few steps of each phase and log time and memory; nothing is saved."""
        cfg, total = self.cfg, self.cfg.epochs * self.cfg.iterations
        frozen = min(cfg.frozen_epochs, cfg.epochs) * cfg.iterations
        for phase, run in (("frozen", range(frozen)), ("full", range(frozen, total))):
            if not run:
                continue
            self.model.train()
            self.model.set_adapters(phase == "full")
            objectives = Counter(objective_at(step, cfg) for step in run)
            seconds = sum(n * self._pace(phase == "frozen", objective, steps) for objective, n in objectives.items())
            self.hooks.log(
                f"{phase} phase: {seconds / len(run):.2f} s per step, {len(run)} steps, about {seconds / 60:.0f} min; "
                f"{memory(self.device)} at most so far"
            )

    def _pace(self, frozen: bool, objective: Objective, steps: int) -> float:
        """Seconds of a step, the median of a few."""
        times = []
        for index in range(steps * self.cfg.accumulate):
            batches = iter([self.sources.full(index, self.rank)] * self.cfg.accumulate)
            if frozen:
                batches = self._encoded(batches)
                if self.cfg.frozen_copies:  # the encoder is run before the training
                    batches = iter(list(batches))
            began = time.monotonic()
            lr = learning_rate(self.cfg, self.step)
            self.optimise(batches, lr=lr, objective=objective)
            times.append(time.monotonic() - began)
        return sorted(times)[len(times) // 2]

    def _epoch(self, epoch: int) -> dict[str, Any]:
        self.model.train()
        frozen = self.step < self.frozen_steps
        source = (frozen and self.sources.frozen) or self.sources.full
        self.model.set_adapters(not frozen)
        # Stays until the next epoch: validation and release use what was trained.
        self.model.set_decoder(self.step >= self.generator_steps)
        per_step = self.cfg.accumulate
        last = (epoch + 1) * self.cfg.iterations
        micro = range(self.step * per_step, last * per_step)
        began, first = time.monotonic(), self.step
        sums, counts = dict[str, float](), dict[str, int]()
        patches = prefetch(lambda index: source(index, self.rank), micro)
        batches = self._encoded(patches) if frozen else patches
        try:
            while self.step < last:
                lr = learning_rate(self.cfg, self.step)
                terms = self.optimise(batches, lr=lr, objective=objective_at(self.step, self.cfg))
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value
                    counts[name] = counts.get(name, 0) + 1
                self.step += 1
                self._report(began, first, sums)
                if self.hooks.cancel.cancelled:
                    if self.rank == 0:
                        self.save()
                    raise Cancelled(
                        f"stopped after step {self.step}; go on with --resume", exit_code=self.hooks.cancel.exit_code
                    )
        finally:
            patches.close()
        count = self.step - first
        lr = learning_rate(self.cfg, self.step - 1)
        seconds = (time.monotonic() - began) / max(count, 1)
        phase = "frozen" if frozen else "full"
        means = {name: round(value / counts[name], 6) for name, value in sums.items()}
        return {"phase": phase, "lr": lr, "seconds_per_step": round(seconds, 4), **means}

    def _encoded(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches with features of the frozen encoder, computed where they are missing."""
        for batch in batches:
            if batch.features is None and isinstance(self.model, MaskSAM):
                batch = batch.to(self.device)
                with torch.no_grad(), self.autocast():
                    batch.features = self.model.encode_frozen(batch.image)
            yield batch

    def _report(self, began: float, first: int, sums: dict[str, float]) -> None:
        done = self.step - first
        total = self.cfg.epochs * self.cfg.iterations
        if self.rank == 0 and done == min(5, self.cfg.iterations) and (first in (0, self.frozen_steps)):
            rate = (time.monotonic() - began) / done
            phase_end = self.frozen_steps if self.step <= self.frozen_steps else total
            left = rate * (phase_end - self.step) / 60
            self.hooks.log(
                f"{rate:.2f} s per step, {memory(self.device)}; about {left:.0f} min to the end of this phase"
            )
        self.hooks.progress(self.step, total, f"loss {sums.get('loss', 0.0) / done:.3f}")

    def save(self) -> None:
        """Write the state after the last finished step."""
        tensors = {f"model.{n}": p.detach() for n, p in self.trainable.items()}
        tensors |= {f"ema.{n}": value for n, value in self.ema.items()}
        states, scalars = checkpoints.pack_optimizer(self.optimizer)
        meta = {
            "step": self.step,
            "best": self.best,
            "config": to_dict(self.config),
            "base": self.base,
            "optimizer": scalars,
            "scaler": self.scaler.state_dict(),
        }
        checkpoints.save(self.folder, checkpoints.Checkpoint(tensors={**tensors, **states}, meta=meta))

    def resume(self) -> None:
        """Continue from the newest whole checkpoint.

        Raises:
            ModelError: There is none, or it belongs to another configuration or other base weights.
        """
        stored, problems = checkpoints.newest(self.folder)
        for problem in problems:
            self.hooks.log(f"skipped: {problem}")
        config = from_dict(Config, stored.meta["config"], where="config")
        differences = [
            f"{key}: {value_at(config, key)!r} there, {value_at(self.config, key)!r} now"
            for key in leaf_keys(Config)
            if key != "preset" and value_at(config, key) != value_at(self.config, key)
        ]
        if stored.meta["base"] != self.base:
            differences.append(f"base weights: {stored.meta['base']} there, {self.base} now")
        if differences:
            raise ModelError(
                "the checkpoint belongs to another training",
                where=self.folder,
                why="; ".join(differences),
                remedy="Resume with the options that the run was started with.",
            )
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(stored.tensors[f"model.{name}"])
                if self.ema:
                    self.ema[name].copy_(stored.tensors[f"ema.{name}"])
        checkpoints.unpack_optimizer(self.optimizer, stored)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(stored.meta["scaler"])
        self.step, self.best = stored.step, float(stored.meta["best"])
        self.hooks.log(f"resumed after step {self.step}")


def memory(device: torch.device) -> str:
    """Memory of the training so far, for people: the peak where the system counts it, else what is used now."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB of GPU memory"
    used = psutil.Process().memory_info()
    return f"{getattr(used, 'peak_wset', used.rss) / 2**30:.1f} GiB of memory"


def trained_tensors(model: Segmenter, *, base: bool) -> dict[str, Tensor]:
    """Tensors of a model folder: all that was trained, and SAM's where there are no base weights to take them from."""
    state = model.state_dict()
    return {name: tensor.detach().cpu() for name, tensor in state.items() if not (base and is_frozen(name))}
