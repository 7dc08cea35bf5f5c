"""Learning rates as pure functions of the step, so that resuming needs no state (model.md §14.2)."""

from __future__ import annotations

import math

from MaskSAMCore.config.schema import TrainConfig

HALF_LIFE = 10
"""Epochs."""
FINAL_RATIO = 0.01
"""Last learning rate of `exponential` as a share of the first."""


def poly(lr: float, epoch: int, epochs: int, *, power: float = 0.9) -> float:
    """nnU-Net's polynomial decay, constant within an epoch."""
    return lr * (1 - epoch / epochs) ** power


def cosine(lr: float, step: int, steps: int) -> float:
    """Half a cosine from `lr` to zero."""
    return lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def halving(lr: float, epoch: int) -> float:
    """Half as much after every `HALF_LIFE` epochs, as Med-SA's release declares (and never applies)."""
    return lr * 0.5 ** (epoch // HALF_LIFE)


def exponential(lr: float, epoch: int, epochs: int, *, warmup: int) -> float:
    """AutoSAM Adapter's schedule, constant within an epoch: lr·e^{10(e/w-1)} for the first w, then decay to lr/100.

    The paper says exponential, its release has a polynomial tail; this is the paper's (model.md §14.2).
    """
    if epoch < warmup:
        return lr * math.exp(10 * (epoch / warmup - 1))
    return lr * FINAL_RATIO ** ((epoch - warmup) / max(epochs - warmup, 1))


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Learning rate of optimiser step `step`, counted from 0 over the whole run."""
    first, steps = _phase(cfg, step)
    if cfg.schedule == "poly":
        lr = poly(cfg.lr, step // cfg.iterations, cfg.epochs)
    elif cfg.schedule == "halving":
        lr = halving(cfg.lr, step // cfg.iterations)
    elif cfg.schedule == "exponential":
        lr = exponential(cfg.lr, step // cfg.iterations, cfg.epochs, warmup=cfg.warmup_epochs)
    else:
        lr = cosine(cfg.lr, step - first, steps)
    warm = min(1.0, (step - first + 1) / cfg.warmup_steps) if cfg.warmup_steps else 1.0
    return lr * warm


def _phase(cfg: TrainConfig, step: int) -> tuple[int, int]:
    """First step and length of the part of the run over which the learning rate falls.

    The generator comes to rest before clicks are learned behind it (`train.keep_generator`).
    """
    total, generator = cfg.epochs * cfg.iterations, cfg.generator_epochs * cfg.iterations
    if not (cfg.keep_generator and cfg.schedule == "cosine" and 0 < generator < total):
        return 0, total
    return (0, generator) if step < generator else (generator, total - generator)
