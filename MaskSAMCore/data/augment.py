"""nnU-Net's augmentation (model.md §12.3) on PyTorch tensors, on the CPU or a GPU, with one generator per sample.

First the spatial transforms, as one resampling of the whole case (linear for images and for one-hot labels), so that a
rotated patch contains the surrounding tissue; then intensities; then mirroring, which exchanges paired labels
(faults.md row 22). Scans with slices thicker than `plan.ANISOTROPIC` pixels are augmented in-plane only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from MaskSAMCore.config.schema import AugmentConfig
from MaskSAMCore.preprocessing.plan import MirrorRule, Plan
from MaskSAMCore.preprocessing.resample import take
from MaskSAMCore.volume import Shape, triple

IN_PLANE_TURN = 6.0
"""In-plane rotation of anisotropic patches, as a multiple of `rotation_degrees`: 30 degrees become 180."""
ONE_HOT_CLASSES = 8
"""Labels of a patch with more classes than this are resampled with the nearest voxel."""
CONTROL_POINTS = 4
"""Control points of the elastic deformation along each axis."""


@dataclass(frozen=True)
class Warp:
    """Spatial transform: source = centre + matrix @ (offset from the centre of the patch) + displacement.

    Attributes:
        matrix: (3, 3) float64, in (d, h, w) voxels.
        field: (3, c, c, c), displacements of control points in voxels, or None.
    """

    matrix: np.ndarray
    field: Tensor | None = None


def generator(*seeds: int) -> Generator:
    """A CPU generator seeded by integers, such as seed, step and sample."""
    state = int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])
    return Generator().manual_seed(state >> 1)


def for_fixed_copies(cfg: AugmentConfig) -> AugmentConfig:
    """`cfg` with higher probabilities, for the few copies in the cache of frozen features (model.md §14.4)."""
    return replace(
        cfg,
        rotation=min(1.0, 4 * cfg.rotation),
        scaling=min(1.0, 4 * cfg.scaling),
        brightness=min(1.0, 3 * cfg.brightness),
        contrast=min(1.0, 3 * cfg.contrast),
        gamma=min(1.0, 2 * cfg.gamma),
    )


def draw_warp(cfg: AugmentConfig, plan: Plan, size: Shape, rng: Generator) -> Warp | None:
    """Draw rotation, scaling and deformation of one sample; None if there is none.

    Args:
        cfg: Probabilities and ranges.
        plan: `spacing` makes the rotation rigid in mm; `anisotropic` restricts it to the plane.
        size: (D, H, W) of the patch.
        rng: Generator of this sample.
    """
    turn, scale, bend = (_chance(rng, p) for p in (cfg.rotation, cfg.scaling, cfg.elastic))
    if not (turn or scale or bend):
        return None
    matrix = np.eye(3)
    if turn:
        limit = math.radians(cfg.rotation_degrees)
        limits = (min(math.pi, IN_PLANE_TURN * limit), 0.0, 0.0) if plan.anisotropic else (limit,) * 3
        spacing = np.array(plan.spacing)
        matrix = _rotation([_uniform(rng, -a, a) for a in limits]) * spacing[None] / spacing[:, None]
    if scale:
        low, high = cfg.scaling_range
        factor = _uniform(rng, low, min(1.0, high)) if _chance(rng, 0.5) else _uniform(rng, max(1.0, low), high)
        matrix = matrix @ np.diag([1.0 if plan.anisotropic else factor, factor, factor])
    return Warp(matrix, _draw_field(plan, size, rng) if bend else None)


def _rotation(angles: Sequence[float]) -> np.ndarray:
    """Matrix of rotations about d, then h, then w; angles in radians."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        result = turn @ result
    return result


def _draw_field(plan: Plan, size: Shape, rng: Generator) -> Tensor:
    strength = _uniform(rng, 0.0, 0.08)
    field = torch.randn(3, *(min(CONTROL_POINTS, n) for n in size), generator=rng)
    extent = torch.tensor([0.0 if plan.anisotropic else size[0], size[1], size[2]])
    return field * (strength * extent).view(3, 1, 1, 1)


