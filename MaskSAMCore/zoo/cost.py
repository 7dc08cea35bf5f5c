"""What a configuration costs: its parameters, and the operations of one pass (model.md §16, §17).

Counted on networks without memory for their weights, in seconds; those of the presets are kept with the program, so
that a list of them is there at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from MaskSAMCore.config.network_schema import GROWN_MAPS, PATCH_FACTS, PROMPT_MAPS, ModelConfig
from MaskSAMCore.config.resources import resource
from MaskSAMCore.config.serialize import to_dict
from MaskSAMCore.network.build import build_model
from MaskSAMCore.network.click_unet import ClickUNet
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.network.types import PromptBatch
from MaskSAMCore.zoo.audit import audit_model

KEPT = ("Presets", "costs.json")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one network.

    Attributes:
        trained: Parameters that are trained, those of our own additions too.
        total: All parameters.
        flop: Operations per slice of one automatic pass without mirroring, a multiplication and an addition as two;
            of one box's answer, encoding included, where a model takes prompts only.
    """

    trained: int
    total: int
    flop: int


def count(cfg: ModelConfig) -> Cost:
    """Count anew.

    Raises:
        InputError: The configuration describes no network.
    """
    # Attention as matrix products: the counter does not see into the fused kernel.
    cfg = replace(cfg, backbone=replace(cfg.backbone, attention_kernel="reference"))
    with torch.device("meta"):
        model = build_model(cfg).eval()
    audit = audit_model(model)
    model = model.to_empty(device="cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), FlopCounterMode(display=False) as counter:
        image = torch.zeros(1, cfg.channels, *cfg.patch)
        if isinstance(model, ClickUNet):
            told = torch.zeros(1, len(PATCH_FACTS))
            maps = torch.zeros(1, len(PROMPT_MAPS) + len(GROWN_MAPS), *cfg.patch)
            model.answer(image, maps, told, flat=1)
        elif isinstance(model, MaskSAM) and cfg.prompts_only:
            model.prompted(model.slab(image), _box(cfg.patch[0]))
        else:
            model(image, None, torch.zeros(1, *cfg.patch, dtype=torch.long))
    return Cost(trained=audit.trainable, total=audit.total, flop=counter.get_total_flops() // cfg.patch[0])


def _box(depth: int) -> PromptBatch:
    """One box in every slice."""
    return PromptBatch(boxes=torch.tensor([0.25, 0.25, 0.75, 0.75]).expand(1, 1, depth, 4))


def key(cfg: ModelConfig) -> str:
    """What a cost is kept by: equal for equal networks, and not changed by switches that are off."""
    changed = _changed(to_dict(cfg), to_dict(ModelConfig()))
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:16]


def _changed(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = _changed(value, usual[name])
            if value:
                found[name] = value
        elif value != usual[name]:
            found[name] = value
    return found


def kept() -> dict[str, Cost]:
    """The costs that came with the program, by `key`; nothing where the file is missing."""
    path = resource(*KEPT)
    if not path.is_file():
        return {}
    return {name: Cost(**values) for name, values in json.loads(path.read_text(encoding="utf-8")).items()}


def as_text(costs: Mapping[str, Cost]) -> str:
    """The file that `kept` reads."""
    return json.dumps({name: asdict(cost) for name, cost in sorted(costs.items())}, indent=1) + "\n"
