"""One run of training, from a data set or cache to a model folder: what `train` does (product.md §2)."""

from __future__ import annotations

import datetime
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from MaskSAMCore.config import presets
from MaskSAMCore.config.check import check_config
from MaskSAMCore.config.recipe import Words
from MaskSAMCore.config.schema import Config, Largest
from MaskSAMCore.config.serialize import override, to_dict
from MaskSAMCore.data.augment import augment_case, for_fixed_copies, generator
from MaskSAMCore.data.dataset import PreparedDataset, is_prepared
from MaskSAMCore.data.sampling import PatchSampler
from MaskSAMCore.data.splits import Split
from MaskSAMCore.device import autocast_dtype, choose_device, describe
from MaskSAMCore.errors import InputError
from MaskSAMCore.io.atomic import FolderLock, write_json
from MaskSAMCore.losses.set_loss import build_loss
from MaskSAMCore.network.build import build_model, check_network
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.preprocessing.plan import MirrorRule, mirror_rule
from MaskSAMCore.preprocessing.postprocess import MODES, choose_largest, keep_largest
from MaskSAMCore.preprocessing.resample import pad_to
from MaskSAMCore.progress import CancelToken, Progress
from MaskSAMCore.training import features
from MaskSAMCore.training.batches import Batch
from MaskSAMCore.training.card import model_card, model_name, model_readme
from MaskSAMCore.training.distillation_teacher import Teacher, check_mode, read_answers
from MaskSAMCore.training.fit import fit_config
from MaskSAMCore.training.log import MetricsLog
from MaskSAMCore.training.loop import CHECKPOINTS, Hooks, Sources, Trainer, trained_tensors
from MaskSAMCore.training.prompted import click_dice
from MaskSAMCore.training.validate import GivenLabels, click_figures, dice_per_class, in_words
from MaskSAMCore.zoo import base_weights, installed, model_folder

