"""The prompt generator: sizes, parameter counts, variants and gradients (model.md §6.1-6.3, §16.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import BackboneConfig, ModelConfig, SourceConfig, StemConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.generator import QueryGenerator, pool_stages, resize
from MaskSAMCore.network.trunk import ConvBlock, Up
from MaskSAMCore.network.types import Features, Level, PromptBatch

VIT_B = (Level(channels=768, stride=16),) * 4
VIT_H = (Level(channels=1280, stride=16),) * 4
SMALL = (Level(channels=24, stride=16),) * 4
MOBILE = tuple(Level(channels=c, stride=s) for c, s in ((64, 4), (128, 8), (160, 16), (320, 16)))


def count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def model(
    *, upsample: Any = 4, patch: tuple[int, int, int] = (3, 16, 24), channels: int = 1, **source: Any
) -> ModelConfig:
    source = {"widths": (8, 6, 4), "queries": 5, **source}
    return ModelConfig(
        channels=channels,
        patch=patch,
        backbone=BackboneConfig(arch="tiny"),
        stem=StemConfig(upsample=upsample),
        source=SourceConfig(**source),
    )


def features(cfg: ModelConfig, levels: tuple[Level, ...], *, batch: int = 1, seed: int = 0) -> tuple[Features, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    height, width = cfg.input_size
    maps = tuple(
        torch.randn(batch, x.channels, cfg.patch[0], height // x.stride, width // x.stride, generator=draw)
        for x in levels
    )
    embed = torch.randn(batch, 256, cfg.patch[0], *cfg.grid, generator=draw)
    return Features(levels=maps, embed=embed), torch.randn(batch, cfg.channels, *cfg.patch, generator=draw)


def build(cfg: ModelConfig, levels: tuple[Level, ...] = SMALL) -> QueryGenerator:
    torch.manual_seed(0)
    return QueryGenerator(cfg, levels)


def propose(
    generator: QueryGenerator, features: Features, image: Tensor
) -> tuple[PromptBatch, dict[str, Tensor | None]]:
    """The prompts, and what they were made of."""
    own = generator(features, generator.stages(features, image))
    return own.prompts, {"masks": own.masks, "boxes": own.boxes, "fused_boxes": own.fused_boxes}


@pytest.mark.parametrize(
    ("name", "levels", "total", "trunk", "boxes", "tokens", "masks"),
    [
        ("masksam-acdc", VIT_B, 9_631_536, 9_458_432, 6_160, 165_912, 1_032),
        ("masksam-amos", VIT_H, 10_649_488, 10_217_728, 15_408, 414_792, 1_560),
        ("masksam-synapse", VIT_H, 10_649_488, 10_217_728, 15_408, 414_792, 1_560),
        ("masksam-acdc-compact", VIT_B, 6_530_608, 6_393_600, 4_880, 131_352, 776),
    ],
)
def test_parameters_are_the_published_ones(
    name: str, levels: tuple[Level, ...], total: int, trunk: int, boxes: int, tokens: int, masks: int
) -> None:
    with torch.device("meta"):
        generator = QueryGenerator(presets.get(name).model, levels)
    assert count(generator.trunk) == trunk
    assert count(generator.box_head) == boxes
    assert count(generator.token_head) == tokens
    assert count(generator.mask_head) == masks
    assert count(generator) == total


@pytest.mark.parametrize("trunk", ["pyramid", "stacked"])
@pytest.mark.parametrize("levels", [SMALL, MOBILE], ids=["vit", "mobile"])
@pytest.mark.parametrize(("upsample", "patch"), [(4, (3, 16, 24)), (2, (3, 32, 48)), (1, (3, 48, 32))])
@pytest.mark.parametrize("image_widths", [(), (3,), (3, 5)])
@pytest.mark.parametrize("in_plane", [0, 1])
def test_outputs_have_the_size_of_the_patch(
    trunk: str,
    levels: tuple[Level, ...],
    upsample: int,
    patch: tuple[int, int, int],
    image_widths: tuple[int, ...],
    in_plane: int,
) -> None:
    cfg = model(trunk=trunk, upsample=upsample, patch=patch, image_widths=image_widths, in_plane=in_plane, channels=2)
    prompts, aux = propose(build(cfg, levels), *features(cfg, levels, batch=2))
    assert aux["masks"] is not None
    assert aux["masks"].shape == (2, 5, *patch)
    assert aux["boxes"] is not None
    assert aux["boxes"].shape == (2, 5, 3, 4)
    assert prompts.masks is not None
    assert prompts.masks.shape == (2, 5, 3, *cfg.mask_size)
    assert prompts.boxes is not None
    assert prompts.boxes.shape == (2, 5, 3, 4)
    assert prompts.class_tokens is not None
    assert prompts.class_tokens.shape == (2, 5, 3, 256)
    assert prompts.points is None
    assert prompts.valid is None


def test_true_strides_join_without_detours() -> None:
    cfg = model(widths=(8, 6, 4))
    assert build(cfg, MOBILE).trunk.channels == (8, 8, 8, 6, 4)
    finer = build(model(upsample=1, patch=(3, 48, 32), widths=(8, 6, 4)), MOBILE)
    assert finer.trunk.channels == (8, 8, 8, 6, 4, 4, 4)


def test_thick_slices_are_not_mixed_at_the_finest_sizes() -> None:
    """Of an impulse in one slice, the image's own path shows nothing in the next one; deeper, it does."""
    cfg = model(upsample=2, patch=(3, 32, 32), widths=(8, 6, 4, 4), image_widths=(3, 5, 6), in_plane=2)
    trunk = build(cfg, MOBILE).trunk
    assert {tuple(m.kernel_size) for m in trunk.image.stages[:2].modules() if isinstance(m, nn.Conv3d)} == {(1, 3, 3)}
    assert {tuple(m.kernel_size) for m in trunk.image.stages[2].modules() if isinstance(m, nn.Conv3d)} == {(3, 3, 3)}
    blocks = {i: trunk.join[i].block[0].kernel_size for i in ("3", "2", "1")}
    assert blocks == {"3": (1, 3, 3), "2": (1, 3, 3), "1": (3, 3, 3)}
    assert trunk.body.fuse["0"].block[0].kernel_size == (1, 3, 3)
    assert not trunk.body.bare
    alone = build(replace(cfg, source=replace(cfg.source, image_widths=())), MOBILE).trunk
    assert alone.body.bare["3"][0].kernel_size == (1, 3, 3)


