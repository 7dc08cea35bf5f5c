"""Cache of the frozen encoder's features, computed once per slice (model.md §14.4).

Every training case is stored in a fixed set of augmented copies, each in the in-plane windows of
the sliding window over all its slices, as fp16. Training the generator, the decoder's adapters and
the heads from them needs no encoder pass.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.network.types import Features
from MaskSAMCore.preprocessing.resample import pad_to
from MaskSAMCore.preprocessing.windows import starts
from MaskSAMCore.training.batches import Batch
from MaskSAMCore.training.stored import folder_for

INDEX = "index.json"
SLICES_AT_ONCE = 16
VOXELS_PER_CLASS = 2000


Copies = Callable[[str, int], tuple[np.ndarray, np.ndarray]]
"""Case and number of the copy to image (M, Z, Y, X) float32 and labels (Z, Y, X); copy 0 is the case itself."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One copy of one case in the cache; the arrays are memory-mapped.

    Attributes:
        image: (M, Z, Y, X), at least as large as a patch.
        label: (Z, Y, X).
        inside: First slice of the case, and the first after it; the others are padding.
        windows: (y0, x0) of every in-plane window.
        levels: Per feature level (W, Z, C, h, w), the last one SAM's embedding.
        voxels: (n, 4) class, z, y, x of structure voxels.
    """

    image: np.ndarray
    label: np.ndarray
    inside: tuple[int, int]
    windows: tuple[tuple[int, int], ...]
    levels: tuple[np.ndarray, ...]
    voxels: np.ndarray


class FrozenBatches:
    """Batches from the cache; `batch(step)` depends on its arguments and the seed alone."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        patch: tuple[int, int, int],
        batch: int,
        foreground: float,
        seed: int,
    ) -> None:
        self.folder, self.names, self.patch = folder, list(names), patch
        self.size, self.foreground, self.seed = batch, foreground, seed

    def batch(self, step: int, rank: int = 0) -> Batch:
        """The batch of micro-step `step` for process `rank`."""
        rng = np.random.default_rng((self.seed, 1, step, rank))
        samples = [self._sample(rng, self._wants_structure(rng, i)) for i in range(self.size)]
        images, labels, valids, levels = zip(*samples, strict=True)
        stacked = [torch.from_numpy(np.stack(level)).transpose(1, 2) for level in zip(*levels, strict=True)]
        return Batch(
            torch.from_numpy(np.stack(images)),
            torch.from_numpy(np.stack(labels)),
            torch.from_numpy(np.stack(valids)),
            Features(levels=tuple(stacked[:-1]), embed=stacked[-1]),
        )

    def _wants_structure(self, rng: np.random.Generator, index: int) -> bool:
        if self.size == 1:
            return bool(rng.random() < self.foreground)
        return index >= round(self.size * (1 - self.foreground))

    def _sample(self, rng: np.random.Generator, structure: bool) -> tuple[Any, ...]:
        entry = read_entry(self.folder / self.names[rng.integers(len(self.names))])
        depth, height, width = self.patch
        slices = entry.label.shape[0]
        window = int(rng.integers(len(entry.windows)))
        z0 = int(rng.integers(slices - depth + 1))
        if structure and len(entry.voxels):
            classes = np.unique(entry.voxels[:, 0])
            rows = entry.voxels[entry.voxels[:, 0] == rng.choice(classes)]
            _, z, y, x = rows[rng.integers(len(rows))]
            holds = [i for i, (y0, x0) in enumerate(entry.windows) if y0 <= y < y0 + height and x0 <= x < x0 + width]
            window = int(rng.choice(holds))
            z0 = int(np.clip(z - rng.integers(depth), 0, slices - depth))
        y0, x0 = entry.windows[window]
        place = (slice(z0, z0 + depth), slice(y0, y0 + height), slice(x0, x0 + width))
        number = np.arange(z0, z0 + depth)
        valid = (number >= entry.inside[0]) & (number < entry.inside[1])
        image: np.ndarray = entry.image[(slice(None), *place)].astype(np.float32)
        label: np.ndarray = entry.label[place].astype(np.int64)
        return image, label, valid, tuple(level[window, place[0]] for level in entry.levels)


