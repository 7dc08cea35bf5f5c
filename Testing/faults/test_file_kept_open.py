"""faults.md row 60: Windows keeps a file open -> retried, then the result is kept and its place is shown.

Windows refuses to replace a file that another program has open (ERROR_SHARING_VIOLATION), which Python raises as
PermissionError. Here `os.replace` raises it for the held files, which is what would happen there.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore import outputs
from MaskSAMCore.data.save import save_case
from MaskSAMCore.data.verify import verify_dataset
from MaskSAMCore.errors import ResourceError
from MaskSAMCore.io import atomic
from MaskSAMCore.io.images import read_labels, write_labels
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.volume import LabelMap
from MaskSAMCore.worker.client import EngineClient
from Testing.dicom_phantom import dicom_series, ramp
from Testing.toy_model import bright_scan
from Testing.workers import place

HOLD = """
import os, sys
from MaskSAMCore.io import atomic
from Testing.fake_engine import FakeEngine, parser, serve
real = os.replace
def replace(source, target):
    if str(target) == os.environ["HELD"]:
        raise PermissionError(13, "The process cannot access the file", str(source), 32, str(target))
    real(source, target)
os.replace = replace
atomic._RETRY_SECONDS = 0.0
serve(FakeEngine, parser().parse_args().folder)
"""
"""A worker on a computer where somebody keeps the file HELD open."""

Hold = Callable[..., list[Path]]


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    """Lets files be held open for the next so many tries to move them or something onto them; notes the tries."""
    real, held, tries = os.replace, {}, []

    def replace(source: os.PathLike, target: os.PathLike) -> None:
        busy = next((path for path in (Path(source), Path(target)) if held.get(path)), None)
        if busy is not None:
            tries.append(busy)
            held[busy] -= 1
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(source), 32, str(target))
        real(source, target)

    def start(path: Path, times: float = float("inf")) -> list[Path]:
        held[path] = times
        return tries

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(atomic, "_RETRY_SECONDS", 0.0)
    yield start
    held.clear()


def labelmap(value: int = 1) -> LabelMap:
    volume, block = bright_scan()
    table = LabelTable(labels=(Label(id=1, name="a", color=(1, 1, 1)), Label(id=2, name="b", color=(2, 2, 2))))
    return LabelMap(array=block.astype(np.uint8) * value, grid=volume.grid, labels=table)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["r.seg.nrrd", "r.nii.gz"])
def test_one_file_is_tried_again_until_it_is_free(tmp_path: Path, hold: Hold, name: str) -> None:
    target = tmp_path / name
    target.write_bytes(b"old")
    tries = hold(target, 3)
    write_labels(labelmap(), target, overwrite=True)
    assert tries == [target] * 3
    assert read_labels(target).array.any()
    assert len(contents(tmp_path)) == 1


def test_one_file_that_stays_held_is_kept_beside_it(tmp_path: Path, hold: Hold) -> None:
    target, beside = tmp_path / "r.seg.nrrd", tmp_path / "r-new.seg.nrrd"
    target.write_bytes(b"old")
    hold(target)
    with pytest.raises(ResourceError) as caught:
        write_labels(labelmap(), target, overwrite=True)
    assert "another program has the output open" in str(caught.value)
    assert str(beside) in str(caught.value)
    assert target.read_bytes() == b"old"
    assert np.array_equal(read_labels(beside).array, labelmap().array)
    with pytest.raises(ResourceError):
        write_labels(labelmap(2), target, overwrite=True)
    assert len(contents(tmp_path)) == 3, "what was kept before is not replaced"


def test_a_set_of_outputs_is_replaced_when_its_files_are_free(tmp_path: Path, hold: Hold) -> None:
    case, volume = segmented(tmp_path)
    hold(case.targets[0], 2)
    hold(case.targets[3], 2)
    assert outputs.write(case, volume, labelmap(), overwrite=True) == list(case.targets)
    assert all(path.read_bytes() != b"old" for path in case.targets)
    assert len(contents(tmp_path)) == 4


@pytest.mark.parametrize("which", [0, 2, 3])
def test_a_set_of_outputs_with_a_held_file_stays_as_it_was_and_the_new_one_is_kept(
    tmp_path: Path, hold: Hold, which: int
) -> None:
    case, volume = segmented(tmp_path)
    hold(case.targets[which])
    with pytest.raises(ResourceError) as caught:
        outputs.write(case, volume, labelmap(), overwrite=True)
    kept = tmp_path / "out" / "c-new"
    assert str(kept) in str(caught.value)
    assert case.targets[which].name in str(caught.value)
    assert all(path.read_bytes() == b"old" for path in case.targets)
    assert sorted(contents(kept)) == ["c.csv", "c.nii.gz", "c.png", "c.seg.nrrd"]
    assert np.array_equal(read_labels(kept / "c.nii.gz").array, labelmap().array)


def segmented(folder: Path) -> tuple[outputs.Case, object]:
    """A case whose four files are there already, and its scan."""
    case = outputs.place([outputs.Case(name="c", scans=(folder / "c",))], folder / "out")[0]
    outputs.ready(case)
    for target in case.targets:
        target.write_bytes(b"old")
    return case, bright_scan()[0]


@pytest.mark.parametrize("held", ["labelsTr/one.nii.gz", "dataset.json"])
def test_a_training_set_with_a_held_file_stays_as_it_was_and_the_case_is_kept(
    tmp_path: Path, hold: Hold, held: str
) -> None:
    folder = tmp_path / "set"
    other = bright_scan(at=(slice(1, 4), slice(3, 9), slice(3, 9)))[0]
    save_case(folder, bright_scan()[0], labelmap(), name="one")
    save_case(folder, other, labelmap(), name="two")
    before = contents(folder)
    hold(folder / held)
    with pytest.raises(ResourceError) as caught:
        save_case(folder, bright_scan()[0], labelmap(2), name="one")
    assert str(folder / "one-new") in str(caught.value)
    assert Path(held).name in str(caught.value)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {
        f"one-new/{name}" for name in ("dataset.json", "one_0000.nii.gz", "one.nii.gz")
    }
    verify_dataset(folder)
    hold(folder / held, 4)
    assert save_case(folder, bright_scan()[0], labelmap(2), name="one").replaced
    assert read_labels(folder / "labelsTr" / "one.nii.gz").array.any()


def test_old_files_that_cannot_be_put_back_are_named_and_kept(
    tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worst case: the second file is held, and the first, moved away already, cannot return."""
    case, volume = segmented(tmp_path)
    hold(case.targets[1])
    holding = os.replace

    def one_way(source: os.PathLike, target: os.PathLike) -> None:
        if Path(source).name == "old-0":
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        holding(source, target)

    monkeypatch.setattr(os, "replace", one_way)
    with pytest.raises(ResourceError):
        outputs.write(case, volume, labelmap(), overwrite=True)
    assert (tmp_path / "out" / "c-new" / "old-0").read_bytes() == b"old"
    assert f"c.nii.gz: the old file could not be restored; it is in {tmp_path / 'out' / 'c-new'}" in caplog.text


