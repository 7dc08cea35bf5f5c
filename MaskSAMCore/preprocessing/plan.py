"""Fingerprint of a data set, and the plan by which its scans and all later ones are preprocessed.

Canonical arrays are (S, A, R): the kji order of a volume whose axes run to superior, anterior and right. Preprocessed
arrays are (D, H, W) with the depth axis of `Plan.view` first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from MaskSAMCore.config.schema import Config, DataConfig
from MaskSAMCore.errors import InputError
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.volume import Grid, LabelMap, Shape, Triple, Volume, canonical_axes, triple

VIEWS: dict[str, tuple[int, int, int]] = {
    "axial": (0, 1, 2),
    "coronal": (1, 0, 2),
    "sagittal": (2, 0, 1),
    "picture": (0, 1, 2),
}
"""Axes of (S, A, R) that become depth, height and width. "picture" is "axial" with rows and columns reversed, so that
pictures are upright, as in SAM's training."""
COLOURS = ("red", "green", "blue")
"""Names of the channels of a colour picture."""
ANISOTROPIC = 3.0
"""Scans whose slice spacing is more than this many pixels are anisotropic, as in nnU-Net."""
COARSER = 1.1
"""For `data.view=auto` an axis is the depth axis if its spacing exceeds both others by this factor."""
VOXELS_PER_CASE = 5000
"""Foreground voxels of each case that enter the intensity statistics."""

_SIDE = re.compile(r"(?<![a-z])(left|right|l|r|lt|rt)(?![a-z])")


@dataclass(frozen=True, kw_only=True)
class ChannelStats:
    """Intensity statistics of one channel over the data set, in the units of the scans.

    Attributes:
        p005, p995, mean, std: 0.5 and 99.5 percentile, mean and standard deviation of the foreground voxels.
        low, high: 0.5 and 99.5 percentile of the whole scan, medians over the cases.
    """

    p005: float
    p995: float
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Properties of a data set for `make_plan`; spacings (mm) and shapes per case in (S, A, R) order."""

    spacings: tuple[Triple, ...]
    shapes: tuple[Shape, ...]
    stats: tuple[ChannelStats, ...]
    channels: tuple[str, ...]
    modality: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters of preprocessing; stored in the cache and in every model.

    Attributes:
        view: Plane of the slices; its normal is the depth axis.
        spacing: Target (d, h, w), mm; with `keep_slices`, d is the median of the data set.
        patch: (D, H, W) voxels of the network's input.
        normalisation: Per channel, "ct" (clip to the foreground's 0.5-99.5 percentiles, standardise with the data
            set's mean and deviation), "zscore" (each scan by itself) or "rgb" (SAM's mean and deviation).
        stats: Per channel.
        anisotropic: Slice spacing is more than `ANISOTROPIC` pixels: nearest along depth, in-plane augmentation.
        median_shape: (D, H, W) of the data set's median case at the target spacing.
        channels: Names of the channels.
        modality: "CT", "MR" or "".
        longest: Pixels of the longer side to which colour pictures are resized, instead of to a spacing; 0 for scans.
        keep_slices: Scans keep their slices and are resampled in-plane only.
    """

    view: str
    spacing: Triple
    patch: Shape
    normalisation: tuple[str, ...]
    stats: tuple[ChannelStats, ...]
    anisotropic: bool
    median_shape: Shape
    channels: tuple[str, ...]
    modality: str = ""
    longest: int = 0
    keep_slices: bool = False

    def spacing_for(self, own: Triple) -> Triple:
        """Target spacing of a scan of spacing `own`; both (d, h, w), mm."""
        return (own[0], *self.spacing[1:]) if self.keep_slices else self.spacing

    def axes_of(self, grid: Grid) -> tuple[int, int, int]:
        """Axes of the grid, 0 to 2 for i, j, k, that become depth, height and width."""
        perm, _ = canonical_axes(grid.affine)
        return triple(perm[2 - axis] for axis in VIEWS[self.view])

    def own_spacing(self, grid: Grid) -> Triple:
        """The grid's spacing (d, h, w), mm, before resampling."""
        return triple(grid.spacing[axis] for axis in self.axes_of(grid))

    def voxels(self, grid: Grid) -> float:
        """Approximate number of voxels of a scan on this grid after resampling."""
        own = self.own_spacing(grid)
        return float(np.prod(grid.shape)) * float(np.prod(own)) / float(np.prod(self.spacing_for(own)))

    @property
    def left_right_axis(self) -> int:
        """Index of the axis of (D, H, W) that runs from left to right."""
        return VIEWS[self.view].index(2)


