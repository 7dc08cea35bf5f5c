"""MobileSAM's encoder on its real weights (model.md §3, §19 checks 1, 4, 5, 7)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from MaskSAMCore.config.network_schema import BackboneConfig, EncoderAdapterConfig, ModelConfig, StemConfig
from MaskSAMCore.network.mobile import MobileEncoder, map_mobile_keys
from MaskSAMCore.network.types import fold

DEPTH = 5
# Twenty by twenty-eight tokens at stride 8, ten by fourteen at 16: every stage pads its windows.
SIZE = (160, 224)


def encoder(kernel: str = "reference", kind: str = "depth_conv", **adapter: object) -> MobileEncoder:
    torch.manual_seed(0)
    return MobileEncoder(
        ModelConfig(
            patch=(DEPTH, *SIZE),
            stem=StemConfig(upsample=1),
            backbone=BackboneConfig(arch="mobile", attention_kernel=kernel),
            enc_adapter=EncoderAdapterConfig(kind=kind, **adapter),
        )
    )


@pytest.fixture(scope="module")
def weights(mobile_sam: Path) -> dict[str, torch.Tensor]:
    """The encoder's tensors under the names of `MobileEncoder.sam`."""
    state = map_mobile_keys(torch.load(mobile_sam, weights_only=True))
    prefix = "image_encoder."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def vanilla(sam: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """timm's own forward of every slice with its plain attention, then SAM's neck."""
    for module in sam.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
            module.attention_bias_cache = {}
    with torch.no_grad():
        y = sam.patch_embed(fold(x))
        out = []
        for stage in sam.stages:
            y = stage(y)
            out.append(y)
        return [*out, sam.neck(y)]


def difference(module: MobileEncoder, x: torch.Tensor) -> float:
    expected = vanilla(module.sam, x)
    with torch.no_grad():
        out = module(x)
    return max(
        (fold(ours) - theirs).abs().max().item()
        for ours, theirs in zip((*out.levels, out.embed), expected, strict=True)
    )


def test_the_real_checkpoint_loads_strictly(mobile_sam, weights):
    state = torch.load(mobile_sam, weights_only=True)
    mapped = map_mobile_keys(state)
    dropped = {"norm_head.weight", "norm_head.bias", "head.weight", "head.bias"}
    assert len(mapped) == len(state) - len(dropped)
    untouched = {k for k in state if not k.startswith("image_encoder.")}
    assert len(untouched) == 17 + 120
    assert untouched <= mapped.keys()
    encoder().sam.load_state_dict(weights, strict=True)
    bare = {k.removeprefix("image_encoder."): v for k, v in state.items() if k.startswith("image_encoder.")}
    assert map_mobile_keys(bare).keys() == weights.keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "depth_conv", "depth_mlp"])
def test_fresh_adapters_leave_mobile_sam_exactly_as_it_is(weights, kind):
    module = encoder(kind=kind)
    module.sam.load_state_dict(weights)
    assert difference(module, torch.randn(1, 3, DEPTH, *SIZE)) == 0


@pytest.mark.parametrize("size", [(112, 112), (224, 48)])
def test_any_rectangle_is_vanilla(weights, size):
    module = encoder()
    module.sam.load_state_dict(weights)
    assert difference(module, torch.randn(1, 3, DEPTH, *size)) == 0


@pytest.mark.slow
def test_the_fast_kernel_is_vanilla_to_rounding(weights):
    module = encoder("fast")
    module.sam.load_state_dict(weights)
    # The deepest stage's values reach some tens, so 1e-4 is a few units in the last place.
    x = torch.randn(1, 3, DEPTH, *SIZE)
    assert 0 < difference(module, x) < 1e-4
    with torch.no_grad():
        assert (module(x).embed - module.frozen_features(x).embed).abs().max() == 0
        assert (fold(module(x).embed) - vanilla(module.sam, x)[-1]).abs().max() < 1e-5


def test_levels_are_described_truly():
    module = encoder("fast")
    out = module(torch.randn(2, 3, DEPTH, *SIZE))
    for level, described in zip(out.levels, module.levels, strict=True):
        assert level.shape == (2, described.channels, DEPTH, SIZE[0] // described.stride, SIZE[1] // described.stride)
    assert [(level.channels, level.stride) for level in module.levels] == [(64, 4), (128, 8), (160, 16), (320, 16)]
    assert out.embed.shape == (2, 256, DEPTH, 10, 14)


def test_batch_norms_stay_frozen_in_training():
    module = encoder("reference")
    before = {k: v.clone() for k, v in module.sam.state_dict().items()}
    module.eval()
    module.train()
    assert module.training
    assert not any(m.training for m in module.sam.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in module.sam.modules()) > 20
    module(torch.randn(1, 3, DEPTH, 64, 64)).embed.square().mean().backward()
    assert all(torch.equal(v, before[k]) for k, v in module.sam.state_dict().items())
    assert all(p.grad is None for p in module.sam.parameters())


def test_only_our_own_parameters_are_trained():
    module = encoder()
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in module.named_parameters() if not name.startswith("sam.")}
    assert {name.split(".")[0] for name in trained} == {"adapters", "depth_pe"}


