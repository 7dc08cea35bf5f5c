"""AutoSAM Adapter: windows in three dimensions, the factorised embedding, prompt U-Net, decoder, and the command."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from MaskSAMCore import segment, train
from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.errors import InputError, ModelError
from MaskSAMCore.io.images import read_labels, read_volume
from MaskSAMCore.network.attention import relative_rows
from MaskSAMCore.network.build import build_model, check_network, is_frozen
from MaskSAMCore.network.volume_encoder import DepthEmbedding, cube_attention, windowed
from MaskSAMCore.network.volume_sam import PromptUNet, VolumeSAM
from MaskSAMCore.zoo import installed
from MaskSAMCore.zoo.audit import audit_config, audit_model
from MaskSAMCore.zoo.base_weights import load_base

PARTS = {
    "encoder adapters": 7_220_736,
    "encoder norms": 36_864,
    "encoder depth positions": 24_576,
    "depth patch embedding": 13_056,
    "relative depth positions": 46_336,
    "3-D necks": 7_868_416,
    "prompt U-Net": 4_255_232,
    "aggregation decoder": 7_129_728,
}


def tiny(attention: str = "window3d", patch: tuple[int, int, int] = (16, 16, 16), **changes: object) -> ModelConfig:
    """The paper's switches on the `tiny` backbone."""
    cfg = presets.get("autosam-btcv").model
    cfg = replace(cfg, classes=3, patch=patch, **changes)
    return replace(cfg, backbone=replace(cfg.backbone, arch="tiny", attention=attention))


def built(cfg: ModelConfig, seed: int = 0) -> VolumeSAM:
    torch.manual_seed(seed)
    network = build_model(cfg).eval()
    assert isinstance(network, VolumeSAM)
    return network


def shake(network: torch.nn.Module, words: tuple[str, ...], scale: float = 0.3) -> None:
    """Random values for SAM's positions, which start at zero, and for our parameters whose names have these words."""
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "rel_pos" in name or "pos_embed" in name or any(word in name for word in words):
                p.normal_(std=scale)


def test_the_integers_of_the_paper():
    audit = audit_config(presets.get("autosam-btcv").model)
    assert audit.parts == PARTS
    assert audit.trainable == audit.paper == 26_594_944
    assert audit.frozen["image_encoder"] == 89_670_912
    assert audit.total == 26_594_944 + 89_670_912
    assert audit_config(presets.get("autosam-amos").model).trainable == 26_601_856
    assert audit_config(presets.get("A1").model) == audit
    assert audit_config(presets.get("A0").model).trainable == 26_594_944 - 4_255_232


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("grid", [(4, 4), (6, 5)])
def test_with_sams_windows_a_block_is_sams_own_whatever_the_depth_table(depth, grid):
    network = built(tiny("sam2d"))
    shake(network, ("depth_rows",))
    x = torch.randn(2, depth, *grid, 64)
    with torch.no_grad():
        for index, block in enumerate(network.encoder.sam.blocks):
            if block.window_size == 0 and grid != (4, 4):
                continue  # SAM's own helper stretches its tables there; see test_attention for ours
            expected = _sam_block(block, x.flatten(0, 1)).unflatten(0, (2, depth))
            torch.testing.assert_close(network.encoder.block(index, x), expected, atol=1e-5, rtol=1e-5)


