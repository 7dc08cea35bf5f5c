"""The papers' networks and their ablation rows (model.md §15)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from MaskSAMCore.config.network_schema import (
    BackboneConfig,
    ConditionConfig,
    Conditioning,
    DecoderConfig,
    DepthBranchKind,
    DepthConfig,
    EncoderAdapterConfig,
    ImageAdapterConfig,
    LossConfig,
    ModelConfig,
    SourceConfig,
    StemConfig,
    TokenAdapterConfig,
)
from MaskSAMCore.config.schema import Config, DataConfig, Preset, TrainConfig, TrainMode

AUTOSAM_BENCHMARK = {14: "BTCV Dice", 16: "AMOS22 Dice"}
# Voxels of 1.0 x 1.0 x 1.5 mm, windows of CT, and half of the patches with a structure (model.md §12.1, §12.3).
BTCV_DATA = DataConfig(view="axial", spacing=(1.5, 1.0, 1.0), window=(-125, 275, -125, 400), foreground=0.5)
AMOS_DATA = replace(BTCV_DATA, window=(-991, 362, 50, 141))


def _masksam_acdc() -> Preset:
    return Preset(config=Config(), about="MaskSAM, ViT-B, as trained on ACDC")


def _masksam_amos() -> Preset:
    return Preset(
        config=_large(classes=16, patch=(9, 512, 512), train=TrainConfig(optimizer="adamw", eps=1e-4, epochs=1000)),
        about="MaskSAM, ViT-H at 512, as trained on AMOS22",
    )


def _masksam_synapse() -> Preset:
    return Preset(
        config=_large(classes=14, patch=(26, 256, 256), train=TrainConfig(epochs=1000)),
        about="MaskSAM, ViT-H at 256, as trained on Synapse",
    )


def _large(*, classes: int, patch: tuple[int, int, int], train: TrainConfig) -> Config:
    bce_dice = 1.2 if classes == 16 else 1.5
    return Config(
        model=ModelConfig(
            classes=classes,
            patch=patch,
            backbone=BackboneConfig(arch="vit_h"),
            stem=StemConfig(upsample=1),
            source=SourceConfig(queries=24, widths=(256, 128, 128, 64, 64)),
            decoder=DecoderConfig(upsampler=True),
            loss=LossConfig(bce=bce_dice, dice=bce_dice),
        ),
        train=train,
    )


def _masksam_acdc_compact() -> Preset:
    model = ModelConfig(depth=DepthConfig(pe_decoder="factorised"), source=SourceConfig(widths=(224, 96, 96)))
    return Preset(config=Config(model=model), about="MaskSAM with a narrower trunk: the 14 M of the paper's main text")


def _ground_truth(base: Callable[[], Preset]) -> Callable[[], Preset]:
    def build() -> Preset:
        config = base().config
        model = replace(
            config.model,
            source=replace(config.model.source, kind="gt", class_tokens=False),
            decoder=replace(config.model.decoder, upsampler=False),
            head="argmax",
            loss=LossConfig(kind="binary", bce=1.0, dice=1.0),
        )
        return Preset(config=replace(config, model=model), about="the same with boxes from the ground truth")

    return build


def _row(
    about: str,
    score: float | None,
    *,
    kind: str = "plain",
    image_kind: str | None = None,
    position: str = "middle",
    depth: bool = True,
    **source: object,
) -> Callable[[], Preset]:
    """One row of MaskSAM's ablation on ACDC (model.md §15.3): every adapter of one kind, unless said."""

    def build() -> Preset:
        model = ModelConfig(
            depth=DepthConfig(pe_encoder=depth, pe_decoder="full" if depth else "none"),
            enc_adapter=EncoderAdapterConfig(kind=image_kind or kind, depth_position=position),  # type: ignore[arg-type]
            dec_tokens=TokenAdapterConfig(kind=kind, depth_position=position),  # type: ignore[arg-type]
            dec_image=ImageAdapterConfig(kind=image_kind or kind, depth_position=position),  # type: ignore[arg-type]
            source=SourceConfig(**source),  # type: ignore[arg-type]
        )
        return Preset(config=Config(model=model), about=about, score=score)

    return build