def test_nothing_is_lost_where_not_even_the_folder_can_be_renamed(
    tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, volume = segmented(tmp_path)
    hold(case.targets[1])

    def refuse(folder: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, "The process cannot access the file")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ResourceError) as caught:
        outputs.write(case, volume, labelmap(), overwrite=True)
    (place,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert str(place) in str(caught.value)
    assert len(contents(place)) == 4


@pytest.mark.slow
def test_the_worker_tells_where_a_dicom_seg_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom_series(tmp_path / "ct", ramp())
    target = tmp_path / "s.dcm"
    target.write_bytes(b"old")
    (tmp_path / "pipes").mkdir()
    place(monkeypatch, tmp_path / "pipes")
    monkeypatch.setenv("HELD", str(target))
    one = {"name": "liver", "color": (1, 2, 3), "box": (0, 1, 0, 1, 0, 2), "mask": np.ones((1, 1, 2), np.uint8)}
    files = [str(path) for path in (tmp_path / "ct").iterdir()]
    affine = np.diag([-1, -1, 1, 1])
    with EngineClient(command=[sys.executable, "-c", HOLD]) as engine, pytest.raises(ResourceError) as caught:
        engine.submit(
            "export_seg", files=files, path=str(target), shape=ramp().shape, affine=affine, segments=[one]
        ).result()
    assert str(tmp_path / "s-new.dcm") in str(caught.value)
    assert target.read_bytes() == b"old"
    assert (tmp_path / "s-new.dcm").read_bytes()[128:132] == b"DICM"
