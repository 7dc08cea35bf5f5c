"""Training on clicks and boxes: simulated users of the structures in a patch (model.md §2.4, §6.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from MaskSAMCore.data.simulate import box_with_overlap, error_click, jitter_box, random_clicks, ring_clicks
from MaskSAMCore.losses.set_loss import prompt_loss
from MaskSAMCore.network.heads import resize_masks
from MaskSAMCore.network.prompt_broadcast import SlicePrompts, broadcast_prompts
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.network.types import PromptBatch, Slab
from MaskSAMCore.preprocessing.masks import Box2D, bounds, dilate_box, enforce_clicks, interior_point, tight_box

Start = Literal["click", "box", "onward", "mask"]

OBJECTS = 3
"""Number of simulated users of one patch."""
STARTS: dict[Start, float] = {"click": 0.45, "box": 0.35, "onward": 0.12, "mask": 0.08}
"""How a user starts, and how often; `onward` is the step of propagation to the next slab."""
ROUNDS = {0: 0.4, 1: 0.2, 2: 0.15, 3: 0.1, 5: 0.08, 8: 0.07}
"""Corrections before the masks that are trained on, and how often. Often none: boxes by themselves are trained only
then. Up to eight, since users do not stop at three."""
CANDIDATES = 0.1
"""Share of the steps in which every user clicks once and the best of SAM's three candidates is trained."""
CLICKS = (0.7, 0.15, 0.15)
"""Probabilities of 1, 2 and 3 first clicks."""
CENTRAL = 0.4
"""Share of the clicks that are placed in the middle of their target, the others anywhere in it."""
BACKGROUND_CLICKS = 0.15
STAYS = 0.5
"""Share of the users who correct in the slice where they started, the others anywhere in the patch."""
LOOSE_BOXES = 0.5
LOOSEST, TIGHTEST = 0.4, 0.95
"""Overlaps of the boxes that are not drawn as SAM's training draws them."""
OWN_SLICE = 3.0
"""Weight of a slice with prompts of its own, beside 1 for the others."""
LOGIT_LIMIT = 16.0
"""Mask prompts are clipped to this."""


