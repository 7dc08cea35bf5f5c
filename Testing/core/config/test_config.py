"""Configuration: JSON in and out, and every wrong key or type named by its place."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from MaskSAMCore.config import presets
from MaskSAMCore.config.check import check_config
from MaskSAMCore.config.network_schema import (
    BackboneConfig,
    DecoderConfig,
    EncoderAdapterConfig,
    LossConfig,
    ModelConfig,
    SourceConfig,
    StemConfig,
)
from MaskSAMCore.config.schema import Config, TrainConfig
from MaskSAMCore.config.serialize import from_dict, override, to_dict
from MaskSAMCore.errors import InputError
from MaskSAMCore.network.build import check_network

PROMPTS_ONLY = ModelConfig(source=SourceConfig(kind="user"), head="binary", loss=LossConfig(kind="binary"))


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_survives_json(name: str) -> None:
    config = presets.get(name)
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config
    check_network(config.model)


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
        ModelConfig(stem=StemConfig(kind="none")),
        ModelConfig(head="binary"),
        replace(PROMPTS_ONLY, head="query"),
        replace(PROMPTS_ONLY, loss=LossConfig()),
        replace(PROMPTS_ONLY, decoder=DecoderConfig(upsampler=True)),
        replace(PROMPTS_ONLY, decoder=DecoderConfig(mask_residual=True)),
        replace(PROMPTS_ONLY, decoder=DecoderConfig(fine_masks=True)),
        ModelConfig(head="softmax"),
        ModelConfig(decoder=DecoderConfig(class_head=False)),
        ModelConfig(source=SourceConfig(kind="nobody")),
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
        check_network(model)


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("model.head=query", "model.head"),
        ("model.loss.kind=set", "model.loss.kind"),
        ("model.decoder.class_head=true", "model.decoder"),
        ("model.decoder.upsampler=true", "model.decoder"),
        ("model.source.kind=query", "model.head"),
    ],
)
def test_class_prompts_end_in_class_logits_and_nothing_else_does(setting: str, where: str) -> None:
    config = presets.get("selfprompt-acdc")
    check_network(config.model)
    with pytest.raises(InputError) as caught:
        check_network(override(config, [setting]).model)
    assert caught.value.where == where
    assert caught.value.remedy


def test_a_generator_needs_a_prompt_to_give_and_a_decoder_that_takes_it() -> None:
    mute = ["model.source.points=none", "model.source.box=false", "model.source.mask_prompt=none"]
    with pytest.raises(InputError, match="neither points, boxes nor masks"):
        check_network(override(presets.get("selfprompt-acdc"), mute).model)
    with pytest.raises(InputError, match="not supported by the prompt source") as caught:
        check_network(replace(PROMPTS_ONLY, decoder=DecoderConfig(kind="none", class_head=False)))
    assert caught.value.where == "model.decoder.kind"
    assert "model.decoder.kind=sam" in caught.value.remedy
    own = ModelConfig(decoder=DecoderConfig(kind="none"), loss=LossConfig(assignment="own"))
    check_network(own)
    with pytest.raises(InputError, match="query k must belong to class k"):
        check_network(replace(own, loss=LossConfig()))


def test_a_model_for_prompts_alone_is_trained_by_prompts_alone() -> None:
    check_config(Config(model=PROMPTS_ONLY, train=TrainConfig(mode="prompt")))
    for mode in ("auto", "mixed"):
        with pytest.raises(InputError, match="--mode prompt"):
            check_config(Config(model=PROMPTS_ONLY, train=TrainConfig(mode=mode)))  # type: ignore[arg-type]


def test_sizes_follow_from_patch_and_stem() -> None:
    model = ModelConfig(patch=(4, 256, 128))
    assert model.input_size == (1024, 512)
    assert model.grid == (64, 32)
    assert model.mask_size == (256, 128)
