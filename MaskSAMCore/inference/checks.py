"""Doubts about a scan, told before minutes are spent on it (faults.md row 30)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from MaskSAMCore.errors import ModelError
from MaskSAMCore.preprocessing.plan import ChannelStats, Plan
from MaskSAMCore.volume import Volume

if TYPE_CHECKING:
    from MaskSAMCore.zoo.model_folder import ModelCard

SAMPLE = 200_000
"""Voxels per channel that are looked at."""
COVERED = 0.5
"""A CT must cover at least this share of the training structures' intensities."""
AIR = -200.0
"""A CT scan with air reaches below this; an MR scan does not. Hounsfield units."""
COARSER = 3.0
LARGER = 2.0
FEW_VALUES = 4


def doubts(volume: Volume, card: ModelCard, plan: Plan, region: bool = False) -> list[str]:
    """Why this scan may not be what the model was trained on; empty where nothing stands out.

    Args:
        volume: The whole scan.
        card: Of the model; its modality and name are read.
        plan: Of the model; its statistics are compared.
        region: A region of interest was given, or clicks will say where to look, so the extent says nothing.
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
                found += _intensity_doubts(values, name, kind, stats)
    return found + _size_doubts(volume, plan, region)


def _intensity_doubts(values: np.ndarray, name: str, kind: str, stats: ChannelStats) -> list[str]:
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


def _size_doubts(volume: Volume, plan: Plan, region: bool) -> list[str]:
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
    """Refuse a model that segments by itself only, such as a distilled student, where clicks or boxes are given.

    Raises:
        ModelError: It takes none.
    """
    if not card.config.model.takes_prompts:
        raise ModelError(
            "this model takes no clicks and no boxes",
            where=card.name,
            why="it segments whole scans or regions only",
            remedy="Segment with it automatically, or choose a model that was trained with clicks and boxes.",
        )
