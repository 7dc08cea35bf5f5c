"""Every preset and every ablation row learns a phantom (model.md §19, check 24), and says what it switches."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from MaskSAMCore import train
from MaskSAMCore.config import presets
from MaskSAMCore.config.check import check_config
from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.config.serialize import from_dict, leaf_keys, to_dict, value_at
from MaskSAMCore.errors import InputError
from MaskSAMCore.losses.set_loss import build_loss
from MaskSAMCore.network.build import build_model
from MaskSAMCore.network.click_unet import ClickUNet
from MaskSAMCore.training.clicks import train_clicks
from MaskSAMCore.training.fit import fit_config
from MaskSAMCore.training.learner import Objective
from MaskSAMCore.training.loop import objective_at
from MaskSAMCore.training.prompted import train_prompted
from MaskSAMCore.zoo import installed, model_folder
from Testing.phantom import phantom_case
from Testing.toy_model import make_plan

STEPS = 150
LEARNED = 0.6
"""Share of the first loss to which the loss must fall."""
GIVEN = 0.65
"""With given prompts there is no generator; a random frozen decoder and its adapters get no further in that time."""


def small(cfg: ModelConfig) -> ModelConfig:
    """The same switches on the `tiny` backbone, with at most two small slices (eight in three dimensions)."""
    upsampler, side = cfg.decoder.upsampler, 16
    if cfg.prompts_only:
        # In so few steps little comes out of a random frozen decoder: its adapters are as wide as MaskSAM's here, and
        # those of the encoder too, as `tiny` has a twentieth of ViT-H's channels.
        side = 32
        cfg = replace(
            cfg,
            enc_adapter=replace(cfg.enc_adapter, ratio=0.25),
            dec_tokens=replace(cfg.dec_tokens, ratio=0.25),
            dec_image=replace(cfg.dec_image, ratio=0.25),
        )
    depth = min(cfg.patch[0], 2)
    if cfg.backbone.arch == "swin_unetr":
        return replace(cfg, classes=3, patch=(2, 16, 16), backbone=replace(cfg.backbone, width=12))
    if cfg.backbone.arch == "click_unet":
        return replace(cfg, patch=(8, 16, 16), source=replace(cfg.source, widths=(16, 8, 8)))
    if not cfg.takes_prompts:
        return replace(cfg, classes=3, patch=(8, 16, 16), backbone=replace(cfg.backbone, arch="tiny"))
    return replace(
        cfg,
        classes=3,
        patch=(depth, 64, 64) if upsampler else (depth, side, side),
        backbone=replace(cfg.backbone, arch="tiny"),
        stem=replace(cfg.stem, upsample=1 if upsampler else 4),
        source=replace(cfg.source, widths=(16, 8, 8, 8, 8), queries=4),
    )


def phantom(cfg: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (1, M, D, H, W) and labels (1, D, H, W) of a phantom's middle slices."""
    depth, height, width = cfg.patch
    image, label = phantom_case(1, (10, 32, 32))
    picked = (slice(4, 4 + depth), slice(0, 32), slice(0, 32))
    size = (depth, height, width)
    x = torch.nn.functional.interpolate(torch.from_numpy(image[picked])[None, None], size=size)
    y = torch.nn.functional.interpolate(torch.from_numpy(label[picked])[None, None].float(), size=size)
    return ((x - x.mean()) / x.std()).expand(-1, cfg.channels, -1, -1, -1), y[0].long()


@pytest.mark.slow
@pytest.mark.parametrize("name", presets.names())
def test_learns_a_phantom(name):
    first, last, goal = learned(small(presets.get(name).model))
    assert last < goal * first, f"{first:.3f} to {last:.3f}"


@functools.lru_cache
def learned(cfg: ModelConfig) -> tuple[float, float, float]:
    """First and last loss, and the share that the last may be at most; once for presets of the same small network."""
    torch.manual_seed(0)
    model = build_model(cfg)
    model.train()
    criterion = build_loss(cfg)
    image, labels = phantom(cfg)
    rate, betas = (1.5e-2, (0.9, 0.95)) if cfg.prompts_only else (7e-3, (0.9, 0.99))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=betas, weight_decay=0)
    goal = GIVEN if cfg.source.kind == "gt" else LEARNED

    def practise() -> torch.Tensor:
        if isinstance(model, ClickUNet):
            voxel = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
            return train_clicks(model, image, (labels == 1).long(), voxel, np.random.default_rng(3))["loss"]
        if not cfg.prompts_only:
            return criterion(model(image, None, labels), labels, None)["loss"]
        valid = torch.ones(labels.shape[:2], dtype=torch.bool)
        return train_prompted(model, model.slab(image), labels, valid, np.random.default_rng(3))["loss"]

    losses: list[float] = []
    for _ in range(STEPS):
        loss = practise()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < goal * losses[0]:
            break
    return losses[0], losses[-1], goal


