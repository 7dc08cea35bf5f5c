"""Prompts that tune the decoder: HyP and its rivals, order and padding of clicks, other slices, fine masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import ConditionConfig
from MaskSAMCore.network.adapters import ConditionedAdapter
from MaskSAMCore.network.build import build_model
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.network.prompt_broadcast import SlicePrompts, broadcast_prompts
from MaskSAMCore.network.types import PromptBatch, Slab

MODES = ["add", "concat", "hyper"]
DEPTH, GRID = 4, (4, 4)


def model(mode: str = "hyper", *, kernel: str = "fast", seed: int = 0) -> MaskSAM:
    """The tiny product network in double precision, none of its own parameters zero."""
    cfg = presets.get("tiny").model
    tokens = replace(cfg.dec_tokens, condition=ConditionConfig(mode=mode))
    torch.manual_seed(seed)
    network = build_model(replace(cfg, dec_tokens=tokens, backbone=replace(cfg.backbone, attention_kernel=kernel)))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and "norm" not in name:
            nn.init.normal_(parameter, std=0.1)
    network = network.double().eval()
    # SAM computes its positions in single precision whatever comes in.
    network.prompts.sam.pe_layer.float()
    return network


def slab(network: MaskSAM, seed: int = 1) -> Slab:
    torch.manual_seed(seed)
    return network.slab(torch.randn(1, 1, DEPTH, 16, 16, dtype=torch.float64))


def clicks(*order: int, padding: int = 0) -> PromptBatch:
    """Three clicks per slice in the given order, and so many that only fill up."""
    points = torch.tensor([[0.2, 0.3], [0.7, 0.6], [0.5, 0.9]], dtype=torch.float64)[list(order)]
    labels = torch.tensor([1, 0, 1])[list(order)]
    points = torch.cat([points, torch.rand(padding, 2, dtype=torch.float64)])
    labels = torch.cat([labels, torch.full((padding,), -1)])
    return PromptBatch(
        points=points.expand(1, 1, DEPTH, -1, 2), labels=labels.expand(1, 1, DEPTH, -1)
    )  # fmt: skip


def masks(network: MaskSAM, prompts: PromptBatch, seed: int = 1) -> torch.Tensor:
    with torch.no_grad():
        return network.prompted(slab(network, seed), prompts).masks


@pytest.mark.parametrize("kernel", ["fast", "reference"])
@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_clicks_changes_nothing_and_neither_does_padding(mode, kernel):
    network = model(mode, kernel=kernel)
    straight = masks(network, clicks(0, 1, 2))
    for same in (clicks(2, 0, 1), clicks(0, 1, 2, padding=1), clicks(1, 2, 0, padding=4)):
        torch.testing.assert_close(masks(network, same), straight, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(masks(network, clicks(0, 1)), straight, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_the_condition_matters_once_up_is_not_zero(mode):
    network = model(mode)
    prompts = clicks(0, 1, 2)
    features = slab(network)
    tokens = network.tokenize(prompts, features.grid)
    with torch.no_grad():
        with_it = network.decoder(features, tokens, network.prompts.dense_pe(GRID)).mask
        tokens.conditioned = torch.zeros_like(tokens.conditioned)
        without = network.decoder(features, tokens, network.prompts.dense_pe(GRID)).mask
        tokens.conditioned, tokens.condition = torch.ones_like(tokens.conditioned), tokens.condition + 1
        other = network.decoder(features, tokens, network.prompts.dense_pe(GRID)).mask
    assert not torch.allclose(with_it, without, atol=1e-5)
    assert not torch.allclose(with_it, other, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_fresh_adapter_changes_nothing(mode):
    adapter = ConditionedAdapter(256, kind="plain", depth=3, condition=mode)
    x, condition = torch.randn(2, 3, 7, 256), torch.randn(2, 3, 512)
    assert torch.equal(adapter(x, condition, torch.ones(2, 3, dtype=torch.bool)), torch.zeros_like(x))


def test_hyper_follows_the_formula():
    torch.manual_seed(0)
    adapter = ConditionedAdapter(256, kind="plain", depth=2, condition="hyper").double()
    nn.init.normal_(adapter.up.weight, std=0.1)
    x, condition = torch.randn(1, 2, 5, 256).double(), torch.randn(1, 2, 512).double()
    out = adapter(x, condition, torch.tensor([[True, False]]))
    for z, known in enumerate((1.0, 0.0)):
        e = adapter.down(x[0, z])
        code = nn.functional.gelu(adapter.condition.reduce(condition[0, z])) * known
        for layer, norm in zip(adapter.condition.maps, adapter.condition.norms, strict=True):
            e = torch.relu(norm(e @ layer(code).reshape(64, 64)))
        torch.testing.assert_close(out[0, z], adapter.up(e))


def test_parameters_of_hyper_are_those_of_the_specification():
    adapter = ConditionedAdapter(256, kind="plain", depth=2, condition="hyper")
    assert sum(p.numel() for p in adapter.condition.parameters()) == 16_416 + 405_504 + 384
    small = ConditionedAdapter(256, kind="plain", depth=1, ratio=1 / 8, condition="hyper")
    assert sum(p.numel() for p in small.parameters()) == 134_656


def test_conditions_are_hidden_in_training_alone(monkeypatch: pytest.MonkeyPatch):
    network = model()
    monkeypatch.setattr("MaskSAMCore.network.decoder.CONDITION_DROPOUT", 1.0)
    prompts = clicks(0, 1, 2)
    calm = masks(network, prompts)
    network.train()
    assert not torch.allclose(masks(network, prompts), calm, atol=1e-6)


def test_boxes_and_points_side_by_side_equal_each_alone():
    """An object with a box beside one with clicks: what only fills up is not attended to."""
    network = model()
    box = SlicePrompts(box=(0.1, 0.2, 0.7, 0.8))
    click = SlicePrompts(points=((0.4, 0.4), (0.9, 0.9), (0.6, 0.3)), labels=(1, 0, 1))
    both = masks(network, broadcast_prompts([[{1: box}, {2: click}]], DEPTH))
    first, second = (masks(network, broadcast_prompts([[each]], DEPTH)) for each in ({1: box}, {2: click}))
    torch.testing.assert_close(both[:, :1], first, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(both[:, 1:], second, atol=1e-9, rtol=1e-9)


def test_every_slice_takes_the_nearest_prompts_and_knows_how_far_they_are():
    one = SlicePrompts(points=((0.25, 0.5),), labels=(1,))
    two = SlicePrompts(points=((0.5, 0.5), (0.75, 0.5)), labels=(0, 1), box=(0.0, 0.0, 0.5, 0.5))
    batch = broadcast_prompts([[{1: one, 4: two}]], 6)
    assert batch.offsets.tolist() == [[[-1, 0, 1, -1, 0, 1]]]
    assert batch.labels[0, 0].tolist() == [[1, -1]] * 3 + [[0, 1]] * 3
    assert batch.points[0, 0, 2, 0].tolist() == [0.25, 0.5]
    assert batch.boxes_known.tolist() == [[[False] * 3 + [True] * 3]]
    assert broadcast_prompts([[{0: one, 2: two}]], 3).offsets.tolist() == [[[0, 1, 0]]]


def test_offsets_matter_and_only_where_they_differ():
    network = model()
    said = SlicePrompts(points=((0.4, 0.6),), labels=(1,))
    first, second = (broadcast_prompts([[{z: said}]], DEPTH) for z in (0, 2))
    assert not torch.allclose(masks(network, first), masks(network, second), atol=1e-5)
    first.offsets = second.offsets
    torch.testing.assert_close(masks(network, first), masks(network, second))


def test_masks_of_some_slices_and_none_of_others():
    network = model()
    said = [[{0: SlicePrompts(points=((0.4, 0.6),), labels=(1,))}]]
    torch.manual_seed(3)
    logits = torch.randn(1, 1, DEPTH, 16, 16, dtype=torch.float64)
    known = torch.tensor([[[True, True, False, False]]])
    some = masks(network, broadcast_prompts(said, DEPTH, masks=logits, masks_known=known))
    noise = torch.where(known[..., None, None], logits, torch.nan)
    torch.testing.assert_close(masks(network, broadcast_prompts(said, DEPTH, masks=noise, masks_known=known)), some)
    none = broadcast_prompts(said, DEPTH, masks=logits, masks_known=torch.zeros_like(known))
    torch.testing.assert_close(masks(network, none), masks(network, broadcast_prompts(said, DEPTH)))
    assert not torch.allclose(some, masks(network, broadcast_prompts(said, DEPTH)), atol=1e-6)


def test_a_mask_alone_is_a_prompt():
    network = model()
    logits = torch.randn(1, 1, DEPTH, 16, 16, dtype=torch.float64)
    assert torch.isfinite(masks(network, broadcast_prompts([[{}]], DEPTH, masks=logits))).all()


def test_candidates_differ_and_have_the_patch_size():
    network = model()
    with torch.no_grad():
        out = network.prompted(slab(network), clicks(0), multimask=True)
    assert out.masks.shape == (1, 1, DEPTH, 3, 16, 16)
    assert out.quality.shape == (1, 1, DEPTH, 3)
    assert not torch.allclose(out.masks[:, :, :, 0], out.masks[:, :, :, 1], atol=1e-4)


def test_fine_masks_start_at_zero_and_read_the_trunk():
    torch.manual_seed(0)
    network = build_model(presets.get("tiny").model).double().eval()
    network.prompts.sam.pe_layer.float()
    plain = slab(network)
    with torch.no_grad():
        fresh = network.prompted(plain, clicks(0)).masks
        assert torch.equal(fresh, network.prompted(Slab(embed=plain.embed), clicks(0)).masks)
        nn.init.normal_(network.fine.layers[-1].weight)
        assert not torch.allclose(network.prompted(plain, clicks(0)).masks, fresh, atol=1e-4)


def test_a_slab_moves_and_shrinks():
    network = model()
    whole = slab(network)
    half = whole.to(dtype=torch.float16)
    assert half.embed.dtype == half.fine.dtype == torch.float16
    assert 4 * half.nbytes == whole.nbytes
    assert (half.depth, half.grid) == (DEPTH, GRID)


def test_segmenting_leaves_the_slab_that_prompts_read():
    network = model()
    torch.manual_seed(1)
    image = torch.randn(1, 1, DEPTH, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        scores, kept = network.segment_slab(image)
        assert torch.equal(scores, network.segment_patch(image))
        assert torch.equal(kept.embed, network.slab(image).embed)
        assert torch.equal(kept.fine, network.slab(image).fine)


def test_a_single_mask_of_a_single_slice():
    """One sequence in all: its mask is not taken for the embedding that stands for none."""
    cfg = presets.get("tiny").model
    tokens = replace(cfg.dec_tokens, kind="plain")
    torch.manual_seed(0)
    network = build_model(replace(cfg, patch=(1, 16, 16), dec_tokens=tokens)).eval()
    with torch.no_grad():
        flat = network.slab(torch.randn(1, 1, 1, 16, 16))
        out = network.prompted(flat, broadcast_prompts([[{}]], 1, masks=torch.randn(1, 1, 1, 16, 16)))
    assert out.masks.shape == (1, 1, 1, 1, 16, 16)
