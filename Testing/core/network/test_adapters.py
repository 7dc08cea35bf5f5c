"""Adapters by themselves: size, identity at the start, and what mixes with what (model.md §4, §16.2, §19)."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from MaskSAMCore.config import presets
from MaskSAMCore.config.serialize import override
from MaskSAMCore.errors import InputError
from MaskSAMCore.network.adapters import CORES, Adapter, Core
from MaskSAMCore.network.build import build_model

DEPTH = 7
CASES = [
    ("plain", "middle"),
    ("depth_conv", "middle"),
    ("depth_mlp", "before"),
    ("depth_mlp", "middle"),
    ("depth_mlp", "after"),
]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def random_adapter(kind: str, position: str = "middle") -> Adapter:
    """An adapter whose zeros have been replaced: it does mix."""
    torch.manual_seed(0)
    adapter = Adapter(8, kind=kind, depth=DEPTH, ratio=0.5, position=position)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.5)
    return adapter


@pytest.mark.parametrize(
    ("channels", "kind", "depth", "expected"),
    [
        (768, "depth_conv", 4, 301_632),
        (1280, "depth_conv", 9, 830_400),
        (256, "depth_mlp", 4, 33_236),
        (256, "depth_conv", 4, 35_008),
    ],
)
def test_parameter_counts(channels, kind, depth, expected):
    assert count(Adapter(channels, kind=kind, depth=depth)) == expected


@pytest.mark.parametrize(("depth", "expected"), [(4, 232_652), (9, 236_467), (26, 270_382)])
def test_seven_token_adapters(depth, expected):
    assert 7 * count(Adapter(256, kind="depth_mlp", depth=depth)) == expected


def test_the_depth_mlp_costs_the_same_in_every_position():
    sizes = {count(Adapter(16, kind="depth_mlp", depth=5, position=p)) for p in ("before", "middle", "after")}
    plain = count(Adapter(16, kind="plain", depth=5))
    assert sizes == {plain + 8 * 25 + 5 * 5}


@pytest.mark.parametrize(("kind", "position"), CASES)
def test_a_fresh_adapter_corrects_nothing(kind, position):
    adapter = Adapter(8, kind=kind, depth=DEPTH, position=position)
    assert torch.count_nonzero(adapter(torch.randn(2, DEPTH, 3, 4, 8))) == 0


@pytest.mark.parametrize(("kind", "position"), CASES)
def test_a_fresh_adapter_can_learn(kind, position):
    adapter = Adapter(8, kind=kind, depth=DEPTH, position=position)
    adapter(torch.randn(2, DEPTH, 3, 4, 8)).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


@pytest.mark.parametrize(("kind", "position"), CASES)
def test_which_slices_a_slice_reaches(kind, position):
    adapter = random_adapter(kind, position)
    x = torch.randn(2, DEPTH, 3, 4, 8)
    y = x.clone()
    y[0, 3] += 1
    changed = (adapter(y) - adapter(x)).abs().amax((2, 3, 4)) > 1e-6
    reached = {"plain": {3}, "depth_conv": {2, 3, 4}, "depth_mlp": set(range(DEPTH))}[kind]
    assert {i for i in range(DEPTH) if changed[0, i]} == reached
    assert not changed[1].any()


@pytest.mark.parametrize("kind", ["plain", "depth_mlp"])
def test_positions_do_not_mix_without_convolution(kind):
    adapter = random_adapter(kind)
    x = torch.randn(1, DEPTH, 3, 4, 8)
    y = x.clone()
    y[0, :, 1, 2] += 1
    changed = (adapter(y) - adapter(x)).abs().amax((0, 1, 4)) > 1e-6
    assert changed.nonzero().tolist() == [[1, 2]]


def test_convolution_reaches_the_neighbours_in_plane():
    adapter = random_adapter("depth_conv")
    x = torch.randn(1, DEPTH, 5, 6, 8)
    y = x.clone()
    y[0, 3, 1, 3] += 1
    changed = (adapter(y) - adapter(x)).abs().amax(-1)[0] > 1e-6
    expected = list(itertools.product((2, 3, 4), (0, 1, 2), (2, 3, 4)))
    assert [tuple(i) for i in changed.nonzero().tolist()] == expected


@pytest.mark.parametrize(("kind", "position"), CASES)
def test_depth_mirror(kind, position):
    adapter = random_adapter(kind, position)
    x = torch.randn(1, DEPTH, 3, 4, 8)
    expected = adapter(x).flip(1)
    unflipped = adapter(x.flip(1))
    with torch.no_grad():
        if kind == "depth_conv":
            adapter.core.conv.weight.copy_(adapter.core.conv.weight.flip(2))
        elif kind == "depth_mlp":
            adapter.core.up.weight.copy_(adapter.core.up.weight.flip(1))
            adapter.core.down.weight.copy_(adapter.core.down.weight.flip(0))
            adapter.core.down.bias.copy_(adapter.core.down.bias.flip(0))
    torch.testing.assert_close(adapter(x.flip(1)), expected, rtol=1e-4, atol=1e-4)
    if kind != "plain":
        assert not torch.allclose(unflipped, expected, rtol=1e-4, atol=1e-4)


def test_middle_formula_of_the_depth_mlp():
    adapter = random_adapter("depth_mlp")
    x = torch.randn(1, DEPTH, 2, 8)
    u = nn.functional.gelu(adapter.down(x))
    core = adapter.core
    mixed = torch.einsum("ed,gdsc->gesc", core.up.weight, u) + core.up.bias[:, None, None]
    mixed = torch.einsum("de,gesc->gdsc", core.down.weight, nn.functional.gelu(mixed)) + core.down.bias[:, None, None]
    torch.testing.assert_close(adapter(x), adapter.up(u + mixed))


def test_relu_is_selectable():
    adapter = Adapter(8, kind="depth_mlp", depth=DEPTH, act="relu")
    assert isinstance(adapter.act, nn.ReLU)
    assert isinstance(adapter.core.act, nn.ReLU)


def test_the_spatial_core_has_no_skip_beside_it_and_the_output_no_activation():
    """AutoSAM Adapter's, with the published count at ViT-B's width (model.md §4.1, §16.6)."""
    assert count(Adapter(768, kind="spatial", depth=32, ratio=0.5)) == 601_728
    torch.manual_seed(0)
    adapter = Adapter(8, kind="spatial", depth=DEPTH, ratio=0.5, act="relu")
    x = torch.randn(2, DEPTH, 3, 4, 8)
    assert not adapter(x).any()
    with torch.no_grad():
        adapter.up.weight.normal_()
    u = adapter.down(x).relu().movedim(-1, 1)
    conv = adapter.core.conv
    v = nn.functional.conv3d(u, conv.weight, conv.bias, padding=1, groups=4).relu().movedim(1, -1)
    torch.testing.assert_close(adapter(x), adapter.up(v))
    assert (adapter(x) < 0).any()


class DepthMean(nn.Module):
    """The worked example of CONTRIBUTING.md."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=1, keepdim=True).expand_as(x)


def test_a_new_kind_is_one_entry_of_the_table(monkeypatch):
    monkeypatch.setitem(CORES, "depth_mean", Core(build=lambda width, depth, act, position: DepthMean()))
    everywhere = [f"model.{slots}.kind=depth_mean" for slots in ("enc_adapter", "dec_tokens", "dec_image")]
    config = override(presets.get("tiny"), everywhere)
    model = build_model(config.model).eval()
    found = [module for module in model.modules() if isinstance(module, Adapter)]
    assert found
    assert all(isinstance(adapter.core, DepthMean) for adapter in found)
    with torch.no_grad():
        assert model.segment_patch(torch.zeros(1, 1, *config.model.patch)).shape == (1, 3, *config.model.patch)


def test_an_unknown_kind_is_told_with_the_known_ones():
    with pytest.raises(InputError, match="unknown kind of adapter") as caught:
        build_model(override(presets.get("tiny"), ["model.enc_adapter.kind=depth_magic"]).model)
    assert caught.value.where == "depth_magic"
    assert "none, plain, depth_mlp, depth_conv, spatial" in caught.value.remedy
