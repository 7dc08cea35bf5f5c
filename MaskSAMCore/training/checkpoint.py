"""Checkpoints: one safetensors file each, complete or absent, verified when read (faults.md rows 38, 39, 46)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from MaskSAMCore.errors import ModelError
from MaskSAMCore.io.atomic import atomic_path

PATTERN = "step-*.safetensors"
KEPT = 2


@dataclass
class Checkpoint:
    """The state of a run after `step` optimiser steps.

    Attributes:
        tensors: "model.*", "ema.*" and "optim.<index>.<name>" tensors on the CPU.
        meta: JSON values: step, configuration, base weights, optimiser scalars, scaler, best score.
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return int(self.meta["step"])


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write atomically, then drop all but the newest `KEPT` files.

    Raises:
        ResourceError: The disk is full; older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{checkpoint.step:08d}.safetensors"
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
    meta = {"meta": json.dumps(checkpoint.meta), "digest": _digest(tensors)}
    with atomic_path(target, overwrite=True) as temporary:
        save_file(tensors, str(temporary), metadata=meta)
    for old in sorted(folder.glob(PATTERN))[:-KEPT]:
        old.unlink(missing_ok=True)
    return target


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        ModelError: The file is truncated, damaged, or not a checkpoint.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            stored = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        meta = json.loads(stored["meta"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelError("checkpoint cannot be read", where=path, why=str(error)) from error
    if stored.get("digest") != _digest(tensors):
        raise ModelError("checkpoint is damaged", where=path, why="its content does not match its digest")
    return Checkpoint(tensors=tensors, meta=meta)


def newest(folder: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that is whole, and what was wrong with newer ones.

    Raises:
        ModelError: There is no usable checkpoint; `--resume` never restarts silently.
    """
    problems: list[str] = []
    for path in sorted(folder.glob(PATTERN), reverse=True):
        try:
            return load(path), problems
        except ModelError as error:
            problems.append(str(error))
    raise ModelError(
        "no checkpoint to resume from",
        where=folder,
        why="; ".join(problems) or "the folder has none",
        remedy="Train without --resume to start anew.",
    )


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state as named tensors and JSON scalars; learning rates come from the schedule."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optim.{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    return tensors, scalars


def unpack_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """The inverse of `pack_optimizer`, into an optimiser over the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in checkpoint.tensors.items():
        if key.startswith("optim."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    for key, scalar in checkpoint.meta["optimizer"].items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = scalar
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
