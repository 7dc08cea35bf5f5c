"""Looks up named configurations: the product's (`product_presets`) and the papers' (`paper_presets`)."""

from __future__ import annotations

from dataclasses import replace

from MaskSAMCore.config.paper_presets import PAPER_PRESETS
from MaskSAMCore.config.product_presets import PRODUCT_PRESETS
from MaskSAMCore.config.schema import Config, Preset
from MaskSAMCore.errors import InputError, did_you_mean

DEFAULT = "core-mobile"
DEFAULT_STUDENT = "swin-tiny"
_PRESETS = PRODUCT_PRESETS | PAPER_PRESETS


def names() -> list[str]:
    """All preset names, the product's first."""
    return list(_PRESETS)


def describe(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        InputError: There is none; the message lists the names.
    """
    if name not in _PRESETS:
        known = f"Known presets: {', '.join(_PRESETS)}."
        raise InputError("unknown preset", where=name, remedy=f"{did_you_mean(name, _PRESETS)} {known}".strip())
    preset = _PRESETS[name]()
    return replace(preset, config=replace(preset.config, preset=name))


def get(name: str) -> Config:
    """The configuration of the preset called `name`; see `describe`."""
    return describe(name).config