def _class_source(*, widths: tuple[int, ...] = (256, 128, 128), trunk: str = "pyramid") -> SourceConfig:
    return SourceConfig(
        kind="class",
        trunk=trunk,  # type: ignore[arg-type]
        widths=widths,
        points="edt",
        deep_supervision=True,
    )


def _class_train(*, decoded: bool = True) -> TrainConfig:
    return TrainConfig(lr=1e-2, epochs=1000, generator_epochs=200 if decoded else 0)


def _selfprompt(data: str, *, classes: int, patch: tuple[int, int, int]) -> Callable[[], Preset]:
    """Self-Prompt-SAM; the paper names no patches, these are MaskSAM's."""
    on_acdc = data == "ACDC"

    def build() -> Preset:
        model = ModelConfig(
            classes=classes,
            patch=patch,
            backbone=BackboneConfig(arch="vit_b" if on_acdc else "vit_h"),
            stem=StemConfig(upsample=4 if on_acdc else 1),
            enc_adapter=EncoderAdapterConfig(kind="depth_mlp"),
            dec_image=ImageAdapterConfig(kind="depth_mlp"),
            source=_class_source() if on_acdc else _class_source(widths=(256, 128, 128, 64, 64)),
            decoder=DecoderConfig(class_head=False),
            head="multiclass",
            loss=LossConfig(kind="segmentation", bce=1.0, dice=1.0),
        )
        return Preset(
            config=Config(model=model, train=_class_train()),
            about=f"Self-Prompt-SAM, {'ViT-B' if on_acdc else 'ViT-H'}, for {data}",
        )

    return build


def _class_row(
    about: str,
    score: float,
    *,
    kind: str = "plain",
    position: str = "middle",
    depth: bool = False,
    stem: str = "repeat",
    multiclass: bool = False,
    trunk: str = "pyramid",
) -> Callable[[], Preset]:
    """One row of Self-Prompt-SAM's ablation on ACDC (model.md §15.3): every adapter of one kind; "none", no decoder."""
    decoded = kind != "none"

    def build() -> Preset:
        model = ModelConfig(
            stem=StemConfig(kind=stem),  # type: ignore[arg-type]
            depth=DepthConfig(pe_encoder=depth, pe_decoder="full" if depth else "none"),
            enc_adapter=EncoderAdapterConfig(kind=kind, depth_position=position),  # type: ignore[arg-type]
            dec_tokens=TokenAdapterConfig(kind=kind, depth_position=position),  # type: ignore[arg-type]
            dec_image=ImageAdapterConfig(kind=kind, depth_position=position),  # type: ignore[arg-type]
            source=_class_source(trunk=trunk),
            decoder=DecoderConfig(kind="sam" if decoded else "none", class_head=False),
            head="multiclass" if multiclass else "softmax",
            loss=LossConfig(kind="segmentation", bce=1.0, dice=1.0),
        )
        return Preset(config=Config(model=model, train=_class_train(decoded=decoded)), about=about, score=score)

    return build


