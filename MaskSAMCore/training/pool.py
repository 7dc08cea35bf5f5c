"""Patches that are encoded once and trained on many times (model.md §14.4).

`features` keeps whole cases in a few copies; this keeps as many patches as there is time to encode, each drawn and
augmented by itself, so that it is made in a known time whatever the size of the scans.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from MaskSAMCore.errors import ResourceError
from MaskSAMCore.network.types import Features
from MaskSAMCore.training.batches import Batch

DISK_SHARE = 0.5
"""Share of the free disk that the patches may take."""


class PatchPool:
    """Encoded batches in a folder, a file each.

    Args:
        folder: Empty, or missing.
        seed: Seed of the order of the batches.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.folder, self.seed, self.count = folder, seed, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._free = DISK_SHARE * shutil.disk_usage(folder).free
        self._largest = 0

    @property
    def full(self) -> bool:
        """Whether the disk should take no more."""
        return (self.count + 1) * self._largest > self._free

    def add(self, batch: Batch) -> None:
        """Keep one batch with its features, floats as fp16.

        Raises:
            ResourceError: The disk is full.
        """
        if batch.features is None:
            raise ValueError("a pool keeps encoded batches")
        levels = (*batch.features.levels, batch.features.embed)
        tensors = {f"level{number:02}": level.half().cpu().contiguous() for number, level in enumerate(levels)}
        tensors |= {"image": batch.image.half(), "label": batch.label.to(torch.int16), "valid": batch.valid}
        path = self.folder / f"{self.count}.safetensors"
        save_file(tensors, str(path))
        self._largest = max(self._largest, path.stat().st_size)
        self.count += 1
        if self.count * self._largest > self._free:
            why = f"{self.count} encoded patches take {self.count * self._largest / 2**20:.0f} MiB"
            raise ResourceError("too little space on the disk", where=self.folder, why=why, remedy="Free some space.")

    def batch(self, step: int) -> Batch:
        """The batch of a step; every one comes once before any comes again."""
        turn, place = divmod(step, self.count)
        number = np.random.default_rng([self.seed, 7, turn]).permutation(self.count)[place]
        tensors = load_file(str(self.folder / f"{number}.safetensors"))
        *levels, embed = (tensors[name] for name in sorted(tensors) if name.startswith("level"))
        return Batch(
            tensors["image"].float(),
            tensors["label"].long(),
            tensors["valid"],
            Features(levels=tuple(levels), embed=embed),
        )
