"""Appearance that never repeats: any structure in any scan must be found by its borders, not by its grey values.

Acts on one patch (D, H, W) as it was sampled; normalisation comes afterwards. Each change has its own chance.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

CURVE, GAMMA, INVERSION, FOLD = 0.5, 0.4, 0.3, 0.05
NOISE, BLUR, THICK, BIAS = 0.3, 0.2, 0.1, 0.3
KNOTS = 5


def changed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A patch with another appearance, float32.

    Args:
        image: (D, H, W).
        rng: Source of chance.
    """
    low, high = np.percentile(image, [0.5, 99.5])
    x = ((image - low) / max(float(high - low), 1e-6)).clip(0, 1).astype(np.float32)
    if rng.random() < CURVE:
        x = curve(x, rng)
    if rng.random() < GAMMA:
        x = x ** float(np.exp(rng.uniform(-0.7, 0.7)))
    if rng.random() < FOLD:  # not monotone: what is brightest becomes like something darker
        x = np.abs(x - float(rng.uniform(0.15, 0.5)))
    if rng.random() < INVERSION:
        x = x.max() - x
    if rng.random() < BIAS:
        x = x * _smooth_field(x.shape, rng, float(rng.uniform(0.1, 0.5)))
    if rng.random() < BLUR:
        x = ndimage.gaussian_filter(x, [float(rng.uniform(0, 0.7)), *[float(rng.uniform(0.3, 1.2))] * 2])
    if rng.random() < THICK:
        x = _thick(x, int(rng.integers(3)), int(rng.integers(2, 4)))
    if rng.random() < NOISE:
        deviation = float(rng.uniform(0.01, 0.07)) * max(float(x.std()), 0.05) * 4
        x = x + rng.normal(0, deviation, x.shape).astype(np.float32)
    return x.astype(np.float32)


def curve(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values from 0 to 1 along a random monotone curve."""
    heights = np.concatenate([[0.0], np.cumsum(rng.dirichlet(np.full(KNOTS, 1.5)))])
    places = np.concatenate([[0.0], np.sort(rng.uniform(0, 1, KNOTS - 1)), [1.0]])
    return np.interp(x, places, heights).astype(np.float32)


def _smooth_field(shape: tuple[int, ...], rng: np.random.Generator, strength: float) -> np.ndarray:
    coarse = rng.normal(0, strength, (3, 3, 3))
    zoomed = ndimage.zoom(coarse, [n / 3 for n in shape], order=1, grid_mode=True, mode="nearest")
    return np.exp(zoomed).astype(np.float32)


def _thick(x: np.ndarray, axis: int, factor: int) -> np.ndarray:
    """Slices as if they were `factor` times as thick along an axis."""
    size = x.shape[axis]
    mean = ndimage.uniform_filter1d(x, factor, axis=axis)
    picked = (np.arange(size) // factor * factor + factor // 2).clip(0, size - 1)
    return np.take(mean, picked, axis=axis)