@dataclass(frozen=True, kw_only=True)
class MirrorRule:
    """Mirrorings that are allowed, and how they exchange labels (faults.md row 22).

    Attributes:
        axes: Axes of (D, H, W) along which mirroring is allowed.
        left_right: The axis of these that exchanges left and right, or -1.
        swap: Class c becomes `swap[c]` when left and right are exchanged.
    """

    axes: tuple[int, ...]
    left_right: int
    swap: tuple[int, ...]


def mirror_rule(plan: Plan, labels: LabelTable, data: DataConfig) -> MirrorRule:
    """Mirrorings that the data set, `data.left_right` and `data.mirroring` allow, in training and inference.

    Raises:
        InputError: `data.left_right=always`, but labels named after a side have no declared partner.
    """
    side = plan.left_right_axis
    sided = [label.name for label in labels.labels if not label.mirror and _SIDE.search(label.name.lower())]
    if data.left_right == "always" and sided and not labels.mirrored:
        raise InputError(
            "mirroring would exchange left and right structures",
            where="data.left_right",
            why=f"{', '.join(sided)} have no declared partner",
            remedy="Declare left_right_pairs in dataset.json, or set data.left_right=declared.",
        )
    allowed = data.left_right == "always" or (data.left_right == "declared" and labels.mirrored)
    axes = tuple(axis for axis in range(3) if (allowed if axis == side else data.mirroring == "all"))
    return MirrorRule(axes=axes, left_right=side if allowed else -1, swap=tuple(labels.mirror_classes()))


def modality_of(channels: Iterable[str]) -> str:
    """Modality, "CT", "MR" or "", of nnU-Net's channel names ("CT", "MRI", "T1", "FLAIR", "ADC", ...)."""
    names = [name.upper().replace("_", " ").replace("-", " ").split() for name in channels]
    if any("CT" in words for words in names):
        return "CT"
    magnetic = ("MR", "MRI", "T1", "T1W", "T1C", "T1CE", "T1GD", "T2", "T2W", "FLAIR", "ADC", "DWI", "CINE")
    return "MR" if names and all(any(w in magnetic or w[:3] == "MRI" for w in words) for words in names) else ""


def canonical_spacing(volume: Volume | LabelMap) -> Triple:
    """Spacing of a volume along (S, A, R), mm."""
    perm, _ = canonical_axes(volume.grid.affine)
    return triple(volume.grid.spacing[perm[axis]] for axis in (2, 1, 0))


def content_box(channels: np.ndarray, background: Iterable[float | None]) -> tuple[Shape, Shape]:
    """Lower and upper (exclusive) corner of all voxels that are not background, with a margin of one voxel.

    Args:
        channels: (M, ., ., .), any axis order.
        background: Background value of every channel; None for the minimum of the channel.

    Returns:
        Two corners; those of the whole volume if all of it is background.
    """
    shape = channels.shape[1:]
    mask = np.zeros(shape, bool)
    for channel, empty in zip(channels, background, strict=True):
        mask |= channel != (channel.min() if empty is None else empty)
    lower, upper = [], []
    for axis, size in enumerate(shape):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        lower.append(max(int(used[0]) - 1, 0) if len(used) else 0)
        upper.append(min(int(used[-1]) + 2, size) if len(used) else size)
    return triple(lower), triple(upper)


def extent(channels: np.ndarray, normalisation: Sequence[str]) -> tuple[Shape, Shape]:
    """Lower and upper corner of the crop of a scan (M, ., ., .); colour pictures are not cropped."""
    if "rgb" in normalisation:
        return (0, 0, 0), triple(channels.shape[1:])
    return content_box(channels, [empty_value(kind) for kind in normalisation])


def fitted(shape: Sequence[int], longest: int) -> Shape:
    """Shape (D, H, W) of pictures after resizing so that the longer side has `longest` pixels."""
    scale = longest / max(shape[1:])
    return shape[0], max(1, round(shape[1] * scale)), max(1, round(shape[2] * scale))


def empty_value(normalisation: str) -> float | None:
    """Background value for the crop: 0, or None (the minimum) for CT, where 0 is water."""
    return None if normalisation == "ct" else 0.0