def read_entry(folder: Path) -> Entry:
    """Open one entry without reading its arrays."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    array = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in index["arrays"]}
    return Entry(
        image=array["image"],
        label=array["label"],
        inside=(index["inside"][0], index["inside"][1]),
        windows=tuple((y, x) for y, x in index["windows"]),
        levels=tuple(array[f"level{i}"] for i in range(index["levels"])),
        voxels=array["voxels"],
    )


def build_cache(
    folder: Path,
    cases: Sequence[str],
    copies: Copies,
    model: Segmenter,
    *,
    count: int,
    key: dict[str, Any],
    progress: Callable[[int, int, str], None] | None = None,
    check: Callable[[], None] | None = None,
) -> list[str]:
    """Compute what is missing in the cache and return the names of its entries.

    Args:
        folder: Where the cache lives; a cache made under another `key` is replaced.
        cases: Case names.
        copies: Returns the voxels of copy 0, 1, ... of a case.
        model: With its base weights; its adapters are not used.
        count: Copies of every case.
        key: Everything that the features depend on: base weights, configuration, data.
        progress: Called after every entry.
        check: Called before every entry; raises to cancel.
    """
    folder = folder_for(folder, key)
    todo = [(case, copy) for case in cases for copy in range(count)]
    for done, (case, copy) in enumerate(todo):
        if check is not None:
            check()
        target = folder / f"{case}.{copy}"
        if not (target / INDEX).exists():
            image, label = copies(case, copy)
            _write_entry(target, image, label, model, seed=copy)
        if progress is not None:
            progress(done + 1, len(todo), "features of the frozen encoder")
    return [f"{case}.{copy}" for case, copy in todo]


def _write_entry(target: Path, image: np.ndarray, label: np.ndarray, model: Segmenter, *, seed: int) -> None:
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    image, inside = pad_to(image, model.cfg.patch)
    label = pad_to(label[None], model.cfg.patch)[0][0]
    _, height, width = model.cfg.patch
    windows = [(y, x) for y in starts(image.shape[2], height) for x in starts(image.shape[3], width)]
    arrays = {"image": image.astype(np.float16), "label": label, "voxels": _structure_voxels(label, seed)}
    levels = _features(image, windows, model)
    arrays |= {f"level{i}": level for i, level in enumerate(levels)}
    for name, array in arrays.items():
        np.save(partial / f"{name}.npy", array)
    slices = [inside[0].start or 0, inside[0].stop or len(label)]
    index = {"arrays": list(arrays), "windows": windows, "levels": len(levels), "inside": slices}
    (partial / INDEX).write_text(json.dumps(index), encoding="utf-8")
    partial.replace(target)


def _structure_voxels(label: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows: list[np.ndarray] = [np.zeros((0, 4), np.int32)]
    for value in np.unique(label[label > 0]):
        found: np.ndarray = np.argwhere(label == value).astype(np.int32)
        found = found[rng.permutation(len(found))[:VOXELS_PER_CLASS]]
        rows.append(np.concatenate([np.full((len(found), 1), value, np.int32), found], axis=1))
    return np.concatenate(rows)


@torch.inference_mode()
def _features(image: np.ndarray, windows: Sequence[tuple[int, int]], model: Segmenter) -> list[np.ndarray]:
    height, width = model.cfg.patch[1:]
    device = next(model.parameters()).device
    volume = torch.from_numpy(np.ascontiguousarray(image)).float()
    stacks: list[list[np.ndarray]] = []
    for y, x in windows:
        crop = volume[None, :, :, y : y + height, x : x + width]
        parts = [model.encode_frozen(part.to(device)) for part in crop.split(SLICES_AT_ONCE, dim=2)]
        maps = zip(*[(*part.levels, part.embed) for part in parts], strict=True)
        stacks.append([torch.cat(level, dim=2)[0].transpose(0, 1).half().cpu().numpy() for level in maps])
    return [np.stack(level) for level in zip(*stacks, strict=True)]
