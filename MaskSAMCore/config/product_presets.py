"""The product's own configurations: what the commands train by default, its relatives, and a network for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from MaskSAMCore.config.network_schema import (
    BackboneConfig,
    ConditionConfig,
    DecoderConfig,
    DepthConfig,
    EncoderAdapterConfig,
    LossConfig,
    ModelConfig,
    SourceConfig,
    StemConfig,
    TokenAdapterConfig,
)
from MaskSAMCore.config.paper_presets import autosam_training, swin_unetr
from MaskSAMCore.config.schema import Config, DataConfig, Preset, TrainConfig

FITTED = DataConfig(fit_patch=True, slices="auto")
GENERATOR_EPOCHS, PROMPT_EPOCHS = 44, 16


def _core_mobile() -> Preset:
    """The network of the bundled models: recipes and quick training are small differences to it.

    Automatic mode ends with the generator's masks, one for each class, on the features of the frozen encoder. The
    decoder answers clicks and boxes, and starts from the generator's mask. The training takes these one after the
    other, each with a learning rate that falls to zero.
    """
    whole = _core_mobile_whole().config
    epochs = GENERATOR_EPOCHS + PROMPT_EPOCHS
    model = replace(
        whole.model,
        stem=StemConfig(kind="repeat"),
        depth=replace(whole.model.depth, pe_encoder=False),
        enc_adapter=EncoderAdapterConfig(kind="none"),
        source=replace(whole.model.source, box=False, fusion="mask", class_tokens=False),
        decoder=replace(whole.model.decoder, kind="none", click_masks=True),
        loss=LossConfig(assignment="own", generator=1.0),
    )
    train = replace(
        whole.train,
        lr=2e-3,
        epochs=epochs,
        frozen_epochs=epochs,
        frozen_copies=0,
        generator_epochs=GENERATOR_EPOCHS,
        keep_generator=True,
    )
    return Preset(
        config=Config(model=model, data=replace(FITTED, mirroring="sides"), train=train),
        about="the product, as the bundled models: MaskSAM's generator on MobileSAM, and SAM's decoder for clicks",
    )


def _core_mobile_whole() -> Preset:
    model = ModelConfig(
        classes=2,
        patch=(16, 64, 64),
        backbone=BackboneConfig(arch="mobile"),
        stem=StemConfig(kind="lean"),
        depth=DepthConfig(pe_decoder="factorised"),
        dec_tokens=TokenAdapterConfig(condition=ConditionConfig(mode="hyper")),
        source=SourceConfig(widths=(128, 64, 32), image_widths=(16, 32, 64)),
        decoder=DecoderConfig(mask_residual=True, fine_masks=True, click_maps=True, slice_offsets=True),
    )
    train = TrainConfig(
        mode="mixed",
        optimizer="adamw",
        lr=1e-3,
        weight_decay=1e-2,
        clip=1.0,
        schedule="cosine",
        warmup_steps=50,
        epochs=40,
        iterations=50,
        batch=1,
        frozen_epochs=20,
        frozen_copies=2,
        ema=0.995,
    )
    return Preset(
        config=Config(model=model, data=FITTED, train=train),
        about="the whole MaskSAM on MobileSAM: adapters in the encoder, automatic mode through the decoder",
    )


def _core_acdc() -> Preset:
    model = ModelConfig(dec_tokens=TokenAdapterConfig(condition=ConditionConfig(mode="hyper")))
    return Preset(
        config=Config(model=model, train=TrainConfig(mode="mixed")),
        about="MaskSAM on ViT-B that takes clicks and boxes too, by Med-SA's HyP-Adapter",
    )


def _any() -> Preset:
    """The network for prompts on any structure, trained by `training.click_run`."""
    model = ModelConfig(
        classes=2,
        patch=(32, 64, 64),
        backbone=BackboneConfig(arch="click_unet"),
        source=SourceConfig(kind="maps", widths=(160, 128, 64, 32, 16), class_tokens=False),
        decoder=DecoderConfig(kind="none", class_head=False),
        head="binary",
        loss=LossConfig(kind="binary", bce=1.0, dice=1.0),
    )
    train = TrainConfig(
        mode="prompt",
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-2,
        clip=1.0,
        schedule="cosine",
        warmup_steps=500,
        epochs=52,
        iterations=250,
        batch=1,
        precision="bf16",
        ema=0.999,
        validate_every=4,
    )
    return Preset(
        config=Config(model=model, train=train),
        about="clicks, boxes, scribbles and lassos on any structure of any scan: a 3-D U-Net over image and prompts",
    )


def _student(width: int, about: str) -> Callable[[], Preset]:
    """A SwinUNETR that learns from a teacher (model.md §11, §15.2); its patch follows the data."""

    def build() -> Preset:
        config = Config(model=swin_unetr(width), data=FITTED, train=autosam_training("distill"))
        return Preset(config=config, about=about)

    return build


def _tiny() -> Preset:
    model = ModelConfig(
        classes=3,
        patch=(4, 16, 16),
        backbone=BackboneConfig(arch="tiny"),
        stem=StemConfig(kind="lean"),
        dec_tokens=TokenAdapterConfig(condition=ConditionConfig(mode="hyper")),
        source=SourceConfig(widths=(16, 8, 8)),
        decoder=DecoderConfig(fine_masks=True, click_maps=True, slice_offsets=True),
    )
    train = TrainConfig(optimizer="adamw", lr=2e-3, epochs=2, iterations=5, batch=1, validate_every=1)
    return Preset(config=Config(model=model, train=train), about="random weights, for tests; never called SAM")


PRODUCT_PRESETS: dict[str, Callable[[], Preset]] = {
    "core-mobile": _core_mobile,
    "core-mobile-whole": _core_mobile_whole,
    "core-acdc": _core_acdc,
    "any": _any,
    "swin-tiny": _student(12, "SwinUNETR of feature size 12, a student for any teacher"),
    "swin-small": _student(24, "SwinUNETR of feature size 24, a student for any teacher"),
    "tiny": _tiny,
}
