"""The list of all settings, and settings that would be ignored."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from MaskSAMCore import train
from MaskSAMCore.config import presets
from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import former_keys, from_dict, leaf_keys, override, to_dict, value_at
from MaskSAMCore.config.settings import Overruled, attribute_docs, check_kept, settings
from MaskSAMCore.errors import InputError


def sections(cls: type) -> Iterator[type]:
    yield cls
    for hint in typing.get_type_hints(cls).values():
        if dataclasses.is_dataclass(hint):
            yield from sections(typing.cast(type, hint))


@pytest.mark.parametrize("cls", dict.fromkeys(sections(Config)))
def test_every_field_is_documented(cls: type) -> None:
    docs = attribute_docs(cls)
    assert set(docs) == {each.name for each in dataclasses.fields(cls)}
    assert all(text.endswith(".") and len(text) > 8 for text in docs.values())


def test_every_key_is_listed_with_its_default() -> None:
    found = {each.key: each for each in settings(presets.get("core-mobile"))}
    assert list(found) == [key for key in leaf_keys(Config) if key != "preset"]
    assert found["model.stem.kind"].values == "conv | lean | repeat | none"
    assert found["model.stem.kind"].default == "repeat"
    assert found["model.patch"].values == "[integer, integer, integer]"
    assert found["data.spacing"].values == "[number, number, number] | null"
    assert found["model.source.widths"].values == "[integer, ...]"
    assert "\n" not in found["train.mode"].about
    assert not [key for key, each in found.items() if "§" in each.about or not each.about]


@pytest.mark.parametrize("preset", ["core-mobile", "masksam-acdc", "swin-tiny"])
def test_the_defaults_are_taken_as_they_are_printed(preset: str) -> None:
    config = presets.get(preset)
    assert override(config, [f"{each.key}={each.default}" for each in settings(config)]) == config


def test_the_list_needs_neither_data_nor_torch(repo: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom MaskSAMCore import train\n"
        "sys.exit(train.main(['--list-settings', '--preset', 'swin-tiny', '--set', 'train.epochs=7']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "preset swin-tiny" in done.stdout
    assert "\nmodel.backbone.arch=swin_unetr\n" in done.stdout
    assert "\ntrain.epochs=7\n" in done.stdout


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("stem.kind=lean", 'Did you mean "model.stem.kind"?'),
        ("upsample=2", 'Did you mean "model.stem.upsample"?'),
        ("model.stem.knd=lean", 'Did you mean "model.stem.kind"?'),
        ("train.epoch=7", 'Did you mean "train.epochs"?'),
        ("epoch=7", 'Did you mean "epochs"?'),
        ("kind=lean", "Write it in full: model.dec_image.kind, "),
        ("model.stem=lean", "It has the keys model.stem.kind, model.stem.residual, model.stem.upsample."),
        ("model.stem.kind=leen", 'Did you mean "lean"?'),
        ("nonsense=1", "--list-settings"),
    ],
)
def test_a_key_that_is_not_known_gets_a_suggestion(setting: str, remedy: str) -> None:
    with pytest.raises(InputError) as raised:
        override(Config(), [setting])
    assert remedy in raised.value.remedy


def test_a_key_that_became_a_constant_is_read_at_its_value_and_not_written() -> None:
    config = presets.get("tiny")
    assert override(config, ["train.momentum=0.99"]) == config
    assert from_dict(Config, {"train": {"momentum": 0.99}}) == Config()
    assert value_at(config, "train.momentum") == 0.99
    assert "momentum" not in to_dict(config)["train"]
    assert not set(former_keys(Config)) & set(leaf_keys(Config))


@pytest.mark.parametrize("setting", ["train.momentum=0.9", "model.backbone.pos_mode=interpolate", "model.loss.aux=1"])
def test_a_key_that_became_a_constant_has_no_other_value(setting: str) -> None:
    key = setting.partition("=")[0].replace(".", r"\.")
    with pytest.raises(InputError, match=f"{key}: this setting is a constant now"):
        override(Config(), [setting])


def test_a_value_that_is_replaced_is_refused_with_the_most_precise_reason() -> None:
    assignments = ["model.patch=[1,2,3]", "model.patch=[4,16,16]", "train.lr=1"]
    asked = override(presets.get("tiny"), assignments)
    check_kept(assignments, asked, override(asked, ["train.epochs=9"]), {})
    used = override(asked, ["model.patch=[8,16,16]"])
    reasons = {"model": Overruled(why="far", remedy="-"), "model.patch": Overruled(why="near", remedy="do this")}
    with pytest.raises(InputError) as raised:
        check_kept(assignments, asked, used, reasons)
    assert (raised.value.where, raised.value.why) == ("--set model.patch", "near")
    assert "[4, 16, 16] would not be used, but [8, 16, 16]" in str(raised.value)


@pytest.mark.parametrize("setting", ["model.classes=9", "model.stem.upsample=1", "model.patch=[8,64,64]"])
def test_training_refuses_what_it_would_fit_to_the_data(
    phantom_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    options = [str(phantom_data), "-o", str(tmp_path / "run"), "--preset", "tiny", "--device", "cpu"]
    options += ["--set", "data.fit_patch=true", "--set", "train.iterations=1", "--set", setting]
    assert train.main(options) == 2
    message = capsys.readouterr().err
    assert f"--set {setting.partition('=')[0]}" in message
    assert "would not be used" in message
    assert "Leave it out" in message


def test_data_set_and_folder_are_required_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    for words, missing in ((["data"], "--output"), (["-o", "run"], "DATASET")):
        with pytest.raises(SystemExit):
            train.main(words)
        assert missing in capsys.readouterr().err
