"""Files are complete or absent; a folder has one holder."""

from __future__ import annotations

import json

import pytest

from MaskSAMCore.errors import InputError, ResourceError
from MaskSAMCore.io import atomic
from MaskSAMCore.io.atomic import atomic_path, sweep_parts, write_bytes, write_json, write_text


def test_the_target_appears_only_at_the_end(tmp_path):
    target = tmp_path / "out.nii.gz"
    with atomic_path(target) as part:
        assert part.parent == tmp_path
        assert part.name.endswith(".nii.gz")
        part.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["out.nii.gz"]


def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target, overwrite=True) as part:
            part.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_appeared_meanwhile_is_kept(tmp_path):
    target = tmp_path / "out.txt"

    def write() -> None:
        with atomic_path(target) as part:
            part.write_text("mine")
            target.write_text("theirs")

    with pytest.raises(InputError, match="meanwhile"):
        write()
    assert target.read_text() == "theirs"


def test_text_and_json(tmp_path):
    write_text(tmp_path / "a.txt", "ä\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\n".encode()
    write_json(tmp_path / "a.json", {"x": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2.5]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_a_held_target_keeps_the_result_beside_it(tmp_path, monkeypatch):
    target = tmp_path / "out.nii.gz"
    target.write_bytes(b"old")
    real = atomic.os.replace

    def held(source, to):
        if to == target:
            raise PermissionError("open elsewhere")
        real(source, to)

    monkeypatch.setattr(atomic.os, "replace", held)
    monkeypatch.setattr(atomic, "_RETRY_SECONDS", 0.0)
    with pytest.raises(ResourceError, match=r"out-new\.nii\.gz"):
        write_bytes(target, b"new", overwrite=True)
    assert target.read_bytes() == b"old"
    assert (tmp_path / "out-new.nii.gz").read_bytes() == b"new"


def test_sweep_removes_only_old_temporaries(tmp_path):
    old = tmp_path / ".0123456789ab.part.nii.gz"
    old.write_bytes(b"x")
    (tmp_path / ".hidden.nii.gz").write_bytes(b"x")
    assert sweep_parts(tmp_path) == []
    assert sweep_parts(tmp_path, older_than_s=-1) == [old]
    assert [p.name for p in tmp_path.iterdir()] == [".hidden.nii.gz"]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: calls.append("sync"))
    real = atomic.os.replace
    monkeypatch.setattr(atomic.os, "replace", lambda a, b: (calls.append("name"), real(a, b)))
    write_bytes(tmp_path / "a", b"x")
    assert calls[:2] == ["sync", "name"]
