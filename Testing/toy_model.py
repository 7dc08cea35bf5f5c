"""A model of one threshold, so that tests of the chain around the network are fast and have one right answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import BackboneConfig, ModelConfig
from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import to_dict
from MaskSAMCore.labels import PALETTE, Label, LabelTable
from MaskSAMCore.preprocessing.plan import ChannelStats, Plan
from MaskSAMCore.volume import Grid, Volume
from MaskSAMCore.zoo.model_folder import ModelCard, save_model

BRIGHT = LabelTable(labels=(Label(id=3, name="bright", color=PALETTE[0]),), mirrored=True)


class Threshold(nn.Module):
    """Class 1 where the (normalised) image exceeds `level`, with scores 0.9 and 0.1."""

    def __init__(self, level: float = 1.0) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))
        self.calls = 0

    def segment_patch(self, image: Tensor) -> Tensor:
        """(B, M, D, H, W) to (B, 2, D, H, W)."""
        self.calls += 1
        inside = (image[:, 0] > self.level).float() * 0.8 + 0.1
        return torch.stack([1 - inside, inside], dim=1)


def make_plan(**changes: Any) -> Plan:
    """An axial MR plan of 1 mm voxels and 4x16x16 patches."""
    stats = ChannelStats(p005=80, p995=200, mean=120, std=30, low=0, high=200)
    values: dict[str, Any] = {
        "view": "axial",
        "spacing": (1.0, 1.0, 1.0),
        "patch": (4, 16, 16),
        "normalisation": ("zscore",),
        "stats": (stats,),
        "anisotropic": False,
        "median_shape": (8, 24, 24),
        "channels": ("MRI",),
        "modality": "MR",
    }
    return Plan(**(values | changes))


def make_card(labels: LabelTable = BRIGHT, plan: Plan | None = None, **changes: Any) -> ModelCard:
    """A card of the smallest network, without pretrained weights."""
    plan = plan or make_plan()
    network = ModelConfig(
        channels=len(plan.channels), classes=labels.classes, patch=plan.patch, backbone=BackboneConfig(arch="tiny")
    )
    values: dict[str, Any] = {
        "name": "toy",
        "config": Config(model=network),
        "labels": labels,
        "plan": to_dict(plan),
        "modality": plan.modality,
        "licence": "CC0",
    }
    return ModelCard(**(values | changes))


def save_tiny(folder: Path, card: ModelCard | None = None) -> Path:
    """A model folder with the smallest real network, untrained."""
    from MaskSAMCore.network.build import build_model

    card = card or make_card()
    torch.manual_seed(0)
    return save_model(folder, card, build_model(card.config.model).state_dict(), "# toy\n")


def bright_scan(
    shape: tuple[int, int, int] = (12, 40, 40), affine: np.ndarray | None = None, *, at: tuple[slice, ...] | None = None
) -> tuple[Volume, np.ndarray]:
    """A scan (K, J, I) with one bright block in weak noise, and the block as a boolean array."""
    block = np.zeros(shape, bool)
    block[at or (slice(3, 8), slice(12, 22), slice(5, 15))] = True
    noise = np.random.default_rng(0).normal(20, 1, shape)
    array = np.where(block, noise + 150, noise).astype(np.float32)
    grid = Grid(shape=shape, affine=np.eye(4) if affine is None else affine)
    return Volume(array=array, grid=grid, source="phantom"), block
