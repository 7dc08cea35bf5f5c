"""Patches around a target, at a random zoom, seen from a random side: what the click model learns from.

Patches are sampled as the engine samples its windows: slices of `side` mm pixels, as far apart as the scan's own slices
or farther, with intensities normalised over the patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from MaskSAMCore.data.collection import CollectedVolume
from MaskSAMCore.data.targets import Target
from MaskSAMCore.preprocessing.zoom_windows import CUBES, THIN, patch_size, sampled, seen_part
from MaskSAMCore.volume import Shape, Triple

FILLED = (0.2, 1.2)
"""Share of the patch's side that the target's longest side within the slices takes, drawn log-uniformly."""
ZOOM = (0.5, 8.0)
"""Pixel side as a multiple of the scan's finest voxel side, at least and at most."""
FACE_ON = 0.85
"""Share of the patches of thick slices that show the slices as they were acquired."""
THICKER = 0.35
"""Share of the patches whose slices are farther apart than their pixels, where the scan allows both."""
INNERMOST = 0.7
JITTER = 0.2
"""Largest distance of the first click from the patch's centre, as a share of the patch."""
TURNED, TILT = 0.3, math.radians(45)
BENT, BEND = 0.2, 0.06
FEWEST = 40
"""Voxels of the target that must be in the patch."""
SEEN = 0.3
"""Share of the patch that must lie within the scan."""
CLEAR_PART = 35
"""Percentile of the steepness along a border that stands for the whole of it."""
RIM = 5
"""A border is compared with what lies this far around it, in voxels within the slices."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClickPatch:
    """A patch with one target.

    Attributes:
        image: (D, H, W) float32, as sampled; outside of the scan it is the scan's lowest value.
        target: (D, H, W) bool.
        spacing: Of the voxels along (d, h, w), mm.
        finest: The smallest voxel side of the scan, mm.
    """

    image: np.ndarray
    target: np.ndarray
    spacing: Triple
    finest: float


def draw_patch(volume: CollectedVolume, target: Target, rng: np.random.Generator) -> ClickPatch | None:
    """A patch around a target; None where too little of target or scan is in it.

    Args:
        volume: Its volume.
        target: On its smallest box.
        rng: Source of chance.
    """
    native = np.array(volume.entry.spacing)
    order = _view(native, rng)
    image = volume.image.transpose(order)
    mask, corner = target.mask.transpose(order), np.array(target.corner)[order]
    voxel, finest = native[order], float(native.min())
    longest = float((np.array(mask.shape) * voxel)[1:].max())
    filled = math.exp(rng.uniform(*np.log(FILLED)))
    least = max(ZOOM[0] * finest, 0.5 * float(voxel[1:].min()))
    side = float(np.clip(longest / (filled * CUBES[0][1][0][1]), least, max(least, ZOOM[1] * finest)))
    spacing = (_slice_distance(float(voxel[0]), side, rng), side, side)
    size = patch_size(spacing[0] / side, rng)
    steps = np.array(spacing) / voxel
    centre = corner + _first_click(mask, voxel, rng) + rng.uniform(-JITTER, JITTER, 3) * np.array(size) * steps
    points = centre + _offsets(size, np.array(spacing), rng, tilt=spacing[0] / side < THIN) / voxel
    window = seen_part(points, image.shape, steps, least=SEEN)
    if window is None:
        return None
    low, high = window
    place = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    lowest = volume.lowest
    shown = sampled(np.asarray(image[place], np.float32) - lowest, points - low, steps) + lowest
    inside = sampled(_pasted(mask, corner - low, high - low), points - low, steps) > 0.5
    if int(inside.sum()) < FEWEST:
        return None
    return ClickPatch(image=shown.numpy(), target=inside.numpy(), spacing=spacing, finest=finest)


def clarity(image: np.ndarray, target: np.ndarray) -> float:
    """How much steeper the image is at most of a target's border than near it; below 1 where there is none to see.

    Args:
        image: (D, H, W).
        target: (D, H, W) bool, not empty.
    """
    box = tuple(
        slice(max(0, s.start - RIM - 1), s.stop + RIM + 1) for s in ndimage.find_objects(target.view(np.uint8))[0]
    )
    steep = ndimage.gaussian_gradient_magnitude(np.asarray(image[box], np.float32), (0.5, 1, 1))
    inside, plane = target[box], ndimage.generate_binary_structure(2, 1)[None]
    wider = ndimage.binary_dilation(inside, plane)
    border = wider & ~ndimage.binary_erosion(inside, plane)
    near = ndimage.binary_dilation(wider, plane, iterations=RIM - 1) & ~border
    if not near.any():
        return 0.0
    # Not the mean: a stretch of another structure's border must not make up for the rest.
    return float(np.percentile(steep[border], CLEAR_PART)) / max(float(steep[near].mean()), 1e-6)


def _view(native: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Axes of the volume in the order depth, height, width of the patch."""
    thick = int(native.argmax())
    uneven = native.max() > THIN * np.sort(native)[1]
    first = thick if uneven and rng.random() < FACE_ON else int(rng.integers(3))
    others = [axis for axis in range(3) if axis != first]
    return [first, *(others if rng.random() < 0.5 else others[::-1])]