def _sam_block(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """SAM's block as it stands, its tables cut to the window."""
    attn, grid = block.attn, x.shape[1:3]
    if block.window_size:
        return block(x)
    kept = attn.rel_pos_h, attn.rel_pos_w
    attn.rel_pos_h, attn.rel_pos_w = (torch.nn.Parameter(relative_rows(t, n)) for t, n in zip(kept, grid, strict=True))
    try:
        return block(x)
    finally:
        attn.rel_pos_h, attn.rel_pos_w = kept


@pytest.mark.parametrize("grid", [(4, 8, 4), (5, 6, 7), (8, 3, 9)])
@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 0, 2), (2, 2, 2)])
def test_windows_of_three_dimensions_are_attention_among_neighbours(grid, shift):
    """Against dense attention over all tokens, with everyone outside of the window hidden."""
    torch.manual_seed(0)
    window = tuple(min(4, n) for n in grid)
    shift = tuple(s if n > 4 else 0 for s, n in zip(shift, grid, strict=True))
    attn = built(tiny()).encoder.sam.blocks[0].attn
    tables = tuple(torch.randn(2 * 4 - 1, 32) for _ in range(3))
    x = torch.randn(2, *grid, 64)
    attend = partial(cube_attention, attn, tables=tables)
    with torch.no_grad():
        found = windowed(attend, x, window, shift=shift, see_padding=False)
        expected = _dense(attn, x, tables, window, shift)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def _dense(attn, x, tables, window, shift):
    grid, heads = x.shape[1:4], attn.num_heads
    places = list(product(*(range(n) for n in grid)))
    # Windows that are moved by s begin at s, 2s, ...; what lies before s is a smaller window of its own.
    home = [tuple((p - s) // w if s else p // w for p, s, w in zip(at, shift, window, strict=True)) for at in places]
    seen = torch.tensor([[a == b for b in home] for a in home])
    q, k, v = attn.qkv(x.flatten(1, 3)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    logits = attn.scale * q @ k.transpose(-2, -1)
    for axis, table in enumerate(tables):
        at = torch.tensor([p[axis] for p in places])
        offset = (at[:, None] - at[None, :]).clamp(-3, 3) + 3
        logits = logits + torch.einsum("bhqc,qkc->bhqk", q, table[offset])
    y = logits.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    return attn.proj(y.transpose(1, 2).flatten(2)).unflatten(1, grid)


def test_every_other_block_looks_across_the_windows_borders():
    network = built(tiny(patch=(40, 40, 40)))
    shake(network, ())
    x = torch.randn(1, 10, 10, 10, 64)
    touched = x.clone()
    touched[0, 0, 0, 0] += 1
    assert network.encoder.window == 4
    with torch.no_grad():
        reach = [
            ((network.encoder.block(i, touched) - network.encoder.block(i, x)).abs().sum((0, -1)) > 0).nonzero().amax(0)
            for i in (0, 1)
        ]
    # Block 0 is shifted: its first window ends after two tokens.
    assert reach[0].tolist() == [1, 1, 1]
    assert reach[1].tolist() == [3, 3, 3]


def test_tokens_interpolated_along_depth_are_those_of_the_enlarged_scan():
    network = built(tiny())
    embed = DepthEmbedding(64, 4)
    with torch.no_grad():
        embed.conv.weight.normal_()
        embed.conv.bias.normal_()
        image = torch.randn(2, 1, 16, 16, 16)
        cheap = embed(_embed(network, network.stem(image)))
        large = F.interpolate(image, scale_factor=4.0, mode="trilinear").expand(-1, 3, -1, -1, -1)
        tokens = _embed(network, large)
        wide = tokens.permute(0, 3, 4, 1, 2).flatten(0, 2)
        expected = embed.conv(wide).unflatten(0, (2, 4, 4)).permute(0, 3, 4, 1, 2)
    torch.testing.assert_close(cheap, expected, atol=1e-5, rtol=1e-5)


def _embed(network: VolumeSAM, x: torch.Tensor) -> torch.Tensor:
    """SAM's patch embedding of every slice of x (B, 3, D, S, S): (B, C, D, g, g)."""
    flat = network.encoder.sam.patch_embed(x.transpose(1, 2).flatten(0, 1))
    return flat.unflatten(0, (len(x), -1)).permute(0, 4, 1, 2, 3)


def test_a_fresh_encoder_has_sams_norms_and_the_mean_of_its_tables_along_depth():
    network = built(tiny())
    shake(network, ("norm1", "norm2"))
    encoder, x = network.encoder, torch.randn(1, 4, 4, 4, 64)
    block = encoder.sam.blocks[0]
    with torch.no_grad():
        torch.testing.assert_close(encoder.norms[0][0](block.norm1, x), block.norm1(x))
        mean = (block.attn.rel_pos_h + block.attn.rel_pos_w) / 2
        tables = (mean, block.attn.rel_pos_h, block.attn.rel_pos_w)
        attended = cube_attention(block.attn, block.norm1(x), tables=tables, mask=None)
        y = x + attended
        torch.testing.assert_close(encoder.block(0, x), y + block.mlp(block.norm2(y)))


def test_what_is_trained_is_everything_but_sam():
    network = built(tiny())
    audit_model(network)
    network.train()
    labels = torch.randint(3, (1, 16, 16, 16))
    loss = F.cross_entropy(network(torch.randn(1, 1, 16, 16, 16)).masks, labels)
    with torch.no_grad():
        for adapter in network.encoder.adapters:
            adapter.up.weight.normal_()
    loss = F.cross_entropy(network(torch.randn(1, 1, 16, 16, 16)).masks, labels)
    loss.backward()
    silent = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []
    assert all(p.grad is None for n, p in network.named_parameters() if is_frozen(n))


@pytest.mark.parametrize("level", ["last", "first", "none"])
def test_the_prompt_unet_replaces_one_level(level):
    cfg = tiny()
    network = built(replace(cfg, source=replace(cfg.source, apg_level=level)))
    seen: list[list[torch.Tensor]] = []
    network.mla.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        levels = network.encoder(network.stem(image))
        network.segment_patch(image)
    changed = [index for index, (a, b) in enumerate(zip(levels, seen[0], strict=True)) if not torch.equal(a, b)]
    assert changed == {"last": [3], "first": [0], "none": []}[level]
    assert (network.prompt_unet is None) == (level == "none")


@pytest.mark.parametrize("size", [(32, 32, 32), (4, 4, 4), (1, 6, 2), (2, 3, 9)])
def test_the_prompt_unet_takes_any_grid(size):
    unet = PromptUNet(8)
    assert unet(torch.randn(1, 8, *size)).shape == (1, 8, *size)


@pytest.mark.parametrize("fusion", ["half", "full"])
def test_scores_are_probabilities_at_the_patchs_size(fusion):
    cfg = tiny(patch=(8, 16, 24))
    network = built(replace(cfg, channels=2, decoder=replace(cfg.decoder, fusion_res=fusion)))
    image = torch.randn(2, 2, 8, 16, 24)
    inputs: list[torch.Size] = []
    network.mla.fuse.register_forward_pre_hook(lambda module, args: inputs.append(args[0].shape))
    with torch.no_grad():
        found = network.segment_patch(image)
    assert found.shape == (2, 3, 8, 16, 24)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 8, 16, 24))
    assert inputs[0] == (2, 4 * 128 + 2, *((8, 16, 24) if fusion == "full" else (4, 8, 12)))


def test_checkpointing_changes_nothing():
    network = built(tiny()).train()
    image = torch.randn(1, 1, 16, 16, 16)
    grads = []
    for enabled in (False, True):
        network.set_checkpointing(enabled)
        network.zero_grad()
        network(image).masks.square().mean().backward()
        grads.append(network.encoder.depth_conv.conv.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_a_patch_of_another_depth_is_refused():
    with pytest.raises(ModelError, match="number of slices"):
        built(tiny())(torch.randn(1, 1, 8, 16, 16))


def test_base_weights_fill_the_encoder_and_the_rest_of_the_file_is_left(tmp_path):
    cfg = presets.get("tiny").model
    sam = build_model(cfg).state_dict()
    names = {"encoder.sam.": "image_encoder.", "prompts.sam.": "prompt_encoder.", "decoder.sam.": "mask_decoder."}
    state = {b + k[len(a) :]: v.clone() for a, b in names.items() for k, v in sam.items() if k.startswith(a)}
    save_file(state, tmp_path / "base.safetensors")
    network = built(tiny(), seed=1)
    load_base(network, tmp_path / "base.safetensors")
    for key, value in network.encoder.sam.state_dict().items():
        assert torch.equal(value, sam[f"encoder.sam.{key}"])
    save_file(state | {"image_encoder.extra": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="extra"):
        load_base(network, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"head": "query"}, "model.head"),
        ({"source": presets.get("tiny").model.source}, "model.source.kind"),
        ({"decoder": presets.get("tiny").model.decoder}, "model.decoder.kind"),
        ({"loss": presets.get("tiny").model.loss}, "model.loss.kind"),
        ({"enc_adapter": presets.get("tiny").model.enc_adapter}, "model.enc_adapter.slots"),
        ({"backbone": presets.get("core-mobile").model.backbone}, "model.source.kind"),
        ({"backbone": replace(presets.get("A1").model.backbone, arch="mobile")}, "model.backbone.arch"),
        ({"patch": (130, 128, 128)}, "model.patch"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, key):
    with pytest.raises(InputError) as caught:
        check_network(replace(presets.get("A1").model, **changes))
    assert caught.value.where == key
    assert caught.value.remedy or caught.value.why


@pytest.mark.slow
def test_from_labelled_phantoms_to_a_segmented_scan(phantom_data, tmp_path, capsys):
    settings = (
        "model.backbone.arch=tiny",
        "model.patch=[8,32,32]",
        "data.spacing=null",
        "train.epochs=1",
        "train.iterations=2",
        "train.validate_cases=1",
    )
    run = tmp_path / "run"
    words = [str(phantom_data), "-o", str(run), "--preset", "autosam-btcv", "--device", "cpu"]
    words += [word for setting in settings for word in ("--set", setting)]
    assert train.main(words) == 0
    network, card = installed.load_model(run / "model")
    assert isinstance(network, VolumeSAM)
    assert not card.config.model.takes_prompts
    scan, target = phantom_data / "imagesTr/case_000_0000.nii.gz", tmp_path / "out.nii.gz"
    assert segment.main([str(scan), "-m", str(run / "model"), "-o", str(target), "--device", "cpu"]) == 0
    assert read_labels(target).array.shape == read_volume(scan).grid.shape
    assert train.main([*words[:2], str(tmp_path / "other"), *words[3:], "--mode", "prompt"]) == 2
    assert "takes no prompts" in capsys.readouterr().err


@pytest.mark.slow
def test_vit_b_looks_through_shifted_windows_in_half_precision_too():
    """Nine tokens in-plane: two windows of 8, the second filled up, moved by 4 in every other block."""
    cfg = replace(presets.get("A1").model, patch=(16, 36, 36), classes=3)
    network = built(cfg)
    assert network.encoder.window == 8
    image = torch.randn(1, 1, 16, 36, 36)
    with torch.no_grad():
        exact = network.segment_patch(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = network.segment_patch(image)
    assert exact.shape == (1, 3, 16, 36, 36)
    assert half.dtype == torch.float32
    assert (exact - half).abs().max() < 0.1