def extract(
    image: np.ndarray, label: np.ndarray, start: tuple[int, int, int], size: Shape, warp: Warp | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a patch out of a case, with a spatial transform about its centre.

    Beyond the case its border is repeated, for image and label; slices outside the case are not valid.

    Args:
        image: (M, Z, Y, X), memory-mapped or not.
        label: (Z, Y, X) classes.
        start: First voxel; may be outside the case.
        size: (D, H, W).
        warp: The transform; None cuts the voxels out unchanged.

    Returns:
        Image (M, D, H, W) float32, label (D, H, W) int64, valid (D,) bool.
    """
    if warp is None:
        z = np.arange(start[0], start[0] + size[0])
        valid = torch.from_numpy((z >= 0) & (z < label.shape[0]))
        picture = torch.from_numpy(take(image, start, size).astype(np.float32))
        return picture, torch.from_numpy(take(label, start, size).astype(np.int64)), valid
    points = _sources(warp, size) + torch.tensor([s + (n - 1) / 2 for s, n in zip(start, size, strict=True)]).float()
    flat = points.reshape(-1, 3)
    shape = label.shape
    low = [min(max(int(v), 0), n - 1) for v, n in zip(flat.amin(0).floor().tolist(), shape, strict=True)]
    high = [min(max(int(v) + 1, a + 1), n) for v, a, n in zip(flat.amax(0).ceil().tolist(), low, shape, strict=True)]
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    picture = torch.from_numpy(np.array(image[(slice(None), *part)], np.float32))
    classes = torch.from_numpy(np.array(label[part], np.int64))
    inside = (points[..., 0] >= -0.5) & (points[..., 0] <= shape[0] - 0.5)
    valid = inside.float().mean(dim=(1, 2)) >= 0.5
    return *_look_up(picture, classes, points - torch.tensor(low).float()), valid


def _sources(warp: Warp, size: Shape) -> Tensor:
    """Source offsets (D, H, W, 3) in voxels from the centre of the patch."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    points = offsets @ torch.from_numpy(warp.matrix.T.copy()).float()
    if warp.field is not None:
        bent = F.interpolate(warp.field[None], size=size, mode="trilinear", align_corners=True)[0]
        points = points + bent.permute(1, 2, 3, 0)
    return points


def _look_up(image: Tensor, label: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Sample image (M, ...) and label (...) at voxel coordinates (D, H, W, 3); the border is repeated."""
    extent = torch.tensor([max(n - 1, 1) for n in label.shape], device=points.device)
    grid = (points / extent * 2 - 1).flip(-1)[None]
    picture = _grid_sample(image, grid, "bilinear")
    present = torch.unique(label)
    if len(present) == 1:
        return picture, label.new_full(points.shape[:3], int(present[0]))
    if len(present) > ONE_HOT_CLASSES:
        nearest = _grid_sample(label[None].float(), grid, "nearest")[0]
        return picture, nearest.round().long()
    masks = (label[None] == present.view(-1, 1, 1, 1)).float()
    return picture, present[_grid_sample(masks, grid, "bilinear").argmax(0)]


def _grid_sample(x: Tensor, grid: Tensor, mode: str) -> Tensor:
    return F.grid_sample(x[None], grid, mode=mode, padding_mode="border", align_corners=True)[0]


def intensity(image: Tensor, cfg: AugmentConfig, rng: Generator, *, in_plane: bool) -> Tensor:
    """Augment the intensities of one sample, with parameters drawn for every channel.

    Args:
        image: (M, D, H, W) float32, normalised; not modified.
        cfg: Probabilities.
        rng: Generator of this sample.
        in_plane: Whether blur and lower resolution are restricted to the plane.
    """
    image = image.clone()
    if _chance(rng, cfg.noise):
        deviation = math.sqrt(_uniform(rng, 0.0, 0.1))
        image += deviation * torch.randn(image.shape, generator=rng).to(image.device)
    if _chance(rng, cfg.blur):
        image = _each(image, rng, 0.5, lambda x: _blur(x, _uniform(rng, 0.5, 1.0), in_plane))
    if _chance(rng, cfg.brightness):
        image = _each(image, rng, 1.0, lambda x: x * _uniform(rng, 0.75, 1.25))
    if _chance(rng, cfg.contrast):
        image = _each(image, rng, 1.0, lambda x: _contrast(x, _uniform(rng, 0.75, 1.25)))
    if _chance(rng, cfg.low_resolution):
        image = _each(image, rng, 0.5, lambda x: _coarsen(x, _uniform(rng, 0.5, 1.0), in_plane))
    if _chance(rng, cfg.gamma_inverted):
        image = _each(image, rng, 1.0, lambda x: -_gamma(-x, _draw_gamma(rng)))
    if _chance(rng, cfg.gamma):
        image = _each(image, rng, 1.0, lambda x: _gamma(x, _draw_gamma(rng)))
    return image


def _each(image: Tensor, rng: Generator, probability: float, change: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([change(c) if _chance(rng, probability) else c for c in image])


def _blur(x: Tensor, sigma: float, in_plane: bool) -> Tensor:
    radius = max(1, math.ceil(3 * sigma))
    taps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(1 if in_plane else 0, 3):
        index = torch.arange(-radius, x.shape[axis] + radius, device=x.device).clamp_(0, x.shape[axis] - 1)
        padded, length = x.index_select(axis, index), x.shape[axis]
        shifted = (w * padded.narrow(axis, i, length) for i, w in enumerate(kernel.tolist()))
        x = sum(shifted, torch.zeros_like(x))
    return x


def _contrast(x: Tensor, factor: float) -> Tensor:
    mean = x.mean()
    return ((x - mean) * factor + mean).clamp(x.min(), x.max())


def _coarsen(x: Tensor, zoom: float, in_plane: bool) -> Tensor:
    size = [max(1, round(n * (1.0 if in_plane and a == 0 else zoom))) for a, n in enumerate(x.shape)]
    small = F.interpolate(x[None, None], size=size, mode="nearest-exact")
    return F.interpolate(small, size=x.shape, mode="trilinear", align_corners=False)[0, 0]


def _draw_gamma(rng: Generator) -> float:
    return _uniform(rng, 0.7, 1.0) if _chance(rng, 0.5) else _uniform(rng, 1.0, 1.5)


def _gamma(x: Tensor, exponent: float) -> Tensor:
    """Gamma transform over the range of the patch, with unchanged mean and standard deviation."""
    low, span = x.min(), x.max() - x.min()
    if span <= 1e-6:
        return x
    bent = ((x - low) / span).pow(exponent)
    deviation = bent.std(correction=0)
    return (bent - bent.mean()) / deviation.clamp_min(1e-6) * x.std(correction=0) + x.mean()


def draw_mirror(rule: MirrorRule, probability: float, rng: Generator) -> list[int]:
    """Draw the axes along which one sample is mirrored; each allowed axis has the given probability."""
    return [axis for axis in rule.axes if _chance(rng, probability)]


def flip(
    image: Tensor, label: Tensor, valid: Tensor, rule: MirrorRule, axes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror one sample; mirroring left and right exchanges paired classes.

    Args:
        image: (M, D, H, W).
        label: (D, H, W).
        valid: (D,).
        rule: From `plan.mirror_rule`.
        axes: From `draw_mirror`.
    """
    if not axes:
        return image, label, valid
    image, label = image.flip([a + 1 for a in axes]), label.flip(list(axes))
    if rule.left_right in axes and list(rule.swap) != sorted(rule.swap):
        label = torch.tensor(rule.swap, device=label.device)[label]
    return image, label, valid.flip(0) if 0 in axes else valid


def flip_scores(scores: Tensor, rule: MirrorRule, axes: Sequence[int]) -> Tensor:
    """Mirror class scores (K, D, H, W) as `flip` does labels."""
    if not axes:
        return scores
    return scores.flip([a + 1 for a in axes])[list(rule.swap) if rule.left_right in axes else slice(None)]


def augment(
    image: Tensor, label: Tensor, valid: Tensor, cfg: AugmentConfig, rng: Generator, *, plan: Plan, mirror: MirrorRule
) -> tuple[Tensor, Tensor, Tensor]:
    """Augment a batch of patches without their surroundings; `sampling` resamples whole cases instead.

    Args:
        image: (B, M, D, H, W) float32.
        label: (B, D, H, W) int64.
        valid: (B, D) bool.
        cfg: Probabilities and ranges.
        rng: CPU generator.
        plan: Plan of the data set.
        mirror: From `plan.mirror_rule`.

    Returns:
        Image, label and valid of the same shapes, on the same device.
    """
    size = triple(label.shape[1:])
    samples = []
    for picture, classes, good in zip(image, label, valid, strict=True):
        warp = draw_warp(cfg, plan, size, rng)
        if warp is not None:
            points = _sources(warp, size).to(picture.device)
            points = points + torch.tensor([(n - 1) / 2 for n in size], device=picture.device)
            picture, classes = _look_up(picture.float(), classes, points)
            # A slice is valid if the slice that its centre comes from is.
            rows = points[..., 0].mean(dim=(1, 2)).round().long().clamp_(0, size[0] - 1)
            good = good[rows]
        picture = intensity(picture, cfg, rng, in_plane=plan.anisotropic)
        samples.append(flip(picture, classes, good, mirror, draw_mirror(mirror, cfg.mirror, rng)))
    images, labels, valids = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels), torch.stack(valids)


def augment_case(
    image: np.ndarray, label: np.ndarray, cfg: AugmentConfig, rng: Generator, *, plan: Plan, mirror: MirrorRule
) -> tuple[np.ndarray, np.ndarray]:
    """Make an augmented copy of a whole case, of the same size (see `for_fixed_copies`).

    Args:
        image: (M, Z, Y, X).
        label: (Z, Y, X).
        cfg, rng, plan, mirror: As for `augment`.

    Returns:
        Image (M, Z, Y, X) float32, and label (Z, Y, X) of its previous type.
    """
    size = triple(label.shape)
    picture, classes, valid = extract(image, label, (0, 0, 0), size, draw_warp(cfg, plan, size, rng))
    picture = intensity(picture, cfg, rng, in_plane=plan.anisotropic)
    picture, classes, _ = flip(picture, classes, valid, mirror, draw_mirror(mirror, cfg.mirror, rng))
    return picture.contiguous().numpy(), classes.contiguous().numpy().astype(label.dtype)


def _chance(rng: Generator, probability: float) -> bool:
    return bool(torch.rand((), generator=rng) < probability)


def _uniform(rng: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))
