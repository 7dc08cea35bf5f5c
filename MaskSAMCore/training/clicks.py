"""Trains the click model: its patches as batches, and one pass with a simulated user."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from MaskSAMCore.data.appearance import changed
from MaskSAMCore.data.click_patches import ClickPatch, clarity, draw_patch
from MaskSAMCore.data.collection import PSEUDO, Collection
from MaskSAMCore.data.synthetic import synthetic_patch
from MaskSAMCore.data.targets import labelled_target, pseudo_target
from MaskSAMCore.network.click_unet import ClickUNet
from MaskSAMCore.preprocessing.region_growing import grown_maps
from MaskSAMCore.preprocessing.zoom_windows import facts, flat_levels, normalised
from MaskSAMCore.training.batches import Batch
from MaskSAMCore.training.click_users import ClickUser

LABELS, SYNTHETIC = "labels", "synthetic"
KINDS = {LABELS: 0.55, PSEUDO: 0.23, SYNTHETIC: 0.22}
"""Where targets come from, and how often."""
LATE = {LABELS: 0.75, PSEUDO: 0.15, SYNTHETIC: 0.10}
"""The same in the last fifth of the training."""
LAST_PART = 0.8
SINGLE_SHARE = 0.1
"""Share of the labelled targets that come from data sets of a single anatomy."""
MOST_SHARES = 8.0
"""A volume is drawn in proportion to the square root of the number of its structures, up to this."""
CLEAR = 1.1
"""Least `clarity` of a synthetic target: nothing is learned from borders that cannot be seen."""
REAL_APPEARANCE = 0.25
"""Share of the patches that keep the appearance of their scan."""
NEAR, NEAR_SPREAD = 0.25, 3.0
"""Weight of the loss around the clicks, and how far that reaches in voxels."""


class ClickSampler:
    """Draws patches of a collection and synthetic ones, as a function of (seed, step, rank).

    Args:
        collection: Prepared.
        steps: Of the whole training; its last part has more labels.
        seed: Seed of all random numbers.
    """

    def __init__(self, collection: Collection, *, steps: int, seed: int = 0) -> None:
        self.steps, self.seed = steps, seed
        volumes = list(collection.volumes.values())
        self.pseudo = [each for each in volumes if each.pseudo]
        self.labelled = [each for each in volumes if each.structures]
        weights = [min(MOST_SHARES, len(each.structures) ** 0.5) for each in self.labelled]
        single = np.array([each.entry.single for each in self.labelled])
        self.shares = np.array(weights)
        if single.any() and not single.all():
            self.shares[single] *= SINGLE_SHARE / self.shares[single].sum()
            self.shares[~single] *= (1 - SINGLE_SHARE) / self.shares[~single].sum()
        self.shares /= self.shares.sum()

    def patch(self, step: int, rank: int = 0) -> ClickPatch:
        """The patch of a micro-step for a process."""
        rng = np.random.default_rng([self.seed, 7, step, rank])
        shares = LATE if step >= LAST_PART * self.steps else KINDS
        missing = {LABELS: not self.labelled, PSEUDO: not self.pseudo}
        kinds = [kind for kind in shares if not missing.get(kind)]
        chances = np.array([shares[kind] for kind in kinds])
        while True:
            kind = str(rng.choice(kinds, p=chances / chances.sum()))
            found = synthetic_patch(rng) if kind == SYNTHETIC else self._real(kind, rng)
            if found is None:
                continue
            if rng.random() >= REAL_APPEARANCE:
                found = replace(found, image=changed(found.image, rng))
            if kind != SYNTHETIC or clarity(found.image, found.target) >= CLEAR:
                return found

    def _real(self, kind: str, rng: np.random.Generator) -> ClickPatch | None:
        if kind == LABELS:
            volume = self.labelled[int(rng.choice(len(self.labelled), p=self.shares))]
            return draw_patch(volume, labelled_target(volume, rng), rng)
        volume = self.pseudo[int(rng.integers(len(self.pseudo)))]
        return draw_patch(volume, pseudo_target(volume, rng), rng)

    def batch(self, step: int, rank: int = 0) -> Batch:
        """The patch of a micro-step as a batch of one."""
        patch = self.patch(step, rank)
        label = torch.from_numpy(patch.target.astype(np.int64))[None]
        return Batch(
            image=normalised(torch.from_numpy(patch.image))[None, None],
            label=label,
            valid=torch.ones(label.shape[:2], dtype=torch.bool),
            voxel=torch.tensor([[*patch.spacing, patch.finest]]),
        )


def train_clicks(
    model: ClickUNet, image: Tensor, label: Tensor, voxel: Tensor, rng: np.random.Generator
) -> dict[str, Tensor]:
    """One training pass with a simulated user; gradients flow through the last answer only.

    Args:
        model: In training mode.
        image: (1, 1, D, H, W), normalised.
        label: (1, D, H, W), 1 in the target.
        voxel: (1, 4), spacing (d, h, w) and finest voxel side, mm.
        rng: Source of chance.

    Returns:
        `loss` and its terms, and `overlap`, the Dice of the answer.
    """
    target = label[0] > 0
    *sides, finest = (float(v) for v in voxel[0])
    spacing = (sides[0], sides[1], sides[2])
    flat = flat_levels(spacing, model.levels)
    user = ClickUser(target.cpu().numpy(), spacing, rng)
    shown = image[0, 0].cpu().numpy()

    def answer() -> Tensor:
        maps = user.maps()
        told = torch.tensor([facts(spacing, finest, bool(maps[0].any()))], device=image.device)
        every = torch.from_numpy(np.concatenate([maps, grown_maps(shown, maps)]))
        return model.answer(image, every[None].to(image.device), told, flat=flat)

    for _ in range(user.rounds):
        with torch.no_grad():
            probability = answer()[0, 0].sigmoid().cpu().numpy()
        user.former = probability
        if not user.correct(probability > 0.5):
            break
    return click_loss(answer()[0, 0], target, user)


def click_loss(logits: Tensor, target: Tensor, user: ClickUser) -> dict[str, Tensor]:
    """Dice, cross entropy, and cross entropy around the clicks, for logits and target (D, H, W); in float32."""
    with torch.autocast(logits.device.type, enabled=False):
        logits, wanted = logits.float(), target.float()
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        inside = logits.sigmoid()
        terms = {
            "dice": 1 - (2 * (inside * wanted).sum() + 1) / (inside.sum() + wanted.sum() + 1),
            "bce": each.mean(),
        }
        loss = terms["dice"] + terms["bce"]
        near = _near(user, target)
        if near is not None:
            terms["near"] = (each * near).sum() / near.sum().clamp_min(1e-6)
            loss = loss + NEAR * terms["near"]
        found = logits > 0
        overlap = 2 * (found & target).sum() / (found.sum() + target.sum()).clamp_min(1)
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}, "overlap": overlap}


def _near(user: ClickUser, target: Tensor) -> Tensor | None:
    """Weights (D, H, W) around the clicks, within what each click is meant for; None without a click."""
    places, signs = user.clicked
    if not len(places):
        return None
    weight = torch.zeros(target.shape, device=target.device)
    for positive in (True, False):
        if not (signs == positive).any():
            continue
        maps = np.ones(user.target.shape, bool)
        maps[tuple(places[signs == positive].T)] = False
        distance = torch.from_numpy(ndimage.distance_transform_edt(maps).astype(np.float32)).to(target.device)
        blob = torch.exp(-0.5 * (distance / NEAR_SPREAD) ** 2)
        weight = weight + blob * (target == positive)
    return weight