def _medsa(
    *,
    about: str,
    score: float | None = None,
    volume: bool = True,
    branch: DepthBranchKind = "gate",
    condition: Conditioning = "hyper",
) -> Callable[[], Preset]:
    """Med-SA on ViT-H, for volumes or for colour pictures (model.md §15.2, §15.3 rows M1 to M5, §16.5)."""

    def build() -> Preset:
        model = ModelConfig(
            channels=1 if volume else 3,
            classes=13 if volume else 3,
            patch=(16, 512, 512) if volume else (1, 1024, 1024),
            backbone=BackboneConfig(arch="vit_h"),
            stem=StemConfig(kind="repeat", upsample=2) if volume else StemConfig(kind="none", upsample=1),
            depth=DepthConfig(pe_encoder=False, pe_decoder="none"),
            enc_adapter=EncoderAdapterConfig(kind="plain", ratio=1 / 16, act="relu", depth_branch=branch),
            dec_tokens=TokenAdapterConfig(
                kind="plain", slots=("t2i", "mlp"), ratio=1 / 8, act="relu", condition=ConditionConfig(mode=condition)
            ),
            dec_image=ImageAdapterConfig(kind="plain", slot="i2t_post", ratio=1 / 8, act="relu"),
            source=SourceConfig(kind="user", class_tokens=False),
            decoder=DecoderConfig(class_head=False),
            head="binary",
            loss=LossConfig(kind="binary", bce=1.0, dice=1.0),
        )
        train = TrainConfig(
            mode="prompt",
            optimizer="adam",
            lr=1e-4,
            weight_decay=0.0,
            schedule="halving",
            epochs=60 if volume else 40,
            batch=16 if volume else 32,
            checkpointing=True,
        )
        return Preset(config=Config(model=model, train=train), about=about, score=score, benchmark="BTCV Dice")

    return build


def _autosam(
    data: DataConfig, *, classes: int, about: str, score: float | None = None, level: Literal["last", "none"] = "last"
) -> Callable[[], Preset]:
    """AutoSAM Adapter (model.md §10, §15.2)."""

    def build() -> Preset:
        model = ModelConfig(
            classes=classes,
            patch=(128, 128, 128),
            backbone=BackboneConfig(arch="vit_b", attention="window3d"),
            stem=StemConfig(kind="repeat"),
            enc_adapter=EncoderAdapterConfig(kind="spatial", slots=("pre",), ratio=0.5, act="relu"),
            source=SourceConfig(kind="unet3d", apg_level=level),
            decoder=DecoderConfig(kind="mla"),
            head="softmax",
            loss=LossConfig(kind="segmentation", bce=1.0, dice=1.0, background=True),
        )
        config = Config(model=model, data=data, train=autosam_training())
        return Preset(config=config, about=about, score=score, benchmark=AUTOSAM_BENCHMARK[classes])

    return build


def _sweep(share: float, score: float) -> Callable[[], Preset]:
    """One row of the paper's sweep of λ, the labels' share in the loss of SwinUNETR 24 (model.md §15.3)."""

    def build() -> Preset:
        train = replace(autosam_training("distill"), seg_share=share)
        config = Config(model=swin_unetr(24, classes=14), data=BTCV_DATA, train=train)
        about = f"SwinUNETR of feature size 24, distilled with λ = {share:g}"
        return Preset(config=config, about=about, score=score, benchmark=AUTOSAM_BENCHMARK[14])

    return build


def swin_unetr(width: int, classes: int = 4) -> ModelConfig:
    return ModelConfig(
        classes=classes,
        patch=(128, 128, 128),
        backbone=BackboneConfig(arch="swin_unetr", width=width),
        source=SourceConfig(kind="none"),
        decoder=DecoderConfig(kind="none"),
        head="softmax",
        loss=LossConfig(kind="segmentation", bce=1.0, dice=1.0, background=True),
    )


def autosam_training(mode: TrainMode = "auto") -> TrainConfig:
    """AutoSAM Adapter's schedule (model.md §14.2); an epoch is as long as nnU-Net's, since the paper does not say."""
    return TrainConfig(
        mode=mode,
        optimizer="adamw",
        lr=5e-4,
        weight_decay=1e-5,
        schedule="exponential",
        warmup_epochs=5,
        epochs=200,
        batch=1,
    )