def test_own_parameters():
    """Two slots in each of 2 + 6 + 2 blocks; depth_conv = 2Cm + m + C + 27m + m + 2m (model.md §16.2)."""
    sizes = {c: 2 * c * (c // 4) + 31 * (c // 4) + c for c in (128, 160, 320)}
    module = encoder()
    assert len(module.adapters) == 10
    expected = 2 * (2 * sizes[128] + 6 * sizes[160] + 2 * sizes[320])
    assert sum(p.numel() for p in module.adapters.parameters()) == expected
    assert module.depth_pe.shape == (DEPTH, 128)


@pytest.mark.slow
@pytest.mark.parametrize("slot", ["attn", "mlp"])
@pytest.mark.parametrize("kind", ["plain", "depth_conv", "depth_mlp"])
@pytest.mark.parametrize("block", [0, 9])
def test_depth_isolation(slot, kind, block):
    """Check 5, with windows that pad."""
    module = encoder("fast", kind, slots=(slot,))
    for parameter in module.adapters[block].parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 3, DEPTH, 80, 112)
    y = x.clone()
    y[0, :, 2] += torch.randn(3, 80, 112)
    with torch.no_grad():
        changed = (module(y).levels[3] - module(x).levels[3]).abs().amax((1, 3, 4)) > 1e-6
    reached = {"plain": {2}, "depth_conv": {1, 2, 3}, "depth_mlp": set(range(DEPTH))}[kind]
    assert {i for i in range(DEPTH) if changed[0, i]} == reached
    assert not changed[1].any()


@pytest.mark.parametrize("slot", ["attn", "mlp"])
def test_slots_are_where_the_design_puts_them(slot):
    """`attn`: on the un-windowed attention output; `mlp`: on the MLP's normalised input, at half scale."""
    module = encoder(slots=(slot,))
    for parameter in module.adapters[0].parameters():
        nn.init.normal_(parameter, std=0.3)
    seen: list[torch.Tensor] = []
    module.adapters[0][slot].register_forward_hook(lambda _m, i, out: seen.extend((i[0][0], out[0])))
    block = module.sam.stages[1].blocks[0]
    nn.init.normal_(block.mlp.norm.weight)
    block.attn.fused_attn = False
    x = torch.randn(DEPTH, 9, 12, 128)
    with torch.no_grad():
        ours = module._block(block, 0, x, DEPTH, True)
        adapter_saw, correction = seen
        after_attention: list[torch.Tensor] = []
        block.local_conv.register_forward_hook(lambda _m, i, out: after_attention.extend((i[0], out)))
        theirs = block(x)
    attended, mixed = (t.permute(0, 2, 3, 1) for t in after_attention)
    if slot == "attn":
        torch.testing.assert_close(adapter_saw, attended - x, rtol=1e-4, atol=1e-5)
        mixed = block.local_conv((attended + correction).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(ours, mixed + block.mlp(mixed), rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(adapter_saw, block.mlp.norm(mixed), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours - theirs, 0.5 * correction, rtol=1e-4, atol=1e-4)


def test_adapters_and_depth_positions_leave_the_first_stage_alone():
    module = encoder("fast")
    x = torch.randn(1, 3, DEPTH, 64, 64)
    with torch.no_grad():
        before = module(x)
        nn.init.normal_(module.depth_pe)
        for parameter in module.adapters.parameters():
            nn.init.normal_(parameter, std=0.3)
        after, frozen = module(x), module.frozen_features(x)
    assert torch.equal(after.levels[0], before.levels[0])
    assert not torch.equal(after.levels[1], before.levels[1])
    for one, other in zip((*frozen.levels, frozen.embed), (*before.levels, before.embed), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kernel", ["fast", "reference"])
def test_inference_mode_then_new_weights_then_training(weights, kernel):
    module = encoder(kernel)
    x = torch.randn(1, 3, DEPTH, 64, 64)
    with torch.inference_mode():
        stale = module.eval()(x).embed.clone()
    module.sam.load_state_dict(weights)
    module.train()
    out = module(x.requires_grad_()).embed
    out.square().mean().backward()
    assert not torch.allclose(out, stale)
    assert x.grad.abs().sum() > 0
    assert module.depth_pe.grad.abs().sum() > 0
