"""What a data set looks like, and the plan by which its scans and every later one are preprocessed.

Canonical arrays are (S, A, R): kji of a volume whose axes run to the superior, anterior and right. Planned arrays
are (D, H, W) with the depth axis of `Plan.view` first.
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
"""For depth, height and width: which of (S, A, R) it is. `picture` is axial with rows and columns the other way round,
as pictures lie: SAM learned from upright ones."""
COLOURS = ("red", "green", "blue")
"""Names of the channels of a colour picture."""
ANISOTROPIC = 3.0
"""Slices thicker than this many pixels are treated in-plane only, as nnU-Net does."""
COARSER = 1.1
"""`auto` calls an axis the coarse one if its spacing exceeds both others by this factor."""
VOXELS_PER_CASE = 5000
"""Foreground voxels that each case adds to the intensity statistics."""

_SIDE = re.compile(r"(?<![a-z])(left|right|l|r|lt|rt)(?![a-z])")


@dataclass(frozen=True, kw_only=True)
class ChannelStats:
    """Intensities of one channel over the data set, in the scans' own units.

    Attributes:
        p005, p995, mean, std: Of the foreground voxels of all cases.
        low, high: Medians over the cases of the whole scan's 0.5 and 99.5 percentiles.
    """

    p005: float
    p995: float
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What `make_plan` decides from; spacings (mm) and shapes per case, in (S, A, R) order."""

    spacings: tuple[Triple, ...]
    shapes: tuple[Shape, ...]
    stats: tuple[ChannelStats, ...]
    channels: tuple[str, ...]
    modality: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How scans become network input; stored in the cache and in every model.

    Attributes:
        view: Plane of the slices; its normal is the depth axis.
        spacing: Target (d, h, w), mm; with `keep_slices`, d is the data set's median.
        patch: (D, H, W) voxels of the network's input.
        normalisation: Per channel, "ct" (clip to the foreground's 0.5-99.5 percentiles, standardise with the data
            set's mean and deviation), "zscore" (each scan by itself) or "rgb" (SAM's mean and deviation).
        stats: Per channel.
        anisotropic: Slices are thicker than `ANISOTROPIC` pixels: nearest along depth, in-plane augmentation.
        median_shape: (D, H, W) of the data set's median case at the target spacing.
        channels: Names of the channels.
        modality: "CT", "MR" or "".
        longest: Pixels of the longer side that each colour picture is resized to, instead of to a spacing; 0 for scans.
        keep_slices: Scans keep their own slices; they are resampled in-plane alone.
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
        """What a scan of spacing `own` is resampled to; both (d, h, w), mm."""
        return (own[0], *self.spacing[1:]) if self.keep_slices else self.spacing

    def axes_of(self, grid: Grid) -> tuple[int, int, int]:
        """Which of the grid's axes (i, j, k) become depth, height and width."""
        perm, _ = canonical_axes(grid.affine)
        return triple(perm[2 - axis] for axis in VIEWS[self.view])

    def own_spacing(self, grid: Grid) -> Triple:
        """The grid's spacing (d, h, w), mm, before resampling."""
        return triple(grid.spacing[axis] for axis in self.axes_of(grid))

    def voxels(self, grid: Grid) -> float:
        """About how many voxels a scan on this grid has once it is resampled."""
        own = self.own_spacing(grid)
        return float(np.prod(grid.shape)) * float(np.prod(own)) / float(np.prod(self.spacing_for(own)))

    @property
    def left_right_axis(self) -> int:
        """Which of (D, H, W) runs from left to right."""
        return VIEWS[self.view].index(2)


@dataclass(frozen=True, kw_only=True)
class MirrorRule:
    """Which mirrorings keep labels true (faults.md row 22).

    Attributes:
        axes: Of (D, H, W), those along which mirroring is allowed.
        left_right: The one of them that exchanges sides, or -1.
        swap: Class c becomes `swap[c]` when sides are exchanged.
    """

    axes: tuple[int, ...]
    left_right: int
    swap: tuple[int, ...]


def mirror_rule(plan: Plan, labels: LabelTable, data: DataConfig) -> MirrorRule:
    """Mirroring that the data set, `data.left_right` and `data.mirroring` allow, in augmentation and in use.

    Raises:
        InputError: `always` was asked for, but labels are named after a side and their pairs are not declared.
    """
    side = plan.left_right_axis
    sided = [label.name for label in labels.labels if not label.mirror and _SIDE.search(label.name.lower())]
    if data.left_right == "always" and sided and not labels.mirrored:
        raise InputError(
            "mirroring would exchange left and right structures",
            where="data.left_right",
            why=f"{', '.join(sided)} have a side and no partner",
            remedy="Declare left_right_pairs in dataset.json, or set data.left_right=declared.",
        )
    allowed = data.left_right == "always" or (data.left_right == "declared" and labels.mirrored)
    axes = tuple(axis for axis in range(3) if (allowed if axis == side else data.mirroring == "all"))
    return MirrorRule(axes=axes, left_right=side if allowed else -1, swap=tuple(labels.mirror_classes()))