@dataclass
class User:
    """One simulated user of one object in a patch.

    Attributes:
        target: (D, H, W) bool, the object.
        label: Its class, 0 for a user without an object.
        clicks: Per slice (y, x, positive).
        boxes: Per slice, half-open (x0, y0, x1, y1) in voxels.
        before: (D, H, W) float32 logits of the mask at the start, or None.
        known: (D,) bool, the slices of `before` that have a mask.
        home: The slice that the user stays in, or None.
    """

    target: np.ndarray
    label: int = 0
    clicks: dict[int, list[tuple[float, float, bool]]] = field(default_factory=dict)
    boxes: dict[int, Box2D] = field(default_factory=dict)
    before: np.ndarray | None = None
    known: np.ndarray | None = None
    home: int | None = None

    def click(self, z: int, y: float, x: float, positive: bool) -> None:
        """Add a click at voxel (z, y, x)."""
        self.clicks.setdefault(int(z), []).append((float(y), float(x), positive))

    def prompts(self) -> dict[int, SlicePrompts]:
        """All prompts so far, by slice."""
        height, width = self.target.shape[1:]
        found = {}
        for z in sorted({*self.clicks, *self.boxes}):
            clicks, box = self.clicks.get(z, []), self.boxes.get(z)
            found[z] = SlicePrompts(
                points=tuple(((x + 0.5) / width, (y + 0.5) / height) for y, x, _ in clicks),
                labels=tuple(int(positive) for _, _, positive in clicks),
                box=None if box is None else (box[0] / width, box[1] / height, box[2] / width, box[3] / height),
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The users of a batch, [b][q], and their course of action.

    Attributes:
        users: The same number for every patch.
        rounds: Number of corrections before the masks that are trained on.
        candidates: Whether SAM's three candidates are predicted.
    """

    users: list[list[User]]
    rounds: int
    candidates: bool


def draw_scene(labels: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> Scene:
    """Users for a batch of patches.

    Args:
        labels: (B, D, H, W) classes.
        inside: (B, D) bool, slices that are not padding.
        rng: Source of chance.
    """
    candidates = bool(rng.random() < CANDIDATES)
    rounds = 0 if candidates else int(rng.choice(list(ROUNDS), p=list(ROUNDS.values())))
    users = [_users(each, valid, rng, candidates) for each, valid in zip(labels, inside, strict=True)]
    return Scene(users=users, rounds=rounds, candidates=candidates)


def _users(labels: np.ndarray, inside: np.ndarray, rng: np.random.Generator, candidates: bool) -> list[User]:
    labels = np.where(inside[:, None, None], labels, 0)
    present = [int(value) for value in np.unique(labels) if value]
    if not present:
        return [User(target=labels > 0) for _ in range(OBJECTS)]
    order = [present[i % len(present)] for i in range(OBJECTS)]
    return [draw_user(labels == value, value, rng, "click" if candidates else None, candidates) for value in order]


def draw_user(
    target: np.ndarray, label: int, rng: np.random.Generator, start: Start | None = None, single: bool = False
) -> User:
    """A user of one object that is in the patch.

    Args:
        target: (D, H, W) bool, not empty.
        label: The object's class.
        rng: Source of chance.
        start: How the user begins; None draws it.
        single: Only one positive click.
    """
    user = User(target=target, label=label)
    slices = np.flatnonzero(target.any(axis=(1, 2)))
    z = int(rng.choice(slices))
    begin = start or rng.choice(list(STARTS), p=list(STARTS.values()))
    if begin == "onward" and len(slices) == 1:
        begin = "click"
    if begin == "click":
        _first_clicks(user, z, rng, single)
    elif begin == "box":
        user.boxes[z] = _drawn_box(target[z], rng)
    elif begin == "onward":
        _come_from_the_last_slab(user, slices, rng)
    else:
        user.before = soft_mask(target, rng)
        user.known = np.ones(len(target), bool)
        correct(user, user.before > 0, rng)
    if rng.random() < STAYS and begin != "onward":
        user.home = min({*user.clicks, *user.boxes}, default=None)
    return user


def _first_clicks(user: User, z: int, rng: np.random.Generator, single: bool) -> None:
    mask = user.target[z]
    count = 1 if single else 1 + int(rng.choice(len(CLICKS), p=CLICKS))
    middle = interior_point(mask)
    places = random_clicks(mask, count, rng)
    if middle is not None and rng.random() < CENTRAL:
        places[0] = middle
    for y, x in places:
        user.click(z, y, x, True)
    if not single and rng.random() < BACKGROUND_CLICKS:
        for y, x in ring_clicks(mask, int(rng.integers(1, 3)), rng):
            user.click(z, y, x, False)


def _drawn_box(mask: np.ndarray, rng: np.random.Generator) -> Box2D:
    tight = tight_box(mask)
    if tight is None:
        raise ValueError("a box needs something to stand around")
    if rng.random() < LOOSE_BOXES:
        x0, y0, x1, y1 = box_with_overlap(tight, float(rng.uniform(LOOSEST, TIGHTEST)), rng)
        height, width = mask.shape
        x0, x1, y0, y1 = max(x0, 0.0), min(x1, float(width)), max(y0, 0.0), min(y1, float(height))
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            return x0, y0, x1, y1
    return jitter_box(tight, mask.shape, rng)


def _come_from_the_last_slab(user: User, slices: np.ndarray, rng: np.random.Generator) -> None:
    """Masks of one end of the patch, and the box and the innermost point of the outermost of them."""
    depth = len(user.target)
    edge = int(rng.choice(slices[:-1])) if len(slices) > 1 else int(slices[0])
    known = np.arange(depth) <= edge
    if rng.random() < 0.5:
        known, edge = ~known, edge + 1
    if not user.target[edge].any():
        edge = int(slices[np.abs(slices - edge).argmin()])
    user.before, user.known = soft_mask(user.target, rng), known
    seen = user.before[edge] > 0
    seen = seen if seen.any() else user.target[edge]
    box, point = tight_box(seen), interior_point(seen)
    if box is not None and point is not None:
        user.boxes[edge] = dilate_box(box, 0.05, seen.shape)
        user.click(edge, *point, True)


def soft_mask(target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Logits (D, H, W) of a mask with the errors of an earlier attempt: shifted, thin or swollen, with soft borders."""
    mask = np.roll(target, rng.integers(-1, 2, 3), axis=(0, 1, 2))
    change = rng.integers(-1, 2)
    plane = ndimage.generate_binary_structure(3, 1)
    plane[[0, 2]] = False
    if change > 0:
        mask = ndimage.binary_dilation(mask, plane)
    elif change < 0 and (thin := ndimage.binary_erosion(mask, plane)).any():
        mask = thin
    level = float(rng.uniform(2, 10))
    signed = np.where(mask, level, -level).astype(np.float32)
    return ndimage.gaussian_filter(signed, (0, *[float(rng.uniform(0, 1.2))] * 2))


def correct(user: User, predicted: np.ndarray, rng: np.random.Generator | None) -> bool:
    """Click into the largest error; False if there is none.

    Args:
        user: Takes note of the click.
        predicted: (D, H, W) bool.
        rng: Source of chance, as in training: the slice is drawn by how much is wrong in it, the click is now
            central, now anywhere. None is the user of the evaluation: the largest error of all, in its middle.
    """
    if rng is None and user.home is None:
        click = error_click(predicted, user.target)
        if click is not None:
            z, y, x = click.position
            user.click(z, y, x, click.positive)
        return click is not None
    wrong = (predicted ^ user.target).sum(axis=(1, 2))
    if user.home is not None:
        z = user.home
    elif not wrong.any() or rng is None:
        return False
    else:
        z = int(rng.choice(len(wrong), p=wrong / wrong.sum()))
    chance = rng if rng is not None and rng.random() >= CENTRAL else None
    click = error_click(predicted[z], user.target[z], rng=chance)
    if click is not None:
        y, x = click.position
        user.click(z, y, x, click.positive)
    return click is not None


def assemble(
    model: Segmenter, users: Sequence[Sequence[User]], logits: Tensor | None, device: torch.device
) -> PromptBatch:
    """The prompts of all users, as the network takes them; `logits` (B, Q, D, H, W) are the masks of the last round."""
    masks, known = logits, None
    if logits is None and any(user.before is not None for row in users for user in row):
        empty = np.zeros_like(users[0][0].target, np.float32)
        masks = _stack([[empty if u.before is None else u.before for u in row] for row in users], device)
        nothing: np.ndarray = np.zeros(len(empty), bool)
        known = _stack([[nothing if u.known is None else u.known for u in row] for row in users], device)
    if masks is not None:
        masks = resize_masks(masks.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), model.cfg.mask_size)
    prompts = [[user.prompts() for user in row] for row in users]
    return broadcast_prompts(prompts, users[0][0].target.shape[0], masks=masks, masks_known=known, device=device)


