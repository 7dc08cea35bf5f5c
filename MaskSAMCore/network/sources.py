"""The sources of prompts by name, and what each of them goes with (model.md §6, §15.2, §15.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from MaskSAMCore.config.schema import ModelConfig
from MaskSAMCore.errors import InputError
from MaskSAMCore.network.class_source import ClassGenerator
from MaskSAMCore.network.generator import QueryGenerator
from MaskSAMCore.network.gt_source import GroundTruth
from MaskSAMCore.network.prompt_source import PromptSource
from MaskSAMCore.network.types import Level

Family = Literal["slices", "volume", "student"]
ADDED = ("upsampler", "mask_residual", "fine_masks", "click_maps", "click_masks")
"""What the decoder reads of a source,"""
LIFTED = ("fine_masks", "click_maps", "click_masks")
"""and, of these, of its trunk."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One entry of the table.

    Attributes:
        build: Makes the prompts; takes the model's configuration and the encoder's levels. None: the model makes none.
        heads, losses, decoders: The values of `head`, `loss.kind` and `decoder.kind` that it goes with.
        family: Of networks that it is for: SAM slice by slice, SAM in three dimensions, or a student.
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
    "unet3d": Source(heads=("softmax",), losses=("segmentation",), decoders=("mla",), family="volume"),
    "none": Source(heads=("softmax",), losses=("segmentation",), decoders=("none",), family="student"),
}
"""`SourceConfig.kind` to the source."""


def build_source(cfg: ModelConfig, levels: tuple[Level, ...]) -> PromptSource | None:
    """What makes the prompts of automatic mode; None for a model that takes them from a user alone."""
    build = SOURCES[cfg.source.kind].build
    return None if build is None else build(cfg, levels)


def check_source(cfg: ModelConfig) -> None:
    """Refuse a source that does not exist, or does not go with backbone, decoder, head or loss.

    Raises:
        InputError: Names the value.
    """
    kind = cfg.source.kind
    if kind not in SOURCES:
        choice = f"Choose one of {', '.join(SOURCES)}."
        raise InputError("unknown source of prompts", where="model.source.kind", why=f"found {kind}", remedy=choice)
    source = SOURCES[kind]
    if source.family != family_of(cfg):
        raise InputError(
            "does not go with the backbone",
            where="model.source.kind",
            why=f"found {kind}, with model.backbone: arch={cfg.backbone.arch}, attention={cfg.backbone.attention}",
            remedy="Start from a preset of the network that is meant, or correct model.backbone.",
        )
    for where, found, known in (
        ("decoder.kind", cfg.decoder.kind, source.decoders),
        ("head", cfg.head, source.heads),
        ("loss.kind", cfg.loss.kind, source.losses),
    ):
        if found not in known:
            choice = " or ".join(f"model.{where}={each}" for each in known)
            raise InputError(
                "does not go with the source of the prompts",
                where=f"model.{where}",
                why=f"found {found}, with model.source.kind={kind}",
                remedy=f"Set {choice}, or start from a preset of the network that is meant.",
            )
    if source.family == "slices":
        _check_added(cfg, source.build)
    if source.build is not None:
        source.build.check(cfg)


def family_of(cfg: ModelConfig) -> Family:
    """The family of networks that a backbone belongs to."""
    if cfg.backbone.arch == "swin_unetr":
        return "student"
    return "slices" if cfg.backbone.attention == "sam" else "volume"


def _check_added(cfg: ModelConfig, build: type[PromptSource] | None) -> None:
    for key in ADDED:
        read = build is not None and (build.LIFTS or key not in LIFTED)
        if getattr(cfg.decoder, key) and not read:
            raise InputError(
                "this belongs to a generator, and this model has none",
                where=f"model.decoder.{key}",
                remedy=f"Set model.decoder.{key}=false.",
            )
    if cfg.decoder.click_masks and not (cfg.decoder.click_maps and cfg.owns_masks):
        raise InputError(
            "there is nothing to show, or nobody who looks",
            where="model.decoder.click_masks",
            why="it needs masks that have classes, and a head that reads them",
            remedy="Set model.loss.assignment=own, model.source.mask=true and model.decoder.click_maps=true.",
        )
