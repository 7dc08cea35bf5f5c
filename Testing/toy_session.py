"""A network without weights that segments the bright regions that are prompted, and sessions with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.inference.session import Session
from MaskSAMCore.network.types import PromptBatch, Prompted, QueryOutputs, Slab
from MaskSAMCore.volume import Volume
from Testing.toy_model import make_card, make_plan

LOGIT = 8.0


class Flood(nn.Module):
    """In every slice, the bright components that hold a positive click, meet the box or the mask prompt.

    A component with a negative click does not count. Quality is `quality` where something was found, else 0.1; with
    `multimask` come that, what is left of it when eroded, and the empty mask.

    Attributes:
        encoded, decoded: Calls so far.
        batches: The prompts of every call.
    """

    def __init__(self, level: float = 0.3, quality: float = 0.9) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))
        self.quality = quality
        self.encoded = self.decoded = 0
        self.batches: list[PromptBatch] = []

    def slab(self, image: Tensor, features: object = None) -> Slab:
        self.encoded += 1
        return Slab(embed=image.mean(dim=(3, 4), keepdim=True), fine=image)

    def prompted(self, slab: Slab, prompts: PromptBatch, *, multimask: bool = False) -> Prompted:
        self.decoded += 1
        self.batches.append(prompts)
        image = slab.fine[0, 0].numpy()
        found = np.stack([self._slice(image[d], prompts, d) for d in range(len(image))])
        masks = (
            [found, ndimage.binary_erosion(found, np.ones((1, 3, 3))), np.zeros_like(found)] if multimask else [found]
        )
        logits = torch.stack([torch.from_numpy(np.where(m, LOGIT, -LOGIT)).float() for m in masks], dim=1)
        quality = torch.tensor([[self.quality if f.any() else 0.1, 0.95, 0.2][: len(masks)] for f in found])
        cls = torch.tensor([0.0, 3.0, 0.0]).expand(1, 1, len(found), 3)
        return Prompted(masks=logits[None, None], quality=quality[None, None], cls=cls)

    def _slice(self, image: np.ndarray, prompts: PromptBatch, d: int) -> np.ndarray:
        height, width = image.shape
        labels, _ = ndimage.label(image > float(self.level))
        wanted: set[int] = set()
        unwanted: set[int] = set()
        if prompts.points is not None:
            for (x, y), label in zip(prompts.points[0, 0, d].tolist(), prompts.labels[0, 0, d].tolist(), strict=True):
                if label >= 0:
                    row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
                    (wanted if label else unwanted).add(int(labels[row, column]))
        if prompts.boxes is not None and (prompts.boxes_known is None or prompts.boxes_known[0, 0, d]):
            x0, y0, x1, y1 = np.round(
                np.array(prompts.boxes[0, 0, d].tolist()) * [width, height, width, height]
            ).astype(int)
            wanted |= {int(v) for v in np.unique(labels[y0:y1, x0:x1])}
        if prompts.masks is not None and (prompts.masks_known is None or prompts.masks_known[0, 0, d]):
            mask = nn.functional.interpolate(prompts.masks[0, :, d : d + 1], size=(height, width), mode="bilinear")
            wanted |= {int(v) for v in np.unique(labels[(mask[0, 0] > 0).numpy()])}
        return np.isin(labels, list(wanted - unwanted - {0}))

    def forward(self, image: Tensor) -> QueryOutputs:
        """Query 0 is the background, query 1 all that is bright."""
        bright = (image[:, 0] > self.level)[:, None].float()
        masks = (torch.cat([1 - bright, bright], dim=1) - 0.5) * LOGIT
        cls = torch.tensor([[6.0, 0.0, 0.0], [0.0, 6.0, 0.0]])[None, :, None].expand(1, 2, image.shape[2], 3).clone()
        cls[0, 1, ~bright[0, 0].bool().any(-1).any(-1)] = torch.tensor([0.0, 0.0, 6.0])
        return QueryOutputs(masks=masks, cls=cls)

    def scores(self, outputs: QueryOutputs) -> Tensor:
        return outputs.masks


def click(i: float, j: float, k: float, **changes: Any) -> Prompt:
    return Prompt(kind="point", position=(i, j, k), **changes)


def box(first: tuple[float, float, float], last: tuple[float, float, float], **changes: Any) -> Prompt:
    return Prompt(kind="box", corners=(first, last), **changes)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two bool arrays."""
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


def at(slices: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """A bool array that is true in `slices`."""
    out = np.zeros(shape, bool)
    out[slices] = True
    return out


def whole_plan(volume: Volume, **changes: Any) -> Any:
    """A plan with training scans as large as this one, so that windows keep the intensities of the scan."""
    longest = max(round(n * max(volume.grid.spacing)) for n in volume.grid.shape)
    return make_plan(**{"median_shape": (longest + 1,) * 3, **changes})


def open_session(volume: Volume, network: nn.Module | None = None, *, plan: Any = None, **changes: Any) -> Session:
    card = make_card(plan=plan or whole_plan(volume))
    return Session.open(network or Flood(), card, volume, **changes)
