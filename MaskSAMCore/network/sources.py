"""Table of the prompt sources and the options each supports (model.md §6, §15.2, §15.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.errors import InputError
from MaskSAMCore.network.class_source import ClassGenerator
from MaskSAMCore.network.generator import QueryGenerator
from MaskSAMCore.network.gt_source import GroundTruth
from MaskSAMCore.network.prompt_source import PromptSource
from MaskSAMCore.network.types import Level

Family = Literal["slices", "volume", "student", "clicks"]
GENERATOR_OPTIONS = ("upsampler", "mask_residual", "fine_masks", "click_maps", "click_masks")
"""Keys of `model.decoder` that need a prompt generator."""
TRUNK_OPTIONS = ("fine_masks", "click_maps", "click_masks")
"""Those of them that need the generator's trunk."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A prompt source and the options it supports.

    Attributes:
        build: Class of the source; None if the model generates no prompts.
        heads, losses, decoders: Supported values of `head`, `loss.kind` and `decoder.kind`.
        family: Supported networks: SAM slice by slice or in three dimensions, a student, or the click model.
    """

    build: type[PromptSource] | None = None
    heads: tuple[str, ...]
    losses: tuple[str, ...]
    decoders: tuple[str, ...] = ("sam",)
    family: Family = "slices"


SOURCES: dict[str, Source] = {
    "query": Source(build=QueryGenerator, heads=("query",), losses=("set",), decoders=("sam", "none")),
    "gt": Source(build=GroundTruth, heads=("argmax",), losses=("binary",)),
    "class": Source(
        build=ClassGenerator,
        heads=("softmax", "multiclass"),
        losses=("segmentation",),
        decoders=("sam", "none"),
    ),
    "user": Source(heads=("binary",), losses=("binary",)),
    "maps": Source(heads=("binary",), losses=("binary",), decoders=("none",), family="clicks"),
    "unet3d": Source(heads=("softmax",), losses=("segmentation",), decoders=("mla",), family="volume"),
    "none": Source(heads=("softmax",), losses=("segmentation",), decoders=("none",), family="student"),
}
"""Sources by `SourceConfig.kind`."""


def build_source(cfg: ModelConfig, levels: tuple[Level, ...]) -> PromptSource | None:
    """The prompt source of automatic mode; None for a model that takes prompts from a user only."""
    build = SOURCES[cfg.source.kind].build
    return None if build is None else build(cfg, levels)


def check_source(cfg: ModelConfig) -> None:
    """Check that the prompt source exists and supports the configured backbone, decoder, head and loss.

    Raises:
        InputError: Names the key and the values that it supports.
    """
    kind = cfg.source.kind
    if kind not in SOURCES:
        choice = f"Choose one of {', '.join(SOURCES)}."
        raise InputError("is not a known prompt source", where="model.source.kind", why=f"found {kind}", remedy=choice)
    source = SOURCES[kind]
    if source.family != family_of(cfg):
        raise InputError(
            "does not support the configured backbone",
            where="model.source.kind",
            why=f"found {kind}, with model.backbone: arch={cfg.backbone.arch}, attention={cfg.backbone.attention}",
            remedy="Start from a preset of the wanted network, or correct model.backbone.",
        )
    for where, found, known in (
        ("decoder.kind", cfg.decoder.kind, source.decoders),
        ("head", cfg.head, source.heads),
        ("loss.kind", cfg.loss.kind, source.losses),
    ):
        if found not in known:
            choice = " or ".join(f"model.{where}={each}" for each in known)
            raise InputError(
                "is not supported by the prompt source",
                where=f"model.{where}",
                why=f"found {found}, with model.source.kind={kind}",
                remedy=f"Set {choice}, or start from a preset of the wanted network.",
            )
    if source.family == "slices":
        _check_options(cfg, source.build)
    if source.build is not None:
        source.build.check(cfg)


def family_of(cfg: ModelConfig) -> Family:
    """The family of networks that the configured backbone belongs to."""
    if cfg.backbone.arch == "swin_unetr":
        return "student"
    if cfg.backbone.arch == "click_unet":
        return "clicks"
    return "slices" if cfg.backbone.attention == "sam" else "volume"


def _check_options(cfg: ModelConfig, build: type[PromptSource] | None) -> None:
    for key in GENERATOR_OPTIONS:
        read = build is not None and (build.HAS_TRUNK or key not in TRUNK_OPTIONS)
        if getattr(cfg.decoder, key) and not read:
            raise InputError(
                "needs a prompt generator, and this model has none",
                where=f"model.decoder.{key}",
                remedy=f"Set model.decoder.{key}=false.",
            )
    if cfg.decoder.click_masks and not (cfg.decoder.click_maps and cfg.owns_masks):
        raise InputError(
            "needs class masks from the generator, and the click head",
            where="model.decoder.click_masks",
            remedy="Set model.loss.assignment=own, model.source.mask=true and model.decoder.click_maps=true.",
        )
