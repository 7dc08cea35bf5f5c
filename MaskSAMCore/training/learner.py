"""One optimiser step, and the averaged weights: shared by long runs and quick training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from MaskSAMCore.config.schema import Config
from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.losses.distillation import DistillationLoss
from MaskSAMCore.losses.segmentation import SegmentationLoss
from MaskSAMCore.losses.set_loss import BinaryLoss, SetLoss
from MaskSAMCore.network.click_unet import ClickUNet
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.network.types import Features
from MaskSAMCore.training.batches import Batch
from MaskSAMCore.training.clicks import train_clicks
from MaskSAMCore.training.prompted import train_prompted

MOMENTUM = 0.99
"""Of `train.optimizer=sgd`, as nnU-Net's."""

Criterion = SetLoss | BinaryLoss | SegmentationLoss
SoftLabeller = Callable[[Tensor, Tensor], Tensor]
"""A teacher: patches (B, M, D, H, W) and valid slices (B, D) to probabilities (B, K, D, H, W), without gradient."""


class Objective(Enum):
    """What a step trains: the generator alone, all of automatic mode, prompts of users, or a student."""

    GENERATOR = "generator"
    AUTOMATIC = "automatic"
    PROMPTS = "prompts"
    DISTILLATION = "distillation"


class Task(nn.Module):
    """One forward pass and its loss, for every objective; distributed runs wrap it.

    Args:
        model: The network.
        criterion: Loss of automatic mode.
        teacher: Gives a student's soft labels.
        share: Share λ of the labels in a student's loss.
        keep_generator: Prompts do not train encoder and generator.
    """

    def __init__(
        self,
        model: Segmenter,
        criterion: Criterion,
        *,
        teacher: SoftLabeller | None = None,
        share: float = 1.0,
        keep_generator: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.criterion, self.teacher = model, criterion, teacher
        self.keep_generator = keep_generator
        self.distillation: DistillationLoss | None = None
        if teacher is not None and isinstance(criterion, SegmentationLoss):
            self.distillation = DistillationLoss(criterion, share)

    def forward(
        self,
        image: Tensor,
        features: Features | None,
        label: Tensor,
        valid: Tensor,
        soft_labels: Tensor | None,
        voxel: Tensor | None,
        objective: Objective,
        user: tuple[int, ...],
    ) -> dict[str, Tensor]:
        """Loss and terms; tensors as of `Batch`.

        Args:
            image, features, label, valid, soft_labels, voxel: The batch.
            objective: What is trained.
            user: Seed of the simulated users.

        Raises:
            ValueError: The generator alone, where its masks have no classes (`ModelConfig.names_masks`), or a student
                without a teacher.
        """
        if isinstance(self.model, ClickUNet) and voxel is not None:
            return train_clicks(self.model, image, label, voxel, np.random.default_rng(user))
        if objective is Objective.PROMPTS:
            with torch.no_grad() if self.keep_generator else nullcontext():
                slab = self.model.slab(image, features)
            return train_prompted(self.model, slab, label, valid, np.random.default_rng(user))
        if objective is Objective.AUTOMATIC and not self._ends_with_generator():
            return self.criterion(self.model(image, features, label), label, valid)
        if objective is Objective.DISTILLATION:
            if self.distillation is None or self.teacher is None:
                raise ValueError("a student needs a teacher and class logits")
            if soft_labels is None:
                soft_labels = self.teacher(image, valid)
            return self.distillation(self.model(image), label, valid, soft_labels)
        if isinstance(self.criterion, BinaryLoss):
            raise ValueError("given prompts have no generator")
        features = self.model.encode(image) if features is None else features
        return self.criterion.generator(self.model.generator_logits(features, image), label, valid)

    def _ends_with_generator(self) -> bool:
        """Whether the result of automatic mode is the generator's masks, which have a loss of their own."""
        ends = self.model.cfg.decoder.kind == "none" and isinstance(self.criterion, SetLoss)
        return ends and self.model.cfg.loss.generator > 0


class Learner:
    """A model and the state of its optimisation; `step` counts the steps done.

    Args:
        model: The network, with its base weights.
        config: What to train.
        criterion: Loss of automatic mode.
        teacher: Gives a student's soft labels.
        device: Where to train.
        dtype: Number format of autocast; None for fp32.
        rank, world: This process's number in a distributed run, and how many there are.
    """

    if_it_diverges = "Lower train.lr, or set train.precision=fp32."

    def __init__(
        self,
        *,
        model: Segmenter,
        config: Config,
        criterion: Criterion,
        teacher: SoftLabeller | None = None,
        device: torch.device,
        dtype: torch.dtype | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.model, self.config, self.cfg = model.to(device), config, config.train
        self.device, self.dtype, self.rank, self.world = device, dtype, rank, world
        self.model.set_checkpointing(self.cfg.checkpointing)
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = _optimizer(config, list(self.trainable.values()))
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.ema = {n: p.detach().clone() for n, p in self.trainable.items()} if self.cfg.ema else {}
        self.step = 0
        self.net: nn.Module = Task(
            self.model,
            criterion,
            teacher=teacher,
            share=self.cfg.seg_share,
            keep_generator=self.cfg.keep_generator,
        )
        if world > 1:
            ids = [device] if device.type == "cuda" else None
            # The frozen phase leaves the encoder's adapters out, prompts from the ground truth the class head.
            self.net = DistributedDataParallel(self.net, device_ids=ids, find_unused_parameters=True)

    def optimise(self, batches: Iterator[Batch], *, lr: float, objective: Objective) -> dict[str, float]:
        """One optimiser step over `accumulate` micro-batches; returns the mean loss terms. `step` stays as it is.

        Args:
            batches: As many as `train.accumulate` are taken.
            lr: Learning rate.
            objective: What is trained.

        Raises:
            MaskSAMError: Loss or gradient are not finite; the weights are those before the step.
        """
        # Seeded by its number, a step draws the same random numbers after a resume.
        seed = (self.cfg.seed, self.step, self.rank)
        torch.manual_seed(hash(seed) & 0x7FFFFFFF)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        terms: dict[str, float] = {}
        for index in range(self.cfg.accumulate):
            batch = next(batches).to(self.device)
            synchronise = index + 1 == self.cfg.accumulate or self.world == 1
            with nullcontext() if synchronise else self._no_sync():
                with self.autocast():
                    parts = batch.image, batch.features, batch.label, batch.valid, batch.soft_labels, batch.voxel
                    losses: dict[str, Tensor] = self.net(*parts, objective, (*seed, index))
                self.scaler.scale(losses["loss"] / self.cfg.accumulate).backward()
            # One transfer for all terms: each would wait for the GPU.
            values = torch.stack([value.detach().float() for value in losses.values()]).tolist()
            for name, value in zip(losses, values, strict=True):
                terms[name] = terms.get(name, 0.0) + value / self.cfg.accumulate
        if not math.isfinite(terms["loss"]):
            raise self._diverged("the loss is not a number")
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trainable.values(), self.cfg.clip)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise self._diverged("a gradient is not a number")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        return terms

    def _no_sync(self) -> AbstractContextManager[None]:
        return self.net.no_sync() if isinstance(self.net, DistributedDataParallel) else nullcontext()

    def autocast(self) -> torch.autocast:
        """Context in which the network computes in the training's number format."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def _diverged(self, why: str) -> MaskSAMError:
        return MaskSAMError("training diverged", where=f"step {self.step}", why=why, remedy=self.if_it_diverges)

    def _average(self) -> None:
        if self.ema:
            decay = min(self.cfg.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                averages = list(self.ema.values())
                torch._foreach_lerp_(averages, [p.detach() for p in self.trainable.values()], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the model has its averaged weights and is in evaluation mode."""
        current = {name: p.detach().clone() for name, p in self.trainable.items()} if self.ema else {}
        with torch.no_grad():
            for name, value in self.ema.items():
                self.trainable[name].copy_(value)
        self.model.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in current.items():
                    self.trainable[name].copy_(value)
            self.model.train()


def _optimizer(config: Config, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    cfg = config.train
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=cfg.lr, momentum=MOMENTUM, nesterov=True, weight_decay=cfg.weight_decay)
    kind = torch.optim.Adam if cfg.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=cfg.lr, eps=cfg.eps, weight_decay=cfg.weight_decay)