def _slice_distance(native: float, side: float, rng: np.random.Generator) -> float:
    """Distance of the patch's slices, mm: the scan's own, or the pixels' side where that is longer, or more."""
    apart = max(native, side)
    if rng.random() < THICKER:
        apart = max(apart, side * float(2 ** rng.uniform(0, 3)))
    return apart


def _first_click(mask: np.ndarray, voxel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A voxel (d, h, w) of a mask: the innermost one, or any."""
    stride = max(1, round((mask.size / 60_000) ** (1 / 3)))
    few = mask[::stride, ::stride, ::stride]
    if few.any() and rng.random() < INNERMOST:
        depth = ndimage.distance_transform_edt(np.pad(few, 1), sampling=voxel)[1:-1, 1:-1, 1:-1]
        return np.array(np.unravel_index(int(depth.argmax()), few.shape)) * stride
    places = np.argwhere(mask)
    return places[int(rng.integers(len(places)))]


def _offsets(size: Shape, spacing: np.ndarray, rng: np.random.Generator, *, tilt: bool) -> np.ndarray:
    """Positions (D, H, W, 3) of the patch's voxels from its centre, mm: mirrored, turned and bent at random."""
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) * rng.choice([-1.0, 1.0], 3)
    if rng.random() < TURNED:
        angles = rng.uniform(-TILT, TILT, 3) * ([1, 1, 1] if tilt else [1, 0, 0])
        offsets = offsets @ rotation(angles).T
    if rng.random() < BENT:
        field = torch.from_numpy(rng.normal(size=(1, 3, *(min(4, n) for n in size))).astype(np.float32))
        bent = F.interpolate(field, size=size, mode="trilinear", align_corners=True)[0].permute(1, 2, 3, 0).numpy()
        reach = np.array(size) * spacing * float(rng.uniform(0, BEND))
        offsets = offsets + bent * (reach if tilt else reach * [0, 1, 1])
    return offsets


def rotation(angles: np.ndarray) -> np.ndarray:
    """Matrix of rotations about the first, then the second, then the third axis; angles in radians."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (n for n in range(3) if n != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        result = turn @ result
    return result


def _pasted(mask: np.ndarray, corner: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A mask on another box: float32 of this size, the mask's first voxel at `corner`."""
    found: np.ndarray = np.zeros(size, np.float32)
    here, there = [], []
    for at, length, room in zip(corner.tolist(), mask.shape, size.tolist(), strict=True):
        here.append(slice(max(at, 0), max(min(at + length, room), 0)))
        there.append(slice(max(-at, 0), max(min(length, room - at), 0)))
    found[tuple(here)] = mask[tuple(there)]
    return found
