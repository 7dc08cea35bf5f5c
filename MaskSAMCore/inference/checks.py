"""Checks before a scan is segmented: likeness to the training data, prompts, memory (faults.md rows 30 and 48)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from MaskSAMCore import device as devices
from MaskSAMCore.errors import ModelError
from MaskSAMCore.preprocessing.plan import ChannelStats, Plan
from MaskSAMCore.volume import Grid, Volume

if TYPE_CHECKING:
    from MaskSAMCore.zoo.model_folder import ModelCard

SAMPLE = 200_000
"""Most voxels of a channel that are read."""
COVERED = 0.5
"""Least share of the intensity range of the training structures that a CT has to cover."""
AIR = -200.0
"""Hounsfield units. A CT scan with air in it has values below this, an MR scan has none."""
COARSER = 3.0
"""Factor of the voxel size over that of the training."""
LARGER = 2.0
"""Factor of the size of the scan, in mm, over that of the training."""
FEW_VALUES = 4
"""An image with fewer different values may be a label map."""


def scan_warnings(volume: Volume, card: ModelCard, plan: Plan, region: bool = False) -> list[str]:
    """Differences of a scan from the training data that may spoil the result, one sentence each.

    Args:
        volume: The whole scan.
        card: Of the model; its modality and name are read.
        plan: Of the model; its intensity statistics and sizes are compared.
        region: Do not compare the size: only a region is segmented, or there will be clicks.
    """
    found = []
    trained = card.modality or plan.modality
    if trained and volume.modality and volume.modality != trained:
        found.append(f"the scan is {volume.modality}, but the model {card.name} was trained on {trained}")
    if volume.channels == len(plan.stats):
        for name, kind, stats, channel in zip(
            plan.channels, plan.normalisation, plan.stats, volume.as_channels(), strict=True
        ):
            flat = channel.reshape(-1)
            values = flat[:: max(1, flat.size // SAMPLE)]
            values = values[np.isfinite(values)]
            if values.size:
                found += _intensity_warnings(values, name, kind, stats)
    return found + _size_warnings(volume, plan, region)


def _intensity_warnings(values: np.ndarray, name: str, kind: str, stats: ChannelStats) -> list[str]:
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    span = f"its {name} values run from {low:.0f} to {high:.0f}"
    few = len(np.unique(values))
    if 1 < few < FEW_VALUES:
        return [f"channel {name} holds only {few} different values; is it a label map?"]
    if kind == "ct":
        overlap = min(high, stats.p995) - max(low, stats.p005)
        if overlap < COVERED * (stats.p995 - stats.p005):
            return [f"{span}, the structures in training from {stats.p005:.0f} to {stats.p995:.0f}; are they HU?"]
        if stats.low < AIR and values.min() > AIR:
            return [f"{span}, without the air that the training scans hold; are they Hounsfield units?"]
    elif stats.low >= 0 and low < AIR:
        return [f"{span}, in training from {stats.low:.0f} to {stats.high:.0f}; is it a CT?"]
    return []


def _size_warnings(volume: Volume, plan: Plan, region: bool) -> list[str]:
    if plan.longest:
        return []
    found, spacing = [], plan.own_spacing(volume.grid)
    if any(have > COARSER * want for have, want in zip(spacing, plan.spacing, strict=True)):
        have, want = (" x ".join(f"{v:.2g}" for v in values) for values in (spacing, plan.spacing))
        found.append(f"the voxels of {have} mm are much coarser than those of the training, {want} mm")
    extent = [s * volume.grid.shape[2 - axis] for s, axis in zip(spacing, plan.axes_of(volume.grid), strict=True)]
    usual = [s * n for s, n in zip(plan.spacing, plan.median_shape, strict=True)]
    if not region and any(have > LARGER * want for have, want in zip(extent, usual, strict=True)):
        have, want = (" x ".join(f"{v:.0f}" for v in values) for values in (extent, usual))
        found.append(f"it spans {have} mm, the scans in training {want} mm; give a region of interest")
    return found


def require_prompts(card: ModelCard) -> None:
    """Check that a model takes clicks and boxes.

    Raises:
        ModelError: It only segments automatically, as a distilled student does.
    """
    if not card.config.model.takes_prompts:
        raise ModelError(
            "this model takes no clicks and no boxes",
            where=card.name,
            why="it segments whole scans or regions only",
            remedy="Segment with it automatically, or choose a model that was trained with clicks and boxes.",
        )


def require_memory(grid: Grid, plan: Plan, classes: int, channels: int, source: str = "") -> None:
    """Check that a scan can be segmented within the computer's memory, before it is (faults.md row 48).

    Args:
        grid: Of the scan.
        plan: Of the model.
        classes: K, the background included.
        channels: M.
        source: Name of the scan, for the message.

    Raises:
        ResourceError: Names the memory that is needed and that is free.
    """
    voxels = float(np.prod(grid.shape))
    planned = max(plan.voxels(grid), float(np.prod(plan.patch)))
    # sums and weights in float32, the image twice; on the scan's grid the float copy and three scores at a time
    needed = 4 * planned * (classes + 1 + 2 * channels) + 4 * voxels * (channels + 3)
    devices.require_ram(
        int(needed), what=source or "the scan", remedy="Close other programs, or segment a region of it (--roi)."
    )


def require_session_memory(volume: Volume, plan: Plan) -> None:
    """Check that a scan can be opened within the computer's memory, before it is (faults.md row 48).

    Raises:
        ResourceError: Names the memory that is needed and that is free.
    """
    voxels = float(np.prod(volume.grid.shape))
    # one channel as float32 beside the prepared image, and the masks of what is empty
    needed = 4 * plan.voxels(volume.grid) * (volume.channels + 1) + voxels * (4 + volume.channels)
    devices.require_ram(
        int(needed), what=volume.source or "the scan", remedy="Close other programs, or open a smaller part of it."
    )
