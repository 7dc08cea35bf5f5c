"""Automatic prompts: the boxes and points of the model for a label, for the user to edit (model.md §6.1-6.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from MaskSAMCore.errors import PromptError
from MaskSAMCore.inference.frame import Frame
from MaskSAMCore.inference.prompts import Prompt, triple
from MaskSAMCore.inference.slabs import Slabs
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.preprocessing.masks import interior_point, tight_box
from MaskSAMCore.preprocessing.plan import Shape
from MaskSAMCore.progress import CancelToken, Progress


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A label in one prepared slice.

    Attributes:
        area: Number of its pixels.
        box: (x0, y0, x1, y1) in prepared edges.
        point: Innermost pixel (y, x).
    """

    area: int
    box: tuple[float, float, float, float]
    point: tuple[float, float]


def automatic_prompts(
    slabs: Slabs,
    frame: Frame,
    labels: LabelTable,
    label: int,
    slices: Sequence[int] | None,
    cancel: CancelToken | None,
    progress: Progress,
) -> list[tuple[Prompt, Prompt]]:
    """See `Session.automatic`."""
    classes = [each.id for each in labels.labels]
    if label not in classes:
        raise PromptError("the model has no such label", where=f"label {label}", why=f"it has {classes}")
    size, flip = frame.size[0], frame.record.flips[0]
    asked = range(size) if slices is None else slices
    outside = [k for k in asked if not 0 <= k < size]
    if outside:
        raise PromptError("the slice lies outside of the scan", where=f"slice {outside[0]}", why=f"there are {size}")
    turned = sorted(size - 1 - k if flip else k for k in asked)
    wanted = {d: int(frame.nearest[0][d]) for d in turned if frame.nearest[0][d] >= 0}
    best: dict[int, _Found] = {}
    starts = sorted({slabs.deep(z) for z in wanted.values()})
    windows = [(s, y, x) for s in starts for y in slabs.starts[1] for x in slabs.starts[2]]
    for index, window in enumerate(windows):
        if cancel is not None:
            cancel.check()
        for z, found in _look(slabs, window, classes.index(label) + 1).items():
            # of several windows, the one that holds most of the structure
            if slabs.deep(z) == window[0] and (z not in best or found.area > best[z].area):
                best[z] = found
        progress(index + 1, len(windows), "looking for prompts")
    return [_prompts(best[z], d, frame) for d, z in wanted.items() if z in best]


def _look(slabs: Slabs, window: Shape, label: int) -> dict[int, _Found]:
    """Segment one window and find a class in it, by prepared slice; the box is the generator's where it has one."""
    network = slabs.runner.network

    def work(device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        found = network(torch.from_numpy(slabs.window(window))[None].to(device))
        labels = network.scores(found)[0].argmax(0) == label
        boxes = None if found.fused_boxes is None else found.fused_boxes[0].float().cpu()
        cls = None if found.cls is None else found.cls[0].float().softmax(-1)[..., label].cpu()
        return labels.cpu(), (found.masks[0] > 0).cpu(), cls, boxes

    labels, masks, probability, boxes = slabs.runner.run(work)
    slabs.encodes += 1
    depth, height, width = slabs.patch
    out = {}
    for index in range(depth):
        z, mask = window[0] + index, labels[index]
        tight, inner = tight_box(mask.numpy()), interior_point(mask.numpy())
        if not 0 <= z < slabs.size[0] or tight is None or inner is None:
            continue
        box = [float(edge) for edge in tight]
        if boxes is not None:
            query = label
            if probability is not None:
                # the query with the largest share in the class's mask
                both = (masks[:, index] & mask).sum((1, 2)) / (masks[:, index].sum((1, 2)) + mask.sum())
                query = int((both * probability[:, index]).argmax())
            made = boxes[query, index]
            # the generator's box is empty where only the decoder found the class
            if (made[2:] > made[:2]).all():
                box = [float(e) * n for e, n in zip(made, (width, height, width, height), strict=True)]
        out[z] = _Found(
            area=int(mask.sum()),
            box=(box[0] + window[2], box[1] + window[1], box[2] + window[2], box[3] + window[1]),
            point=(inner[0] + window[1], inner[1] + window[2]),
        )
    return out


def _prompts(found: _Found, d: int, frame: Frame) -> tuple[Prompt, Prompt]:
    """Box and point as prompts in the turned slice `d` of the scan."""
    x0, y0, x1, y1 = found.box
    _, h0, w0 = frame.unedges((0, y0, x0))
    _, h1, w1 = frame.unedges((0, y1, x1))
    ends = []
    for (low, high), size in zip(((h0, h1 - 1), (w0, w1 - 1)), frame.size[1:], strict=True):
        middle = (low + high) / 2
        ends.append((min(max(min(low, middle), 0), size - 1), min(max(max(high, middle), 0), size - 1)))
    first, last = (frame.unturn((d, *(end[side] for end in ends))) for side in (0, 1))
    corners = np.sort([first, last], axis=0)
    _, h, w = frame.unedges((0, found.point[0] + 0.5, found.point[1] + 0.5))
    inner = (min(max(h - 0.5, 0), frame.size[1] - 1), min(max(w - 0.5, 0), frame.size[2] - 1))
    return (
        Prompt(kind="box", corners=(triple(corners[0]), triple(corners[1])), scope="slice"),
        Prompt(kind="point", position=frame.unturn((d, *inner)), scope="slice"),
    )
