"""The network of the click model: sizes, what it is told, and that prompts reach the whole patch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import GROWN_MAPS, PATCH_FACTS, PROMPT_MAPS
from MaskSAMCore.errors import InputError, ModelError
from MaskSAMCore.network.build import build_model, check_network
from MaskSAMCore.network.click_unet import ClickUNet, divisors
from MaskSAMCore.preprocessing.zoom_windows import CUBES, facts, flat_levels

CHANNELS = len(PROMPT_MAPS) + len(GROWN_MAPS)


def network(widths: tuple[int, ...] = (16, 8, 8)) -> ClickUNet:
    torch.manual_seed(0)
    cfg = presets.get("any").model
    model = build_model(replace(cfg, source=replace(cfg.source, widths=widths)))
    assert isinstance(model, ClickUNet)
    return model


def ask(model: ClickUNet, size: tuple[int, int, int], maps: torch.Tensor | None = None, flat: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    image = torch.randn(1, 1, *size)
    maps = torch.zeros(1, CHANNELS, *size) if maps is None else maps
    return model.answer(image, maps, torch.zeros(1, len(PATCH_FACTS)), flat=flat)


@pytest.mark.parametrize("flat", [1, 2])
def test_the_answer_has_the_size_of_the_patch(flat: int) -> None:
    assert ask(network(), (4, 12, 20), flat=flat).shape == (1, 1, 4, 12, 20)


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="multiples of"):
        ask(network(), (3, 12, 20))


def test_a_prompt_reaches_the_other_end_of_the_patch() -> None:
    model, size = network(), (4, 32, 32)
    maps = torch.zeros(1, CHANNELS, *size)
    maps[0, PROMPT_MAPS.index("ink"), 0, 0, 0] = 1
    change = (ask(model, size, maps) - ask(model, size)).abs()[0, 0]
    assert change[-1, -1, -1] > 0


def test_what_is_told_changes_the_answer_once_it_is_learned() -> None:
    model, size = network(), (4, 16, 16)
    torch.nn.init.normal_(model.down[0].film.weight)
    image, maps = torch.randn(1, 1, *size), torch.zeros(1, CHANNELS, *size)
    thin, thick = (
        model.answer(image, maps, torch.tensor([facts((d, 1.0, 1.0), 1.0, False)]), flat=1) for d in (1.0, 6.0)
    )
    assert not torch.allclose(thin, thick)


@pytest.mark.parametrize(("depth", "flat"), [(1.0, 1), (2.0, 2), (8.0, 3)])
def test_thick_slices_are_pooled_later(depth: float, flat: int) -> None:
    assert flat_levels((depth, 1.0, 1.0), 5) == flat


def test_every_size_of_patch_fits_the_preset() -> None:
    levels = len(presets.get("any").model.source.widths)
    for anisotropy, (_, sizes) in zip((1.0, 2.0, 8.0), CUBES, strict=True):
        needed = divisors(flat_levels((anisotropy, 1.0, 1.0), levels), levels)
        assert not [size for size in sizes if any(n % m for n, m in zip(size, needed, strict=True))]


def test_channels_other_than_one_are_refused() -> None:
    with pytest.raises(InputError, match="one channel"):
        check_network(replace(presets.get("any").model, channels=2))
