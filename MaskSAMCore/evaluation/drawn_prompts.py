"""A scribble and a lasso as a hand draws them: in the slice that shows most of a structure, without chance."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.preprocessing.masks import largest_component
from MaskSAMCore.volume import Triple

PARTS = 12
"""Pieces of a scribble's line, at most."""
LINE = 0.7
"""Share of the structure's length that a scribble goes along."""
LOOSE = 1.15
"""How much wider than the structure a lasso is drawn."""


def drawn_scribble(mask: np.ndarray, axis: int) -> Prompt:
    """A line along a structure, through its middle.

    Args:
        mask: bool (K, J, I), not empty.
        axis: Along which slices are counted.
    """
    index, plane = _largest_slice(mask, axis)
    places = np.argwhere(plane).astype(float)
    along = (places - places.mean(0)) @ _direction(places)
    depth = ndimage.distance_transform_edt(np.pad(plane, 1))[1:-1, 1:-1][plane]
    edges = np.linspace(LINE * float(along.min()), LINE * float(along.max()), PARTS + 1)
    line = []
    for low, high in itertools.pairwise(edges):
        here = np.flatnonzero((along >= low) & (along <= high))
        if len(here):
            line.append(places[here[depth[here].argmax()]])
    points = dict.fromkeys(_in_scan(np.array(line), axis, index))
    return Prompt(kind="scribble", points=tuple(points), scope="volume")


def drawn_lasso(mask: np.ndarray, axis: int) -> Prompt:
    """A rough outline without dents, a little wider than the structure; arguments as above."""
    index, plane = _largest_slice(mask, axis)
    places = np.argwhere(plane).astype(float)
    corners = (places[:, None] + np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])).reshape(-1, 2)
    outline = corners[ConvexHull(corners).vertices]
    middle = outline.mean(0)
    outline = (middle + LOOSE * (outline - middle)).clip(0, np.array(plane.shape) - 1)
    return Prompt(kind="lasso", points=_in_scan(outline, axis, index), scope="volume")


def _largest_slice(mask: np.ndarray, axis: int) -> tuple[int, np.ndarray]:
    """Index and largest component, bool (a, b), of the slice with the most voxels."""
    index = int(mask.sum(axis=tuple(a for a in range(3) if a != axis)).argmax())
    return index, largest_component(mask.take(index, axis=axis))


def _direction(places: np.ndarray) -> np.ndarray:
    """Unit vector of the longest extent of positions (n, 2)."""
    if len(places) < 2:
        return np.array([0.0, 1.0])
    _, _, axes = np.linalg.svd(places - places.mean(0), full_matrices=False)
    return np.asarray(axes[0])


def _in_scan(line: np.ndarray, axis: int, index: int) -> tuple[Triple, ...]:
    """Points (n, 2) of a slice as (i, j, k)."""
    kji = np.insert(line, axis, index, axis=1)
    return tuple((float(i), float(j), float(k)) for k, j, i in kji)