def test_more_sizes_of_the_scan_than_of_the_trunk_are_refused() -> None:
    with pytest.raises(ModelError, match="image_widths"):
        build(model(image_widths=(3, 4, 5, 6)))


def test_the_norm_is_the_instance_norm_of_the_paper() -> None:
    block, x = ConvBlock(3, 5), torch.randn(2, 3, 4, 6, 8)
    nn.init.normal_(block[1].weight)
    norm = F.instance_norm(block[0](x), weight=block[1].weight, bias=block[1].bias)
    torch.testing.assert_close(block(x), F.leaky_relu(norm, 0.01), atol=1e-5, rtol=1e-4)


def test_levels_finer_than_the_patch_are_refused() -> None:
    levels = (Level(channels=8, stride=2), *MOBILE)
    with pytest.raises(ModelError, match="upsample"):
        build(model(), levels)


@pytest.mark.parametrize("levels", [SMALL, MOBILE], ids=["vit", "mobile"])
def test_every_level_and_every_parameter_takes_part(levels: tuple[Level, ...]) -> None:
    cfg = model(image_widths=(3, 5))
    generator = build(cfg, levels)
    inputs, image = features(cfg, levels)
    leaves = [*inputs.levels, inputs.embed, image]
    for leaf in leaves:
        leaf.requires_grad_()
    prompts, aux = propose(generator, inputs, image)
    assert aux["masks"] is not None
    assert aux["boxes"] is not None
    assert prompts.class_tokens is not None
    loss = aux["masks"].square().sum() + aux["boxes"].square().sum() + prompts.class_tokens.square().sum()
    loss.backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves)
    assert [n for n, p in generator.named_parameters() if p.grad is None] == []


def test_without_image_widths_the_scan_is_not_read() -> None:
    for widths in ((), (3,)):
        cfg = model(image_widths=widths)
        generator = build(cfg)
        inputs, image = features(cfg, SMALL)
        with torch.no_grad():
            one, two = propose(generator, inputs, image)[1]["masks"], propose(generator, inputs, -image)[1]["masks"]
        assert one is not None
        assert two is not None
        assert torch.equal(one, two) is not bool(widths)


