"""The ViT encoders: vanilla SAM at the start, and what adapters may change (model.md §3, §4.3, §19)."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import BackboneConfig, DepthConfig, EncoderAdapterConfig, ModelConfig, StemConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.backbone import ViTEncoder, build_encoder
from MaskSAMCore.network.encoder import AdaptedEncoder
from MaskSAMCore.network.types import fold

DEPTH = 5
# Twelve by seven tokens: the windows of 4 pad along one axis.
SIZE = (192, 112)


def config(arch: str = "tiny", kernel: str = "reference", kind: str = "depth_conv", **adapter: object) -> ModelConfig:
    return ModelConfig(
        patch=(DEPTH, *SIZE),
        stem=StemConfig(upsample=1),
        backbone=BackboneConfig(arch=arch, attention_kernel=kernel),
        enc_adapter=EncoderAdapterConfig(kind=kind, **adapter),
    )


def encoder(*args: object, **kwargs: object) -> AdaptedEncoder:
    """An encoder whose frozen tables are not zero, as segment-anything initialises them."""
    torch.manual_seed(0)
    module = build_encoder(config(*args, **kwargs))
    fill_tables(module.sam)
    return module


def fill_tables(sam: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "pos" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)


def wake(module: nn.Module) -> None:
    """Give an adapter weights that are not zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


def vanilla(sam: nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """segment-anything's own forward of every slice, its tables cut to the grid."""
    sam = copy.deepcopy(sam)
    h, w = x.shape[-2] // 16, x.shape[-1] // 16
    sam.pos_embed = nn.Parameter(sam.pos_embed[:, :h, :w])
    levels: list[torch.Tensor] = []
    for block in sam.blocks:
        if block.window_size == 0:
            for name, size in (("rel_pos_h", h), ("rel_pos_w", w)):
                table = getattr(block.attn, name)
                setattr(block.attn, name, nn.Parameter(table[64 - size : 63 + size]))
            block.register_forward_hook(lambda _m, _i, out: levels.append(out.permute(0, 3, 1, 2)))
    with torch.no_grad():
        embed = sam(fold(x))
    return levels, embed


def assert_vanilla(module: AdaptedEncoder, x: torch.Tensor, tolerance: float) -> None:
    levels, embed = vanilla(module.sam, x)
    with torch.no_grad():
        out = module(x)
    assert len(out.levels) == len(levels) == len(module.levels)
    for ours, theirs in zip((*out.levels, out.embed), (*levels, embed), strict=True):
        assert (fold(ours) - theirs).abs().max() <= tolerance


@pytest.mark.parametrize("kind", ["none", "plain", "depth_conv", "depth_mlp"])
def test_fresh_adapters_leave_sam_exactly_as_it_is(kind):
    assert_vanilla(encoder(kind=kind), torch.randn(1, 3, DEPTH, *SIZE), 0)


@pytest.mark.parametrize("size", [(64, 64), (80, 160), (320, 48)])
def test_any_rectangle_is_vanilla(size):
    assert_vanilla(encoder(), torch.randn(1, 3, DEPTH, *size), 0)


def test_the_fast_kernel_is_vanilla_to_rounding():
    assert_vanilla(encoder(kernel="fast"), torch.randn(1, 3, DEPTH, *SIZE), 1e-5)


@pytest.mark.slow
def test_vit_b_of_segment_anythings_builder():
    from segment_anything import build_sam_vit_b

    torch.manual_seed(0)
    with torch.device("meta"):
        sam = build_sam_vit_b().image_encoder
        module = build_encoder(config("vit_b"))
    sam.to_empty(device="cpu")
    for parameter in sam.parameters():
        nn.init.normal_(parameter, std=0.05)
    module.sam.load_state_dict(sam.state_dict(), strict=True, assign=True)
    module.adapters.to_empty(device="cpu")
    for name, parameter in module.adapters.named_parameters():
        nn.init.constant_(parameter, 0.0 if ".up." in name else 0.01)
    module.depth_pe = nn.Parameter(torch.zeros(DEPTH, 768))
    # Ten by fifteen tokens: one window pads below, two lie side by side.
    assert_vanilla(module, torch.randn(1, 3, DEPTH, 160, 240), 0)


@pytest.mark.parametrize(
    ("arch", "builder", "total"),
    [
        ("vit_b", "build_sam_vit_b", 89_670_912),
        ("vit_l", "build_sam_vit_l", 308_278_272),
        ("vit_h", "build_sam_vit_h", 637_026_048),
    ],
)
def test_keys_shapes_and_totals_are_sams(arch, builder, total):
    import segment_anything

    with torch.device("meta"):
        theirs = getattr(segment_anything, builder)().image_encoder
        ours = build_encoder(config(arch)).sam
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == total


@pytest.mark.parametrize(
    ("preset", "adapters", "positions"),
    [
        ("masksam-acdc", 7_239_168, 3_072),
        ("masksam-amos", 53_145_600, 11_520),
        ("masksam-synapse", 53_145_600, 33_280),
    ],
)
def test_own_parameters_of_the_papers_presets(preset, adapters, positions):
    with torch.device("meta"):
        module = build_encoder(presets.get(preset).model)
    assert sum(p.numel() for p in module.adapters.parameters()) == adapters
    assert module.depth_pe.numel() == positions


def test_only_our_own_parameters_are_trained():
    module = encoder()
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in module.named_parameters() if not name.startswith("sam.")}
    assert trained
    module.train()
    assert module.training
    assert not module.sam.training
    assert not any(m.training for m in module.sam.modules())