def _stack(rows: Sequence[Sequence[np.ndarray]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack([np.stack(row) for row in rows])).to(device)


def train_prompted(
    model: Segmenter, slab: Slab, labels: Tensor, valid: Tensor, rng: np.random.Generator
) -> dict[str, Tensor]:
    """One training pass with simulated users; gradients flow through the last round only.

    Args:
        model: In training mode.
        slab: Of the batch, with gradients.
        labels: (B, D, H, W) classes.
        valid: (B, D) bool, slices that are not padding.
        rng: Source of chance.

    Returns:
        `loss` and its terms, as `losses.prompt_loss` gives them.
    """
    device = slab.embed.device
    scene = draw_scene(labels.cpu().numpy(), valid.cpu().numpy(), rng)
    logits: Tensor | None = None
    for _ in range(scene.rounds):
        with torch.no_grad():
            logits = _answer(model, slab, scene.users, logits)
        for user, predicted in _pairs(scene.users, logits > 0):
            if user.label:
                correct(user, predicted, rng)
    answer = model.prompted(slab, assemble(model, scene.users, logits, device), multimask=scene.candidates)
    targets = _stack([[user.target for user in row] for row in scene.users], device)
    wanted = torch.tensor([[user.label for user in row] for row in scene.users], device=device)
    weight = valid[:, None].float() * (wanted > 0)[..., None]
    for b, row in enumerate(scene.users):
        for q, user in enumerate(row):
            weight[b, q, sorted({*user.clicks, *user.boxes})] *= OWN_SLICE
    return prompt_loss(answer, targets, weight, wanted, _clicked(scene.users, device))


def _answer(model: Segmenter, slab: Slab, users: Sequence[Sequence[User]], logits: Tensor | None) -> Tensor:
    """Masks (B, Q, D, H, W) of the users' prompts, with every click honoured, as a real user gets them."""
    answer = model.prompted(slab, assemble(model, users, logits, slab.embed.device))
    array = answer.masks[:, :, :, 0].float().cpu().numpy()
    for b, row in enumerate(users):
        for q, user in enumerate(row):
            for z, clicks in user.clicks.items():
                array[b, q, z] = enforce_clicks(array[b, q, z], clicks)
    return torch.from_numpy(array).to(slab.embed.device)


def _clicked(users: Sequence[Sequence[User]], device: torch.device) -> Tensor:
    """(n, 5) indices b, q, z, y, x of all clicks."""
    rows = [
        (b, q, z, round(y), round(x))
        for b, row in enumerate(users)
        for q, user in enumerate(row)
        for z, clicks in user.clicks.items()
        for y, x, _ in clicks
        if user.label
    ]
    return torch.tensor(rows, device=device).reshape(-1, 5)


def _pairs(users: Sequence[Sequence[User]], predicted: Tensor) -> list[tuple[User, np.ndarray]]:
    array = predicted.cpu().numpy()
    return [(user, array[b, q]) for b, row in enumerate(users) for q, user in enumerate(row)]


@torch.no_grad()
def click_dice(
    model: Segmenter, image: np.ndarray, labels: np.ndarray, patch: tuple[int, int, int]
) -> dict[str, float]:
    """Dice within one patch around each structure of a case after 1 and 3 clicks, and with a box; means.

    Args:
        model: In evaluation mode.
        image: (M, D, H, W), prepared, at least one patch large.
        labels: (D, H, W) classes.
        patch: (D, H, W).
    """
    device = next(model.parameters()).device
    found: dict[str, list[float]] = {"click 1": [], "click 3": [], "box": []}
    for value in (int(v) for v in np.unique(labels) if v):
        window = _around(labels == value, patch)
        target = labels[window] == value
        if not target.any():
            continue
        slab = model.slab(torch.from_numpy(np.ascontiguousarray(image[(slice(None), *window)]))[None].to(device))
        z = int(target.sum(axis=(1, 2)).argmax())
        clicker, boxer = User(target=target, label=value), User(target=target, label=value)
        point, box = interior_point(target[z]), tight_box(target[z])
        if point is None or box is None:
            continue
        clicker.click(z, *point, True)
        boxer.boxes[z] = box
        logits: Tensor | None = None
        for count in (1, 2, 3):
            logits = _answer(model, slab, [[clicker]], logits)
            predicted = (logits[0, 0] > 0).cpu().numpy()
            if count in (1, 3):
                found[f"click {count}"].append(_dice(predicted, target))
            correct(clicker, predicted, None)
        logits = model.prompted(slab, assemble(model, [[boxer]], None, device)).masks[:, :, :, 0]
        found["box"].append(_dice((logits[0, 0] > 0).cpu().numpy(), target))
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def _around(mask: np.ndarray, patch: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """A window of one patch about the middle of a mask's bounds, inside the case."""
    found = bounds(mask)
    middle = [(s.start + s.stop) // 2 for s in found or ()]
    first = [
        int(np.clip(m - length // 2, 0, size - length))
        for m, length, size in zip(middle, patch, mask.shape, strict=True)
    ]
    d, h, w = (slice(a, a + length) for a, length in zip(first, patch, strict=True))
    return d, h, w


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * int((a & b).sum()) / max(int(a.sum()) + int(b.sum()), 1)
