"""The integers of model.md §16.1, §16.2 and the ablation rows, computed from built networks."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import BackboneConfig, ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.build import build_model
from MaskSAMCore.zoo.audit import audit_config, audit_model, audit_table

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


@pytest.mark.slow
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


def _medsa_parts(condition: str, branch: bool) -> dict[str, int]:
    """model.md §16.5 from its formulas: ViT-H's 32 blocks of width 1280 at 1/16, the decoder's two layers at 1/8."""

    def plain(channels: int, width: int) -> int:
        return 2 * channels * width + width + channels

    m, p, cond = 32, 32, 512
    reduce = cond * p + p
    extra = {
        "none": 0,
        "add": reduce + p * m + m,
        "concat": reduce + (m + p) * m + m,
        "hyper": reduce + 3 * (p * m * m + m * m) + 3 * 2 * m,
    }[condition]
    gates = {"encoder depth branches": 32} if branch else {}
    return {
        "encoder adapters": 32 * 2 * plain(1280, 80),
        **gates,
        "decoder token adapters": 2 * (2 * plain(256, m) + extra),
        "decoder image adapters": 2 * plain(256, m),
    }


@pytest.mark.parametrize(
    ("name", "condition", "branch", "total"),
    [
        ("medsa-3d", "hyper", True, 13_530_272),
        ("medsa-2d", "hyper", False, 13_530_240),
        ("M1", "none", False, 13_294_272),
        ("M2", "none", True, 13_294_304),
        ("M3", "add", True, 13_329_248),
        ("M4", "concat", True, 13_331_296),
        ("M5", "hyper", True, 13_530_272),
    ],
)
def test_med_sa(name, condition, branch, total):
    audit = audit_config(presets.get(name).model)
    assert audit.parts == _medsa_parts(condition, branch)
    assert audit.trainable == audit.paper == total
    assert sum(audit.frozen.values()) == 641_090_608


def test_the_released_depth_adapter_makes_a_third_of_the_encoders():
    """model.md §18.1 row 7: three adapters per block; at the released ratio of 1/4 that is 78.8 M."""
    model = presets.get("M5").model
    released = replace(model, enc_adapter=replace(model.enc_adapter, depth_branch="adapter", ratio=0.25))
    parts = audit_config(released).parts
    assert parts["encoder adapters"] + parts["encoder depth branches"] == 96 * 820_800


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


def plain(channels, middle):
    """Down to `middle` channels and up again, with biases."""
    return 2 * channels * middle + middle + channels


def depth_mlp(channels, middle, depth):
    """The same with a layer from D to 4D and one back, with biases, shared by all channels."""
    return plain(channels, middle) + 8 * depth * depth + 5 * depth


def conv(i, o, kernel, *, norm=False):
    return i * o * kernel + o + 2 * o * norm


def class_trunk(channels, widths, joins):
    """The pyramid over four levels, `joins` of them at its full size through the last skip (model.md §6.1)."""

    def block(i, o):
        return conv(i, o, 27, norm=True)

    total = block(256, widths[0]) + block(widths[0], widths[0])
    for step, (before, width) in enumerate(pairwise(widths), start=1):
        skip = (
            conv(channels, width, 4) + block(width, width) + (step - 1) * (conv(width, width, 4) + block(width, width))
        )
        total += conv(before, width, 4) + skip + block(2 * width, width)
    return total + joins * block(2 * widths[-1], widths[-1])


def self_prompt(*, channels, blocks, depth, grid, classes, widths, joins, stem, positions="full"):
    stages = [*widths, *[widths[-1]] * joins]
    return {
        "encoder adapters": 2 * blocks * depth_mlp(channels, channels // 4, depth),
        "encoder depth positions": depth * channels,
        "decoder token adapters": 7 * depth_mlp(256, 64, depth),
        "decoder image adapters": 2 * depth_mlp(256, 64, depth),
        "decoder depth positions": depth * 256 * (grid * grid if positions == "full" else 1),
        "stem": stem,
        "generator": class_trunk(channels, widths, joins) + sum(conv(width, classes, 1) for width in stages),
        "multi-class head": conv(classes, 4 * classes, 27, norm=True) + conv(4 * classes, classes, 1),
    }


SELF_PROMPT = {
    "selfprompt-acdc": {
        "channels": 768, "blocks": 12, "depth": 4, "grid": 64, "classes": 4,
        "widths": (256, 128, 128), "joins": 2, "stem": 33_945,
    },
    "selfprompt-amos": {
        "channels": 1280, "blocks": 32, "depth": 9, "grid": 32, "classes": 16,
        "widths": (256, 128, 128, 64, 64), "joins": 0, "stem": 897,
    },
    "selfprompt-synapse": {
        "channels": 1280, "blocks": 32, "depth": 26, "grid": 16, "classes": 9,
        "widths": (256, 128, 128, 64, 64), "joins": 0, "stem": 897,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "positions", "total", "millions"),
    [
        ("selfprompt-acdc", "full", 21_098_293, "21.10"),
        ("selfprompt-amos", "full", 65_508_222, "65.51"),
        ("selfprompt-synapse", "full", 65_204_101, "65.20"),
        ("selfprompt-acdc", "factorised", 16_905_013, "16.91"),
        ("selfprompt-amos", "factorised", 63_151_230, "63.15"),
        ("selfprompt-synapse", "factorised", 63_506_821, "63.51"),
    ],
)
def test_self_prompt_sam(name, positions, total, millions):
    cfg = presets.get(name).model
    audit = audit_config(replace(cfg, depth=replace(cfg.depth, pe_decoder=positions)))
    wanted = self_prompt(**SELF_PROMPT[name], positions=positions)
    assert {part: count for part, count in audit.parts.items() if "(ours)" not in part} == wanted
    assert audit.paper == total == sum(wanted.values())
    assert f"{total / 1e6:.2f}" == millions


def test_rows_of_self_prompt_sam():
    whole = self_prompt(**SELF_PROMPT["selfprompt-acdc"])
    deep = {part: whole[part] for part in ("encoder adapters", "decoder token adapters", "decoder image adapters")}
    flat = {
        "encoder adapters": 24 * plain(768, 192),
        "decoder token adapters": 7 * plain(256, 64),
        "decoder image adapters": 2 * plain(256, 64),
    }
    alone = {"generator": whole["generator"]}
    at_depth = {part: whole[part] for part in ("encoder depth positions", "decoder depth positions")}
    stem = {"stem": whole["stem"]}
    rows = {
        "S2": alone, "S3": alone | flat, "S4": alone | deep, "S5": alone | deep, "S6": alone | deep,
        "S7": alone | deep | at_depth, "S8": alone | deep | at_depth | stem, "S9": whole,
    }  # fmt: skip
    for name, parts in rows.items():
        audit = audit_config(presets.get(name).model)
        assert {part: count for part, count in audit.parts.items() if "(ours)" not in part} == parts, name
    stacked = [conv(256, 256, 27, norm=True)] * 2
    stacked += [conv(i, 128, 4) + conv(128, 128, 27, norm=True) for i in (256, 128)]
    heads = sum(conv(width, 4, 1) for width in (256, 128, 128))
    assert audit_config(presets.get("S1").model).parts == {"generator": sum(stacked) + heads}


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


@pytest.mark.slow
def test_a_network_whose_package_is_missing_is_left_out_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)
    text = audit_table(["swin-tiny", "B4"])
    assert "not counted" in text
    assert 'pip install ".[distill]"' in text
    assert "encoder adapters" in text


@pytest.mark.slow
def test_table_names_every_preset():
    text = audit_table(["core-mobile", "B4"])
    assert "93,735,472" in text
    assert "core-mobile" in text
    assert "B4" in text
