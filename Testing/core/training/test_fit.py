"""How a preset's patch follows the data (model.md §12.2, §15.2)."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from MaskSAMCore.config import presets
from MaskSAMCore.config.check import check_config
from MaskSAMCore.network.build import build_model
from MaskSAMCore.training.fit import PATCH_TOKENS, fit_config
from Testing.toy_model import BRIGHT, make_plan


@pytest.mark.parametrize(
    ("median", "patch", "upsample"),
    [
        ((36, 50, 35), (16, 56, 40), 4),  # hippocampus
        ((10, 250, 220), (4, 256, 224), 2),  # ACDC
        ((10, 120, 100), (5, 120, 104), 4),
        ((200, 512, 512), (4, 512, 512), 1),
        ((1, 50, 35), (1, 56, 40), 4),
    ],
)
def test_larger_slices_make_a_thinner_patch(median, patch, upsample):
    fitted = fit_config(
        presets.get("core-mobile-whole"), SimpleNamespace(plan=make_plan(median_shape=median), labels=BRIGHT)
    ).model
    assert (fitted.patch, fitted.stem.upsample) == (patch, upsample)
    tokens = fitted.grid[0] * fitted.grid[1] * fitted.patch[0]
    assert tokens <= PATCH_TOKENS or fitted.patch[0] == 4


def test_queries_that_have_their_class_are_as_many_as_the_classes():
    config = presets.get("core-mobile-whole")
    model = replace(config.model, loss=replace(config.model.loss, assignment="own"))
    fitted = fit_config(replace(config, model=model), SimpleNamespace(plan=make_plan(), labels=BRIGHT)).model
    assert fitted.source.queries == fitted.classes == 2


@pytest.mark.parametrize(
    ("median", "spacing", "patch", "upsample", "finest"),
    [
        ((36, 50, 35), 1.0, (36, 56, 40), 2, 32),  # hippocampus
        ((10, 250, 220), 10.0, (8, 144, 128), 1, 32),  # ACDC
        ((118, 58, 105), 1.0, (32, 64, 96), 1, 24),  # head and neck at 4.7 mm
        ((1, 512, 512), 1.0, (1, 384, 384), 1, 32),
        ((30, 30, 30), 1.0, (30, 32, 32), 4, 32),
    ],
)
def test_patches_of_the_product_are_deep(median, spacing, patch, upsample, finest):
    plan = make_plan(median_shape=median, spacing=(spacing, 1.0, 1.0))
    config = fit_config(presets.get("core-mobile"), SimpleNamespace(plan=plan, labels=BRIGHT))
    check_config(config)
    assert (config.model.patch, config.model.stem.upsample) == (patch, upsample)
    with torch.device("meta"):
        trunk = build_model(config.model).generator.trunk
    assert len(trunk.channels) >= trunk.doublings + 1
    assert trunk.channels[-1] == finest


def test_class_prompts_fit_too():
    config = presets.get("selfprompt-acdc")
    config = replace(
        config,
        data=replace(config.data, fit_patch=True),
        model=replace(config.model, backbone=replace(config.model.backbone, arch="mobile")),
    )
    plan = make_plan(median_shape=(36, 50, 35), channels=("T1", "T2"))
    fitted = fit_config(config, SimpleNamespace(plan=plan, labels=BRIGHT))
    check_config(fitted)
    assert (fitted.model.patch, fitted.model.stem.upsample, fitted.model.stem.kind) == ((4, 56, 40), 4, "conv")
    with torch.device("meta"):
        generator = build_model(fitted.model).generator
    assert {head.out_channels for head in generator.heads} == {2}
    assert len(generator.heads) == 5


def test_channels_and_classes_are_the_datas_and_a_fixed_patch_stays():
    config = presets.get("core-mobile-whole")
    config = replace(config, data=replace(config.data, fit_patch=False))
    plan = make_plan(channels=("T1", "T2"))
    fitted = fit_config(config, SimpleNamespace(plan=plan, labels=BRIGHT)).model
    assert (fitted.channels, fitted.classes, fitted.patch) == (2, 2, config.model.patch)