@pytest.mark.parametrize("name", presets.names())
def test_survives_json(name):
    preset = presets.describe(name)
    assert from_dict(type(preset.config), to_dict(preset.config)) == preset.config
    assert preset.config.preset == name
    assert preset.about


def test_rows_differ_from_their_neighbours():
    rows = [presets.get(f"B{i}").model for i in range(1, 10)]
    assert len(set(rows)) == 9
    assert rows[8] == presets.get("masksam-acdc").model


def test_rows_of_self_prompt_sam_differ_from_their_neighbours():
    rows = [presets.get(f"S{i}").model for i in range(1, 10)]
    assert len(set(rows)) == 9
    assert rows[8] == presets.get("selfprompt-acdc").model
    assert [row.decoder.kind for row in rows] == ["none"] * 2 + ["sam"] * 7


def test_med_sas_rows_switch_one_thing_at_a_time():
    rows = [presets.get(f"M{i}").model for i in range(1, 6)]
    branches = [row.enc_adapter.depth_branch for row in rows]
    modes = [row.dec_tokens.condition.mode for row in rows]
    assert list(zip(branches, modes, strict=True)) == [
        ("none", "none"), ("gate", "none"), ("gate", "add"), ("gate", "concat"), ("gate", "hyper"),
    ]  # fmt: skip
    assert rows[4] == presets.get("medsa-3d").model
    scores = [presets.describe(f"M{i}") for i in range(1, 6)]
    assert [each.score for each in scores] == [79.3, 84.7, 86.1, 86.4, 88.3]
    assert {each.benchmark for each in scores} == {"BTCV Dice"}
    train = presets.get("medsa-2d").train
    assert (train.optimizer, train.schedule, train.lr, train.epochs) == ("adam", "halving", 1e-4, 40)


def test_rows_of_autosam_switch_one_thing_each():
    a0, a1 = presets.get("A0").model, presets.get("A1").model
    assert replace(a0, source=replace(a0.source, apg_level="last")) == a1 == presets.get("autosam-btcv").model
    sweep = [presets.get(f"KD{n}") for n in (0, 2, 5, 8, 10)]
    assert [config.train.seg_share for config in sweep] == [0.0, 0.2, 0.5, 0.8, 1.0]
    assert len({replace(config, preset="", train=replace(config.train, seg_share=0)) for config in sweep}) == 1
    assert presets.describe("KD5").benchmark == "BTCV Dice"
    assert presets.describe("B9").benchmark == "ACDC Dice"


def test_unknown_preset_lists_the_known():
    with pytest.raises(InputError, match="core-mobile"):
        presets.get("masksam-brats")
    with pytest.raises(InputError, match='Did you mean "core-mobile"'):
        presets.get("core-moble")


@pytest.mark.parametrize(
    ("name", "median", "spacing", "classes"),
    [
        ("hippocampus-mr", (36, 50, 35), (1.0, 1.0, 1.0), 3),
        ("cardiac-cine-mr", (10, 160, 140), (10.0, 1.52, 1.52), 4),
        ("headneck-ct", (118, 58, 105), (3.0, 4.7, 4.7), 6),
    ],
)
def test_the_command_without_options_trains_the_network_of_the_bundled_models(name, median, spacing, classes):
    card = model_folder.load_card(installed.find_model(name))
    used = train.run_options(train.parser().parse_args(["DATASET", "-o", "RUN"]))
    dataset = SimpleNamespace(
        plan=make_plan(median_shape=median, spacing=spacing), labels=SimpleNamespace(classes=classes)
    )
    config = fit_config(presets.get(used.preset or presets.DEFAULT), dataset)
    different = {
        key for key in leaf_keys(ModelConfig) if value_at(config.model, key) != value_at(card.config.model, key)
    }
    assert different <= {"patch"}, "what depends on the data is chosen alike, but for the patch's size"
    assert config.data.mirroring == card.config.data.mirroring
    assert config.train.keep_generator
    assert card.config.train.keep_generator
    check_config(config)


def test_the_default_preset_trains_both_modes_one_after_the_other():
    cfg = presets.get(presets.DEFAULT).train
    drawn = [objective_at(step, cfg) for step in range(cfg.epochs * cfg.iterations)]
    ends = cfg.generator_epochs * cfg.iterations
    assert set(drawn[:ends]) == {Objective.GENERATOR}
    assert set(drawn[ends:]) == {Objective.PROMPTS}
