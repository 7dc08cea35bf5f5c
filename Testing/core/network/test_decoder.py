"""The mask decoder with slots: vanilla SAM when fresh, model.md's slot formulas when not, whole slabs always."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from MaskSAMCore.config.network_schema import (
    BackboneConfig,
    DecoderConfig,
    DepthConfig,
    ImageAdapterConfig,
    ModelConfig,
    StemConfig,
    TokenAdapterConfig,
)
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.decoder import SamDecoder
from MaskSAMCore.network.prompts import PromptTokenizer
from MaskSAMCore.network.types import Decoded, Features, PromptBatch, PromptTokens

KERNELS = ["fast", "reference"]


def config(
    grid: tuple[int, int] = (3, 5),
    depth: int = 3,
    kernel: str = "fast",
    *,
    tokens: str = "depth_mlp",
    image: str = "depth_conv",
    slot: str = "i2t",
    pe: str = "factorised",
    class_head: bool = True,
) -> ModelConfig:
    return ModelConfig(
        patch=(depth, grid[0] * 16, grid[1] * 16),
        stem=StemConfig(upsample=1),
        backbone=BackboneConfig(attention_kernel=kernel),
        depth=DepthConfig(pe_decoder=pe),
        dec_tokens=TokenAdapterConfig(kind=tokens),
        dec_image=ImageAdapterConfig(kind=image, slot=slot),
        decoder=DecoderConfig(class_head=class_head),
    )


def trained(cfg: ModelConfig, seed: int = 0) -> SamDecoder:
    """A decoder in double precision none of whose own parameters is zero."""
    torch.manual_seed(seed)
    decoder = SamDecoder(cfg).double()
    for name, parameter in decoder.named_parameters():
        if not name.startswith("sam."):
            nn.init.normal_(parameter, std=0.2)
    return decoder


def inputs(
    cfg: ModelConfig, batch: int = 2, queries: int = 2, *, masks: bool = True, seed: int = 1
) -> tuple[Features, PromptTokens, torch.Tensor]:
    """Random embedding, box tokens and positions in double precision."""
    torch.manual_seed(seed)
    depth, grid = cfg.patch[0], cfg.grid
    count = batch * queries * depth
    features = Features(levels=(), embed=torch.randn(batch, 256, depth, *grid, dtype=torch.float64))
    tokens = PromptTokens(
        sparse=torch.randn(count, 2, 256, dtype=torch.float64),
        dense=torch.randn(*((count, 256, *grid) if masks else (1, 256, 1, 1)), dtype=torch.float64),
        cls=torch.randn(count, 256, dtype=torch.float64) if cfg.decoder.class_head else None,
        queries=queries,
    )
    return features, tokens, torch.randn(1, 256, *grid, dtype=torch.float64)


def same(a: Decoded, b: Decoded, tolerance: float = 1e-9) -> None:
    for one, other in ((a.mask, b.mask), (a.quality, b.quality), (a.cls, b.cls)):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def per_slice(x: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    return x.unflatten(0, shape)


# --- vanilla SAM ---------------------------------------------------------------------------------


def real_weights(path) -> tuple[dict, dict]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    parts = []
    for prefix in ("prompt_encoder.", "mask_decoder."):
        parts.append({key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)})
    return parts[0], parts[1]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("grid", [(64, 64), (10, 14)])
@pytest.mark.parametrize("kind", ["click", "box", "box+mask"])
@pytest.mark.parametrize("multimask", [False, True])
def test_fresh_decoder_is_sam_with_the_real_weights(mobile_sam, kernel, grid, kind, multimask):
    """model.md §19 checks 1 and 4, every adapter and the full depth positions present but fresh."""
    prompt_state, decoder_state = real_weights(mobile_sam)
    cfg = config(grid, depth=1, kernel=kernel, pe="full", class_head=False)
    tokenizer, decoder = PromptTokenizer(cfg), SamDecoder(cfg)
    tokenizer.sam.load_state_dict(prompt_state, strict=True)
    decoder.sam.load_state_dict(decoder_state, strict=True)
    torch.manual_seed(3)
    height, width = grid[0] * 16, grid[1] * 16
    embed = torch.randn(1, 256, 1, *grid)
    prompt = PromptBatch()
    if kind == "click":
        prompt.points, prompt.labels = torch.rand(1, 2, 1, 1, 2), torch.ones(1, 2, 1, 1, dtype=torch.long)
        at = prompt.points.flatten(0, 2) * torch.tensor([width, height]) - 0.5
        sparse, dense = tokenizer.sam(points=(at, prompt.labels.flatten(0, 2)), boxes=None, masks=None)
    else:
        prompt.boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 0.5]]).reshape(1, 2, 1, 4)
        prompt.masks = 8 * torch.randn(1, 2, 1, 4 * grid[0], 4 * grid[1]) if "mask" in kind else None
        scale, shift = torch.tensor([width, height, width, height]), torch.tensor([0, 0, 1, 1])
        mask = None if prompt.masks is None else prompt.masks.flatten(0, 2)[:, None]
        sparse, dense = tokenizer.sam(points=None, boxes=prompt.boxes.flatten(0, 2) * scale - shift, masks=mask)
    if kind != "box+mask":
        dense = dense[..., : grid[0], : grid[1]]
    positions = tokenizer.sam.get_dense_pe()[..., : grid[0], : grid[1]]
    with torch.no_grad():
        tokens = tokenizer(prompt, grid)
        torch.testing.assert_close(tokens.sparse, sparse, atol=1e-3, rtol=0)
        tokens = dataclasses.replace(tokens, sparse=sparse)
        out = decoder(Features(levels=(), embed=embed), tokens, tokenizer.dense_pe(grid), multimask=multimask)
        masks, quality = decoder.sam(embed[:, :, 0], positions, sparse, dense, multimask)
    assert out.mask.shape == (1, 2, 1, 3 if multimask else 1, 4 * grid[0], 4 * grid[1])
    assert out.cls is None
    # SAM's own modules in SAM's own order; some processors' libraries sum other batches in another order all the same.
    near = 2e-6 if kernel == "reference" else 1e-5
    assert (out.mask[0, :, 0] - masks).abs().max() < near * masks.abs().max()
    assert (out.quality[0, :, 0] - quality).abs().max() < near


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("masks", [False, True])
def test_every_slice_of_every_prompt_is_sams_own_answer(kernel, masks):
    """Fails when any of B, Q, D is folded in another order than the tokens are."""
    cfg = config(kernel=kernel, class_head=False)
    torch.manual_seed(0)
    decoder = SamDecoder(cfg).double()
    features, tokens, positions = inputs(cfg, masks=masks)
    out = decoder(features, tokens, positions)
    index = 0
    for b in range(2):
        for q in range(2):
            for z in range(3):
                dense = tokens.dense[index : index + 1] if masks else tokens.dense
                sparse = tokens.sparse[index : index + 1]
                mask, quality = decoder.sam(features.embed[b : b + 1, :, z], positions, sparse, dense, False)
                torch.testing.assert_close(out.mask[b, q, z], mask[0], atol=1e-10, rtol=1e-10)
                torch.testing.assert_close(out.quality[b, q, z], quality[0], atol=1e-10, rtol=1e-10)
                index += 1


# --- slots ---------------------------------------------------------------------------------------


def oracle(decoder: SamDecoder, cfg: ModelConfig, f: Features, t: PromptTokens, positions: torch.Tensor) -> Decoded:
    """model.md §4.3 and §7.1 word by word, on (G, tokens, 256) and SAM's modules."""
    batch, depth, queries, grid = f.embed.shape[0], f.depth, t.queries, f.grid
    sam, transformer = decoder.sam, decoder.sam.transformer
    shape = (batch, queries, depth)

    def slabs(adapter: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return adapter(x.unflatten(0, (-1, depth))).flatten(0, 1)

    def image(index: int, x: torch.Tensor) -> torch.Tensor:
        x = x.unflatten(1, grid)
        return slabs(decoder.image_adapters[str(index)], x).flatten(1, 2)

    fixed = torch.cat([sam.iou_token.weight, sam.mask_tokens.weight]).expand(batch * queries * depth, -1, -1)
    points = torch.cat([fixed, t.sparse, (decoder.class_token.weight + t.cls)[:, None]], 1)
    embed = f.embed[:, None].expand(-1, queries, -1, -1, -1, -1).transpose(2, 3).flatten(0, 2)
    k = (embed + t.dense).flatten(2).transpose(1, 2)
    p = positions.expand(depth, -1, -1, -1) + decoder.depth_pe.reshape(
        depth, 256, *(decoder.depth_pe.shape[2:] or (1, 1))
    )
    p = p.repeat(batch * queries, 1, 1, 1).flatten(2).transpose(1, 2)
    q, a = points, decoder.token_adapters
    for i, layer in enumerate(transformer.layers):
        if i == 0:
            s = layer.self_attn(q, q, q)
            q = layer.norm1(s + slabs(a["0_self"], s))
        else:
            s = layer.self_attn(q + points, q + points, q)
            q = layer.norm1(q + s + slabs(a["1_self"], s))
        s = layer.cross_attn_token_to_image(q + points, k + p, k)
        q = layer.norm2(q + s + slabs(a[f"{i}_t2i"], s))
        q = layer.norm3(q + layer.mlp(q) + 0.5 * slabs(a[f"{i}_mlp"], q))
        s = layer.cross_attn_image_to_token(k + p, q + points, q)
        if cfg.dec_image.slot == "i2t":
            k = layer.norm4(k + s + image(i, s))
        else:
            k = k + s
            k = layer.norm4(k + image(i, k))
    s = transformer.final_attn_token_to_image(q + points, k + p, k)
    q = transformer.norm_final_attn(q + s + slabs(a["final"], s))
    up = sam.output_upscaling(k.transpose(1, 2).unflatten(2, grid))
    mask = torch.einsum("gc,gchw->ghw", sam.output_hypernetworks_mlps[0](q[:, 1]), up)
    return Decoded(
        mask=per_slice(mask, shape)[:, :, :, None],
        quality=per_slice(sam.iou_prediction_head(q[:, 0])[:, :1], shape),
        cls=per_slice(decoder.class_head(q[:, -1]), shape),
        tokens=per_slice(q[:, 1:2], shape),
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("slot", ["i2t", "i2t_post"])
def test_slots_follow_the_formulas(kernel, masks, slot):
    cfg = config(kernel=kernel, slot=slot, pe="full" if masks else "factorised")
    decoder = trained(cfg)
    arguments = inputs(cfg, masks=masks)
    same(decoder(*arguments), oracle(decoder, cfg, *arguments))


@pytest.mark.parametrize("slot", ["i2t", "i2t_post"])
@pytest.mark.parametrize("masks", [False, True])
def test_kernels_agree_in_values_and_gradients(slot, masks):
    results = []
    for kernel in KERNELS:
        cfg = config(kernel=kernel, slot=slot)
        decoder = trained(cfg)
        f, t, positions = inputs(cfg, masks=masks)
        leaves = [f.embed, t.sparse, t.dense, t.cls]
        for leaf in leaves:
            leaf.requires_grad_()
        out = decoder(f, t, positions, multimask=True)
        torch.manual_seed(9)
        (out.mask * torch.randn_like(out.mask)).sum().add(out.cls.square().sum()).backward()
        own = [p for name, p in decoder.named_parameters() if not name.startswith("sam.")]
        assert all(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in leaves + own)
        assert all(p.grad is None for p in decoder.sam.parameters())
        results.append((out, [leaf.grad for leaf in leaves + own]))
    same(results[0][0], results[1][0])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_chunks_change_nothing(masks, checkpointing):
    cfg = config()
    decoder = trained(cfg)
    f, t, positions = inputs(cfg, queries=3, masks=masks)
    grads = []
    for chunk in (None, 2):
        decoder.checkpointing = checkpointing and chunk is not None
        embed = f.embed.clone().requires_grad_()
        out = decoder(Features(levels=(), embed=embed), t, positions, chunk=chunk)
        (out.mask.square().sum() + out.cls.sum()).backward()
        grads.append((out, embed.grad))
    same(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1], atol=1e-7, rtol=1e-7)


# --- tokens --------------------------------------------------------------------------------------


def test_order_of_the_tokens_and_the_class_token(monkeypatch):
    cfg = config()
    decoder = trained(cfg)
    f, t, positions = inputs(cfg)
    seen = []
    decode = decoder._decode
    monkeypatch.setattr(decoder, "_decode", lambda points, *rest: (seen.append(points), decode(points, *rest))[1])
    with_aux = decoder(f, t, positions)
    points = seen[0].flatten(0, 2)
    assert points.shape == (12, 8, 256)
    assert torch.equal(points[:, :1], decoder.sam.iou_token.weight.expand(12, 1, -1))
    assert torch.equal(points[:, 1:5], decoder.sam.mask_tokens.weight.expand(12, 4, -1))
    assert torch.equal(points[:, 5:7], t.sparse)
    assert torch.equal(points[:, 7], decoder.class_token.weight + t.cls)
    assert with_aux.cls.shape == (2, 2, 3, 5)

    none = decoder(f, dataclasses.replace(t, cls=None), positions)
    same(none, decoder(f, dataclasses.replace(t, cls=torch.zeros_like(t.cls)), positions), 0)
    assert (none.cls - with_aux.cls).abs().max() > 1e-3


@pytest.mark.parametrize("kernel", KERNELS)
def test_multimask_returns_the_three_other_masks(kernel):
    cfg = config(kernel=kernel)
    decoder = trained(cfg)
    arguments = inputs(cfg)
    single, three = decoder(*arguments), decoder(*arguments, multimask=True)
    assert single.mask.shape == (2, 2, 3, 1, 12, 20)
    assert three.mask.shape == (2, 2, 3, 3, 12, 20)
    assert single.quality.shape == (2, 2, 3, 1)
    assert three.quality.shape == (2, 2, 3, 3)
    torch.testing.assert_close(single.cls, three.cls)
    assert all((single.mask - three.mask[:, :, :, i : i + 1]).abs().max() > 1e-6 for i in range(3))


# --- depth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "image", "expected"),
    [
        ("none", "none", {3}),
        ("plain", "plain", {3}),
        ("plain", "depth_conv", {1, 2, 3, 4, 5}),  # one neighbour in each of the two layers
        ("depth_mlp", "plain", set(range(7))),
    ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_depth_isolation(tokens, image, expected, kernel):
    """model.md §19 check 5, for a change of the image and for a change of the prompt."""
    cfg = config((3, 5), depth=7, kernel=kernel, tokens=tokens, image=image)
    decoder = trained(cfg)
    f, t, positions = inputs(cfg)
    before = decoder(f, t, positions)

    embed = f.embed.clone()
    embed[:, :, 3] += 1
    after = decoder(Features(levels=(), embed=embed), t, positions)
    changed = (after.mask - before.mask).abs().amax((0, 1, 3, 4, 5)) > 1e-8
    assert set(changed.nonzero().flatten().tolist()) == expected

    sparse = t.sparse.clone().unflatten(0, (2, 2, 7))
    sparse[1, 0, 3] += 1
    after = decoder(f, dataclasses.replace(t, sparse=sparse.flatten(0, 2)), positions)
    changed = (after.mask - before.mask).abs().amax((3, 4, 5)) > 1e-8
    assert set(changed[1, 0].nonzero().flatten().tolist()) == expected
    assert not changed[0].any()
    assert not changed[1, 1].any()


@pytest.mark.parametrize("pe", ["full", "factorised", "none"])
def test_depth_mirror(pe):
    """model.md §19 check 6: with all depth weights flipped, a flipped slab gives the flipped answer."""
    cfg = config(depth=4, pe=pe)
    decoder, mirrored = trained(cfg), trained(cfg)
    with torch.no_grad():
        for adapter in mirrored.token_adapters.values():
            adapter.core.up.weight.copy_(adapter.core.up.weight.flip(1))
            adapter.core.down.weight.copy_(adapter.core.down.weight.flip(0))
            adapter.core.down.bias.copy_(adapter.core.down.bias.flip(0))
        for adapter in mirrored.image_adapters.values():
            adapter.core.conv.weight.copy_(adapter.core.conv.weight.flip(2))
        if mirrored.depth_pe is not None:
            mirrored.depth_pe.copy_(mirrored.depth_pe.flip(0))
    f, t, positions = inputs(cfg)

    def flip(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (2, 2, 4)).flip(2).flatten(0, 2)

    plain = decoder(f, t, positions)
    turned = dataclasses.replace(t, sparse=flip(t.sparse), dense=flip(t.dense), cls=flip(t.cls))
    out = mirrored(Features(levels=(), embed=f.embed.flip(2)), turned, positions)
    flipped = {name: getattr(out, name).flip(2) for name in ("mask", "quality", "cls", "tokens")}
    same(Decoded(**flipped), plain)
    wrong = decoder(Features(levels=(), embed=f.embed.flip(2)), turned, positions)
    assert (wrong.mask.flip(2) - plain.mask).abs().max() > 1e-3


def test_another_depth_or_grid_is_refused_where_the_weights_are_tied():
    cfg, other = config(depth=3), config(depth=2)
    with pytest.raises(ModelError, match="2 slices instead of 3"):
        trained(cfg)(*inputs(other))
    free = trained(config(depth=3, tokens="plain", pe="none"))
    assert free(*inputs(other)).mask.shape[2] == 2
    with pytest.raises(ModelError, match=r"\(4, 5\) instead of \(3, 5\)"):
        trained(config(pe="full"))(*inputs(config(grid=(4, 5))))
    assert trained(config(pe="factorised"))(*inputs(config(grid=(4, 5)))).mask.shape[-2:] == (16, 20)


# --- size ----------------------------------------------------------------------------------------


def count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("patch", "upsample", "classes", "expected"),
    [
        ((4, 256, 256), 4, 4, (232_652, 70_016, 4_194_304, 1_541)),
        ((9, 512, 512), 1, 16, (236_467, 70_016, 2_359_296, 4_625)),
        ((26, 256, 256), 1, 14, (270_382, 70_016, 1_703_936, 4_111)),
    ],
)
def test_parameters_of_the_supplement(patch, upsample, classes, expected):
    """model.md §16.2: ACDC, AMOS, Synapse."""
    with torch.device("meta"):
        decoder = SamDecoder(ModelConfig(patch=patch, classes=classes, stem=StemConfig(upsample=upsample)))
    assert len(decoder.token_adapters) == 7
    assert len(decoder.image_adapters) == 2
    found = count(decoder.token_adapters), count(decoder.image_adapters), decoder.depth_pe.numel()
    assert (*found, count(decoder.class_token) + count(decoder.class_head)) == expected
    assert count(decoder.sam) == 4_058_340
    frozen = {name for name, p in decoder.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in decoder.named_parameters() if name.startswith("sam.")}


def test_what_is_not_configured_has_no_parameters():
    cfg = config(tokens="none", image="none", pe="none", class_head=False)
    assert {name.split(".")[0] for name in SamDecoder(cfg).state_dict()} == {"sam"}
    some = dataclasses.replace(cfg, dec_tokens=TokenAdapterConfig(kind="plain", slots=("t2i",)))
    assert set(SamDecoder(some).token_adapters) == {"0_t2i", "1_t2i"}
