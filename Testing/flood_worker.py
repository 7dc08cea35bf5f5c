"""The real worker with the network of `Testing.toy_session`: `python -m Testing.flood_worker`.

The name of the model says which step fails, how often and with which error of torch: `slab:1:OutOfMemoryError`. Steps
are the loading, the preprocessing, and functions of the network. With `ram` the computer has no free memory, with
`label:300` the structure has that id; any other name is a model without faults.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from MaskSAMCore import device
from MaskSAMCore.inference import session
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.network.types import PromptBatch, Prompted, Slab
from MaskSAMCore.worker.__main__ import main
from MaskSAMCore.zoo import installed, model_folder
from Testing.toy_model import BRIGHT, make_card, make_plan
from Testing.toy_session import Flood

COMMAND = [sys.executable, "-m", "Testing.flood_worker"]
STEPS = ("load", "preprocess", "slab", "prompted", "forward", "segment_patch")
PLAN = make_plan(median_shape=(64, 64, 64), patch=(4, 16, 16))
wanted: dict[str, Any] = {"name": "", "step": "", "times": 0, "error": "OutOfMemoryError"}


class Network(Flood):
    """`Flood` that also segments automatically, and does not record its calls."""

    def prompted(self, slab: Slab, prompts: PromptBatch, *, multimask: bool = False) -> Prompted:
        answer = super().prompted(slab, prompts, multimask=multimask)
        self.batches.clear()
        return answer

    def segment_patch(self, image: Tensor) -> Tensor:
        """(B, M, D, H, W) to (B, 2, D, H, W)."""
        inside = (image[:, 0] > self.level).float() * 0.8 + 0.1
        return torch.stack([1 - inside, inside], dim=1)

    def segment_slab(self, image: Tensor) -> tuple[Tensor, Slab]:
        """As `segment_patch`, and what clicks read of the same patch."""
        return self.segment_patch(image), self.slab(image)


def failing(step: str, work: Callable) -> Callable:
    """`work`, which fails as the name of the model says."""

    def call(*words: Any, **options: Any) -> Any:
        if wanted["step"] == step and wanted["times"]:
            wanted["times"] -= 1
            raise getattr(torch, wanted["error"])("out of luck. Tried to allocate 2 GiB")
        return work(*words, **options)

    return call


def labels(name: str) -> LabelTable:
    number = int(name.split(":")[1]) if name.startswith("label:") else 3
    return replace(BRIGHT, labels=(replace(BRIGHT.labels[0], id=number),))


def find_model(name: str | Path) -> Path:
    return Path(name)


def load_card(path: Path) -> model_folder.ModelCard:
    return make_card(labels(path.name), PLAN, weights_sha256=path.name)


def load_model(path: Path, device: Any) -> tuple[Network, model_folder.ModelCard]:
    network = Network()
    for name in STEPS[2:]:
        setattr(network, name, failing(name, getattr(network, name)))
    return network, load_card(path)


def choose(path: Path) -> None:
    words = path.name.split(":")
    if len(words) == 3 and wanted["name"] != path.name:  # not again when the engine tries again
        wanted.update(name=path.name, step=words[0], times=int(words[1]), error=words[2])
    device.available_ram = (lambda: 1000) if words == ["ram"] else available_ram


available_ram = device.available_ram

if __name__ == "__main__":
    load = failing("load", load_model)

    def first_choose(name: str | Path) -> Path:
        choose(Path(name))
        return find_model(name)

    installed.find_model, model_folder.load_card, installed.load_model = first_choose, load_card, load  # type: ignore[assignment]
    session.preprocess = failing("preprocess", session.preprocess)
    sys.exit(main())