def modality_of(channels: Iterable[str]) -> str:
    """ "CT", "MR" or "" from nnU-Net's channel names ("CT", "MRI", "T1", "FLAIR", "ADC", ...)."""
    names = [name.upper().replace("_", " ").replace("-", " ").split() for name in channels]
    if any("CT" in words for words in names):
        return "CT"
    magnetic = ("MR", "MRI", "T1", "T1W", "T1C", "T1CE", "T1GD", "T2", "T2W", "FLAIR", "ADC", "DWI", "CINE")
    return "MR" if names and all(any(w in magnetic or w[:3] == "MRI" for w in words) for words in names) else ""


def canonical_spacing(volume: Volume | LabelMap) -> Triple:
    """Spacing along (S, A, R), mm."""
    perm, _ = canonical_axes(volume.grid.affine)
    return triple(volume.grid.spacing[perm[axis]] for axis in (2, 1, 0))


def content_box(channels: np.ndarray, background: Iterable[float | None]) -> tuple[Shape, Shape]:
    """Lower and upper (exclusive) corner of what is not background, with one voxel around it.

    Args:
        channels: (M, ., ., .), any axis order.
        background: Per channel the value that counts as empty; None stands for the channel's minimum.

    Returns:
        The whole volume if nothing stands out.
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
    """The corners of what is kept of a scan (M, ., ., .): its content, or all of a picture, black margins too."""
    if "rgb" in normalisation:
        return (0, 0, 0), triple(channels.shape[1:])
    return content_box(channels, [empty_value(kind) for kind in normalisation])


def fitted(shape: Sequence[int], longest: int) -> Shape:
    """(D, H, W) of pictures of that shape, enlarged or made smaller until the longer side has `longest` pixels."""
    scale = longest / max(shape[1:])
    return shape[0], max(1, round(shape[1] * scale)), max(1, round(shape[2] * scale))


def empty_value(normalisation: str) -> float | None:
    """Background of the crop: 0, or for CT, where 0 is water, the scan's lowest value."""
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
    """Collect what the plan needs, one case in memory at a time (model.md §12.1).

    Args:
        cases: Training scans with their labels.
        channels: Names of the channels, as the data set declares them.
        normalisation: config.data.normalisation.
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
        raise InputError("a plan needs at least one case", where="fingerprint")
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
    """The plane of the slices for a spacing in (S, A, R): the coarse axis is depth; axial if none stands out."""
    coarse = int(np.argmax(spacing))
    others = [s for axis, s in enumerate(spacing) if axis != coarse]
    if spacing[coarse] < COARSER * max(others):
        return "axial"
    return ("axial", "coronal", "sagittal")[coarse]


def make_plan(fingerprint: Fingerprint, cfg: Config) -> Plan:
    """Target spacing, view and patch (model.md §12.1, §12.2).

    The spacing is the median; where it is anisotropic and the coarse axis also has the fewest voxels, that axis
    takes its 10th percentile, unless `cfg.data.slices` keeps it out of resampling. `cfg.data` overrides view, spacing
    and the window of CT; the patch is `cfg.model.patch`.

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
        raise InputError("the target spacing must be positive", where="data.spacing", why=f"found {spacing} mm")
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
    """Whether `data.slices` leaves scans their own slices, at a target spacing (d, h, w) in mm."""
    return data.slices == "keep" or (data.slices == "auto" and bool(spacing[0] > ANISOTROPIC * min(spacing[1:])))


def _picture_plan(fingerprint: Fingerprint, cfg: Config, kinds: tuple[str, ...]) -> Plan:
    """Colour pictures have no spacing: each is resized until its longer side fits (model.md §12.3)."""
    longest = cfg.data.longest
    if len(kinds) != len(COLOURS) or longest < 1:
        raise InputError(
            "colour pictures have three channels, and a longer side",
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
    """The statistics of a CT channel with the configured window in place of the data set's own.

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
            remedy="Give low < high, what to subtract, and a divisor above 0.",
        )
    return replace(stats, p005=low, p995=high, mean=mean, std=std)


def fit_patch(median_shape: Shape, *, upsample: int, depth: int = 16, largest: int = 512, canvas: int = 1024) -> Shape:
    """A patch for new data (model.md §12.2): the median slice if it fits, and at most `depth` slices.

    Args:
        median_shape: (D, H, W) at the target spacing.
        upsample: stem.upsample; every side times it is a multiple of 16 and at most `canvas` (SAM's).
        depth: Most slices of a patch; what memory and time allow.
        largest: Most pixels of a side.
    """
    multiple = max(16 // math.gcd(16, upsample), 8)
    most = min(largest, canvas // upsample) // multiple * multiple
    sides = [min(most, -(-n // multiple) * multiple) for n in median_shape[1:]]
    return min(depth, median_shape[0]), sides[0], sides[1]
