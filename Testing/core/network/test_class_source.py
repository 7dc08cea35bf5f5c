"""Self-Prompt-SAM's generator and head: distances, prompts, gradients, sizes (model.md §6.4, §7.5, §7.6, §16.4)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.network import distance
from MaskSAMCore.network.build import build_model
from MaskSAMCore.network.class_source import ClassGenerator, one_versus_rest
from MaskSAMCore.network.distance import innermost, squared_distance
from MaskSAMCore.network.heads import MultiClassHead
from MaskSAMCore.network.types import Level
from Testing.core.network.test_generator import MOBILE, SMALL, VIT_B, VIT_H, count, features

K = 3


def config(name: str = "S9", *, upsample: int = 4, patch: tuple[int, int, int] = (2, 16, 32)) -> ModelConfig:
    cfg = presets.get(name).model
    return replace(
        cfg,
        classes=K,
        patch=patch,
        backbone=replace(cfg.backbone, arch="tiny"),
        stem=replace(cfg.stem, upsample=upsample),  # type: ignore[arg-type]
        source=replace(cfg.source, widths=(8, 6, 4)),
    )


def generator(cfg: ModelConfig, levels: tuple[Level, ...] = SMALL) -> ClassGenerator:
    torch.manual_seed(0)
    return ClassGenerator(cfg, levels)


def blobs(seed: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.85


def brute_force(mask: np.ndarray) -> np.ndarray:
    """Squared distance of every pixel to every background pixel of the framed picture."""
    framed = np.pad(mask, 1)
    background = np.argwhere(~framed)
    place = np.argwhere(np.ones_like(mask)) + 1
    apart = ((place[:, None] - background[None]) ** 2).sum(-1).min(1).reshape(mask.shape)
    return apart * mask


@pytest.mark.parametrize("size", [(16, 16), (5, 16), (1, 7)])
def test_distances_equal_brute_force(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.cat([blobs(0, (20, *size)), torch.ones(1, *size, dtype=torch.bool)])
    wanted = np.stack([brute_force(mask) for mask in masks.numpy()])
    assert np.array_equal(squared_distance(masks).numpy(), wanted)
    monkeypatch.setattr(distance, "AT_ONCE", 1)
    assert np.array_equal(squared_distance(masks).numpy(), wanted)
    place, empty = innermost(masks)
    for mask, apart, (y, x), nothing in zip(masks.numpy(), wanted, place.tolist(), empty.tolist(), strict=True):
        assert not nothing
        assert mask[y, x]
        assert (y, x) == np.unravel_index(apart.argmax(), apart.shape)


def test_the_innermost_pixel_of_a_disc_is_its_centre_on_coarse_grids_too() -> None:
    y, x = np.indices((300, 256))
    discs = torch.from_numpy(np.stack([(y - 140) ** 2 + (x - 77) ** 2 < 50**2, (y - 20) ** 2 + (x - 200) ** 2 < 15**2]))
    place, _ = innermost(discs)
    apart = place - torch.tensor([[140, 77], [20, 200]])
    step = -(-300 // distance.GRID)
    assert step == 3
    assert apart.abs().max() <= step
    near, _ = innermost(discs[:, 80:200, 20:140])
    assert (near[0] - torch.tensor([60, 57])).abs().max() <= 1


def test_what_the_grid_misses_still_has_a_point_of_its_own() -> None:
    masks = torch.zeros(3, 256, 256, dtype=torch.bool)
    masks[0, 10, 20:40] = True
    masks[1, 11, 21] = True
    place, empty = innermost(masks)
    assert place[0].tolist() == [10, 20]
    assert place[1].tolist() == [11, 21]
    assert place[2].tolist() == [0, 0]
    assert empty.tolist() == [False, False, True]


def test_prompts_are_where_a_class_wins_and_zero_where_it_does_not() -> None:
    cfg = config()
    logits = torch.zeros(1, K, 2, 16, 32)
    logits[:, 0] = 1
    logits[:, 1, 0, 3:8, 10:20] = 2
    prompts = generator(cfg).prompts(logits)
    assert prompts.points is not None
    assert prompts.labels is not None
    assert prompts.boxes is not None
    assert prompts.points.shape == (1, K, 2, 1, 2)
    assert (prompts.labels == 1).all()
    assert prompts.boxes[0, 1, 0].tolist() == pytest.approx([10 / 32, 3 / 16, 20 / 32, 8 / 16])
    assert prompts.points[0, 1, 0, 0].tolist() == pytest.approx([12.5 / 32, 5.5 / 16])
    assert prompts.boxes[0, 0, 1].tolist() == [0, 0, 1, 1]
    for nothing in (prompts.boxes[0, 1, 1], prompts.points[0, 1, 1], prompts.boxes[0, 2], prompts.points[0, 2]):
        assert not nothing.any()
    assert prompts.class_tokens is None
    assert prompts.valid is None


def test_the_mask_prompt_is_a_class_against_the_rest() -> None:
    draw = torch.randn(2, K, 2, 16, 32, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(one_versus_rest(draw).sigmoid(), draw.softmax(1))
    sure = torch.tensor([90.0, 0.0, -90.0])[None, :, None]
    assert one_versus_rest(sure).flatten().tolist() == pytest.approx([90, -90, -180])
    masks = generator(config()).prompts(draw).masks
    assert masks is not None
    torch.testing.assert_close(masks, one_versus_rest(draw))


def test_a_prompt_is_point_corner_corner_and_eight_tokens_are_decoded() -> None:
    model = build_model(config())
    prompts = model.generator.prompts(torch.randn(1, K, 2, 16, 32))  # type: ignore[union-attr, operator]
    tokens = model.tokenize(prompts, model.cfg.grid)
    assert tokens.sparse.shape == (K * 2, 3, 256)
    assert tokens.ignored is None
    bare = torch.zeros(1, K, 2, 4)
    corners = model.tokenize(replace(prompts, points=None, labels=None), model.cfg.grid).sparse
    torch.testing.assert_close(tokens.sparse[:, 1:], corners)
    assert not torch.equal(
        tokens.sparse[:, 1:], model.tokenize(replace(prompts, boxes=bare), model.cfg.grid).sparse[:, 1:]
    )
    assert model.decoder._tokens(tokens).shape == (K * 2, 8, 256)


@pytest.mark.parametrize("trunk", ["pyramid", "stacked"])
@pytest.mark.parametrize("levels", [SMALL, MOBILE], ids=["vit", "mobile"])
def test_every_stage_has_logits_and_the_last_is_of_the_patchs_size(trunk: str, levels: tuple[Level, ...]) -> None:
    cfg = config()
    cfg = replace(cfg, source=replace(cfg.source, trunk=trunk))  # type: ignore[arg-type]
    made = generator(cfg, levels)
    f, image = features(cfg, levels)
    own = made(f, made.stages(f, image))
    prompts, logits = own.prompts, own.stages
    assert len(logits) == len(made.trunk.channels) > 1
    assert all(stage.shape[:3] == (1, K, 2) for stage in logits)
    assert logits[-1].shape[-2:] == (16, 32)
    assert logits[0].shape[-2:] == cfg.grid
    assert prompts.masks is not None
    assert prompts.masks.shape == (1, K, 2, *cfg.mask_size)
    single = generator(replace(cfg, source=replace(cfg.source, deep_supervision=False)), levels)
    assert len(single.logits(single.stages(f, image))) == 1


def test_the_decoders_loss_reaches_the_generator_through_the_mask_prompt_only() -> None:
    cfg = config()
    image = torch.randn(1, 1, *cfg.patch)
    for mask_prompt, reached in (("logits", True), ("binary", False)):
        torch.manual_seed(0)
        some = replace(cfg, source=replace(cfg.source, mask_prompt=mask_prompt))  # type: ignore[arg-type]
        model = build_model(some).train()
        model(image).masks.square().sum().backward()
        grads = [p.grad is not None and bool(p.grad.any()) for p in model.generator.parameters()]  # type: ignore[union-attr]
        assert any(grads) is reached


def test_without_the_decoder_the_scores_are_the_generators() -> None:
    model = build_model(config()).eval()
    image = torch.randn(1, 1, *model.cfg.patch)
    with torch.no_grad():
        last = model.generator_logits(model.encode(image), image)[-1]
        decoded = model.segment_patch(image)
        model.set_decoder(False)
        alone = model.segment_patch(image)
        torch.testing.assert_close(alone, last.softmax(1))
        assert not torch.allclose(alone, decoded)
        model.set_decoder(True)
        torch.testing.assert_close(model.segment_patch(image), decoded)
        row = build_model(config("S2")).eval()
        row.set_decoder(True)
        logits = row.generator_logits(row.encode(image), image)[-1]
        torch.testing.assert_close(row.segment_patch(image), logits.softmax(1))


def test_the_multi_class_head_starts_as_nothing_and_then_mixes_classes() -> None:
    torch.manual_seed(0)
    nine, eight = build_model(config("S9")).eval(), build_model(config("S8")).eval()
    eight.load_state_dict({k: v for k, v in nine.state_dict().items() if not k.startswith("multiclass.")})
    image = torch.randn(1, 1, *nine.cfg.patch)
    with torch.no_grad():
        assert torch.equal(nine.segment_patch(image), eight.segment_patch(image))
        scores = nine.segment_patch(image)
    torch.testing.assert_close(scores.sum(1), torch.ones(1, *nine.cfg.patch))
    head = MultiClassHead(K)
    torch.nn.init.normal_(head.layers[-1].weight)
    masks = torch.randn(1, K, 2, 8, 8)
    changed = masks.clone()
    changed[:, 1, :, 4:] += 1
    assert not torch.allclose(head(masks)[:, 0], head(changed)[:, 0])


@pytest.mark.parametrize(
    ("name", "levels", "trunk", "widths", "stages"),
    [
        ("selfprompt-acdc", VIT_B, 9_458_432, 768, 5),
        ("selfprompt-amos", VIT_H, 10_217_728, 640, 5),
        ("selfprompt-synapse", VIT_H, 10_217_728, 640, 5),
        ("S1", VIT_B, None, 512, 3),
    ],
)
def test_sizes(name: str, levels: tuple[Level, ...], trunk: int | None, widths: int, stages: int) -> None:
    cfg = presets.get(name).model
    with torch.device("meta"):
        made = ClassGenerator(cfg, levels)
    assert trunk is None or count(made.trunk) == trunk
    assert len(made.heads) == stages
    assert count(made.heads) == cfg.classes * (widths + stages)