PAPER_PRESETS: dict[str, Callable[[], Preset]] = {
    "masksam-acdc": _masksam_acdc,
    "masksam-amos": _masksam_amos,
    "masksam-synapse": _masksam_synapse,
    "masksam-acdc-compact": _masksam_acdc_compact,
    "masksam-acdc-gt": _ground_truth(_masksam_acdc),
    "masksam-amos-gt": _ground_truth(_masksam_amos),
    "masksam-synapse-gt": _ground_truth(_masksam_synapse),
    "B1": _row("plain adapters, boxes from masks", 89.53, depth=False, box=False, fusion="mask"),
    "B2": _row(
        "plain adapters, learned boxes, no masks", 88.78, depth=False, mask=False, fusion="learned", mask_prompt="none"
    ),
    "B3": _row("plain adapters, masks and learned boxes", 90.08, depth=False, fusion="learned"),
    "B4": _row("B3 with the average of both boxes", 91.45, depth=False),
    "B5": _row("B4 with depth position embeddings", 91.61),
    "B6": _row("B5 with depth MLPs behind the adapters", 92.88, kind="depth_mlp", position="after"),
    "B7": _row("B5 with depth MLPs before the adapters", 92.93, kind="depth_mlp", position="before"),
    "B8": _row("B5 with depth MLPs inside the adapters", 93.10, kind="depth_mlp"),
    "B9": _row("B8 with depth convolutions on image tokens", 93.39, kind="depth_mlp", image_kind="depth_conv"),
    "selfprompt-acdc": _selfprompt("ACDC", classes=4, patch=(4, 256, 256)),
    "selfprompt-amos": _selfprompt("AMOS22", classes=16, patch=(9, 512, 512)),
    "selfprompt-synapse": _selfprompt("Synapse", classes=9, patch=(26, 256, 256)),
    "S1": _class_row("class generator on SAM's last features alone, no decoder", 79.57, kind="none", trunk="stacked"),
    "S2": _class_row("class generator on features of all depths, no decoder", 82.20, kind="none"),
    "S3": _class_row("its boxes, points and masks decoded by SAM with plain adapters", 90.08),
    "S4": _class_row("S3 with depth MLPs before the adapters", 91.45, kind="depth_mlp", position="before"),
    "S5": _class_row("S3 with depth MLPs behind the adapters", 91.52, kind="depth_mlp", position="after"),
    "S6": _class_row("S3 with depth MLPs inside the adapters", 91.73, kind="depth_mlp"),
    "S7": _class_row("S6 with depth position embeddings", 91.88, kind="depth_mlp", depth=True),
    "S8": _class_row("S7 with the modality stem", 92.20, kind="depth_mlp", depth=True, stem="conv"),
    "S9": _class_row("S8 with the multi-class head", 93.26, kind="depth_mlp", depth=True, stem="conv", multiclass=True),
    "medsa-2d": _medsa(about="Med-SA, ViT-H, clicks and boxes on colour pictures", volume=False, branch="none"),
    "medsa-3d": _medsa(about="Med-SA, ViT-H, clicks and boxes on volumes", score=88.3),
    "M1": _medsa(about="Med-SA's adapters alone", score=79.3, branch="none", condition="none"),
    "M2": _medsa(about="M1 with attention along the slices", score=84.7, condition="none"),
    "M3": _medsa(about="M2 with prompts added to the adapter", score=86.1, condition="add"),
    "M4": _medsa(about="M2 with prompts concatenated in the adapter", score=86.4, condition="concat"),
    "M5": _medsa(about="M2 with prompts as a hypernetwork of the adapter", score=88.3),
    "autosam-btcv": _autosam(
        BTCV_DATA, classes=14, about="AutoSAM Adapter, ViT-B in three dimensions, as trained on BTCV", score=87.15
    ),
    "autosam-amos": _autosam(
        AMOS_DATA, classes=16, about="AutoSAM Adapter, ViT-B in three dimensions, as trained on AMOS22", score=88.65
    ),
    "A0": _autosam(BTCV_DATA, classes=14, about="A1 without the prompt U-Net", score=85.23, level="none"),
    "A1": _autosam(BTCV_DATA, classes=14, about="AutoSAM Adapter on BTCV, the full model", score=87.15),
    "KD0": _sweep(0.0, 78.54),
    "KD2": _sweep(0.2, 82.45),
    "KD5": _sweep(0.5, 83.27),
    "KD8": _sweep(0.8, 81.14),
    "KD10": _sweep(1.0, 79.63),
}
