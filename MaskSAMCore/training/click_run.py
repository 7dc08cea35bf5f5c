"""One run that trains the click model, from a collection of scans to a model folder."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from MaskSAMCore import __version__
from MaskSAMCore.config import presets
from MaskSAMCore.config.check import check_config
from MaskSAMCore.config.serialize import override, to_dict
from MaskSAMCore.data.collection import Collection, build_collection, is_collection
from MaskSAMCore.device import autocast_dtype, choose_device, describe
from MaskSAMCore.errors import InputError
from MaskSAMCore.io.atomic import FolderLock, write_json
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.losses.set_loss import build_loss
from MaskSAMCore.network.build import build_model, check_network
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.progress import CancelToken, Progress
from MaskSAMCore.training.card import model_readme
from MaskSAMCore.training.clicks import ClickSampler
from MaskSAMCore.training.log import MetricsLog
from MaskSAMCore.training.loop import Hooks, Sources, Trainer
from MaskSAMCore.training.run_record import (
    CACHE,
    CHECKPOINTS,
    CONFIG,
    MODEL,
    RUN,
    RunOptions,
    recorded_config,
    resumed_options,
    write_record,
)
from MaskSAMCore.zoo import installed, model_folder


class ClickRun:
    """Everything around the training of the click model.

    Args:
        options: What the user asked for.
        log: Called with lines of text for the user.
        progress: Called after every volume and step.
        cancel: Checked before every volume and after every step.
    """

    def __init__(
        self, options: RunOptions, *, log: Callable[[str], None], progress: Progress, cancel: CancelToken
    ) -> None:
        self.options, self.log, self.progress, self.cancel = options, log, progress, cancel

    def start(self) -> Path:
        """Train to the end and return the model folder.

        Raises:
            InputError: An option, a setting or the data cannot be used.
            Cancelled: Asked to stop; `resume` continues.
        """
        folder = self.options.folder
        self._check_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(FolderLock(folder))
            device = choose_device(self.options.device)
            self.log(describe(device))
            if self.options.resume:
                self.options, self.config = resumed_options(self.options)
            else:
                self.config = override(presets.get(self.options.preset or ""), self.options.overrides)
            check_config(self.config)
            check_network(self.config.model)
            self.collection = self._prepared()
            self._train(device)
        return folder / MODEL

    def _check_folder(self) -> None:
        started = any((self.options.folder / CHECKPOINTS).glob("*.safetensors"))
        if started and not (self.options.resume or self.options.dry_run):
            raise InputError(
                "the folder holds a run already",
                where=self.options.folder,
                remedy="Use --resume to go on with it, or name a new folder.",
            )
        for option, given in (("--teacher", self.options.teacher), ("--base", self.options.base)):
            if given is not None:
                raise InputError("the click model is trained without it", where=option, remedy="Leave it out.")

    def _prepared(self) -> Collection:
        source = self.options.dataset
        if source is None:
            raise InputError("a collection is needed", where=self.options.folder, remedy="Name its folder.")
        if is_collection(source):
            return Collection(source)
        target = self.options.cache or self.options.folder / CACHE
        return build_collection([source], target, progress=self.progress, cancel=self.cancel)

    def _train(self, device: torch.device) -> None:
        config, folder = self.config, self.options.folder
        torch.manual_seed(config.train.seed)
        model = build_model(config.model).to(device)
        self.origin: dict[str, Any] = {}
        if self.options.init is not None:
            card = installed.load_trained(model, self.options.init)
            self.origin = {"starts_from": {"name": card.name, "steps": card.provenance.get("steps")}}
            self.log(f"starts from {card.name}, trained for {card.provenance.get('steps')} steps")
        train, metrics = config.train, MetricsLog(folder)
        micro = train.epochs * train.iterations * train.accumulate
        sampler = ClickSampler(self.collection, steps=micro, seed=train.seed)
        trainer = Trainer(
            model=model,
            config=config,
            criterion=build_loss(config.model),
            sources=Sources(full=sampler.batch),
            hooks=Hooks(
                validate=lambda model, epoch: {},
                release=self._release,
                add_row=metrics.add,
                log=self.log,
                progress=self.progress,
                cancel=self.cancel,
            ),
            folder=folder,
            base={"name": "", "sha256": ""},
            device=device,
            dtype=autocast_dtype(device, train.precision),
        )
        if self.options.dry_run:
            trainer.trial()
            return
        if self.options.resume:
            trainer.resume()
        else:
            write_json(folder / CONFIG, to_dict(config), overwrite=True)
            write_record(folder / RUN, self.options, dataset=None, recipe=None)
        metrics.restore(until_step=trainer.step)
        trainer.run()

    def _release(self, model: Segmenter, figures: dict[str, float], step: int) -> None:
        """Write the model folder."""
        entries = [volume.entry for volume in self.collection.volumes.values()]
        provenance = {
            "dataset": " and ".join(dict.fromkeys(entry.group for entry in entries)),
            "training_cases": [entry.name for entry in entries],
            "validation_cases": [],
            "steps": step,
            "date": datetime.date.today().isoformat(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "masksam": __version__,
        } | self.origin
        text = self.options.card
        card = model_folder.ModelCard(
            name=self.options.name or "any",
            config=self.config,
            labels=LabelTable(labels=()),
            plan={},
            licence=text.licence,
            provenance=provenance,
            metrics={},
            description=text.description,
            limits=text.limits,
        )
        card = replace(card, metrics={"training": {"the answers": figures}} if figures else {})
        tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        model_folder.save_model(self.options.folder / MODEL, card, tensors, model_readme(card), overwrite=True)


def trains_clicks(options: RunOptions) -> bool:
    """Whether a run is one of the click model: by its record, or by its preset."""
    config = recorded_config(options.folder) if options.resume else presets.get(options.preset or presets.DEFAULT)
    return config.model.backbone.arch == "click_unet"