def test_levels_are_described_truly():
    module = encoder()
    out = module(torch.randn(1, 3, DEPTH, *SIZE))
    for level, described in zip(out.levels, module.levels, strict=True):
        assert level.shape == (1, described.channels, DEPTH, SIZE[0] // described.stride, SIZE[1] // described.stride)
    assert out.embed.shape == (1, 256, DEPTH, 12, 7)
    assert out.grid == (12, 7)


@pytest.mark.parametrize("slot", ["attn", "mlp"])
@pytest.mark.parametrize("kind", ["plain", "depth_conv", "depth_mlp"])
@pytest.mark.parametrize("block", [0, 1])
def test_depth_isolation(slot, kind, block):
    """Check 5, in a windowed and padded block (0) and in a global one (1)."""
    module = encoder(kind=kind, slots=(slot,))
    wake(module.adapters[block])
    x = torch.randn(2, 3, DEPTH, *SIZE)
    y = x.clone()
    y[0, :, 2] += 1
    with torch.no_grad():
        changed = (module(y).embed - module(x).embed).abs().amax((1, 3, 4)) > 1e-6
    reached = {"plain": {2}, "depth_conv": {1, 2, 3}, "depth_mlp": set(range(DEPTH))}[kind]
    assert {i for i in range(DEPTH) if changed[0, i]} == reached
    assert not changed[1].any()


def test_the_attention_adapter_sees_the_map_not_the_windows():
    """A windowed block's correction is that of the adapter on the un-windowed attention output."""
    module = encoder(slots=("attn",))
    wake(module.adapters[0])
    seen: list[torch.Tensor] = []
    block = copy.deepcopy(module.sam.blocks[0])
    block.mlp.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out))
    module.adapters[0]["attn"].register_forward_hook(lambda _m, i, out: seen.extend((i[0], out)))
    with torch.no_grad():
        out = module(torch.randn(2, 3, DEPTH, *SIZE))
        tokens = torch.randn(2 * DEPTH, 12, 7, 64)
        plain = block(tokens)
        module.sam.blocks[0].mlp.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out))
        seen.clear()
        ours = module._block(0, tokens, DEPTH, True)
    assert out.embed.shape[2] == DEPTH
    assert seen[0].shape == (2, DEPTH, 12, 7, 64)
    torch.testing.assert_close(seen[0].flatten(0, 1), plain - tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours, plain + seen[1].flatten(0, 1))


