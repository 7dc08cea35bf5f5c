"""faults.md row 7: an archive member that leaves its folder is rejected, and nothing is written."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from MaskSAMCore.errors import ModelError
from MaskSAMCore.zoo import download, installed
from Testing.models import CONTENT, tiny_model

ESCAPES = ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:\\evil.txt", "C:evil.txt"]


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("name", ESCAPES)
def test_a_model_archive_with_such_a_member_is_rejected_whole(home: Path, tmp_path: Path, name: str) -> None:
    source, _ = tiny_model(tmp_path)
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        for path in source.iterdir():
            bundle.write(path, path.name)
        bundle.writestr(name, b"evil")
    before = tree(tmp_path)
    with pytest.raises(ModelError, match="points outside its folder") as caught:
        installed.import_model(archive)
    assert repr(name) in str(caught.value)
    assert str(archive) in str(caught.value)
    assert tree(tmp_path) - before <= {"home/models"}
    assert not Path("/tmp/evil.txt").exists()


def test_a_symbolic_link_in_the_place_of_a_file_is_refused(home: Path, tmp_path: Path) -> None:
    source, _ = tiny_model(tmp_path)
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        for name in ("model.json", "README.md"):
            bundle.write(source / name, name)
        link = zipfile.ZipInfo("weights.safetensors")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        bundle.writestr(link, "/etc/hostname")
    with pytest.raises(ModelError, match="no regular file"):
        installed.import_model(archive)
    assert list((home / "models").iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "absent"])
def test_a_package_member_that_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "tool-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as bundle:
        info = tarfile.TarInfo("tool-1.0/w.pt" if kind != "absent" else "tool-1.0/other.pt")
        info.linkname = "/etc/hostname"
        info.type = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "folder": tarfile.DIRTYPE}.get(
            kind, tarfile.REGTYPE
        )
        bundle.addfile(info)
    with pytest.raises(ModelError, match=r"no regular file 'tool-1\.0/w\.pt'"):
        download.extract_member(archive, "tool-1.0/w.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ESCAPES)
def test_such_a_member_is_not_extracted_even_when_asked_for(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "tool.tar.gz"
    with tarfile.open(archive, "w:gz") as bundle:
        info = tarfile.TarInfo(name)
        info.size = len(CONTENT)
        bundle.addfile(info, io.BytesIO(CONTENT))
    with pytest.raises(ModelError, match="points outside"):
        download.extract_member(archive, name, tmp_path / "out")


def test_only_the_wanted_member_is_written_and_only_where_we_say(tmp_path: Path) -> None:
    archive = tmp_path / "tool.tar.gz"
    with tarfile.open(archive, "w:gz") as bundle:
        for name in ("../../evil.txt", "tool/w.pt"):
            info = tarfile.TarInfo(name)
            info.size = len(CONTENT)
            bundle.addfile(info, io.BytesIO(CONTENT))
    download.extract_member(archive, "tool/w.pt", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == CONTENT
    assert tree(tmp_path) == {"tool.tar.gz", "out"}


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "tool.tar.gz"
    with tarfile.open(archive, "w:gz") as bundle:
        info = tarfile.TarInfo("tool/w.pt")
        info.size = len(CONTENT)
        bundle.addfile(info, io.BytesIO(CONTENT))
    archive.write_bytes(archive.read_bytes()[:-60])
    with pytest.raises(ModelError, match=r"tool\.tar\.gz:tool/w\.pt: member cannot be read"):
        download.extract_member(archive, "tool/w.pt", tmp_path / "out")
