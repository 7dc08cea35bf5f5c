"""Random patches of preprocessed cases, as a function of (seed, step, rank), so that runs can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from MaskSAMCore.config.schema import AugmentConfig
from MaskSAMCore.data.augment import Warp, draw_mirror, draw_warp, extract, flip, flip_scores, generator, intensity
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.errors import DatasetError, InputError
from MaskSAMCore.preprocessing.plan import MirrorRule
from MaskSAMCore.volume import Shape


@dataclass(frozen=True)
class Patches:
    """A batch of patches.

    Attributes:
        image: (B, M, D, H, W) float32.
        label: (B, D, H, W) int64.
        valid: (B, D) bool; False for slices that are padding.
        cases: Case of every sample.
        scores: (B, K, D, H, W) float32, class scores; None if the sampler has none.
    """

    image: Tensor
    label: Tensor
    valid: Tensor
    cases: tuple[str, ...]
    scores: Tensor | None = None


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(count)


class PatchSampler:
    """Draws patches of preprocessed cases; every case is drawn once per epoch.

    The last `foreground` share of each batch is centred on a voxel of a random structure of its case (model.md §12.3);
    with a batch of one, this is a probability.

    Args:
        dataset: The cache.
        ids: Cases to draw from.
        patch: (D, H, W).
        batch: B, per process.
        foreground: Share of patches centred on a structure.
        seed: Seed of all random numbers.
        augment: Augmentation, or None.
        mirror: From `plan.mirror_rule`; required with `augment`.
        scores: Returns the class scores (K, Z, Y, X) of a case, which are transformed as its labels are.

    Raises:
        InputError: There are no cases, or `augment` is given without `mirror`.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        ids: Sequence[str],
        *,
        patch: Shape,
        batch: int,
        foreground: float = 0.33,
        seed: int = 0,
        augment: AugmentConfig | None = None,
        mirror: MirrorRule | None = None,
        scores: Callable[[str], np.ndarray] | None = None,
    ) -> None:
        if not ids:
            raise InputError("there is no case to train on", where=dataset.folder)
        if augment is not None and mirror is None:
            raise InputError("augmentation needs the rule for mirroring", where="PatchSampler")
        self.dataset, self.ids, self.patch, self.size = dataset, tuple(ids), patch, batch
        self.foreground, self.seed, self.augment, self.mirror = foreground, seed, augment, mirror
        self.scores = scores

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Patches:
        """The batch of micro-step `step` for process `rank` of `world`.

        Raises:
            DatasetError: A case cannot be read; names it (faults.md rows 43, 44).
        """
        samples, cases = [], []
        first = (step * world + rank) * self.size
        for index in range(self.size):
            epoch, place = divmod(first + index, len(self.ids))
            case = self.ids[_order(len(self.ids), self.seed, epoch)[place]]
            try:
                samples.append(self._sample(case, first + index, index))
            except (OSError, ValueError, IndexError) as error:
                problem = f"{type(error).__name__}: {error}"
                raise DatasetError("the case cannot be read", where=case, problems=[problem]) from error
            cases.append(case)
        images, labels, valids, scores = zip(*samples, strict=True)
        given = None if self.scores is None else torch.stack(scores)
        return Patches(torch.stack(images), torch.stack(labels), torch.stack(valids), tuple(cases), given)

    def _sample(self, case: str, number: int, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        ready = self.dataset.case(case)
        rng = np.random.default_rng([self.seed, 2, number])
        start = place_patch(ready.label.shape, self.patch, self._target(ready.points, index, rng), rng)

        def cut_scores(warp: Warp | None = None) -> Tensor | None:
            if self.scores is None:
                return None
            return extract(self.scores(case), ready.label, start, self.patch, warp)[0]

        if self.augment is None or self.mirror is None:
            return *extract(ready.image, ready.label, start, self.patch), cut_scores()
        drawn = generator(self.seed, 3, number)
        plan = self.dataset.plan
        warp = draw_warp(self.augment, plan, self.patch, drawn)
        image, label, valid = extract(ready.image, ready.label, start, self.patch, warp)
        image = intensity(image, self.augment, drawn, in_plane=plan.anisotropic)
        axes = draw_mirror(self.mirror, self.augment.mirror, drawn)
        scores = cut_scores(warp)
        scores = None if scores is None else flip_scores(scores, self.mirror, axes)
        return *flip(image, label, valid, self.mirror, axes), scores

    def _target(self, points: np.ndarray, index: int, rng: np.random.Generator) -> np.ndarray | None:
        """A voxel (d, h, w) that the patch must contain, or None."""
        chance = rng.random()
        if self.size == 1:
            wanted = chance < self.foreground
        else:
            wanted = index >= round(self.size * (1 - self.foreground))
        if not wanted or not len(points):
            return None
        value = rng.choice(np.unique(points[:, 0]))
        rows = points[points[:, 0] == value]
        return rows[rng.integers(len(rows)), 1:]


def place_patch(
    shape: Sequence[int], patch: Shape, target: np.ndarray | None, rng: np.random.Generator
) -> tuple[int, int, int]:
    """First voxel of a patch around `target`, or of a random patch if it is None.

    The patch is inside the case along every axis that is long enough, and centred along the others as `pad_to` does.
    """
    start = []
    for axis, (size, length) in enumerate(zip(shape, patch, strict=True)):
        if size <= length:
            start.append(-((length - size) // 2))
        elif target is None:
            start.append(int(rng.integers(size - length + 1)))
        else:
            start.append(int(np.clip(int(target[axis]) - length // 2, 0, size - length)))
    return start[0], start[1], start[2]