def normalisation_of(channels: Iterable[str], choice: str) -> tuple[str, ...]:
    """Per channel "ct", "zscore" or "rgb": by their names, unless `choice` (config.data.normalisation) says so."""
    channels = tuple(channels)
    if choice == "auto" and channels == COLOURS:
        choice = "rgb"
    if choice != "auto":
        return tuple(choice for _ in channels)
    return tuple("ct" if modality_of([name]) == "CT" else "zscore" for name in channels)


def fingerprint(
    cases: Iterable[tuple[Volume, LabelMap]], *, channels: tuple[str, ...], normalisation: str = "auto"
) -> Fingerprint:
    """Collect the properties that the plan depends on, one case in memory at a time (model.md §12.1).

    Args:
        cases: Training scans with their labels.
        channels: Names of the channels in dataset.json.
        normalisation: Value of `data.normalisation`.
    """
    kinds = normalisation_of(channels, normalisation)
    rng = np.random.default_rng(0)
    spacings, shapes, ranges = [], [], []
    foreground: list[np.ndarray] = []
    for volume, labels in cases:
        perm, _ = canonical_axes(volume.grid.affine)
        array = volume.as_channels()
        lower, upper = extent(array, kinds)
        size = [u - v for u, v in zip(upper, lower, strict=True)]
        spacings.append(canonical_spacing(volume))
        shapes.append(triple(size[2 - perm[axis]] for axis in (2, 1, 0)))
        inside = np.flatnonzero(labels.array)
        picked = rng.choice(inside, min(len(inside), VOXELS_PER_CASE), replace=False)
        flat = array.reshape(len(array), -1)
        foreground.append(flat[:, picked].astype(np.float64))
        thin = flat[:, :: max(1, flat.shape[1] // 200_000)]
        ranges.append(np.percentile(thin, (0.5, 99.5), axis=1).T)
    if not shapes:
        raise InputError("the data set has no case")
    pooled, spans = np.concatenate(foreground, axis=1), np.median(ranges, axis=0)
    return Fingerprint(
        spacings=tuple(spacings),
        shapes=tuple(shapes),
        stats=tuple(_stats(values, span) for values, span in zip(pooled, spans, strict=True)),
        channels=tuple(channels),
        modality=modality_of(channels),
    )


def _stats(foreground: np.ndarray, span: np.ndarray) -> ChannelStats:
    low, high = (float(v) for v in span)
    if not foreground.size:
        return ChannelStats(p005=low, p995=high, mean=(low + high) / 2, std=max(high - low, 1e-6), low=low, high=high)
    p005, p995 = (float(v) for v in np.percentile(foreground, (0.5, 99.5)))
    mean, std = float(foreground.mean()), max(float(foreground.std()), 1e-6)
    return ChannelStats(p005=p005, p995=p995, mean=mean, std=std, low=low, high=high)


def choose_view(spacing: Triple) -> str:
    """Plane of the slices for a spacing in (S, A, R): across the coarsest axis; "axial" if none is."""
    coarse = int(np.argmax(spacing))
    others = [s for axis, s in enumerate(spacing) if axis != coarse]
    if spacing[coarse] < COARSER * max(others):
        return "axial"
    return ("axial", "coronal", "sagittal")[coarse]


def make_plan(fingerprint: Fingerprint, cfg: Config) -> Plan:
    """Choose target spacing, view and normalisation (model.md §12.1, §12.2).

    The spacing is the median. If it is anisotropic and the coarse axis also has the fewest voxels, the 10th percentile
    is used along that axis, unless `data.slices` excludes it from resampling. `cfg.data` can set view, spacing and the
    window of CT; the patch is `model.patch`.

    Raises:
        InputError: Channels of data and model differ, a spacing is not positive, or the window is empty.
    """
    if len(fingerprint.channels) != cfg.model.channels:
        raise InputError(
            "the data set and the model differ in their channels",
            where="model.channels",
            why=f"the data has {len(fingerprint.channels)} ({', '.join(fingerprint.channels)}), "
            f"the model {cfg.model.channels}",
            remedy=f"Set model.channels={len(fingerprint.channels)}.",
        )
    kinds = normalisation_of(fingerprint.channels, cfg.data.normalisation)
    if "rgb" in kinds:
        return _picture_plan(fingerprint, cfg, kinds)
    spacings, shapes = np.array(fingerprint.spacings), np.array(fingerprint.shapes)
    target = np.median(spacings, axis=0)
    coarse, voxels = int(np.argmax(target)), np.median(shapes, axis=0)
    view = cfg.data.view if cfg.data.view != "auto" else choose_view(tuple(target))
    order = list(VIEWS[view])
    keep = keeps_slices(cfg.data, cfg.data.spacing or tuple(target[order]))
    if target[coarse] > ANISOTROPIC * target.min() and voxels[coarse] == voxels.min() and not keep:
        target[coarse] = np.percentile(spacings[:, coarse], 10)
    spacing = cfg.data.spacing or triple(round(float(s), 6) for s in target[order])
    if min(spacing) <= 0 or not np.isfinite(spacing).all():
        remedy = "Correct data.spacing, or the spacing of the scans."
        raise InputError(
            "the target spacing must be positive", where="data.spacing", why=f"found {spacing} mm", remedy=remedy
        )
    sizes = shapes[:, order] * spacings[:, order] / np.array(spacing)
    if keep:
        sizes[:, 0] = shapes[:, order[0]]
    median = np.median(sizes, axis=0)
    kinds = normalisation_of(fingerprint.channels, cfg.data.normalisation)
    return Plan(
        view=view,
        spacing=spacing,
        patch=cfg.model.patch,
        normalisation=kinds,
        stats=tuple(
            windowed(stats, cfg.data) if kind == "ct" else stats
            for stats, kind in zip(fingerprint.stats, kinds, strict=True)
        ),
        anisotropic=spacing[0] > ANISOTROPIC * min(spacing[1:]),
        median_shape=triple(max(1, round(float(n))) for n in median),
        channels=fingerprint.channels,
        modality=fingerprint.modality,
        keep_slices=keep,
    )


def keeps_slices(data: DataConfig, spacing: Sequence[float]) -> bool:
    """Whether scans keep their slices by `data.slices`, for a target spacing (d, h, w) in mm."""
    return data.slices == "keep" or (data.slices == "auto" and bool(spacing[0] > ANISOTROPIC * min(spacing[1:])))


def _picture_plan(fingerprint: Fingerprint, cfg: Config, kinds: tuple[str, ...]) -> Plan:
    """Plan for colour pictures, which have no spacing and are resized to `data.longest` (model.md §12.3)."""
    longest = cfg.data.longest
    if len(kinds) != len(COLOURS) or longest < 1:
        raise InputError(
            "colour pictures need three channels and a positive data.longest",
            where="data.normalisation=rgb",
            why=f"found {len(kinds)} channel(s) and data.longest={longest}",
        )
    sides = np.median([fitted(shape, longest) for shape in fingerprint.shapes], axis=0)
    return Plan(
        view="picture",
        spacing=(1.0, 1.0, 1.0),
        patch=cfg.model.patch,
        normalisation=kinds,
        stats=fingerprint.stats,
        anisotropic=True,
        median_shape=triple(max(1, round(float(n))) for n in sides),
        channels=fingerprint.channels,
        modality=fingerprint.modality,
        longest=longest,
    )


def windowed(stats: ChannelStats, data: DataConfig) -> ChannelStats:
    """The statistics of a CT channel with `data.window` in place of the data set's percentiles.

    Raises:
        InputError: The window is empty.
    """
    if data.window is None:
        return stats
    low, high, mean, std = data.window
    if low >= high or std <= 0:
        raise InputError(
            "the window is empty",
            where="data.window",
            why=f"found {data.window}",
            remedy="Give four numbers: low < high, the value to subtract, and a divisor above 0.",
        )
    return replace(stats, p005=low, p995=high, mean=mean, std=std)


def fit_patch(median_shape: Shape, *, upsample: int, depth: int = 16, largest: int = 512, canvas: int = 1024) -> Shape:
    """Patch size (D, H, W) for new data (model.md §12.2): the median slice if it fits, at most `depth` slices.

    Args:
        median_shape: (D, H, W) at the target spacing.
        upsample: `stem.upsample`; every side times it is a multiple of 16 and at most `canvas`.
        depth: Largest number of slices.
        largest: Largest number of pixels of a side.
        canvas: Side of SAM's canvas in pixels.
    """
    multiple = max(16 // math.gcd(16, upsample), 8)
    most = min(largest, canvas // upsample) // multiple * multiple
    sides = [min(most, -(-n // multiple) * multiple) for n in median_shape[1:]]
    return min(depth, median_shape[0]), sides[0], sides[1]