Predict = Callable[..., Tensor]
FEATURES, ANSWERS, MODEL, CONFIG = "features", "answers", "model", "config.json"
OVERLAYS = 4


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The command's options; see `MaskSAMCore.train`.

    Attributes:
        words: What somebody has written for the card.
    """

    dataset: Path
    folder: Path
    preset: str = "core-mobile"
    overrides: tuple[str, ...] = ()
    base: Path | None = None
    init: str | None = None
    teacher: str | None = None
    fold: str = "0"
    name: str | None = None
    resume: bool = False
    dry_run: bool = False
    cache: Path | None = None
    device: str = "auto"
    words: Words = field(default_factory=Words)


class Run:
    """Everything around the loop: data, network, folder, validation and the model folder.

    Args:
        options: What was asked for.
        predict: `inference.sliding_window.slide_model`: scores (K, D, H, W) of a network and a prepared image
            (M, D, H, W); injected, since training does not know inference.
        note: Receives lines for the user.
    """

    def __init__(
        self,
        options: RunOptions,
        *,
        predict: Predict,
        note: Callable[[str], None],
        progress: Progress,
        cancel: CancelToken,
    ) -> None:
        self.options, self.predict, self.cancel = options, predict, cancel
        self.largest: Largest = "none"
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.note = note if self.rank == 0 else lambda text: None
        self.progress = progress if self.rank == 0 else lambda done, total, text: None

    def start(self) -> Path:
        """Train to the end and return the model folder."""
        folder = self.options.folder
        self._check_folder()
        with ExitStack() as stack:
            device = self._device(stack)
            if self.rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FolderLock(folder))
            self.dataset = self._prepared()
            self.config = fit_config(
                override(presets.get(self.options.preset), list(self.options.overrides)), self.dataset
            )
            check_config(self.config)
            check_network(self.config.model)
            self.split = self._split()
            self.dataset.check_config(self.config)
            check_mode(self.config, self.options.teacher)
            self.teacher = self._teacher(device)
            self.model, self.base = new_model(self.config, self.options.base, self.note)
            self.origin = self._initialise()
            if self.teacher is not None:
                self.origin["teacher"] = self.teacher.provenance
            self.log = MetricsLog(folder)
            trainer = self._trainer(device)
            if self.options.dry_run:
                trainer.trial()
                return folder
            if self.options.resume:
                trainer.resume()
            elif self.rank == 0:
                write_json(folder / CONFIG, to_dict(self.config), overwrite=True)
            self.log.restore(until_step=trainer.step)
            trainer.run()
            if self.rank == 0:
                for name in (FEATURES, ANSWERS):
                    shutil.rmtree(folder / name, ignore_errors=True)
        return folder / MODEL

    def _check_folder(self) -> None:
        started = any((self.options.folder / CHECKPOINTS).glob("*.safetensors"))
        if started and not (self.options.resume or self.options.dry_run):
            raise InputError(
                "the folder holds a run already",
                where=self.options.folder,
                remedy="Use --resume to go on with it, or name a new folder.",
            )

    def _device(self, stack: ExitStack) -> torch.device:
        device = choose_device(self.options.device)
        if self.world > 1:
            if device.type == "cuda":
                device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(device)
            # The others wait while the first process prepares data and features.
            patience = datetime.timedelta(hours=12)
            store, rank, world = next(torch.distributed.rendezvous("env://", timeout=patience))
            # A recipe's stages share one store, where none may find the addresses of the one before.
            torch.distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=torch.distributed.PrefixStore(self.options.folder.name, store),
                rank=rank,
                world_size=world,
                timeout=patience,
            )
            stack.callback(torch.distributed.destroy_process_group)
        self.note(describe(device))
        return device

    def _prepared(self) -> PreparedDataset:
        source = self.options.dataset
        if is_prepared(source):
            ready = PreparedDataset(source)
            ready.verify(progress=self.progress)
            return ready
        target = self.options.cache or self.options.folder / "cache"
        if self.rank == 0:
            from MaskSAMCore.data.build import prepare

            config = override(presets.get(self.options.preset), list(self.options.overrides))
            prepare(source, target, config, progress=self.progress, cancel=self.cancel)
        self._wait()
        return PreparedDataset(target)

    def _split(self) -> Split:
        if self.options.fold == "all":
            return Split(train=self.dataset.ids, val=())
        if not self.options.fold.isdecimal():
            raise InputError("expected a number or 'all'", where=f"--fold {self.options.fold}")
        return self.dataset.fold(int(self.options.fold))

    def _initialise(self) -> dict[str, Any]:
        """Start from another model's weights, if asked to; returns what the card says about it."""
        if self.options.init is None:
            return {}
        card = installed.load_trained(self.model, self.options.init)
        done = {"name": card.name, "weights_sha256": card.weights_sha256, "steps": card.provenance.get("steps")}
        self.note(f"starts from {card.name}, trained for {done['steps']} steps")
        seen = set(card.provenance.get("training_cases", ())) & set(self.split.val)
        if seen and card.provenance.get("dataset") == self.dataset.name:
            self.note(f"WARNING: it was trained on {len(seen)} of the validation cases: the figures will be too good")
        return {"starts_from": done}

    def _teacher(self, device: torch.device) -> Teacher | None:
        """Whom the student learns from; the configuration names it from now on, so that a resumed run knows it."""
        if self.options.teacher is None:
            return None
        teacher = Teacher(self.options.teacher, device, self.predict)
        for doubt in teacher.check(self.dataset):
            self.note(f"WARNING: {doubt}")
        self.config = replace(self.config, train=replace(self.config.train, teacher=teacher.title))
        self.note(f"learns from {teacher.title}, the labels' share is {self.config.train.seg_share:g}")
        return teacher

    def _trainer(self, device: torch.device) -> Trainer:
        config = self.config
        rule = mirror_rule(self.dataset.plan, self.dataset.labels, config.data)
        sampler = PatchSampler(
            self.dataset,
            self.split.train,
            patch=config.model.patch,
            batch=config.train.batch,
            foreground=config.data.foreground,
            seed=config.train.seed,
            augment=config.data.augment,
            mirror=rule,
            scores=self._stored_answers(),
        )

        def full(step: int, rank: int) -> Batch:
            drawn = sampler.batch(step, rank=rank, world=self.world)
            return Batch(drawn.image, drawn.label, drawn.valid, answers=drawn.scores)

        model = self.model.to(device)
        frozen = None
        if config.train.frozen_epochs and config.train.frozen_copies and not self.options.dry_run:
            frozen = self._features(model, rule).batch
        return Trainer(
            model=model,
            config=config,
            criterion=build_loss(config.model),
            teacher=self.teacher,
            sources=Sources(frozen=frozen, full=full),
            hooks=Hooks(
                validate=self._validate,
                release=self._release,
                log=self._log,
                note=self.note,
                progress=self.progress,
                cancel=self.cancel,
            ),
            folder=self.options.folder,
            base=self.base,
            device=device,
            dtype=autocast_dtype(device, config.train.precision),
            rank=self.rank,
            world=self.world,
        )

    def _stored_answers(self) -> Callable[[str], np.ndarray] | None:
        """What the teacher said of a case, where it answers beforehand; in a dry run zeros of the same size."""
        if self.teacher is None or self.config.train.answers == "live":
            return None
        if self.options.dry_run:
            classes = self.config.model.classes
            return lambda case: np.zeros((classes, *self.dataset.case(case).label.shape), np.float16)
        folder, cases = self.options.folder / ANSWERS, self.split.train
        if self.rank == 0:
            self.teacher.store(folder, self.dataset, cases, progress=self.progress, check=self.cancel.check)
        self._wait()
        return partial(read_answers, folder)

    def _features(self, model: Segmenter, rule: MirrorRule) -> features.FrozenBatches:
        config, folder = self.config, self.options.folder / FEATURES
        copies = config.train.frozen_copies
        names = [f"{case}.{copy}" for case in self.split.train for copy in range(copies)]
        if self.rank == 0:
            key = {
                "base": self.base,
                "input": [config.model.channels, config.model.patch, config.model.stem.upsample],
                "backbone": to_dict(config.model.backbone),
                "data": to_dict(config.data),
                "cases": self.dataset.hashes(self.split.train),
                "copies": copies,
                "seed": config.train.seed,
            }
            features.build_cache(
                folder,
                self.split.train,
                self._copies(rule),
                model.eval(),
                count=copies,
                key=key,
                progress=self.progress,
                check=self.cancel.check,
            )
        self._wait()
        return features.FrozenBatches(
            folder,
            names,
            patch=config.model.patch,
            batch=config.train.batch,
            foreground=config.data.foreground,
            seed=config.train.seed,
        )

    def _copies(self, rule: MirrorRule) -> features.Copies:
        config = for_fixed_copies(self.config.data.augment)

        def copy(case_id: str, number: int) -> tuple[np.ndarray, np.ndarray]:
            case = self.dataset.case(case_id)
            image, label = np.asarray(case.image, np.float32), np.asarray(case.label)
            if number == 0:
                return image, label
            drawn = generator(self.config.train.seed, 4, self.dataset.ids.index(case_id), number)
            return augment_case(image, label, config, drawn, plan=self.dataset.plan, mirror=rule)

        return copy

    def _wait(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()

    def _validate(self, model: Segmenter, epoch: int) -> dict[str, float]:
        """Dice per label over the validation cases, on the prepared grid; overlays of the first few.

        A model that takes prompts only is asked by simulated users, and "val dice" is the mean over their figures.
        """
        cases = self._validation_cases()
        names = [label.name for label in self.dataset.labels.labels]
        scores: dict[Largest, list[list[float]]] = {mode: [] for mode in MODES}
        clicks: list[dict[str, float]] = []
        for index, case_id in enumerate(cases):
            self.cancel.check()
            case = self.dataset.case(case_id)
            image = np.asarray(case.image, dtype=np.float32)
            if self.config.train.mode in ("prompt", "mixed"):
                padded, labels = (pad_to(a, model.cfg.patch)[0] for a in (image, np.asarray(case.label)))
                clicks.append(click_dice(model, padded, labels, model.cfg.patch))
            self.progress(index + 1, len(cases), "validating")
            if model.cfg.prompts_only:
                continue
            predicted = self._predict(model, image, case.label)
            for mode, rows in scores.items():
                rows.append(dice_per_class(keep_largest(predicted, mode), case.label, len(names) + 1))
            if index < OVERLAYS:
                self._picture(case_id, image[0], np.asarray(case.label), predicted)
        if not cases:
            return {}
        if model.cfg.prompts_only:
            found = click_figures(clicks)
            self.note(f"epoch {epoch}: Dice {in_words(found)} on {len(cases)} validation case(s), in one patch")
            return found | ({"val dice": round(float(np.mean(list(found.values()))), 4)} if found else {})
        means = {mode: [float(v) for v in np.nanmean(np.array(rows), axis=0)] for mode, rows in scores.items()}
        self.largest = choose_largest(means)
        best = means[self.largest]
        figures = {f"val {name}": round(mean, 4) for name, mean in zip(names, best, strict=True)}
        figures["val dice"] = round(float(np.nanmean(best)), 4)
        text = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(names, best, strict=True))
        kept = "" if self.largest == "none" else f", largest components: {self.largest}"
        self.note(f"epoch {epoch}: Dice {text} on {len(cases)} validation case(s), prepared grid{kept}")
        if clicks:
            found = click_figures(clicks)
            self.note("  with prompts, in one patch: " + in_words(found))
            figures |= found
        return figures

    def _validation_cases(self) -> Sequence[str]:
        most = self.config.train.validate_cases
        return self.split.val[:most] if most else self.split.val

    def _predict(self, model: Segmenter, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        if model.cfg.source.kind == "gt":
            # With prompts from the ground truth, the labels travel through the windows as one more channel.
            image = np.concatenate([image, np.asarray(label, np.float32)[None]])
            return self.predict(GivenLabels(model), image).argmax(0).cpu().numpy()
        return self.predict(model, image).argmax(0).cpu().numpy()

    def _picture(self, case: str, image: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            return
        from MaskSAMCore.training.report import save_overlay

        path = self.options.folder / "overlays" / f"{case}.png"
        picture = "rgb" in self.dataset.plan.normalisation
        save_overlay(image, reference, predicted, self.dataset.labels, path, picture=picture)

    def _log(self, row: dict[str, Any]) -> None:
        self.log.add(row)
        if importlib.util.find_spec("matplotlib") is None:
            return
        from MaskSAMCore.training.report import save_curves

        save_curves(self.log, self.dataset.labels, self.options.folder / "curves.png")

    def _release(self, model: Segmenter, figures: dict[str, float], step: int) -> None:
        name = self.options.name or model_name(self.dataset.name)
        card = model_card(
            name=name,
            config=released(self.config, model),
            dataset=self.dataset,
            split=self.split,
            fold=self.options.fold,
            base=self.base,
            step=step,
            figures=figures,
            origin=self.origin,
            largest=self.largest,
        )
        words = self.options.words
        licence = words.licence or card.licence
        card = replace(card, description=words.description, limits=words.limits, licence=licence)
        tensors = trained_tensors(model, base=bool(self.base["name"]))
        model_folder.save_model(self.options.folder / MODEL, card, tensors, model_readme(card), overwrite=True)


def released(config: Config, model: Segmenter) -> Config:
    """The configuration as a model folder tells it: without the decoder as long as that was not trained.

    The tensors are the same with it and without, so a later run can start from such a model.
    """
    if model.decodes or config.model.decoder.kind == "none":
        return config
    decoder = replace(config.model.decoder, kind="none")
    return replace(config, model=replace(config.model, decoder=decoder))


def new_model(config: Config, base: Path | None, note: Callable[[str], None]) -> tuple[Segmenter, dict[str, str]]:
    """An untrained network on its base weights, and their name and hash.

    Args:
        config: What to build; its seed decides the first weights.
        base: File of the base weights; None finds them.
        note: Told what is trained.

    Raises:
        ModelError: The base weights are missing or damaged.
    """
    torch.manual_seed(config.train.seed)
    model = build_model(config.model)
    arch = config.model.backbone.arch
    if arch == "swin_unetr":
        note(f"{arch}: all {sum(p.numel() for p in model.parameters()):,} parameters are trained, from random ones")
        return model, {"name": "", "sha256": ""}
    if arch == "tiny" and base is None:
        note("backbone 'tiny' has random weights: for tests only")
        return model, {"name": "", "sha256": ""}
    path = base or base_weights.obtain_base(arch)
    base_weights.load_base(model, path)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    note(f"{arch}: {trainable:,} of {total:,} parameters are trained")
    return model, {"name": arch, "sha256": base_weights.cached_sha256(path)}
