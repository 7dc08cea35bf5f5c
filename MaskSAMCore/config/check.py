"""Checks which values of a configuration go together; a wrong one is refused by name, with a remedy.

Rules for the sources of prompts are in `network.sources`.
"""

from __future__ import annotations

from MaskSAMCore.config.network_schema import TOKEN_STRIDE, ModelConfig
from MaskSAMCore.config.schema import Config
from MaskSAMCore.errors import InputError

CANVAS = 1024
STUDENT_WIDTH = 12


def check_config(config: Config) -> None:
    """Refuse a model that cannot be built, or a training that does not fit it.

    Raises:
        InputError: Names the value.
    """
    check_model(config.model)
    _check_student_training(config)
    kind, train = config.model.source.kind, config.train
    if train.generator_epochs and not config.model.names_masks:
        raise InputError(
            "only masks that have classes can be trained before the decoder",
            where="train.generator_epochs",
            why=f"model.source.kind={kind}, model.loss.assignment={config.model.loss.assignment}",
            remedy="Set train.generator_epochs=0, or model.loss.assignment=own with a generator of queries.",
        )
    if config.model.prompts_only and train.mode != "prompt":
        raise InputError(
            "the model has no automatic mode that could be trained",
            where="train.mode",
            why=f"found {train.mode}, with model.source.kind={kind}",
            remedy="Set train.mode=prompt (--mode prompt).",
        )
    if train.keep_generator and train.mode not in ("prompt", "mixed"):
        raise InputError(
            "no step would keep the generator",
            where="train.keep_generator",
            why=f"train.mode={train.mode}",
            remedy="Set train.mode=prompt or mixed, or train.keep_generator=false.",
        )


def _check_student_training(config: Config) -> None:
    """Check the training of networks without prompts, and which networks can be students (model.md §11)."""
    train, model = config.train, config.model
    if train.mode == "distill" and model.head != "softmax":
        raise InputError(
            "this network cannot be a student",
            where="model.head",
            why=f"found {model.head}; a student has one logit per class",
            remedy="Use --preset swin-tiny or swin-small.",
        )
    if not 0 <= train.seg_share <= 1:
        raise InputError("a share lies between 0 and 1", where="train.seg_share", why=f"found {train.seg_share}")
    if model.takes_prompts:
        return
    if train.mode in ("prompt", "mixed"):
        raise InputError(
            "this network takes no prompts",
            where="train.mode",
            why=f"found {train.mode}",
            remedy="Use --mode auto or --mode distill.",
        )
    if train.frozen_epochs:
        raise InputError(
            "this network has no frozen phase",
            where="train.frozen_epochs",
            why=f"found {train.frozen_epochs}",
            remedy="Set train.frozen_epochs=0.",
        )


def check_model(model: ModelConfig) -> None:
    """Refuse values that no network can be built from.

    Raises:
        InputError: Names the value.
    """
    if model.classes < 2:
        raise InputError("a model needs the background and one structure", where="model.classes")
    if min(model.patch) < 1:
        raise InputError("patch is empty", where="model.patch", why=f"{model.patch}")
    if model.backbone.arch == "swin_unetr":
        _check_student(model)
        return
    if model.backbone.arch == "click_unet":
        _check_click_model(model)
        return
    _check_size(model)
    _check_volume(model)
    _check_stem(model)
    if model.loss.generator and not model.owns_masks:
        raise InputError(
            "the generator's masks have no classes to be compared with",
            where="model.loss.generator",
            remedy="Set model.loss.assignment=own and model.source.mask=true, or model.loss.generator=0.",
        )


def _check_size(model: ModelConfig) -> None:
    height, width = model.input_size
    if height % TOKEN_STRIDE or width % TOKEN_STRIDE:
        raise InputError(
            "patch does not fit the encoder",
            where="model.patch",
            why=f"{model.patch[1:]} times stem.upsample={model.stem.upsample} must be a multiple of {TOKEN_STRIDE}",
        )
    if max(height, width) > CANVAS:
        raise InputError(
            "encoder input is too large",
            where="model.patch",
            why=f"{height}x{width} exceeds SAM's canvas of {CANVAS}x{CANVAS}",
            remedy="Choose a smaller patch or stem.upsample.",
        )


def _check_stem(model: ModelConfig) -> None:
    if model.stem.kind == "none" and model.channels != 3:
        raise InputError(
            "a model without a stem takes colour pictures",
            where="model.stem.kind",
            why=f"it has {model.channels} channel(s) and SAM three",
            remedy="Set model.stem.kind=repeat.",
        )


def _check_volume(model: ModelConfig) -> None:
    """Check what the encoder of three dimensions needs, and what only it has (model.md §10)."""
    if model.backbone.attention == "sam":
        if "pre" in model.enc_adapter.slots:
            raise InputError(
                "only an encoder of three dimensions has adapters before its blocks",
                where="model.enc_adapter.slots",
                remedy="Use attn and mlp, or set model.backbone.attention=window3d.",
            )
        return
    if model.backbone.arch == "mobile":
        raise InputError(
            "MobileSAM's encoder has no plain blocks to be run in three dimensions",
            where="model.backbone.arch",
            remedy="Use vit_b, vit_l, vit_h or tiny.",
        )
    if model.enc_adapter.kind != "none" and model.enc_adapter.slots != ("pre",):
        raise InputError(
            "an encoder of three dimensions has adapters before its blocks only",
            where="model.enc_adapter.slots",
            remedy='Set model.enc_adapter.slots=["pre"].',
        )
    if model.patch[0] * model.stem.upsample % TOKEN_STRIDE:
        raise InputError(
            "patch does not fit the encoder",
            where="model.patch",
            why=f"{model.patch[0]} slices times stem.upsample={model.stem.upsample} "
            f"must be a multiple of {TOKEN_STRIDE}",
        )


def _check_click_model(model: ModelConfig) -> None:
    if model.channels != 1 or len(model.source.widths) < 3:
        raise InputError(
            "the click model reads one channel, on three levels or more",
            where="model.source.widths",
            why=f"found {model.channels} channel(s) and {len(model.source.widths)} width(s)",
        )


def _check_student(model: ModelConfig) -> None:
    if model.backbone.width < STUDENT_WIDTH or model.backbone.width % STUDENT_WIDTH:
        raise InputError(
            f"a SwinUNETR's feature size is a multiple of {STUDENT_WIDTH}",
            where="model.backbone.width",
            why=f"found {model.backbone.width}",
            remedy="Use 12 or 24 as in the paper, or 48.",
        )
