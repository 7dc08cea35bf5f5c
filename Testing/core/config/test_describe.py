"""The generated description of a network says what its configuration holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from MaskSAMCore.config import presets
from MaskSAMCore.config.describe import network_description
from MaskSAMCore.config.network_schema import EncoderAdapterConfig


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("core-mobile", ("MobileSAM, frozen; adapters in it: none", "SAM's decoder has no part", "click head")),
        ("core-mobile-whole", ("depth convolutions", "prompted with the masks, boxes and class tokens")),
        ("B1", ("ViT-B", "plain", "prompted with the masks and class tokens")),
        ("selfprompt-acdc", ("masks, boxes and points of the class generator",)),
        ("masksam-acdc-gt", ("boxes of the reference labels",)),
        ("medsa-3d", ("attention along the slices", "it answers clicks and boxes only", "HyP-Adapter")),
        ("autosam-btcv", ("spatial convolutions", "prompt U-Net", "Clicks and boxes: not taken")),
        ("swin-tiny", ("SwinUNETR of feature size 12", "not taken")),
    ],
)
def test_presets(preset: str, words: tuple[str, ...]) -> None:
    text = network_description(presets.get(preset).model)
    assert [word for word in words if word not in text] == []


def test_every_preset_has_a_description_of_one_line() -> None:
    for name in presets.names():
        text = network_description(presets.get(name).model)
        assert text.endswith(".")
        assert "\n" not in text


def test_an_adapter_of_another_kind_is_named() -> None:
    model = presets.get("core-mobile").model
    assert "adapters in it: depth_mean" in network_description(
        replace(model, enc_adapter=EncoderAdapterConfig(kind="depth_mean"))
    )
