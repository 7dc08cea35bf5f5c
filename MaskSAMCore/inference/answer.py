"""One slab's answer to the prompts that lie in it, and where it is written (model.md §13.3).

A prompt writes the slices that are nearer to its own than to any other's, and never a slice that was prompted
itself: what the user has corrected stays as it was left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from MaskSAMCore.inference.frame import Frame
from MaskSAMCore.inference.prompts import CANDIDATES, Placed
from MaskSAMCore.inference.slabs import Slabs
from MaskSAMCore.inference.sliding_window import gaussian
from MaskSAMCore.inference.tiles import LIMIT, Clip, Rect, State, Tile, inside, overlap, paint, union
from MaskSAMCore.network.heads import resize_masks
from MaskSAMCore.network.prompt_broadcast import SlicePrompts, broadcast_prompts, nearest_slice
from MaskSAMCore.preprocessing.masks import enforce_clicks

Edges = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What was said in one prepared slice: clicks (x, y, label) and a box, in prepared edges."""

    clicks: tuple[tuple[float, float, int], ...] = ()
    box: Edges | None = None

    @property
    def positive(self) -> bool:
        return self.box is not None or any(label for _, _, label in self.clicks)

    @property
    def extent(self) -> Edges:
        """Bounding box (x0, y0, x1, y1)."""
        spans = [(x, y, x, y) for x, y, _ in self.clicks] + ([] if self.box is None else [self.box])
        x0, y0, x1, y1 = zip(*spans, strict=True)
        return min(x0), min(y0), max(x1), max(y1)

    def seen(self, y: int, x: int, height: int, width: int) -> SlicePrompts | None:
        """The part inside of a window, in fractions of it; None if nothing is."""
        clicks = [(cx - x, cy - y, n) for cx, cy, n in self.clicks if 0 <= cx - x <= width and 0 <= cy - y <= height]
        box = None
        if self.box is not None:
            x0, x1 = (min(max(v - x, 0), width) for v in self.box[::2])
            y0, y1 = (min(max(v - y, 0), height) for v in self.box[1::2])
            box = (x0 / width, y0 / height, x1 / width, y1 / height) if x0 < x1 and y0 < y1 else None
        if not clicks and box is None:
            return None
        return SlicePrompts(
            points=tuple((cx / width, cy / height) for cx, cy, _ in clicks),
            labels=tuple(n for _, _, n in clicks),
            box=box,
        )


