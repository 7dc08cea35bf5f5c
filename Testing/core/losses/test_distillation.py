"""Distillation: its loss, the teacher, the student, and the command from a trained model to a student's folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from MaskSAMCore import evaluate, segment, train
from MaskSAMCore.config import paper_presets, presets, product_presets
from MaskSAMCore.config.check import check_config
from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.config.schema import Config, TrainConfig
from MaskSAMCore.errors import InputError, ModelError
from MaskSAMCore.inference.predictor import Predictor
from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.inference.session import Session
from MaskSAMCore.inference.sliding_window import slide_model
from MaskSAMCore.io.images import read_labels, read_volume
from MaskSAMCore.losses.distillation import DistillationLoss, imitation_loss, probabilities
from MaskSAMCore.losses.set_loss import build_loss
from MaskSAMCore.network.build import build_model
from MaskSAMCore.network.segmenter import DirectSegmenter
from MaskSAMCore.network.student import SwinStudent, whole_size
from MaskSAMCore.network.types import QueryOutputs
from MaskSAMCore.training import distillation_teacher as teaching
from MaskSAMCore.training.batches import Batch
from MaskSAMCore.training.distillation_teacher import STEP, DistillationTeacher, check_mode, read_soft_labels
from MaskSAMCore.training.fit import fit_config
from MaskSAMCore.training.learner import Learner
from MaskSAMCore.training.loop import Trainer, objective_at
from MaskSAMCore.zoo import installed, model_folder
from MaskSAMCore.zoo.audit import audit_config
from Testing.runs import assert_equal, final
from Testing.toy_model import BRIGHT, make_card, make_plan, save_tiny

CPU = torch.device("cpu")


def student(**changes: object) -> ModelConfig:
    return replace(presets.get("swin-tiny").model, **{"classes": 2, "patch": (4, 16, 16), **changes})


def case(seed: int = 0, classes: int = 3) -> tuple[QueryOutputs, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student's outputs, labels, valid slices and a teacher's probabilities."""
    torch.manual_seed(seed)
    logits = torch.randn(2, classes, 4, 6, 5, requires_grad=True)
    labels = torch.randint(classes, (2, 4, 6, 5))
    taught = torch.randn(2, classes, 4, 6, 5).softmax(1)
    valid = torch.ones(2, 4, dtype=torch.bool)
    return QueryOutputs(masks=logits, cls=None), labels, valid, taught


def plain_loss(classes: int = 3):
    return build_loss(student(classes=classes))


def test_segmentation_loss_golden():
    """Uniform logits: CE = ln K; each class has 1/K everywhere, so Dice follows from the counts (model.md §9.6)."""
    labels = torch.zeros(1, 1, 4, 4, dtype=torch.long)
    labels[0, 0, 0] = 1
    loss = plain_loss(2)(QueryOutputs(masks=torch.zeros(1, 2, 1, 4, 4), cls=None), labels)["loss"]
    background, structure = (2 * 0.5 * n / (8 + n) for n in (12, 4))
    assert loss.item() == pytest.approx(np.log(2) + 1 - (background + structure) / 2, abs=1e-5)


def test_labels_alone_are_the_plain_loss_and_the_teacher_alone_is_the_mse():
    outputs, labels, valid, taught = case()
    plain = plain_loss()(outputs, labels, valid)["loss"]
    found = {share: DistillationLoss(plain_loss(), share)(outputs, labels, valid, taught) for share in (0.0, 0.5, 1.0)}
    torch.testing.assert_close(found[1.0]["loss"], plain)
    mse = (outputs.masks.softmax(1) - taught).square().mean()
    torch.testing.assert_close(found[0.0]["loss"], mse)
    torch.testing.assert_close(found[0.5]["loss"], (plain + mse) / 2)
    assert not found[0.5]["segmentation"].requires_grad
    assert not found[0.5]["imitation"].requires_grad


def test_a_teacher_that_is_the_student_has_nothing_to_teach():
    outputs, labels, valid, _ = case()
    taught = outputs.masks.detach().softmax(1)
    loss = DistillationLoss(plain_loss(), 0.0)(outputs, labels, valid, taught)["loss"]
    loss.backward()
    assert loss.item() < 1e-12
    assert outputs.masks.grad.abs().max() < 1e-9


