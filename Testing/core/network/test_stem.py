"""The modality stem (model.md §5.1, §16.2)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from MaskSAMCore.config.network_schema import ModelConfig, StemConfig
from MaskSAMCore.network.stem import ModalityStem


def stem(channels: int = 1, **settings: object) -> ModalityStem:
    torch.manual_seed(0)
    return ModalityStem(ModelConfig(channels=channels, stem=StemConfig(**settings)))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("upsample", "expected"), [(4, 33_945), (1, 897)])
def test_released_parameter_counts(upsample, expected):
    assert count(stem(upsample=upsample, residual=False)) == expected
    assert count(stem(upsample=upsample, residual=True)) == expected + 3 + 3


def test_residual_adds_the_lift_and_gamma():
    plain, residual = stem(4, residual=False), stem(4, residual=True)
    assert count(residual) - count(plain) == 3 * 4 + 3
    assert {n.split(".")[0] for n, _ in residual.named_parameters()} == {"branch", "lift", "gamma"}


@pytest.mark.parametrize("upsample", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("settings", [{"residual": True}, {"residual": False}, {"kind": "repeat"}])
def test_shapes(upsample, channels, settings):
    out = stem(channels, upsample=upsample, **settings)(torch.randn(2, channels, 3, 4, 6))
    assert out.shape == (2, 3, 3, 4 * upsample, 6 * upsample)


@pytest.mark.parametrize("upsample", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_fresh_stem_shows_the_plain_picture(upsample, channels):
    module = stem(channels, upsample=upsample)
    x = torch.randn(2, channels, 3, 4, 6)
    picture = F.interpolate(x.mean(1), scale_factor=float(upsample), mode="bilinear")
    assert (module(x) - picture[:, None]).abs().max() < 1e-6
    assert (module(x) - module.frozen(x)).abs().max() < 1e-6
    if channels == 1:
        assert torch.equal(module(x), module.frozen(x))


def test_the_branch_joins_through_gamma():
    module = stem(upsample=1)
    x = torch.randn(1, 1, 3, 4, 6)
    with torch.no_grad():
        module.gamma.copy_(torch.tensor([0.0, 1.0, 0.0]))
    difference = (module(x) - module.frozen(x)).abs().amax((0, 2, 3, 4))
    assert difference[1] > 0.1
    assert difference[[0, 2]].max() == 0


def test_residual_drops_the_last_activation():
    x = torch.randn(1, 1, 3, 4, 6)
    assert isinstance(stem(residual=False).branch[-1], nn.LeakyReLU)
    assert isinstance(stem(residual=True).branch[-1], nn.InstanceNorm3d)
    assert stem(upsample=1, residual=False)(x).min() > stem(upsample=1, residual=True).branch(x).min()


def test_repeat_keeps_three_channels_and_averages_others():
    x = torch.randn(1, 3, 2, 4, 6)
    assert torch.equal(stem(3, kind="repeat", upsample=1)(x), x)
    two = stem(2, kind="repeat", upsample=1)(x[:, :2])
    assert torch.equal(two, x[:, :2].mean(1, keepdim=True).expand(-1, 3, -1, -1, -1))
    assert count(stem(2, kind="repeat")) == 0


def test_gamma_and_lift_learn_at_once():
    module = stem(upsample=1)
    module(torch.randn(1, 1, 3, 4, 6)).square().sum().backward()
    assert module.gamma.grad.abs().min() > 0
    assert module.lift.weight.grad.abs().min() > 0