def gather(placed: Iterable[Placed]) -> dict[int, Said]:
    """Prompts by prepared slice; clicks add up, of several boxes in a slice the last one counts."""
    said: dict[int, Said] = {}
    for each in placed:
        if each.kind == "mask":
            continue
        old = said.get(each.z, Said())
        clicks = old.clicks
        if each.point is not None:
            clicks = (*clicks, (each.point[1] + 0.5, each.point[0] + 0.5, int(each.positive)))
        said[each.z] = Said(clicks=clicks, box=each.box or old.box)
    return said


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What the network says of one slab.

    Attributes:
        start: The slab's start along depth; may lie before the scan.
        windows: In-plane starts that were looked at.
        slices: Prepared slices that it holds.
        rect: Their part that was answered.
        logits: (m, D', h, w) float32 within `LIMIT`.
        quality: (m, D'), 0 to 1.
        classes: (D', K + 1) probabilities, or None.
    """

    start: int
    windows: tuple[tuple[int, int], ...]
    slices: range
    rect: Rect
    logits: np.ndarray
    quality: np.ndarray
    classes: np.ndarray | None

    def choose(self, index: int) -> Answer:
        """One of the m alone."""
        return replace(self, logits=self.logits[index : index + 1], quality=self.quality[index : index + 1])

    def tile(self, z: int, clip: Clip | None) -> Tile:
        """Slice `z` of the first of the m, float16; -LIMIT where the clip forbids."""
        logits: np.ndarray = self.logits[0, z - self.slices.start].astype(np.float16)
        if clip is not None:
            rows = clip.allows(1, np.arange(self.rect[0], self.rect[1]))[:, None]
            columns = clip.allows(2, np.arange(self.rect[2], self.rect[3]))
            logits[~(rows & columns & clip.allows(0, z))] = -LIMIT
        return Tile(self.rect[0], self.rect[2], logits)


def decode(
    slabs: Slabs,
    start: int,
    windows: Sequence[tuple[int, int]],
    said: Mapping[int, Said],
    planes: Mapping[int, Tile],
    *,
    user: Mapping[int, Said] | None = None,
    multimask: bool = False,
) -> Answer | None:
    """The network's masks of a slab; None where no window holds anything that could be the structure.

    Args:
        slabs: Of the scan.
        start: The slab's, along depth.
        windows: In-plane starts; several are fused with the Gaussian of automatic mode.
        said: By prepared slice; those outside of the slab are not used.
        planes: Logits known so far, by prepared slice.
        user: What the user said, whose clicks are honoured to the voxel; None for all of `said`.
        multimask: Ask for three meanings of a single click.
    """
    depth, height, width = slabs.patch
    slices = range(max(start, 0), min(start + depth, slabs.size[0]))
    here = {z: each for z, each in said.items() if z in slices}
    parts = []
    for y, x in windows:
        seen = {z - start: part for z, each in here.items() if (part := each.seen(y, x, height, width))}
        masks, known = _former(slabs, (start, y, x), planes)
        positive = any(part.box is not None or 1 in part.labels for part in seen.values())
        if positive or (seen and bool((masks > 0).any())):
            parts.append(_window(slabs, (start, y, x), seen, masks, known, multimask))
    return None if not parts else _honoured(_fuse(slabs, start, slices, parts), said if user is None else user)


def _honoured(answer: Answer, said: Mapping[int, Said]) -> Answer:
    y, x = answer.rect[0] + 0.5, answer.rect[2] + 0.5
    logits = answer.logits
    for index, z in enumerate(answer.slices):
        clicks = [(cy - y, cx - x, bool(label)) for cx, cy, label in said[z].clicks] if z in said else []
        for rank in range(len(logits) if clicks else 0):
            logits[rank, index] = enforce_clicks(logits[rank, index], clicks).clip(-LIMIT, LIMIT)
    return answer


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """The answer of one window: rect, logits (m, D', h, w), quality (m, D'), class probabilities (D', K + 1)."""

    window: tuple[int, int]
    rect: Rect
    logits: np.ndarray
    quality: np.ndarray
    classes: np.ndarray | None


def _former(slabs: Slabs, window: tuple[int, int, int], planes: Mapping[int, Tile]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (D, H, W) float32 known in a window, and in which slices (D,); beyond the scan its border is repeated."""
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
            out[index] = np.pad(plane.cut(scan, -LIMIT), frame, mode="edge")
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
    network = slabs.retreat.network

    def work(device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        batch = broadcast_prompts(
            [[seen]],
            slabs.patch[0],
            masks=_mask_prompt(masks, slabs.mask_size, device) if known.any() else None,
            masks_known=torch.from_numpy(known)[None, None].to(device) if known.any() and not known.all() else None,
            device=device,
        )
        found = network.prompted(slab.to(device), batch, multimask=multimask)  # type: ignore[operator]
        cls = None if found.cls is None else found.cls[0, 0].float().softmax(-1).cpu()
        return found.masks[0, 0].float().cpu(), found.quality[0, 0].float().cpu(), cls

    logits, quality, classes = slabs.retreat.run(work)
    depth, height, width = slabs.patch
    start, y, x = window
    inner = [
        slice(max(-s, 0), min(n - s, p))
        for s, n, p in zip((start, y, x), slabs.size, (depth, height, width), strict=True)
    ]
    picked = logits.movedim(1, 0)[:, inner[0], inner[1], inner[2]].clamp(-LIMIT, LIMIT)
    return _Part(
        window=(y, x),
        rect=(y + inner[1].start, y + inner[1].stop, x + inner[2].start, x + inner[2].stop),
        logits=picked.numpy(),
        quality=quality.movedim(1, 0)[:, inner[0]].clamp(0, 1).numpy(),
        classes=None if classes is None else classes[inner[0]].numpy(),
    )


def _mask_prompt(masks: np.ndarray, size: tuple[int, int], device: torch.device) -> Tensor:
    """(D, H, W) as the network takes it, (1, 1, D, h, w)."""
    return resize_masks(torch.from_numpy(masks).to(device)[None, None], size)


def _fuse(slabs: Slabs, start: int, slices: range, parts: Sequence[_Part]) -> Answer:
    """Several windows of one slab as one answer; quality and classes are those of the window with most of the mask."""
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
        logits = np.where(norm > 0, total / np.maximum(norm, 1e-12), -LIMIT).astype(np.float32)
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
class Own:
    """Which prepared slices the newest prompt, in slice `z`, may write."""

    z: int
    direct: frozenset[int]
    spreading: tuple[int, ...]

    @classmethod
    def of(cls, placed: Sequence[Placed]) -> Own:
        """For the last of these prompts."""
        real = [each for each in placed if each.kind != "mask"]
        z = real[-1].z
        spreading = {each.z for each in real if each.scope != "slice"} | {z}
        return cls(z=z, direct=frozenset(each.z for each in real), spreading=tuple(sorted(spreading)))

    def __contains__(self, z: int) -> bool:
        return z == self.z or (z not in self.direct and nearest_slice(self.spreading, z) == self.z)


class Draft:
    """A state that is being changed."""

    def __init__(self, state: State, clip: Clip | None) -> None:
        self.state, self.clip = state, clip
        self.planes, self.quality = dict(state.planes), dict(state.quality)
        self.given = set(state.given)
        self.touched: dict[int, Rect] = {}
        self.weights: dict[int, float] = {}

    def write(self, z: int, answer: Answer, weight: float) -> None:
        """Slice `z` of an answer; averaged by weight with what this draft wrote there before."""
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
        """Nothing of the structure in slice `z`, neither in that part nor where something was known."""
        old = self.planes.get(z)
        whole = rect if old is None else union(rect, old.rect)
        tile = Tile(whole[0], whole[2], np.full((whole[1] - whole[0], whole[3] - whole[2]), -LIMIT, np.float16))
        self._set(z, tile, None)
        self.quality.pop(z, None)

    def _set(self, z: int, tile: Tile, old: Tile | None) -> None:
        self.touched[z] = tile.rect if z not in self.touched else union(self.touched[z], tile.rect)
        self.planes[z] = tile if old is None else old.put(tile, -LIMIT)
        self.given.discard(z)

    def area(self, z: int) -> int:
        """Prepared pixels of the structure in slice `z`."""
        plane = self.planes.get(z)
        return 0 if plane is None else int((plane.array > 0).sum())

    def finish(self, frame: Frame, answer: Answer, z: int) -> State:
        """The new state; only what was written is painted onto the scan."""
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


def seed(
    slabs: Slabs, state: State, placed: Sequence[Placed], *, multimask: bool
) -> tuple[list[Answer], dict[int, Said]]:
    """The answers to the newest prompt in its own slab, the best first; none if there is nothing to answer."""
    said, z = gather(placed), placed[-1].z
    start = slabs.deep(z)
    near = [each.extent for d, each in said.items() if start <= d < start + slabs.patch[0]]
    x0, y0, x1, y1 = (pick(values) for pick, values in zip((min, min, max, max), zip(*near, strict=True), strict=True))
    windows = slabs.planes(((y0, y1), (x0, x1)), state.windows.get(start))
    answer = decode(slabs, start, windows, said, state.planes, multimask=multimask)
    if answer is None:
        return [], said
    order = np.argsort(-answer.quality[:, z - answer.slices.start], kind="stable")[:CANDIDATES]
    return [answer.choose(int(index)) for index in order], said


def limit(clip: Clip | None, new: Placed) -> Clip | None:
    """What limits the answer to a new prompt: the latest box that spans slices, until a click outside of it."""
    if new.kind == "box":
        return new.clip
    if clip is None or not new.positive or new.point is None:
        return clip
    place = (new.z, *(int(v + 0.5) for v in new.point))
    return clip if all(clip.allows(axis, index) for axis, index in enumerate(place)) else None


def profile(slabs: Slabs) -> np.ndarray:
    """Weight of the slices of a slab, by which overlapping slabs are fused: (D,)."""
    return gaussian((slabs.patch[0], 1, 1))[:, 0, 0].numpy()


def writable(answer: Answer, own: Own, new: Placed) -> Collection[int]:
    """Slices of the first slab that are written."""
    return [new.z] if new.scope == "slice" else [z for z in answer.slices if z in own]
