"""Training on simulated prompts: who the users are, what they do, and that it teaches (model.md §2.4, §6.6)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from MaskSAMCore import train
from MaskSAMCore.config import presets
from MaskSAMCore.config.schema import TrainConfig
from MaskSAMCore.inference.sliding_window import slide_model
from MaskSAMCore.losses.set_loss import prompt_loss
from MaskSAMCore.network.build import build_model, is_for_prompts
from MaskSAMCore.network.types import Prompted
from MaskSAMCore.progress import Cancelled, CancelToken
from MaskSAMCore.training.learner import Objective
from MaskSAMCore.training.loop import objective_at
from MaskSAMCore.training.prompted import (
    STARTS,
    User,
    assemble,
    click_dice,
    correct,
    draw_scene,
    draw_user,
    soft_mask,
    train_prompted,
)
from MaskSAMCore.training.run import Run
from MaskSAMCore.training.run_record import RunOptions
from MaskSAMCore.zoo import installed, model_folder
from MaskSAMCore.zoo.model_folder import load_trained, save_model
from Testing.core.config.test_presets import phantom, small
from Testing.runs import arguments, assert_equal, final


def ball(shape=(8, 32, 40)) -> np.ndarray:
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return (z - 4) ** 2 * 4 + (y - 14) ** 2 + (x - 22) ** 2 < 60


@pytest.mark.parametrize("start", list(STARTS))
def test_users_say_what_is_true(start):
    target = ball()
    for seed in range(40):
        user = draw_user(target, 1, np.random.default_rng(seed), start)
        for z, clicks in user.clicks.items():
            for y, x, positive in clicks:
                assert target[z, round(y), round(x)] == positive or start == "onward"
        for z, (x0, y0, x1, y1) in user.boxes.items():
            assert 0 <= x0 < x1 <= 40
            assert 0 <= y0 < y1 <= 32
            assert target[z].any()
        assert user.prompts()
        if start in ("onward", "mask"):
            assert user.before.shape == target.shape
            assert user.known.any()
        if start == "onward":
            assert not user.known.all()


def test_a_scene_is_a_function_of_its_seed():
    labels = ball().astype(int)[None]
    inside = np.ones((1, 8), bool)
    said = [[u.prompts() for u in draw_scene(labels, inside, np.random.default_rng([3, 1])).users[0]] for _ in range(2)]
    assert said[0] == said[1]
    assert said[0] != [u.prompts() for u in draw_scene(labels, inside, np.random.default_rng([3, 2])).users[0]]


def test_slices_that_only_pad_are_no_ones_target():
    labels, inside = np.ones((1, 4, 8, 8), int), np.array([[True, True, False, False]])
    for seed in range(10):
        for user in draw_scene(labels, inside, np.random.default_rng(seed)).users[0]:
            assert user.target[:2].all()
            assert not user.target[2:].any()


def test_corrections_go_where_the_error_is_and_stay_at_home():
    target = ball()
    predicted = target.copy()
    predicted[4, 10:14, 15:25] = False
    predicted[2, 0:2, 0:2] = True
    user = User(target=target, label=1)
    assert correct(user, predicted, None)
    ((z, ((y, x, positive),)),) = user.clicks.items()
    assert z == 4
    assert positive
    assert target[z, int(y), int(x)]
    assert not predicted[z, int(y), int(x)]
    at_home = User(target=target, label=1, home=2)
    assert correct(at_home, predicted, np.random.default_rng(0))
    assert list(at_home.clicks) == [2]
    assert not at_home.clicks[2][0][2]
    assert not correct(User(target=target, label=1), target, np.random.default_rng(0))


def test_a_soft_mask_is_near_its_target():
    target = ball()
    for seed in range(10):
        before = soft_mask(target, np.random.default_rng(seed)) > 0
        assert 0.3 < (before & target).sum() / (before | target).sum() <= 1


def test_the_loss_takes_the_best_candidate_and_leaves_out_what_weighs_nothing():
    targets = torch.zeros(1, 1, 2, 4, 4, dtype=torch.bool)
    targets[..., :2] = True
    right, wrong = torch.where(targets, 20.0, -20.0), torch.where(targets, -20.0, 20.0)
    masks = torch.stack([wrong, right], dim=3)
    masks[:, :, 1] = torch.nan_to_num(wrong)[:, :, 1, None]
    answer = Prompted(masks=masks, quality=torch.zeros(1, 1, 2, 2), cls=None)
    terms = prompt_loss(answer, targets, torch.tensor([[[1.0, 0.0]]]), torch.tensor([[1]]))
    assert float(terms["prompt_bce"]) < 1e-6
    assert float(terms["prompt_dice"]) < 1e-3
    # Of the slice that counts one candidate is right (IoU 1) and one is wrong (IoU 0), both are judged 0.
    assert float(terms["quality"]) == pytest.approx(0.5)


def test_what_the_steps_train():
    cfg = TrainConfig(mode="mixed", epochs=20, iterations=100)
    drawn = [objective_at(step, cfg) for step in range(2000)]
    assert set(drawn[:400]) == {Objective.AUTOMATIC}
    assert 0.45 < drawn[400:].count(Objective.PROMPTS) / 1600 < 0.55
    assert set(drawn) == {Objective.AUTOMATIC, Objective.PROMPTS}
    assert {objective_at(step, TrainConfig(mode="prompt")) for step in range(5)} == {Objective.PROMPTS}
    assert {objective_at(step, TrainConfig()) for step in range(5)} == {Objective.AUTOMATIC}


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "goal"), [("core-mobile-whole", 0.65), ("core-acdc", 0.95)])
def test_clicks_are_learned(preset, goal):
    """model.md §19, check 24, for prompts; without fine masks all is read from a random frozen decoder's map."""
    torch.manual_seed(0)
    cfg = small(presets.get(preset).model)
    model = build_model(cfg).train()
    image, labels = phantom(cfg)
    valid = torch.ones(labels.shape[:2], dtype=torch.bool)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0)
    losses = []
    for step in range(60):
        terms = train_prompted(model, model.slab(image), labels, valid, np.random.default_rng(step))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(float(terms["prompt_dice"]))
    assert np.mean(losses[-10:]) < goal * np.mean(losses[:5])
    model.eval()
    figures = click_dice(model, image[0].numpy(), labels[0].numpy(), cfg.patch)
    assert set(figures) == {"click 1", "click 3", "box"}
    if preset == "core-mobile-whole":
        assert figures["click 3"] > 0.5


