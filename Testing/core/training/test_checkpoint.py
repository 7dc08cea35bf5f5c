"""Checkpoints come back bit for bit, and a damaged one is noticed."""

from __future__ import annotations

import copy

import pytest
import torch

from MaskSAMCore.errors import ModelError
from MaskSAMCore.training import checkpoint


def make(step: int) -> checkpoint.Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return checkpoint.Checkpoint(
        tensors={"model.a": torch.randn(3, 4, generator=generator), "optim.0.step": torch.tensor(float(step))},
        meta={"step": step, "optimizer": {}},
    )


def test_round_trip(tmp_path):
    saved = make(7)
    checkpoint.save(tmp_path, saved)
    loaded, problems = checkpoint.newest(tmp_path)
    assert problems == []
    assert loaded.step == 7
    assert loaded.meta == saved.meta
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in saved.tensors.items())


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, make(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
    ]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_optimizer_state_survives(tmp_path, kind):
    def build():
        layer = torch.nn.Linear(3, 2)
        options = {"lr": 0.1, "weight_decay": 0.01}
        return layer, (
            torch.optim.AdamW(layer.parameters(), **options)
            if kind == "adamw"
            else torch.optim.SGD(layer.parameters(), momentum=0.9, **options)
        )

    def step(layer, optimizer):
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    layer, optimizer = build()
    step(layer, optimizer)
    tensors, scalars = checkpoint.pack_optimizer(optimizer)
    checkpoint.save(tmp_path, checkpoint.Checkpoint(tensors=tensors, meta={"step": 1, "optimizer": scalars}))
    other, resumed = build()
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    checkpoint.unpack_optimizer(resumed, checkpoint.newest(tmp_path)[0])
    step(layer, optimizer)
    step(other, resumed)
    assert torch.equal(layer.weight, other.weight)


def test_flipped_byte_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path, make(1))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="damaged"):
        checkpoint.load(path)
