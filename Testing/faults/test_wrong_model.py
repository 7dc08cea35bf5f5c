"""faults.md row 37: wrong architecture, version, depth or grid: the keys and both versions are listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from MaskSAMCore import __version__
from MaskSAMCore.config import presets
from MaskSAMCore.errors import ModelError
from MaskSAMCore.io.hashing import file_sha256
from MaskSAMCore.network.build import build_model
from MaskSAMCore.zoo import base_weights, installed, model_folder
from Testing.models import tiny_model


def edit_card(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "weights.safetensors"
    tensors = load_file(str(path))
    change(tensors)
    save_file(tensors, str(path))
    edit_card(folder, lambda card: card.update(weights_sha256=file_sha256(path), code_version="0.0.9"))


def message_of(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        installed.load_model(folder)
    assert caught.value.exit_code == 2
    assert str(folder) in caught.value.where
    return str(caught.value)


def test_missing_unknown_and_misshapen_keys_are_all_listed(tmp_path: Path) -> None:
    folder, network = tiny_model(tmp_path)
    gone, bent = list(network.state_dict())[:2]

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[gone]
        tensors["encoder.new.weight"] = torch.ones(1)
        tensors[bent] = torch.ones(*tensors[bent].shape, 2)

    edit_tensors(folder, change)
    message = message_of(folder)
    shape = tuple(network.state_dict()[bent].shape)
    assert f"missing from the file (1): {gone}" in message
    assert "unknown to the model (1): encoder.new.weight" in message
    assert f"of another shape (1): {bent} {(*shape, 2)} in the file, {shape} in the model" in message
    assert f"written by MaskSAM 0.0.9, this is MaskSAM {__version__}" in message


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), [("patch", [6, 32, 32]), ("channels", 2)])
def test_another_depth_or_input_is_refused(tmp_path: Path, key: str, value: object) -> None:
    folder, _ = tiny_model(tmp_path)
    edit_card(folder, lambda card: card["config"]["model"].update({key: value}))
    message = message_of(folder)
    assert "of another shape" in message
    assert "in the file" in message
    assert "in the model" in message


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    folder, _ = tiny_model(tmp_path)
    edit_card(folder, lambda card: card["config"]["model"]["backbone"].update(arch="mobile"))
    message = message_of(folder)
    assert "missing from the file" in message
    assert "more" in message


def test_another_format_names_both_versions(tmp_path: Path) -> None:
    folder, _ = tiny_model(tmp_path)
    edit_card(folder, lambda card: card.update(format_version=2, code_version="7.0.0", config={"what": "ever"}))
    message = message_of(folder)
    assert "MaskSAM 7.0.0 in format 2" in message
    assert f"MaskSAM {__version__} with format {model_folder.FORMAT_VERSION}" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card["config"]["model"].update(new_switch=True),
        lambda card: card["config"]["model"].update(patch="large"),
        lambda card: card.update(surprise=1),
        lambda card: card.pop("labels"),
        lambda card: card["config"]["model"].update(patch=[4, 33, 32]),
    ],
)
def test_a_card_of_another_version_names_the_key_and_both_versions(tmp_path: Path, change: Callable) -> None:
    folder, _ = tiny_model(tmp_path)
    edit_card(folder, lambda card: (change(card), card.update(code_version="0.2.0")))
    message = message_of(folder)
    assert "written by MaskSAM 0.2.0" in message
    assert f"this is MaskSAM {__version__}" in message


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"format_version": "1"}'])
def test_a_damaged_card_is_named(tmp_path: Path, text: str) -> None:
    folder, _ = tiny_model(tmp_path)
    (folder / "model.json").write_text(text)
    assert "model.json" in message_of(folder)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder, _ = tiny_model(tmp_path)
    expected = model_folder.load_card(folder).weights_sha256
    save_file({"x": torch.ones(1)}, str(folder / "weights.safetensors"))
    message = message_of(folder)
    assert expected in message
    assert file_sha256(folder / "weights.safetensors") in message


def test_a_base_of_another_architecture_is_refused(mobile_sam: Path) -> None:
    model = build_model(presets.get("tiny").model)
    with pytest.raises(ModelError) as caught:
        base_weights.load_base(model, mobile_sam)
    message = str(caught.value)
    assert "do not fit a 'tiny' backbone" in message
    assert str(mobile_sam) in message
    assert "missing from the file" in message
    assert "unknown to the model" in message


@pytest.mark.parametrize("change", ["drop", "add", "bend"])
def test_a_base_with_one_wrong_key_is_refused(tmp_path: Path, mobile_sam: Path, change: str) -> None:
    state = base_weights.load_base_state(mobile_sam)
    key = "prompt_encoder.no_mask_embed.weight"
    if change == "drop":
        del state[key]
    elif change == "add":
        state["image_encoder.new"] = torch.ones(1)
    else:
        state[key] = torch.ones(3)
    torch.save(state, tmp_path / "base.pt")
    model = build_model(presets.get("core-mobile").model)
    with pytest.raises(ModelError, match="no_mask_embed" if change != "add" else "encoder.sam.new"):
        base_weights.load_base(model, tmp_path / "base.pt")
