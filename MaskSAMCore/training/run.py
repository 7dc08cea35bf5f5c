"""One run of training, from a data set or cache to a model folder: what `train` does (product.md §2)."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from MaskSAMCore.config import presets
from MaskSAMCore.config.check import check_config
from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import override, to_dict
from MaskSAMCore.config.settings import Overruled, check_kept
from MaskSAMCore.data.dataset import PreparedDataset, is_prepared
from MaskSAMCore.data.splits import Split
from MaskSAMCore.device import autocast_dtype, choose_device, describe
from MaskSAMCore.errors import InputError
from MaskSAMCore.io.atomic import FolderLock, write_json
from MaskSAMCore.losses.set_loss import build_loss
from MaskSAMCore.network.build import build_model, check_network
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.progress import CancelToken, Progress
from MaskSAMCore.training.batch_sources import FEATURES, SOFT_LABELS, BatchSources
from MaskSAMCore.training.card import model_card, model_name, model_readme
from MaskSAMCore.training.distillation_teacher import DistillationTeacher, check_mode
from MaskSAMCore.training.distributed import Processes
from MaskSAMCore.training.fit import FITTED_SETTINGS, fit_config
from MaskSAMCore.training.log import MetricsLog
from MaskSAMCore.training.loop import Hooks, Trainer, trained_tensors
from MaskSAMCore.training.run_record import (
    CACHE,
    CHECKPOINTS,
    CONFIG,
    DEFAULT_FOLD,
    MODEL,
    RUN,
    RunOptions,
    check_data,
    record_of,
    resumed_options,
    write_record,
)
from MaskSAMCore.training.validate import Predict, Validation
from MaskSAMCore.zoo import base_weights, installed, model_folder

BY_THE_COMMAND = Overruled(why="the command fills it in", remedy="Name the teacher with --teacher.")


class Run:
    """Everything around the training loop: data, network, folder, and the model folder.

    Args:
        options: What the user asked for.
        predict: The sliding window; injected, since training does not import inference.
        log: Called with lines of text for the user.
        progress: Called after every case and step.
        cancel: Checked before every case and after every step.
    """

    dataset: PreparedDataset
    config: Config
    split: Split
    model: Segmenter
    validation: Validation
    fold: str
    name: str

    def __init__(
        self,
        options: RunOptions,
        *,
        predict: Predict,
        log: Callable[[str], None],
        progress: Progress,
        cancel: CancelToken,
    ) -> None:
        self.options, self.predict, self.cancel = options, predict, cancel
        self.processes = Processes()
        self.log = log if self.processes.first else lambda text: None
        self.progress: Progress = progress if self.processes.first else lambda done, total, text: None
        self.base: dict[str, str] = {}
        self.origin: dict[str, Any] = {}

    def start(self) -> Path:
        """Train to the end and return the model folder.

        Raises:
            InputError: An option, a setting or the data cannot be used.
            Cancelled: Asked to stop; `resume` continues.
        """
        folder = self.options.folder
        self._check_folder()
        with ExitStack() as stack:
            device = self.processes.join(choose_device(self.options.device), folder.name, stack)
            self.log(describe(device))
            if self.processes.first:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FolderLock(folder))
            teacher = self._configure(device)
            self.model, self.base = new_model(self.config, self.options.base, self.log)
            self.origin = self._initialise()
            if teacher is not None:
                self.origin["teacher"] = teacher.provenance
            self._train(device, teacher)
        return folder / MODEL

    def _configure(self, device: torch.device) -> DistillationTeacher | None:
        """Read the data, decide the configuration and check it; returns the teacher."""
        given = self.options.dataset
        if self.options.resume:
            self.options, asked = resumed_options(self.options)
        else:
            preset = self.options.preset or presets.DEFAULT
            asked = override(presets.get(preset), self.options.overrides)
            self.options = replace(self.options, preset=preset)
        self.dataset = self._prepared(asked)
        self.fold, self.name = self.options.fold or DEFAULT_FOLD, self.options.name or model_name(self.dataset.name)
        self.options = replace(self.options, fold=self.fold, name=self.name)
        if self.options.resume:
            self.config = asked
            self._check_data(given)
        else:
            self.config = fit_config(asked, self.dataset)
        check_config(self.config)
        check_network(self.config.model)
        self.split = self._split()
        self.dataset.check_config(self.config)
        check_mode(self.config, self.options.teacher)
        teacher = self._teacher(device)
        if not self.options.resume:
            reasons = FITTED_SETTINGS | {"train.teacher": BY_THE_COMMAND}
            check_kept(self.options.overrides, asked, self.config, reasons)
        return teacher

    def _train(self, device: torch.device, teacher: DistillationTeacher | None) -> None:
        folder = self.options.folder
        metrics = MetricsLog(folder)
        trainer = self._trainer(device, teacher, metrics)
        if self.options.dry_run:
            trainer.trial()
            return
        if self.options.resume:
            trainer.resume()
        elif self.processes.first:
            write_json(folder / CONFIG, to_dict(self.config), overwrite=True)
            write_record(folder / RUN, self.options, dataset=self.dataset, recipe=None)
        metrics.restore(until_step=trainer.step)
        trainer.run()
        if self.processes.first:
            for name in (FEATURES, SOFT_LABELS):
                shutil.rmtree(folder / name, ignore_errors=True)

    def _check_folder(self) -> None:
        started = any((self.options.folder / CHECKPOINTS).glob("*.safetensors"))
        if started and not (self.options.resume or self.options.dry_run):
            raise InputError(
                "the folder holds a run already",
                where=self.options.folder,
                remedy="Use --resume to go on with it, or name a new folder.",
            )

    def _prepared(self, config: Config) -> PreparedDataset:
        source = self.options.dataset
        target = self.options.cache or self.options.folder / CACHE
        if self.options.resume and source is not None and not source.exists() and is_prepared(target):
            self.log(f"{source} does not exist any more: the cache {target} is used")
            source = target
        if source is None:
            raise InputError(
                "a data set is needed",
                where=self.options.folder,
                why="the run does not record which one it was started with" if self.options.resume else "",
                remedy="Name its folder.",
            )
        if is_prepared(source):
            ready = PreparedDataset(source)
            ready.verify(progress=self.progress)
            return ready
        if self.options.resume and is_prepared(target):
            # The cache was made before the patch was fitted to the data.
            patch = PreparedDataset(target).plan.patch
            config = replace(config, model=replace(config.model, patch=patch))
        if self.processes.first:
            from MaskSAMCore.data.build import prepare

            prepare(source, target, config, progress=self.progress, cancel=self.cancel)
        self.processes.wait()
        return PreparedDataset(target)

    def _check_data(self, given: Path | None) -> None:
        """Refuse data that a resumed run cannot go on with."""
        warning = check_data(record_of(self.options.folder), self.dataset, given)
        if warning:
            self.log(warning)
        model = self.config.model
        for name, recorded, found in (
            ("channels", model.channels, len(self.dataset.plan.channels)),
            ("classes", model.classes, self.dataset.labels.classes),
        ):
            if recorded != found:
                raise InputError(
                    f"the data set has another number of {name}",
                    where=self.dataset.name,
                    why=f"{found}, but the run was started with {recorded}",
                    remedy="Resume with the data set that the run was started with, or start a new run.",
                )

    def _split(self) -> Split:
        if self.fold == "all":
            return Split(train=self.dataset.ids, val=())
        if not self.fold.isdecimal():
            raise InputError("expected a number or 'all'", where=f"--fold {self.fold}")
        return self.dataset.fold(int(self.fold))

    def _initialise(self) -> dict[str, Any]:
        """Start from another model's weights, if asked to; returns the card's entry about it."""
        if self.options.init is None:
            return {}
        card = installed.load_trained(self.model, self.options.init)
        start = {"name": card.name, "weights_sha256": card.weights_sha256, "steps": card.provenance.get("steps")}
        self.log(f"starts from {card.name}, trained for {start['steps']} steps")
        seen = set(card.provenance.get("training_cases", ())) & set(self.split.val)
        if seen and card.provenance.get("dataset") == self.dataset.name:
            self.log(f"WARNING: it was trained on {len(seen)} of the validation cases: the figures will be too good")
        return {"starts_from": start}

    def _teacher(self, device: torch.device) -> DistillationTeacher | None:
        """The model that a student learns from; the configuration names it, so that a resumed run knows it.

        Raises:
            InputError: A resumed run had another teacher.
        """
        if self.options.teacher is None:
            return None
        teacher = DistillationTeacher(self.options.teacher, device, self.predict)
        for doubt in teacher.check(self.dataset):
            self.log(f"WARNING: {doubt}")
        recorded = self.config.train.teacher
        if self.options.resume and teacher.title != recorded:
            why = f"{teacher.title}, but the run was started with {recorded}"
            raise InputError("another teacher", where="--teacher", why=why, remedy="Resume with the same teacher.")
        self.config = replace(self.config, train=replace(self.config.train, teacher=teacher.title))
        self.log(f"learns from {teacher.title}, the labels' share is {self.config.train.seg_share:g}")
        return teacher

    def _trainer(self, device: torch.device, teacher: DistillationTeacher | None, metrics: MetricsLog) -> Trainer:
        config, folder = self.config, self.options.folder
        self.validation = Validation(
            self.dataset,
            self.split.val,
            config,
            overlays=folder / "overlays",
            predict=self.predict,
            log=self.log,
            progress=self.progress,
            cancel=self.cancel,
        )
        batches = BatchSources(
            self.dataset,
            self.split,
            config,
            folder=folder,
            processes=self.processes,
            progress=self.progress,
            cancel=self.cancel,
        )
        model = self.model.to(device)
        dry = self.options.dry_run
        return Trainer(
            model=model,
            config=config,
            criterion=build_loss(config.model),
            teacher=teacher,
            sources=batches.build_trial(teacher) if dry else batches.build(model, self.base, teacher),
            hooks=Hooks(
                validate=self.validation,
                release=self._release,
                add_row=lambda row: self._add_row(metrics, row),
                log=self.log,
                progress=self.progress,
                cancel=self.cancel,
            ),
            folder=folder,
            base=self.base,
            device=device,
            dtype=autocast_dtype(device, config.train.precision),
            rank=self.processes.rank,
            world=self.processes.world,
        )

    def _add_row(self, metrics: MetricsLog, row: dict[str, Any]) -> None:
        metrics.add(row)
        if importlib.util.find_spec("matplotlib") is None:
            return
        from MaskSAMCore.training.report import save_curves

        save_curves(metrics, self.dataset.labels, self.options.folder / "curves.png")

    def _release(self, model: Segmenter, figures: dict[str, float], step: int) -> None:
        """Write the model folder."""
        card = model_card(
            name=self.name,
            config=released(self.config, model),
            dataset=self.dataset,
            split=self.split,
            fold=self.fold,
            base=self.base,
            step=step,
            figures=figures,
            origin=self.origin,
            largest=self.validation.largest,
        )
        text = self.options.card
        licence = text.licence or card.licence
        card = replace(card, description=text.description, limits=text.limits, licence=licence)
        tensors = trained_tensors(model, base=bool(self.base["name"]))
        model_folder.save_model(self.options.folder / MODEL, card, tensors, model_readme(card), overwrite=True)


def released(config: Config, model: Segmenter) -> Config:
    """The configuration for a model's card: without the decoder as long as that was not trained.

    The tensors are the same with it and without, so a later run can start from such a model.
    """
    if model.decodes or config.model.decoder.kind == "none":
        return config
    decoder = replace(config.model.decoder, kind="none")
    return replace(config, model=replace(config.model, decoder=decoder))


def new_model(config: Config, base: Path | None, log: Callable[[str], None]) -> tuple[Segmenter, dict[str, str]]:
    """An untrained network on its base weights, and their name and hash.

    Args:
        config: What to build; its seed decides the first weights.
        base: File of the base weights; None finds them.
        log: Called with a line about what is trained.

    Raises:
        ModelError: The base weights are missing or damaged.
    """
    torch.manual_seed(config.train.seed)
    model = build_model(config.model)
    arch = config.model.backbone.arch
    if arch == "swin_unetr":
        log(f"{arch}: all {sum(p.numel() for p in model.parameters()):,} parameters are trained, from random ones")
        return model, {"name": "", "sha256": ""}
    if arch == "tiny" and base is None:
        log("backbone 'tiny' has random weights: for tests only")
        return model, {"name": "", "sha256": ""}
    path = base or base_weights.obtain_base(arch)
    base_weights.load_base(model, path)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    log(f"{arch}: {trainable:,} of {total:,} parameters are trained")
    return model, {"name": arch, "sha256": base_weights.cached_sha256(path)}
