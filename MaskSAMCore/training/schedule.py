"""Learning rates as pure functions of the step, so that resuming needs no state (MODEL.md §14.2)."""

from __future__ import annotations

import math

from MaskSAMCore.config import TrainConfig

HALF_LIFE = 10
"""Epochs."""


def poly(lr: float, epoch: int, epochs: int, *, power: float = 0.9) -> float:
    """nnU-Net's polynomial decay, constant within an epoch."""
    return lr * (1 - epoch / epochs) ** power


def cosine(lr: float, step: int, steps: int) -> float:
    """Half a cosine from `lr` to zero."""
    return lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def halving(lr: float, epoch: int) -> float:
    """Half as much after every `HALF_LIFE` epochs: what Med-SA's release declares, and never steps."""
    return lr * 0.5 ** (epoch // HALF_LIFE)


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Learning rate of optimiser step `step`, counted from 0 over the whole run."""
    steps = cfg.epochs * cfg.iterations
    if cfg.schedule == "poly":
        lr = poly(cfg.lr, step // cfg.iterations, cfg.epochs)
    elif cfg.schedule == "halving":
        lr = halving(cfg.lr, step // cfg.iterations)
    else:
        lr = cosine(cfg.lr, step, steps)
    warm = min(1.0, (step + 1) / cfg.warmup_steps) if cfg.warmup_steps else 1.0
    return lr * warm
