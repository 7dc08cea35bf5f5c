"""Configuration: JSON in and out, and every wrong key or type named by its place."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from MaskSAMCore import presets
from MaskSAMCore.config import (
    BackboneConfig,
    Config,
    EncoderAdapterConfig,
    LossConfig,
    ModelConfig,
    SourceConfig,
    from_dict,
    override,
    to_dict,
)
from MaskSAMCore.errors import InputError


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_survives_json(name: str) -> None:
    config = presets.get(name)
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config
    config.model.check()


def test_missing_keys_keep_their_defaults() -> None:
    config = from_dict(Config, {"train": {"epochs": 3}})
    assert config.train.epochs == 3
    assert config.train.lr == Config().train.lr


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"modle": {}}, "Config"),
        ({"model": {"patch": [4, 256]}}, "model.patch"),
        ({"model": {"patch": [4, 256, 25.6]}}, "model.patch[2]"),
        ({"model": {"channels": True}}, "model.channels"),
        ({"model": {"channels": "1"}}, "model.channels"),
        ({"model": {"backbone": {"arch": "vit_g"}}}, "model.backbone.arch"),
        ({"model": {"backbone": []}}, "model.backbone"),
        ({"train": {"lr": None}}, "train.lr"),
        ({"data": {"augment": {"nosie": 1.0}}}, "data.augment"),
        ([], "Config"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(data: object, place: str) -> None:
    with pytest.raises(InputError) as caught:
        from_dict(Config, data)
    assert caught.value.where == place
    assert caught.value.exit_code == 2


def test_an_integer_is_a_float_but_not_the_reverse() -> None:
    assert from_dict(Config, {"train": {"lr": 1}}).train.lr == 1.0
    with pytest.raises(InputError):
        from_dict(Config, {"train": {"epochs": 1.0}})


def test_override_reads_json_and_bare_words() -> None:
    config = override(
        Config(), ["train.epochs=7", "model.backbone.arch=mobile", "model.patch=[8, 64, 64]", "data.spacing=null"]
    )
    assert (config.train.epochs, config.model.backbone.arch, config.model.patch) == (7, "mobile", (8, 64, 64))
    assert config.data.spacing is None


@pytest.mark.parametrize(
    "text", ["train.epoch=7", "trian.epochs=7", "train.epochs", "=7", "train=7", "train.epochs=many"]
)
def test_override_refuses(text: str) -> None:
    with pytest.raises(InputError):
        override(Config(), [text])


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(patch=(4, 250, 255)),
        ModelConfig(patch=(4, 512, 512)),
        ModelConfig(patch=(0, 64, 64)),
        ModelConfig(classes=1),
        ModelConfig(source=SourceConfig(queries=3)),
        ModelConfig(loss=LossConfig(generator=1.0)),
        ModelConfig(head="softmax"),
        ModelConfig(source=SourceConfig(kind="none")),
        ModelConfig(backbone=BackboneConfig(arch="swin_unetr")),
        ModelConfig(enc_adapter=EncoderAdapterConfig(slots=("pre",))),
        replace(presets.get("swin-tiny").model, backbone=BackboneConfig(arch="swin_unetr", width=16)),
        replace(presets.get("swin-tiny").model, patch=(0, 32, 32)),
        replace(presets.get("swin-tiny").model, classes=1),
        ModelConfig(loss=LossConfig(generator=1.0, assignment="own"), source=SourceConfig(mask=False)),
    ],
)
def test_a_network_that_cannot_be_is_refused(model: ModelConfig) -> None:
    with pytest.raises(InputError):
        model.check()


def test_sizes_follow_from_patch_and_stem() -> None:
    model = ModelConfig(patch=(4, 256, 128))
    assert model.input_size == (1024, 512)
    assert model.grid == (64, 32)
    assert model.mask_size == (256, 128)