@pytest.mark.slow
def test_gradients_reach_everything_that_serves_prompts(monkeypatch):
    torch.manual_seed(0)
    cfg = small(presets.get("core-mobile-whole").model)
    model = build_model(cfg).train()
    for name, parameter in model.named_parameters():
        if (parameter.requires_grad and name.endswith("up.weight")) or name.startswith(("fine.", "clicks.last")):
            torch.nn.init.normal_(parameter, std=0.05)
    monkeypatch.setattr("MaskSAMCore.network.decoder.CONDITION_DROPOUT", 0.0)
    image, labels = phantom(cfg)
    valid = torch.ones(labels.shape[:2], dtype=torch.bool)
    for step in range(4):
        train_prompted(model, model.slab(image), labels, valid, np.random.default_rng(step))["loss"].backward()
    silent = [n for n, p in model.named_parameters() if is_for_prompts(n) and (p.grad is None or not p.grad.any())]
    assert not silent


def test_a_patch_without_structures_has_no_loss_of_its_own():
    cfg = small(presets.get("core-mobile-whole").model)
    model = build_model(cfg).train()
    image, labels = phantom(cfg)
    terms = train_prompted(
        model, model.slab(image), torch.zeros_like(labels), torch.ones(1, cfg.patch[0]).bool(), np.random.default_rng(0)
    )
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"])


def test_masks_of_the_last_round_are_the_next_prompt():
    cfg = small(presets.get("core-mobile-whole").model)
    model = build_model(cfg)
    user = User(target=np.ones(cfg.patch, bool), label=1)
    user.click(0, 3, 4, True)
    logits = torch.full((1, 1, *cfg.patch), 50.0)
    batch = assemble(model, [[user]], logits, torch.device("cpu"))
    assert batch.masks.shape == (1, 1, cfg.patch[0], *cfg.mask_size)
    assert float(batch.masks.max()) == 16
    assert batch.masks_known is None
    assert batch.points[0, 0, 0, 0].tolist() == pytest.approx([4.5 / cfg.patch[2], 3.5 / cfg.patch[1]])


@pytest.mark.slow
def test_mixed_training_runs_resumes_and_starts_from_an_automatic_model(phantom_data, tmp_path):
    words = ("--mode", "mixed", "--name", "both")
    settings = ("train.epochs=4",)
    whole = tmp_path / "whole"
    assert train.main(arguments(phantom_data, whole, *words, settings=settings)) == 0
    card = model_folder.load_card(whole / "model")
    assert card.config.train.mode == "mixed"
    assert "val click 1" in (whole / "metrics.csv").read_text()
    assert "prompt_dice" in (whole / "metrics.csv").read_text()
    halves = tmp_path / "halves"
    again = arguments(phantom_data, halves, *words, settings=settings)
    stop_after(again, steps=9)
    assert train.main([*again, "--resume"]) == 0
    assert_equal(final(whole), final(halves))


def stop_after(words: list[str], *, steps: int) -> None:
    """Run until the step is done, then as Ctrl-C would end it."""
    options = train.parser().parse_args(words)
    cancel = CancelToken()

    def progress(done: int, total: int, text: str) -> None:
        if text.startswith("loss") and done == steps:
            cancel.cancel()

    overrides = (f"train.mode={options.mode}", *options.set)
    run = Run(
        RunOptions(
            dataset=options.dataset,
            folder=Path(options.output),
            preset=options.preset,
            overrides=overrides,
            name=options.name,
            device="cpu",
        ),
        predict=slide_model,
        log=lambda text: None,
        progress=progress,
        cancel=cancel,
    )
    with pytest.raises(Cancelled):
        run.start()


def test_an_automatic_model_is_taken_up(straight_run, phantom_data, tmp_path):
    """The parts that serve prompts start anew; nothing else may be missing."""
    folder = straight_run / "model"
    card = model_folder.load_card(folder)
    torch.manual_seed(5)
    model = build_model(card.config.model)
    tensors = {n: t for n, t in installed.load_model(folder)[0].state_dict().items() if not is_for_prompts(n)}
    older = save_model(tmp_path / "older", card, tensors, "# older\n")
    fresh = {n: p.detach().clone() for n, p in model.named_parameters() if is_for_prompts(n)}
    load_trained(model, older)
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in fresh.items())
    some = next(iter(n for n in tensors if n.startswith("generator.")))
    torch.testing.assert_close(model.state_dict()[some], tensors[some])
