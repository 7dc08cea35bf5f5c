"""What a configuration costs, counted without memory for its weights, and what is kept of the presets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import BackboneConfig, LossConfig, ModelConfig
from MaskSAMCore.network.build import build_model
from MaskSAMCore.zoo import cost


@pytest.mark.slow
def test_a_pass_is_counted_as_if_it_were_made() -> None:
    cfg = presets.get("tiny").model
    cfg = replace(cfg, backbone=replace(cfg.backbone, attention_kernel="reference"))
    model = build_model(cfg).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, *cfg.patch))
    counted = cost.count(cfg)
    assert counted.flop == counter.get_total_flops() // cfg.patch[0] > 0
    assert counted.total == sum(p.numel() for p in model.parameters())
    assert counted.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
def test_the_encoder_costs_what_the_design_says() -> None:
    """model.md §17.1: ViT-B at 1024 with its adapters takes 1020 GFLOP a slice, the trunk 661, the decoder 29."""
    counted = cost.count(presets.get("masksam-acdc").model)
    assert 1020 + 661 + 29 < counted.flop / 1e9 < 1.06 * (1020 + 661 + 29)


@pytest.mark.parametrize("name", presets.names())
def test_the_cost_of_every_preset_came_with_the_program(name: str) -> None:
    assert cost.key(presets.get(name).model) in cost.kept(), "count again: python -m Testing.costs"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "core-mobile", "masksam-acdc-gt", "B9"])
def test_what_was_kept_is_still_true(name: str) -> None:
    model = presets.get(name).model
    assert cost.kept()[cost.key(model)] == cost.count(model), "count again: python -m Testing.costs"


def test_a_network_is_known_by_what_is_switched() -> None:
    model = ModelConfig()
    other = replace(model, backbone=BackboneConfig(arch="mobile"))
    assert cost.key(model) != cost.key(other) != cost.key(replace(other, loss=LossConfig(bce=1.0)))
    assert cost.key(other) == cost.key(replace(model, backbone=BackboneConfig(arch="mobile")))
