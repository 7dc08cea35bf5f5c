"""faults.md row 42: a loss that is no number stops the run; the last good state stands and is never replaced."""

from __future__ import annotations

import pytest
import torch

from MaskSAMCore import train
from MaskSAMCore.losses import set_loss
from MaskSAMCore.training import checkpoint
from Testing.runs import arguments


@pytest.mark.slow
@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_stops_and_keeps_the_last_good_state(phantom_data, tmp_path, monkeypatch, capsys, poison):
    calls = 0
    good = set_loss.SetLoss.forward

    def forward(self, *args):
        nonlocal calls
        calls += 1
        terms = good(self, *args)
        if calls < 7:
            return terms
        if poison == "loss":
            return terms | {"loss": terms["loss"] * float("nan")}
        return terms | {"loss": terms["loss"] + 0 * torch.sqrt(terms["loss"] * 0)}

    monkeypatch.setattr(set_loss.SetLoss, "forward", forward)
    run = tmp_path / "run"
    assert train.main(arguments(phantom_data, run)) == 1
    message = capsys.readouterr().err
    assert "diverged" in message
    assert "step 6" in message
    assert "not a number" in message
    stored, _ = checkpoint.newest(run / "checkpoints")
    assert stored.step == 4
    assert all(torch.isfinite(tensor).all() for tensor in stored.tensors.values())