VARIANTS = {
    "B1": ({"box": False, "fusion": "mask"}, {"masks", "fused_boxes"}, True),
    "B2": ({"mask": False, "fusion": "learned", "mask_prompt": "none"}, {"boxes", "fused_boxes"}, False),
    "B3": ({"fusion": "learned"}, {"masks", "boxes", "fused_boxes"}, True),
    "B4": ({"fusion": "average"}, {"masks", "boxes", "fused_boxes"}, True),
    "no boxes": ({"box": False, "fusion": "none"}, {"masks"}, True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_return_what_they_have(name: str) -> None:
    source, there, mask_prompt = VARIANTS[name]
    cfg = model(**source)
    prompts, aux = propose(build(cfg), *features(cfg, SMALL))
    assert {key for key, value in aux.items() if value is not None} == there
    assert (prompts.masks is not None) is mask_prompt
    assert (prompts.boxes is not None) is ("fused_boxes" in there)
    if name in ("B2", "B3"):
        assert aux["fused_boxes"] is aux["boxes"]
    if name == "B1":
        assert prompts.boxes is not None
        assert not prompts.boxes.requires_grad


def test_presets_of_the_ablation_rows_agree_with_these_variants() -> None:
    for row in ("B1", "B2", "B3", "B4"):
        source = presets.get(row).model.source
        assert all(getattr(source, key) == value for key, value in VARIANTS[row][0].items()), row


def test_class_tokens_can_be_left_out() -> None:
    cfg = model(class_tokens=False)
    generator = build(cfg)
    assert generator.token_head is None
    assert propose(generator, *features(cfg, SMALL))[0].class_tokens is None


def test_boxes_are_ordered_and_inside() -> None:
    cfg = model()
    generator = build(cfg)
    assert generator.box_head is not None
    nn.init.normal_(generator.box_head.conv.weight, std=5.0)
    boxes = propose(generator, *features(cfg, SMALL))[1]["boxes"]
    assert boxes is not None
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert boxes.std() > 0.2


def test_an_empty_mask_leaves_the_learned_box_alone() -> None:
    cfg = model()
    generator = build(cfg)
    assert isinstance(generator.mask_head, nn.Conv3d)
    assert generator.mask_head.bias is not None
    with torch.no_grad():
        generator.mask_head.bias[0] = -100.0
        generator.mask_head.bias[1] = 100.0
    prompts, aux = propose(generator, *features(cfg, SMALL))
    assert prompts.boxes is not None
    assert aux["boxes"] is not None
    assert torch.equal(prompts.boxes[:, 0], aux["boxes"][:, 0])
    whole = torch.tensor([0.0, 0, 1, 1])
    assert torch.allclose(prompts.boxes[:, 1], (aux["boxes"][:, 1] + whole) / 2)


@pytest.mark.parametrize(("kind", "reaches"), [("logits", True), ("binary", False)])
def test_losses_on_the_decoded_masks_reach_the_generator_through_logits_only(kind: str, reaches: bool) -> None:
    cfg = model(mask_prompt=kind, upsample=1, patch=(3, 32, 32))
    prompts, aux = propose(build(cfg), *features(cfg, SMALL))
    assert prompts.masks is not None
    assert aux["masks"] is not None
    assert prompts.masks.shape[-2:] == (8, 8)
    assert prompts.masks.requires_grad is reaches
    values = set(prompts.masks.unique().tolist())
    assert (values <= {0.0, 1.0}) is not reaches


def test_binary_mask_prompts_are_the_thresholded_masks() -> None:
    cfg = model(mask_prompt="binary")
    prompts, aux = propose(build(cfg), *features(cfg, SMALL))
    assert prompts.masks is not None
    assert aux["masks"] is not None
    assert torch.equal(prompts.masks, (aux["masks"] > 0).float())
    assert 0 < prompts.masks.mean() < 1


def test_floored_boxes_lie_on_encoder_pixels() -> None:
    cfg = model(floor_boxes=True)
    prompts, aux = propose(build(cfg), *features(cfg, SMALL))
    assert prompts.boxes is not None
    assert aux["fused_boxes"] is not None
    height, width = cfg.input_size
    pixels = prompts.boxes * torch.tensor([width, height, width, height])
    assert torch.allclose(pixels, pixels.round(), atol=1e-4)
    gap = aux["fused_boxes"] - prompts.boxes
    assert gap.min() >= 0
    assert 0 < gap.max() <= 1 / height


@pytest.mark.parametrize("size", [(2, 2), (10, 14), (40, 56), (17, 33)])
@pytest.mark.parametrize("cells", [2, 16])
def test_pooling_is_adaptive_averaging(size: tuple[int, int], cells: int) -> None:
    x = torch.randn(1, 3, 4, *size, generator=torch.Generator().manual_seed(0))
    expected = F.adaptive_avg_pool3d(x, (4, cells, cells))
    assert torch.allclose(pool_stages([x, 2 * x], cells), torch.cat([expected, 2 * expected], dim=1), atol=1e-5)


def test_doubling_is_the_transposed_convolution() -> None:
    torch.manual_seed(0)
    up, x = Up(6, 5), torch.randn(2, 6, 3, 4, 7)
    expected = F.conv_transpose3d(x, up.weight, up.bias, stride=(1, 2, 2))
    assert torch.allclose(up(x), expected, atol=1e-5)


def test_the_same_seed_gives_the_same_network_and_gradient() -> None:
    cfg = model(image_widths=(3, 5))
    gradients = []
    for _ in range(2):
        generator = build(cfg, MOBILE)
        masks = propose(generator, *features(cfg, MOBILE))[1]["masks"]
        assert masks is not None
        masks.square().sum().backward()
        gradients.append([p.grad for p in generator.trunk.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)


def test_mask_prompts_shrink_in_half_precision():
    masks = torch.randn(1, 2, 3, 16, 16)
    small = resize(masks.bfloat16(), (4, 4), "bilinear")
    assert small.dtype == torch.bfloat16
    torch.testing.assert_close(small.float(), resize(masks, (4, 4), "bilinear"), atol=2e-2, rtol=2e-2)
