"""SD-Trans: attention along the slices with a block's own weights (model.md §4.4; §19 checks 4, 5, 7)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from MaskSAMCore.config.network_schema import BackboneConfig, DepthConfig, EncoderAdapterConfig, ModelConfig, StemConfig
from MaskSAMCore.network.attention import tiny_depth_attention, vit_depth_attention
from MaskSAMCore.network.backbone import build_encoder
from MaskSAMCore.network.encoder import AdaptedEncoder

DEPTH = 4
# Twelve by seven tokens in the ViT, windows of 4; at stride 8 twenty-four by fourteen in TinyViT, windows of 7 and 14.
SIZE = (192, 112)


def encoder(arch: str, branch: str = "gate", kernel: str = "fast", depth: int = DEPTH) -> AdaptedEncoder:
    torch.manual_seed(0)
    module = build_encoder(
        ModelConfig(
            patch=(depth, *SIZE),
            backbone=BackboneConfig(arch=arch, attention_kernel=kernel),
            stem=StemConfig(upsample=1),
            depth=DepthConfig(pe_encoder=False),
            enc_adapter=EncoderAdapterConfig(kind="plain", act="relu", depth_branch=branch),
        )
    )
    with torch.no_grad():
        for name, parameter in module.sam.named_parameters():
            if "pos" in name or "attention_biases" in name:
                parameter.normal_(std=0.3)
    return module.eval()


def wake(module: AdaptedEncoder, blocks: list[int] | None = None) -> None:
    """Branches that say something, in all blocks or in some."""
    for index in range(len(module.depth_branches)) if blocks is None else blocks:
        for parameter in module.depth_branches[index].parameters():
            nn.init.normal_(parameter, std=0.5)


@torch.no_grad()
def embed(module: AdaptedEncoder, x: torch.Tensor) -> torch.Tensor:
    return module(x).embed


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["tiny", "mobile"])
@pytest.mark.parametrize("branch", ["gate", "adapter"])
@pytest.mark.parametrize("depth", [1, DEPTH])
def test_a_fresh_branch_is_sam_exactly(arch, branch, depth):
    module = encoder(arch, branch, depth=depth)
    x = torch.randn(1, 3, depth, *SIZE)
    assert torch.equal(embed(module, x), module.frozen_features(x).embed)
    wake(module)
    assert not torch.equal(embed(module, x), module.frozen_features(x).embed)


@pytest.mark.parametrize("arch", ["tiny", "mobile"])
@pytest.mark.parametrize("branch", ["none", "gate", "adapter"])
def test_slices_meet_in_the_branch_alone(arch, branch):
    """Check 5: in windows that pad, and not across the volumes of a batch."""
    module = encoder(arch, branch)
    for adapter in module.adapters.parameters():
        nn.init.normal_(adapter, std=0.1)
    wake(module, [0] if branch != "none" else [])
    x = torch.randn(2, 3, DEPTH, *SIZE)
    y = x.clone()
    y[0, :, 2] += torch.randn(3, *SIZE)
    changed = (embed(module, y) - embed(module, x)).abs().amax((1, 3, 4)) > 1e-6
    assert {i for i in range(DEPTH) if changed[0, i]} == ({2} if branch == "none" else set(range(DEPTH)))
    assert not changed[1].any()


@pytest.mark.parametrize("arch", ["tiny", "mobile"])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_the_branch_runs_on_the_map_and_not_on_windows(arch, block):
    """One token's change reaches the same token of the other slices, and no other one."""
    module = encoder(arch)
    width = module.adapters[block]["attn"].down.in_features
    attend = tiny_depth_attention if arch == "mobile" else vit_depth_attention
    blocks = module.sam.blocks if arch == "tiny" else [b for s in module.sam.stages[1:] for b in s.blocks]
    x = torch.randn(2 * DEPTH, 9, 6, width)
    y = x.clone()
    y[1, 4, 5] += torch.randn(width)
    with torch.no_grad():
        changed = (attend(blocks[block].attn, y, DEPTH) - attend(blocks[block].attn, x, DEPTH)).abs().amax(-1) > 1e-6
    assert changed[:DEPTH, 4, 5].all()
    assert changed.sum() == DEPTH


def test_the_branch_is_the_blocks_own_attention_without_its_bias():
    """Against PyTorch's attention over a sequence of D tokens with the same weights."""
    attn = encoder("tiny").sam.blocks[0].attn
    x = torch.randn(DEPTH, 3, 2, 64)
    theirs = nn.MultiheadAttention(64, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(attn.qkv.weight)
        theirs.in_proj_bias.copy_(attn.qkv.bias)
        theirs.out_proj.weight.copy_(attn.proj.weight)
        theirs.out_proj.bias.copy_(attn.proj.bias)
        sequences = x.flatten(1, 2).transpose(0, 1)
        expected = theirs(sequences, sequences, sequences, need_weights=False)[0].transpose(0, 1).view_as(x)
        torch.testing.assert_close(vit_depth_attention(attn, x, DEPTH), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["tiny", "mobile"])
def test_both_kernels_agree(arch):
    x = torch.randn(1, 3, DEPTH, *SIZE)
    found = []
    for kernel in ("fast", "reference"):
        module = encoder(arch, kernel=kernel)
        for branch in module.depth_branches:
            nn.init.constant_(branch.gate, 0.7)
        found.append(embed(module, x))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_the_order_of_the_slices_does_not_matter_without_positions():
    """No bias along depth: the order is the depth positions' to tell."""
    module = encoder("tiny")
    wake(module)
    x = torch.randn(1, 3, DEPTH, *SIZE)
    torch.testing.assert_close(embed(module, x.flip(2)), embed(module, x).flip(2), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["tiny", "mobile"])
def test_gates_learn_and_any_number_of_slices_is_taken(arch):
    module = encoder(arch).train()
    module(torch.randn(1, 3, DEPTH + 1, *SIZE)).embed.square().mean().backward()
    gates = [branch.gate for branch in module.depth_branches]
    assert len(gates) == len(module.adapters)
    assert all(gate.grad != 0 for gate in gates)
    cfg = replace(ModelConfig(), backbone=BackboneConfig(arch=arch))
    assert not len(build_encoder(cfg).depth_branches)