def test_the_mlp_adapter_runs_beside_the_mlp_at_half_scale():
    module = encoder(slots=("mlp",))
    wake(module.adapters[0])
    nn.init.normal_(module.sam.blocks[0].norm2.weight)
    seen: list[torch.Tensor] = []
    module.sam.blocks[0].mlp.register_forward_hook(lambda _m, i, _o: seen.append(i[0]))
    module.adapters[0]["mlp"].register_forward_hook(lambda _m, i, out: seen.extend((i[0][0], out[0])))
    tokens = torch.randn(DEPTH, 12, 7, 64)
    with torch.no_grad():
        ours = module._block(0, tokens, DEPTH, True)
        mlp_saw, adapter_saw, correction = seen
        difference = ours - module.sam.blocks[0](tokens)
    assert torch.equal(adapter_saw, mlp_saw)
    torch.testing.assert_close(difference, 0.5 * correction, rtol=1e-4, atol=1e-5)


def test_a_small_input_has_the_positions_of_the_top_left_corner():
    module = encoder(kind="none")
    assert torch.equal(module._position((3, 5)), module.sam.pos_embed[:, :3, :5])


def test_depth_positions_are_added_per_slice():
    module = encoder(kind="none")
    x = torch.randn(2, 3, DEPTH, *SIZE)
    with torch.no_grad():
        before = module(x).embed
        module.depth_pe[3] = 1.0
        changed = (module(x).embed - before).abs().amax((1, 3, 4)) > 1e-6
    assert changed.tolist() == [[False, False, False, True, False]] * 2


def test_frozen_features_and_the_switch_skip_everything_of_ours():
    module = encoder()
    x = torch.randn(1, 3, DEPTH, *SIZE)
    with torch.no_grad():
        fresh = module(x).embed
        wake(module.adapters)
        nn.init.normal_(module.depth_pe)
        assert not torch.equal(module(x).embed, fresh)
        assert torch.equal(module.frozen_features(x).embed, fresh)
        module.set_adapters(False)
        assert torch.equal(module(x).embed, fresh)
        module.set_adapters(True)
        assert not torch.equal(module(x).embed, fresh)
    module.adapters.register_forward_hook(lambda *_: pytest.fail("an adapter was run"))
    with torch.inference_mode():
        assert torch.equal(module.frozen_features(x[:, :, :2]).embed, fresh[:, :, :2])


def test_training_works_after_inference_mode():
    module = encoder(kernel="fast")
    x = torch.randn(1, 3, DEPTH, *SIZE)
    with torch.inference_mode():
        module(x)
    module(x).embed.square().mean().backward()
    assert module.depth_pe.grad.abs().sum() > 0


@pytest.mark.parametrize("arch", ["tiny", "mobile"])
def test_checkpointing_changes_no_gradient(arch):
    module = encoder(arch, kernel="fast")
    wake(module.adapters)
    x = torch.randn(1, 3, DEPTH, 64, 48)
    gradients = []
    for checkpointing in (False, True):
        module.checkpointing = checkpointing
        module.zero_grad()
        calls: list[int] = []
        hook = module.adapters[0]["attn"].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        picture = x.clone().requires_grad_()
        module(picture).embed.square().mean().backward()
        hook.remove()
        assert len(calls) == (2 if checkpointing else 1)
        gradients.append([picture.grad, *(p.grad.clone() for p in module.adapters.parameters())])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("kind", ["depth_mlp", "depth_conv"])
def test_another_number_of_slices_is_refused_where_weights_depend_on_it(kind):
    x = torch.randn(1, 3, DEPTH + 1, 64, 64)
    with pytest.raises(ModelError, match=f"{DEPTH + 1} slices, the weights are for {DEPTH}"):
        encoder(kind=kind)(x)
    cfg = replace(config(kind=kind), depth=DepthConfig(pe_encoder=False))
    free = ViTEncoder(cfg)
    if kind == "depth_mlp":
        with pytest.raises(ModelError):
            free(x)
    else:
        assert free(x).depth == DEPTH + 1


@pytest.mark.parametrize("size", [(65, 64), (64, 1040)])
def test_an_input_that_does_not_fit_is_refused(size):
    with pytest.raises(ModelError, match="multiples of 16, 1024 at most"):
        encoder()(torch.zeros(1, 3, DEPTH, *size))
