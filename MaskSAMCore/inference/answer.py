"""The network's answer to the prompts of one slab, and which slices it may change (model.md §13.3).

A prompt changes the slices that are nearer to its own slice than to those of other prompts. A slice that was prompted
itself is never changed by a prompt elsewhere, so that the user's corrections stay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from MaskSAMCore.inference.frame import Frame
from MaskSAMCore.inference.prompts import CANDIDATES, Placed
from MaskSAMCore.inference.slabs import Slabs
from MaskSAMCore.inference.slice_prompts import by_slice, extent, in_window, is_positive
from MaskSAMCore.inference.sliding_window import gaussian
from MaskSAMCore.inference.tiles import LOGIT_LIMIT, Clip, Rect, State, Tile, inside, overlap, paint, union
from MaskSAMCore.network.heads import resize_masks
from MaskSAMCore.network.prompt_broadcast import SlicePrompts, broadcast_prompts, nearest_slice
from MaskSAMCore.preprocessing.masks import enforce_clicks


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """Masks of the prompts in one slab; m masks, or candidates, for each of D' slices.

    Attributes:
        start: First index of the slab along depth; may lie before the scan.
        windows: Starts (y, x) of the windows that were run.
        slices: Prepared slices of the scan in the slab.
        rect: Part of these slices that the windows cover.
        logits: (m, D', h, w) float32, from -`LOGIT_LIMIT` to `LOGIT_LIMIT`; above 0 is the mask.
        quality: (m, D') estimated IoU, 0 to 1.
        classes: (D', K + 1) class probabilities, the last for "no object"; None without class head.
    """

    start: int
    windows: tuple[tuple[int, int], ...]
    slices: range
    rect: Rect
    logits: np.ndarray
    quality: np.ndarray
    classes: np.ndarray | None

    def choose(self, index: int) -> Answer:
        """The answer with the mask `index` alone, so that m is 1."""
        return replace(self, logits=self.logits[index : index + 1], quality=self.quality[index : index + 1])

    def tile(self, z: int, clip: Clip | None) -> Tile:
        """Slice `z` of the first mask as float16 logits, -LOGIT_LIMIT outside of the clip."""
        logits: np.ndarray = self.logits[0, z - self.slices.start].astype(np.float16)
        if clip is not None:
            rows = clip.allows(1, np.arange(self.rect[0], self.rect[1]))[:, None]
            columns = clip.allows(2, np.arange(self.rect[2], self.rect[3]))
            logits[~(rows & columns & clip.allows(0, z))] = -LOGIT_LIMIT
        return Tile(self.rect[0], self.rect[2], logits)


def decode(
    slabs: Slabs,
    start: int,
    windows: Sequence[tuple[int, int]],
    prompts: Mapping[int, SlicePrompts],
    planes: Mapping[int, Tile],
    *,
    user: Mapping[int, SlicePrompts] | None = None,
    multimask: bool = False,
) -> Answer | None:
    """Run the network on the windows of a slab; None where no window holds a positive prompt or a known mask.

    Args:
        slabs: Windows of the scan.
        start: First index of the slab along depth.
        windows: Starts (y, x); several are fused with the Gaussian weights of automatic mode.
        prompts: By prepared slice; those outside of the slab are ignored.
        planes: Logits known so far, by prepared slice: the mask prompt.
        user: The user's own prompts, whose clicked voxels get the clicked label; None for all of `prompts`.
        multimask: Return three candidates of a single click.

    Raises:
        ResourceError: The memory is full, and no fallback is left.
    """
    depth, height, width = slabs.patch
    slices = range(max(start, 0), min(start + depth, slabs.size[0]))
    here = {z: each for z, each in prompts.items() if z in slices}
    parts = []
    for y, x in windows:
        seen = {z - start: part for z, each in here.items() if (part := in_window(each, (y, x), (height, width)))}
        masks, known = _known_masks(slabs, (start, y, x), planes)
        positive = any(is_positive(part) for part in seen.values())
        if positive or (seen and bool((masks > 0).any())):
            parts.append(_window(slabs, (start, y, x), seen, masks, known, multimask))
    return None if not parts else _honoured(_fuse(slabs, start, slices, parts), prompts if user is None else user)


def _honoured(answer: Answer, prompts: Mapping[int, SlicePrompts]) -> Answer:
    y, x = answer.rect[0] + 0.5, answer.rect[2] + 0.5
    logits = answer.logits
    for index, z in enumerate(answer.slices):
        given = prompts.get(z, SlicePrompts())
        clicks = [(cy - y, cx - x, bool(label)) for (cx, cy), label in zip(given.points, given.labels, strict=True)]
        for rank in range(len(logits) if clicks else 0):
            logits[rank, index] = enforce_clicks(logits[rank, index], clicks).clip(-LOGIT_LIMIT, LOGIT_LIMIT)
    return answer


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """The answer of one window; arrays as in `Answer`."""

    window: tuple[int, int]
    rect: Rect
    logits: np.ndarray
    quality: np.ndarray
    classes: np.ndarray | None


def _known_masks(
    slabs: Slabs, window: tuple[int, int, int], planes: Mapping[int, Tile]
) -> tuple[np.ndarray, np.ndarray]:
    """Known logits (D, H, W) float32 in a window, and the slices (D,) bool that have some.

    Outside of the scan its border is repeated.
    """
    depth, height, width = slabs.patch
    start, y, x = window
    whole = (y, y + height, x, x + width)
    scan = overlap(whole, (0, slabs.size[1], 0, slabs.size[2]))
    out: np.ndarray = np.zeros((depth, height, width), np.float32)
    known: np.ndarray = np.zeros(depth, bool)
    if scan is None:
        return out, known
    frame = [(a - b, c - d) for a, b, c, d in zip(scan[::2], whole[::2], whole[1::2], scan[1::2], strict=True)]
    for index in range(depth):
        plane = planes.get(min(max(start + index, 0), slabs.size[0] - 1))
        if plane is not None and overlap(plane.rect, scan) is not None:
            out[index] = np.pad(plane.cut(scan, -LOGIT_LIMIT), frame, mode="edge")
            known[index] = True
    return out, known


def _window(
    slabs: Slabs,
    window: tuple[int, int, int],
    seen: Mapping[int, SlicePrompts],
    masks: np.ndarray,
    known: np.ndarray,
    multimask: bool,
) -> _Part:
    slab = slabs.ready(window)
    network = slabs.runner.network

    def work(device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        batch = broadcast_prompts(
            [[seen]],
            slabs.patch[0],
            masks=_mask_prompt(masks, slabs.mask_size, device) if known.any() else None,
            masks_known=torch.from_numpy(known)[None, None].to(device) if known.any() and not known.all() else None,
            device=device,
        )
        found = network.prompted(slab.to(device), batch, multimask=multimask)
        cls = None if found.cls is None else found.cls[0, 0].float().softmax(-1).cpu()
        return found.masks[0, 0].float().cpu(), found.quality[0, 0].float().cpu(), cls

    logits, quality, classes = slabs.runner.run(work)
    depth, height, width = slabs.patch
    start, y, x = window
    inner = [
        slice(max(-s, 0), min(n - s, p))
        for s, n, p in zip((start, y, x), slabs.size, (depth, height, width), strict=True)
    ]
    picked = logits.movedim(1, 0)[:, inner[0], inner[1], inner[2]].clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    return _Part(
        window=(y, x),
        rect=(y + inner[1].start, y + inner[1].stop, x + inner[2].start, x + inner[2].stop),
        logits=picked.numpy(),
        quality=quality.movedim(1, 0)[:, inner[0]].clamp(0, 1).numpy(),
        classes=None if classes is None else classes[inner[0]].numpy(),
    )


def _mask_prompt(masks: np.ndarray, size: tuple[int, int], device: torch.device) -> Tensor:
    """Logits (D, H, W) as the mask prompt (1, 1, D, h, w) of the network."""
    return resize_masks(torch.from_numpy(masks).to(device)[None, None], size)


def _fuse(slabs: Slabs, start: int, slices: range, parts: Sequence[_Part]) -> Answer:
    """Fuse the windows of a slab; quality and classes come from the window with the largest part of the mask."""
    first = parts[0]
    rect, logits, quality, classes = first.rect, first.logits, first.quality, first.classes
    if len(parts) > 1:
        for part in parts[1:]:
            rect = union(rect, part.rect)
        shape = (*logits.shape[:2], rect[1] - rect[0], rect[3] - rect[2])
        total, norm = np.zeros(shape, np.float32), np.zeros(shape[2:], np.float32)
        weight = gaussian((1, *slabs.patch[1:]))[0].numpy()
        for part in parts:
            place = inside(part.rect, rect)
            own = inside(part.rect, (part.window[0], 0, part.window[1], 0))
            total[(slice(None), slice(None), *place)] += part.logits * weight[own]
            norm[place] += weight[own]
        logits = np.where(norm > 0, total / np.maximum(norm, 1e-12), -LOGIT_LIMIT).astype(np.float32)
        area = np.stack([(part.logits > 0).sum(axis=(2, 3)) for part in parts])
        best = area.argmax(axis=0)
        quality = np.take_along_axis(np.stack([part.quality for part in parts]), best[None], axis=0)[0]
        if classes is not None:
            every = np.stack([part.classes for part in parts if part.classes is not None])
            classes = every[best[0], np.arange(len(slices))]
    return Answer(
        start=start,
        windows=tuple(part.window for part in parts),
        slices=slices,
        rect=rect,
        logits=logits,
        quality=quality,
        classes=classes,
    )


@dataclass(frozen=True, kw_only=True)
class WritableSlices:
    """The prepared slices that the newest prompt may change.

    Attributes:
        z: The slice of that prompt.
        direct: Slices with prompts of their own.
        spreading: Slices of the prompts whose scope is more than their slice, and `z`; ascending.
    """

    z: int
    direct: frozenset[int]
    spreading: tuple[int, ...]

    @classmethod
    def of(cls, placed: Sequence[Placed]) -> WritableSlices:
        """Those of the last of these prompts."""
        real = [each for each in placed if each.kind != "mask"]
        z = real[-1].z
        spreading = {each.z for each in real if each.scope != "slice"} | {z}
        return cls(z=z, direct=frozenset(each.z for each in real), spreading=tuple(sorted(spreading)))

    def __contains__(self, z: int) -> bool:
        return z == self.z or (z not in self.direct and nearest_slice(self.spreading, z) == self.z)


class Draft:
    """A copy of a structure's state that is being changed; the original stays as it is.

    Args:
        state: The state before.
        clip: Limits of the new answer.
    """

    def __init__(self, state: State, clip: Clip | None) -> None:
        self.state, self.clip = state, clip
        self.planes, self.quality = dict(state.planes), dict(state.quality)
        self.given = set(state.given)
        self.touched: dict[int, Rect] = {}
        self.weights: dict[int, float] = {}

    def write(self, z: int, answer: Answer, weight: float) -> None:
        """Set slice `z` to that of an answer, or to the weighted mean with earlier answers in this draft."""
        tile, quality = answer.tile(z, self.clip), float(answer.quality[0, z - answer.slices.start])
        old = self.planes.get(z)
        before = self.weights.get(z, 0.0)
        share = weight / (weight + before)
        if before and old is not None:
            both = overlap(old.rect, tile.rect)
            if both is not None:
                array: np.ndarray = tile.array.astype(np.float32)
                place = inside(both, tile.rect)
                array[place] = share * array[place] + (1 - share) * old.cut(both).astype(np.float32)
                tile = Tile(tile.y, tile.x, array.astype(np.float16))
            quality = share * quality + (1 - share) * self.quality[z]
        self._set(z, tile, old)
        self.quality[z] = quality
        self.weights[z] = before + weight

    def empty(self, z: int, rect: Rect) -> None:
        """Clear slice `z`, in `rect` and wherever it had logits."""
        old = self.planes.get(z)
        whole = rect if old is None else union(rect, old.rect)
        tile = Tile(whole[0], whole[2], np.full((whole[1] - whole[0], whole[3] - whole[2]), -LOGIT_LIMIT, np.float16))
        self._set(z, tile, None)
        self.quality.pop(z, None)

    def _set(self, z: int, tile: Tile, old: Tile | None) -> None:
        self.touched[z] = tile.rect if z not in self.touched else union(self.touched[z], tile.rect)
        self.planes[z] = tile if old is None else old.put(tile, -LOGIT_LIMIT)
        self.given.discard(z)

    def area(self, z: int) -> int:
        """Number of prepared pixels of the structure in slice `z`."""
        plane = self.planes.get(z)
        return 0 if plane is None else int((plane.array > 0).sum())

    def finish(self, frame: Frame, answer: Answer, z: int) -> State:
        """The new state; only the changed part is resampled to the scan.

        Args:
            frame: Between the scan and the prepared grid.
            answer: Of the slab of the new prompt.
            z: Slice of the new prompt, which gives the class probabilities.
        """
        windows = dict(self.state.windows)
        if len(answer.windows) == 1:
            windows[answer.start] = answer.windows[0]
        classes = None if answer.classes is None else answer.classes[z - answer.slices.start]
        return State(
            planes=self.planes,
            given=frozenset(self.given),
            slices=paint(self.state.slices, self.planes, self.touched, frame),
            quality=self.quality,
            windows=windows,
            clip=self.clip,
            classes=() if classes is None else tuple(float(p) for p in classes),
        )


def answer_slab(
    slabs: Slabs, state: State, placed: Sequence[Placed], *, multimask: bool
) -> tuple[list[Answer], dict[int, SlicePrompts]]:
    """Answer the newest prompt in its own slab.

    Args:
        slabs: Windows of the scan.
        state: Of the structure before the prompt.
        placed: All prompts that count, the newest last.
        multimask: Return three candidates, the best first.

    Returns:
        The candidates, or one answer, or none where nothing is known of the structure; and all prompts by slice.
    """
    prompts, z = by_slice(placed), placed[-1].z
    start = slabs.deep(z)
    near = [extent(each) for d, each in prompts.items() if start <= d < start + slabs.patch[0]]
    x0, y0, x1, y1 = (pick(values) for pick, values in zip((min, min, max, max), zip(*near, strict=True), strict=True))
    windows = slabs.planes(((y0, y1), (x0, x1)), state.windows.get(start))
    answer = decode(slabs, start, windows, prompts, state.planes, multimask=multimask)
    if answer is None:
        return [], prompts
    order = np.argsort(-answer.quality[:, z - answer.slices.start], kind="stable")[:CANDIDATES]
    return [answer.choose(int(index)) for index in order], prompts


def limit(clip: Clip | None, new: Placed) -> Clip | None:
    """The limits of the answer to a new prompt: the last box that spans slices, until a click outside of it."""
    if new.kind == "box":
        return new.clip
    if clip is None or not is_positive(new.prompts) or not new.prompts.points:
        return clip
    [(x, y)] = new.prompts.points
    place = (new.z, int(y), int(x))
    return clip if all(clip.allows(axis, index) for axis, index in enumerate(place)) else None


def profile(slabs: Slabs) -> np.ndarray:
    """Gaussian weights (D,) of the slices of a slab, for the mean of overlapping slabs."""
    return gaussian((slabs.patch[0], 1, 1))[:, 0, 0].numpy()


def slices_to_write(answer: Answer, own: WritableSlices, new: Placed) -> Collection[int]:
    """Slices of the prompt's own slab that it changes."""
    return [new.z] if new.scope == "slice" else [z for z in answer.slices if z in own]
