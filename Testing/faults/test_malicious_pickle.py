"""faults.md row 34: a checkpoint that would run code when opened is refused, and the code does not run."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from MaskSAMCore.errors import ModelError
from MaskSAMCore.zoo import base_weights, installed, model_folder
from Testing.models import tiny_model


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["torch", "plain pickle", "new pickle", "whole module"])
def test_a_base_that_holds_code_is_refused(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "was-run", tmp_path / "base.pt"
    if kind == "torch":
        torch.save({"image_encoder.x": Evil(mark)}, path)
    elif "pickle" in kind:
        path.write_bytes(pickle.dumps({"image_encoder.x": Evil(mark)}, protocol=2 if kind == "plain pickle" else 4))
    else:
        torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ModelError, match="refused") as caught:
        base_weights.load_base_state(path)
    assert str(path) in str(caught.value)
    reason = {"whole module": "Linear", "new pickle": "no checkpoint of tensors"}.get(kind, "mkdir")
    assert reason in caught.value.why
    assert "weights_only" not in str(caught.value), "no advice to load unsafely"
    assert not mark.exists()


def test_a_harmless_base_is_read(tmp_path: Path) -> None:
    torch.save({"image_encoder.x": torch.ones(2)}, tmp_path / "base.pt")
    assert base_weights.load_base_state(tmp_path / "base.pt")["image_encoder.x"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04 broken"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_base_is_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"base{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        base_weights.load_base_state(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("value", [[torch.ones(2)], {"epoch": 3, "image_encoder.x": torch.ones(2)}])
def test_a_base_that_is_no_dictionary_of_tensors_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "base.pt")
    with pytest.raises(ModelError, match="no dictionary of tensors"):
        base_weights.load_base_state(tmp_path / "base.pt")


def test_a_pickle_in_the_place_of_a_models_tensors_is_never_opened(tmp_path: Path) -> None:
    folder, _ = tiny_model(tmp_path)
    mark, weights = tmp_path / "was-run", folder / "weights.safetensors"
    torch.save({"x": Evil(mark)}, weights)
    card = (folder / "model.json").read_text()
    old = model_folder.load_card(folder).weights_sha256
    from MaskSAMCore.io.hashing import file_sha256

    (folder / "model.json").write_text(card.replace(old, file_sha256(weights)))
    with pytest.raises(ModelError, match="weights cannot be read"):
        installed.load_model(folder)
    shutil.copy(weights, folder / "weights.pt")
    weights.unlink()
    with pytest.raises(ModelError, match="incomplete"):
        installed.load_model(folder)
    assert not mark.exists()
