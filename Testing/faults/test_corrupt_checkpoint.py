"""faults.md row 38: the newest checkpoint is corrupt; the previous one is used and that is said."""

from __future__ import annotations

import pytest
import torch

from MaskSAMCore.errors import ModelError
from MaskSAMCore.training import checkpoint


def save(folder, step):
    tensors = {"model.a": torch.full((100,), float(step))}
    return checkpoint.save(folder, checkpoint.Checkpoint(tensors=tensors, meta={"step": step, "optimizer": {}}))


@pytest.mark.parametrize("keep", [0, 1, 7, 60, 0.5, 0.99])
def test_previous_is_used_and_said(tmp_path, keep):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    data = newest.read_bytes()
    newest.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    found, problems = checkpoint.newest(tmp_path)
    assert found.step == 1
    assert torch.equal(found.tensors["model.a"], torch.ones(100))
    assert len(problems) == 1
    assert newest.name in problems[0]


def test_all_corrupt_is_an_error_that_lists_them(tmp_path):
    for step in (1, 2):
        save(tmp_path, step).write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="no checkpoint to resume from") as error:
        checkpoint.newest(tmp_path)
    assert "step-00000001" in str(error.value)
    assert "step-00000002" in str(error.value)
