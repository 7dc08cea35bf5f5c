"""The integers of MODEL.md §16.1, §16.2 and the ablation rows, computed from built networks."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from MaskSAMCore import presets
from MaskSAMCore.audit import audit_config, audit_model, audit_table
from MaskSAMCore.config import BackboneConfig, ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.build import build_model

ACDC = {
    "encoder adapters": 7_239_168,
    "encoder depth positions": 3_072,
    "decoder token adapters": 232_652,
    "decoder image adapters": 70_016,
    "decoder depth positions": 4_194_304,
    "class token and head": 1_541,
    "stem": 33_945,
    "generator": 9_631_536,
}
AMOS = {
    "encoder adapters": 53_145_600,
    "encoder depth positions": 11_520,
    "decoder token adapters": 236_467,
    "decoder image adapters": 70_016,
    "decoder depth positions": 2_359_296,
    "class token and head": 4_625,
    "stem": 897,
    "generator": 10_649_488,
    "mask upsampler": 116_056,
}
SYNAPSE = AMOS | {
    "encoder depth positions": 33_280,
    "decoder token adapters": 270_382,
    "decoder depth positions": 1_703_936,
    "class token and head": 4_111,
}


@pytest.mark.parametrize(
    ("arch", "encoder", "total"),
    [
        ("vit_b", 89_670_912, 93_735_472),
        ("vit_l", 308_278_272, 312_342_832),
        ("vit_h", 637_026_048, 641_090_608),
    ],
)
def test_frozen_sam(arch, encoder, total):
    frozen = audit_config(ModelConfig(backbone=BackboneConfig(arch=arch))).frozen
    assert frozen == {"image_encoder": encoder, "prompt_encoder": 6_220, "mask_decoder": 4_058_340}
    assert sum(frozen.values()) == total


CORE_ACDC = ACDC | {"decoder token adapters": 232_652 + 2 * (16_416 + 405_504 + 384)}


@pytest.mark.parametrize(
    ("name", "parts", "total"),
    [
        ("core-acdc", CORE_ACDC, 22_250_842),
        ("masksam-acdc", ACDC, 21_406_234),
        ("masksam-amos", AMOS, 66_593_965),
        ("masksam-synapse", SYNAPSE, 65_993_766),
        ("B9", ACDC, 21_406_234),
    ],
)
def test_trainable_parts(name, parts, total):
    audit = audit_config(presets.get(name).model)
    assert {part: count for part, count in audit.parts.items() if "(ours)" not in part} == parts
    assert audit.paper == total


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("masksam-acdc-compact", 14.112),
        ("masksam-acdc-gt", 11.775),
        ("B4", 17.0657),
        ("B5", 21.2631),
        ("B6", 21.268),
        ("B7", 21.268),
        ("B8", 21.268),
        ("B9", 21.406),
    ],
)
def test_other_rows(name, millions):
    assert audit_config(presets.get(name).model).paper / 1e6 == pytest.approx(millions, abs=6e-4)


def test_our_stem_adds_six_parameters_and_no_more():
    audit = audit_config(presets.get("masksam-acdc").model)
    assert audit.trainable - audit.paper == 6


def test_unknown_parameter_fails():
    model = build_model(presets.get("tiny").model)
    model.surprise = nn.Parameter(torch.zeros(3))
    with pytest.raises(ModelError, match="surprise"):
        audit_model(model)


def test_thawed_sam_fails():
    model = build_model(presets.get("tiny").model)
    model.decoder.sam.iou_token.weight.requires_grad_(True)
    with pytest.raises(ModelError, match="iou_token"):
        audit_model(model)


def test_a_network_whose_package_is_missing_is_left_out_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)
    text = audit_table(["swin-tiny", "B4"])
    assert "not counted" in text and "masksam[distill]" in text and "encoder adapters" in text


def test_table_names_every_preset():
    text = audit_table(["core-mobile", "B4"])
    assert "93,735,472" in text and "core-mobile" in text and "B4" in text