def test_padding_teaches_nothing():
    outputs, _, valid, taught = case()
    valid[1, 2:] = False
    spoilt = taught.clone()
    spoilt[1, :, 2:] = torch.nan
    logits = outputs.masks
    torch.testing.assert_close(imitation_loss(logits, spoilt, valid), imitation_loss(logits, taught, valid))
    rows = [(0, slice(None)), (1, slice(0, 2))]
    parts = torch.cat([(logits.softmax(1) - taught)[b, :, z].square().transpose(0, 1).flatten(1) for b, z in rows])
    torch.testing.assert_close(imitation_loss(logits, taught, valid), parts.mean())
    nothing = imitation_loss(logits, spoilt, torch.zeros_like(valid))
    nothing.backward()
    assert nothing.item() == 0


def test_scores_of_any_head_become_probabilities():
    scores = torch.tensor([0.2, 0.6, 0.0]).view(1, 3, 1, 1, 1).repeat(1, 1, 1, 1, 2)
    scores[..., 1] = 0
    found = probabilities(scores)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 1, 1, 2))
    torch.testing.assert_close(found[0, :, 0, 0, 0], torch.tensor([0.25, 0.75, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0, :, 0, 0, 1], torch.full((3,), 1 / 3))


@pytest.mark.parametrize(("preset", "integer"), [("swin-tiny", 4_078_220), ("swin-small", 15_703_304)])
def test_parameters_are_those_of_the_paper_and_of_monai(preset, integer):
    from monai.networks.nets.swin_unetr import SwinUNETR

    cfg = replace(presets.get(preset).model, classes=14)
    audit = audit_config(cfg)
    assert audit.parts == {"student": integer}
    assert audit.total == integer
    monai = SwinUNETR(in_channels=1, out_channels=14, feature_size=cfg.backbone.width)
    assert sum(p.numel() for p in monai.parameters()) == integer


@pytest.mark.parametrize(
    ("size", "whole"),
    [((36, 50, 35), (64, 64, 64)), ((4, 16, 16), (32, 32, 64)), ((32, 33, 32), (32, 64, 32)), ((128,) * 3, (128,) * 3)],
)
def test_sizes_that_a_swin_unetr_takes(size, whole):
    assert whole_size(size) == whole


@pytest.mark.slow
def test_a_patch_of_any_size_is_padded_by_its_border_and_cut_again():
    torch.manual_seed(0)
    network = build_model(student()).eval()
    assert isinstance(network, SwinStudent)
    image = torch.randn(1, 1, 5, 30, 33)
    padded = torch.nn.functional.pad(image, (15, 16, 1, 1, 13, 14), mode="replicate")
    with torch.inference_mode():
        found, whole = network.segment_patch(image), network.segment_patch(padded)
    torch.testing.assert_close(found, whole[:, :, 13:18, 1:31, 15:48])
    torch.testing.assert_close(found.sum(1), torch.ones(1, 5, 30, 33))


def test_the_patch_follows_the_data():
    for median, patch in (
        ((36, 50, 35), (40, 56, 40)),
        ((10, 32, 32), (16, 32, 32)),
        ((140, 512, 80), (128, 128, 80)),
    ):
        dataset = SimpleNamespace(plan=make_plan(median_shape=median), labels=BRIGHT)
        fitted = fit_config(presets.get("swin-tiny"), dataset)
        assert fitted.model.patch == patch


@pytest.mark.parametrize("missing", ["einops", "monai.networks.nets.swin_unetr"])
def test_without_monai_the_remedy_is_said(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModelError, match=r"pip install \".\[distill\]\""):
        build_model(student())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with the smallest network, untrained, for two classes."""
    return save_tiny(tmp_path_factory.mktemp("toy") / "toy")


@pytest.mark.slow
def test_patches_of_the_teachers_size_go_straight_through(folder):
    teacher = DistillationTeacher(str(folder), CPU, slide=None)
    image, valid = torch.randn(2, 1, 4, 16, 16), torch.ones(2, 4, dtype=torch.bool)
    found = teacher(image, valid)
    with torch.no_grad():
        torch.testing.assert_close(found, probabilities(teacher.network.segment_patch(image)))
    assert not found.requires_grad
    assert not found.is_inference()


@pytest.mark.slow
def test_other_patches_are_covered_by_windows_where_they_are_not_padding(folder):
    teacher = DistillationTeacher(str(folder), CPU, slide_model)
    image, valid = torch.randn(1, 1, 8, 16, 28), torch.ones(1, 8, dtype=torch.bool)
    valid[:, :2] = valid[:, 6:] = False
    found = teacher(image, valid)
    expected = probabilities(slide_model(teacher.network, image[0, :, 2:6], step=STEP).clone())
    torch.testing.assert_close(found[0, :, 2:6], expected)
    torch.testing.assert_close(found[0, :, :2], torch.full((2, 2, 16, 28), 0.5))
    loss = imitation_loss(torch.randn(1, 2, 8, 16, 28, requires_grad=True), found, valid)
    loss.backward()


class TwoCases:
    """What `DistillationTeacher.store` asks a prepared data set for."""

    def __init__(self) -> None:
        self.images = {name: np.random.default_rng(i).normal(size=(1, 6, 20, 16)) for i, name in enumerate("ab")}
        self.asked: list[str] = []

    def hashes(self, cases):
        return {case: str(self.images[case].sum()) for case in cases}

    def case(self, name):
        self.asked.append(name)
        return SimpleNamespace(image=self.images[name])


@pytest.mark.slow
def test_whole_cases_are_answered_once(folder, tmp_path):
    teacher, dataset = DistillationTeacher(str(folder), CPU, slide_model), TwoCases()
    told: list[tuple[int, int]] = []

    def store() -> None:
        told.clear()
        tell = lambda done, total, text: told.append((done, total))  # noqa: E731
        teacher.store(tmp_path / "answers", dataset, "ab", progress=tell, check=lambda: None)

    store()
    found = read_soft_labels(tmp_path / "answers", "b")
    with torch.no_grad():
        expected = probabilities(slide_model(teacher.network, dataset.images["b"]))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert found.dtype == np.float16
    assert told == [(1, 2), (2, 2)]
    assert dataset.asked == ["a", "b"]
    (tmp_path / "answers/b.npy").unlink()
    store()
    assert dataset.asked == ["a", "b", "b"]
    assert told == [(1, 2), (2, 2)]
    dataset.images["a"] = dataset.images["a"] + 1
    store()
    assert dataset.asked == ["a", "b", "b", "a", "b"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"plan": make_plan(channels=("T1", "T2"), normalisation=("zscore",) * 2)}, "channels"),
        ({"plan": make_plan(view="coronal")}, "view"),
        ({"plan": make_plan(normalisation=("ct",))}, "normalisation"),
        ({"labels": replace(BRIGHT, labels=(replace(BRIGHT.labels[0], name="dark"),))}, "labels"),
    ],
)
def test_a_teacher_of_other_data_is_refused(folder, changes, what):
    teacher = DistillationTeacher(str(folder), CPU, slide_model)
    dataset = SimpleNamespace(**({"plan": make_plan(), "labels": BRIGHT} | changes))
    with pytest.raises(InputError, match=f"other {what}"):
        teacher.check(dataset)


def test_a_teacher_of_other_voxels_is_doubted(folder, tmp_path):
    teacher = DistillationTeacher(str(folder), CPU, slide_model)
    assert teacher.check(SimpleNamespace(plan=make_plan(), labels=BRIGHT)) == []
    coarse = SimpleNamespace(plan=make_plan(spacing=(1.0, 1.5, 1.5)), labels=BRIGHT)
    assert "1.5" in teacher.check(coarse)[0]


class Points(DirectSegmenter):
    """The smallest student: a linear map of the voxel."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.net = torch.nn.Conv3d(1, cfg.classes, 1)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image)


def test_without_labels_a_student_learns_what_the_teacher_says():
    """λ = 0 through the learner: the labels are noise, and the teacher's rule is learned all the same."""
    torch.manual_seed(0)
    cfg = student()
    settings = TrainConfig(mode="distill", seg_share=0.0, optimizer="adamw", lr=0.1, weight_decay=0.0)
    asked: list[torch.Tensor] = []

    def rule(image: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        asked.append(valid)
        inside = (image > 0).float() * 0.8 + 0.1
        return torch.cat([1 - inside, inside], 1)

    learner = Learner(
        model=Points(cfg),
        config=Config(model=cfg, train=settings),
        criterion=build_loss(cfg),
        teacher=rule,
        device=CPU,
    )
    image, valid = torch.randn(1, 1, 4, 16, 16), torch.ones(1, 4, dtype=torch.bool)
    batch = Batch(image, torch.randint(2, (1, 4, 16, 16)), valid)
    objective = objective_at(0, settings)
    losses = [learner.optimise(iter([batch]), lr=0.1, objective=objective) for _ in range(60)]
    assert losses[-1]["loss"] < 0.3 * losses[0]["loss"]
    assert losses[0]["loss"] == losses[0]["imitation"]
    assert torch.equal(asked[0], valid)


def config(*, train: dict | None = None, preset: str = "swin-tiny") -> Config:
    base = presets.get(preset)
    return replace(base, train=replace(base.train, **(train or {})))


@pytest.mark.parametrize(
    ("given", "teacher", "remedy"),
    [
        (config(), None, "--teacher"),
        (config(train={"mode": "auto"}), "toy", "--mode distill"),
        (config(preset="core-mobile", train={"mode": "distill", "frozen_epochs": 0}), "toy", "swin-tiny"),
        (config(train={"mode": "mixed"}), None, "--mode auto"),
        (config(train={"frozen_epochs": 2}), "toy", "frozen_epochs=0"),
        (config(train={"seg_share": 1.5}), "toy", "between 0 and 1"),
    ],
)
def test_what_cannot_be_distilled_is_refused(given, teacher, remedy):

    def check() -> None:
        check_config(given)
        check_mode(given, teacher)

    with pytest.raises(InputError, match=remedy):
        check()


SETTINGS = (
    "data.fit_patch=false",
    "model.patch=[4,32,32]",
    "train.epochs=2",
    "train.iterations=1",
    "train.warmup_epochs=0",
    "train.validate_every=0",
    "train.validate_cases=1",
)


def words(data, run, teacher, *extra: str, settings: tuple[str, ...] = ()) -> list[str]:
    """Command line of a short distillation."""
    options = [str(data), "-o", str(run), "--mode", "distill", "--teacher", str(teacher), "--device", "cpu", *extra]
    return options + [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]


@pytest.fixture(scope="module")
def distilled(phantom_data, straight_run, tmp_path_factory):
    """A short distillation from the short run's model; do not change it."""
    run = tmp_path_factory.mktemp("distilled") / "run"
    assert train.main(words(phantom_data, run, straight_run / "model")) == 0
    return run


@pytest.mark.slow
def test_the_student_is_a_model_folder_like_any_other(distilled, straight_run):
    network, card = installed.load_model(distilled / "model")
    _, teacher = installed.load_model(straight_run / "model")
    assert isinstance(network, SwinStudent)
    assert not network.training
    assert card.base is None
    assert card.provenance["teacher"]["weights_sha256"] == teacher.weights_sha256
    assert card.config.train.teacher == f"phantom {teacher.weights_sha256[:12]}"
    readme = (distilled / "model/README.md").read_text(encoding="utf-8")
    assert "distilled from phantom (λ = 0.5" in readme
    assert "the whole network" in readme
    model_folder.verify_model(distilled / "model")
    assert card.plan["patch"] == [4, 32, 32]
    assert card.config.model.patch == (4, 32, 32)
    rows = (distilled / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert "segmentation,imitation" in rows[0]
    assert len(rows) == 3


@pytest.mark.slow
def test_the_student_segments_by_command(distilled, phantom_data, tmp_path, capsys):
    scan = phantom_data / "imagesTr/case_000_0000.nii.gz"
    target = tmp_path / "out.nii.gz"
    assert segment.main([str(scan), "-m", str(distilled / "model"), "-o", str(target), "--device", "cpu"]) == 0
    assert read_labels(target).array.shape == read_volume(scan).grid.shape
    arguments = ["--model", str(distilled / "model"), str(phantom_data), "--cases", "case_000", "--device", "cpu"]
    assert evaluate.main(arguments) == 0
    assert evaluate.main([*arguments, "--interactive"]) == 2
    assert "takes no clicks" in capsys.readouterr().err


@pytest.mark.slow
def test_the_student_refuses_clicks_and_has_nothing_to_encode(distilled, phantom_data):
    network, card = installed.load_model(distilled / "model")
    volume = read_volume(phantom_data / "imagesTr/case_000_0000.nii.gz")
    session = Session.open(network, card, volume)
    assert session.encode() == 0
    for call in (lambda: session.prompt(1, [Prompt(kind="point", position=(16, 9, 5))]), lambda: session.automatic(1)):
        with pytest.raises(ModelError, match="takes no clicks"):
            call()
    assert Predictor.of(network, card).segment(volume).labels.array.shape == volume.grid.shape


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """Every training is cancelled after so many steps."""
    report = Trainer._report

    def stop(self, *args):
        report(self, *args)
        if self.step == step:
            self.hooks.cancel.cancel()

    patch.setattr(Trainer, "_report", stop)


@pytest.mark.slow
def test_a_distillation_resumes_to_the_same_student(distilled, phantom_data, straight_run, tmp_path, monkeypatch):
    run, teacher = tmp_path / "run", straight_run / "model"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert train.main(words(phantom_data, run, teacher)) != 0
    assert train.main(words(phantom_data, run, teacher, "--resume")) == 0
    assert_equal(final(distilled), final(run))


@pytest.mark.slow
def test_stored_answers_teach_and_a_stopped_run_uses_those_it_has(phantom_data, straight_run, tmp_path, monkeypatch):
    teacher, stored = straight_run / "model", ("train.answers=stored",)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    asked: list[int] = []
    live = DistillationTeacher.__call__
    monkeypatch.setattr(DistillationTeacher, "__call__", lambda *args: asked.append(1) or live(*args))
    assert train.main(words(phantom_data, whole, teacher, settings=stored)) == 0
    assert not asked
    assert not (whole / "answers").exists()
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert train.main(words(phantom_data, stopped, teacher, settings=stored)) != 0
    assert list((stopped / "answers").glob("*.npy"))
    monkeypatch.setattr(teaching, "probabilities", None)  # what answers anew would need
    assert train.main(words(phantom_data, stopped, teacher, "--resume", settings=stored)) == 0
    assert_equal(final(whole), final(stopped))


@pytest.mark.slow
def test_another_teacher_or_share_does_not_resume(distilled, phantom_data, straight_run, tmp_path, capsys):
    teacher = straight_run / "model"
    assert train.main(words(phantom_data, distilled, teacher, "--resume", settings=("train.seg_share=0.8",))) == 2
    assert "0.8 is asked for, but the run was started with 0.5" in capsys.readouterr().err
    assert train.main(words(phantom_data, distilled, distilled / "model", "--resume")) == 2
    assert "another teacher" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_of_a_distillation(phantom_data, straight_run, tmp_path, capsys):
    settings = ("model.patch=[4,16,16]",)
    run, teacher = tmp_path / "run", straight_run / "model"
    assert train.main(words(phantom_data, run, teacher, "--dry-run", settings=settings)) == 0
    assert "full phase" in capsys.readouterr().out
    assert not (tmp_path / "run/model").exists()


@pytest.mark.slow
def test_a_dry_run_with_stored_answers_times_steps_without_the_teacher(
    phantom_data, straight_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(teaching, "probabilities", None)  # what an answer would need
    settings = ("model.patch=[4,16,16]", "train.answers=stored")
    run, teacher = tmp_path / "run", straight_run / "model"
    assert train.main(words(phantom_data, run, teacher, "--dry-run", settings=settings)) == 0
    assert not (run / "answers").exists()


def test_a_teacher_with_prompts_from_the_ground_truth_cannot_teach(tmp_path):
    cfg = paper_presets._ground_truth(product_presets._tiny)().config.model
    cfg = replace(cfg, classes=2, decoder=replace(cfg.decoder, fine_masks=False, click_maps=False))
    card = make_card(config=Config(model=cfg))
    with pytest.raises(ModelError, match="cannot teach"):
        DistillationTeacher(str(save_tiny(tmp_path / "gt", card)), CPU, slide_model)


def test_a_teacher_that_waits_for_clicks_cannot_teach(tmp_path):
    cfg = presets.get("M1").model
    tiny = presets.get("tiny").model
    cfg = replace(cfg, channels=1, classes=2, patch=tiny.patch, backbone=tiny.backbone, stem=tiny.stem)
    card = make_card(config=Config(model=cfg))
    with pytest.raises(InputError, match="clicks and boxes only"):
        DistillationTeacher(str(save_tiny(tmp_path / "clicks", card)), CPU, slide_model)
