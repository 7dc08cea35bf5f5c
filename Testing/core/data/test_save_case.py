"""Scans with their segments become training cases, one after the other, that training takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MaskSAMCore import prepare
from MaskSAMCore.data.raw import read_dataset
from MaskSAMCore.data.save import SavedCase, remove_case, safe_name, save_case
from MaskSAMCore.data.verify import verify_dataset
from MaskSAMCore.errors import DatasetError, GeometryError, InputError, ResourceError
from MaskSAMCore.io.atomic import FolderLock
from MaskSAMCore.io.images import read_labels, read_volume
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.progress import Cancelled, CancelToken
from MaskSAMCore.terminology import TISSUE, lookup
from MaskSAMCore.volume import Grid, LabelMap, Volume
from Testing.phantom import phantom_case, write_dataset

OBLIQUE = np.array([[-0.9, 0.1, 0, 20], [0.1, 0.9, 0, -7], [0, 0, 2.5, 3], [0, 0, 0, 1]])
LIVER, SPLEEN = lookup("liver").label(1), lookup("spleen").label(2)
BLOB = Label(id=3, name="Blob", color=(1, 2, 3))


def scan(seed: int = 0, *, modality: str | None = "MR") -> Volume:
    image, _ = phantom_case(seed)
    return Volume(array=image, grid=Grid(shape=image.shape, affine=OBLIQUE), source="scan", modality=modality)


def segmented(*labels: Label, seed: int = 0) -> LabelMap:
    """A slab for each label, one below the other."""
    array = np.zeros(phantom_case(seed)[0].shape, np.uint8)
    for place, label in enumerate(labels):
        array[2 * place : 2 * place + 2, 4:20, 5:25] = label.id
    grid = Grid(shape=array.shape, affine=OBLIQUE)
    return LabelMap(array=array, grid=grid, labels=LabelTable(labels=labels))


def save(folder: Path, *labels: Label, seed: int = 0, name: str = "scan", **more: Any) -> SavedCase:
    return save_case(folder, scan(seed, **more), segmented(*labels, seed=seed), name=name)


def description(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def label_file(folder: Path, name: str) -> np.ndarray:
    return read_labels(folder / "labelsTr" / f"{name}.nii.gz").array


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_case_is_saved_on_its_own_grid_with_names_codes_and_colours(tmp_path: Path) -> None:
    saved = save(tmp_path / "set", LIVER, BLOB)
    assert saved == SavedCase(name="scan", labels={"Liver": 1, "Blob": 2}, replaced=False, warnings=())
    assert files(tmp_path / "set") == ["dataset.json", "imagesTr/scan_0000.nii.gz", "labelsTr/scan.nii.gz"]
    image = read_volume(tmp_path / "set" / "imagesTr" / "scan_0000.nii.gz")
    assert np.array_equal(image.array, scan().array)
    assert image.grid.same_as(scan().grid)
    expected = segmented(LIVER, BLOB).array
    assert np.array_equal(label_file(tmp_path / "set", "scan"), np.where(expected == BLOB.id, 2, expected))
    liver, blob = read_dataset(tmp_path / "set").labels.labels
    assert liver == LIVER
    assert (blob.id, blob.name, blob.color, blob.type) == (2, "Blob", (1, 2, 3), None)
    assert read_dataset(tmp_path / "set").channels == ("MR",)


def test_whole_numbers_are_stored_small_and_others_exactly(tmp_path: Path) -> None:
    whole = scan()
    whole.array = np.rint(whole.array * 10)
    save_case(tmp_path, whole, segmented(LIVER), name="whole")
    save(tmp_path, LIVER, seed=1, name="fractions")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "imagesTr").iterdir()}
    assert sizes["whole_0000.nii.gz"] < sizes["fractions_0000.nii.gz"] / 2
    assert np.array_equal(read_volume(tmp_path / "imagesTr" / "whole_0000.nii.gz").array, whole.array)


def test_labels_keep_their_ids_over_cases_and_need_not_be_in_all_of_them(tmp_path: Path) -> None:
    assert dict(save(tmp_path, LIVER, SPLEEN, seed=0).labels) == {"Liver": 1, "Spleen": 2}
    second = save(tmp_path, BLOB, Label(id=1, name="spleen ", color=(9, 9, 9)), seed=1)
    assert dict(second.labels) == {"Spleen": 2, "Blob": 3}, "the same name in another spelling"
    assert second.warnings == ("Liver: not in this case, whose other voxels count as background",)
    third = save(tmp_path, LIVER, seed=2)
    assert dict(third.labels) == {"Liver": 1}
    assert description(tmp_path)["labels"] == {"background": 0, "Liver": 1, "Spleen": 2, "Blob": 3}
    assert description(tmp_path)["numTraining"] == 3
    assert np.unique(label_file(tmp_path, second.name)).tolist() == [0, 2, 3]
    assert read_dataset(tmp_path).labels.labels[1].color == SPLEEN.color, "the first colour stays"


def test_what_was_saved_passes_the_check_and_can_be_prepared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed in range(3):
        save(tmp_path / "set", *(LIVER, SPLEEN, BLOB)[: seed + 1], seed=seed)
    assert [case.id for case in verify_dataset(tmp_path / "set").cases] == ["scan", "scan-2", "scan-3"]
    words = [str(tmp_path / "set"), "-o", str(tmp_path / "cache"), "--preset", "tiny", "--workers", "1"]
    assert prepare.main(words) == 0
    assert "3 cases" in capsys.readouterr().out


def test_the_same_scan_again_replaces_its_labels(tmp_path: Path) -> None:
    save(tmp_path, LIVER, name="first")
    save(tmp_path, LIVER, seed=1, name="other")
    again = save(tmp_path, SPLEEN, LIVER, name="another name")
    assert (again.name, again.replaced) == ("first", True)
    assert "its labels were replaced" in again.warnings[-1]
    assert len(files(tmp_path)) == 5
    assert description(tmp_path)["numTraining"] == 2
    assert np.array_equal(label_file(tmp_path, "first") == 1, segmented(SPLEEN, LIVER).array == LIVER.id)
    verify_dataset(tmp_path)


def test_a_structure_that_no_case_holds_any_more_is_forgotten(tmp_path: Path) -> None:
    save(tmp_path, BLOB, LIVER)
    save(tmp_path, LIVER, seed=1)
    renamed = Label(id=3, name="Tumour", color=(1, 2, 3))
    assert dict(save(tmp_path, renamed, LIVER).labels) == {"Tumour": 1, "Liver": 2}
    assert description(tmp_path)["labels"] == {"background": 0, "Liver": 2, "Tumour": 1}
    assert set(description(tmp_path)["colors"]) == {"Liver", "Tumour"}
    verify_dataset(tmp_path)


def test_a_case_joins_a_data_set_of_somebody_else(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", cases=2)
    before = description(folder)
    cube = Label(id=1, name="Cube", color=(4, 5, 6))
    saved = save(folder, BLOB, cube, seed=7, name="case_000")
    assert saved.name == "case_000-2"
    assert dict(saved.labels) == {"Blob": 3, "cube": 2}
    after = description(folder)
    assert {key: after[key] for key in ("name", "licence", "channel_names")} == {
        key: before[key] for key in ("name", "licence", "channel_names")
    }
    assert after["labels"] == {"background": 0, "ball": 1, "cube": 2, "Blob": 3}
    again = save(folder, BLOB, seed=7)
    assert again.replaced
    assert "cube" in description(folder)["labels"], "the structures of the other cases are not known"
    verify_dataset(folder)


def test_names_that_a_data_set_completes_are_known_too(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", cases=1)
    data = description(folder) | {"name": "Hippocampus", "labels": {"0": "background", "1": "Anterior", "2": "cube"}}
    (folder / "dataset.json").write_text(json.dumps(data))
    saved = save(folder, lookup("hippocampus anterior").label(1), seed=3)
    assert dict(saved.labels) == {"Anterior": 1}
    assert description(folder)["labels"] == {"background": 0, "Anterior": 1, "cube": 2}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("5: T1 MPRAGE/ax", "5_T1_MPRAGE_ax"),
        ("Müller é", "Muller_e"),
        ("../../etc", "etc"),
        (".hidden", "hidden"),
        ("hippocampus_001_0000", "hippocampus_001"),
        ("脳", "case"),
        ("", "case"),
        ("nul", "nul_"),
        ("COM1", "COM1_"),
        ("x" * 300, "x" * 60),
    ],
)
def test_names_are_made_safe(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_names_are_made_unique_whatever_their_capitals(tmp_path: Path) -> None:
    assert [save(tmp_path, LIVER, seed=n, name=name).name for n, name in enumerate(("Scan", "scan", "SCAN"))] == [
        "Scan", "scan-2", "SCAN-3",
    ]  # fmt: skip


def test_segments_called_background_are_background(tmp_path: Path) -> None:
    saved = save(tmp_path, LIVER, Label(id=9, name="Background", color=(0, 0, 0)))
    assert dict(saved.labels) == {"Liver": 1}
    assert "counts as background" in saved.warnings[0]
    assert np.unique(label_file(tmp_path, "scan")).tolist() == [0, 1]


def test_slicers_general_code_is_not_kept(tmp_path: Path) -> None:
    save(tmp_path, Label(id=1, name="Blob", color=(1, 2, 3), category=TISSUE, type=TISSUE))
    assert description(tmp_path)["terminology"] == {}


def test_voxels_without_a_number_are_replaced_and_that_is_said(tmp_path: Path) -> None:
    broken = scan()
    broken.array = broken.array.copy()
    broken.array[0, 0, :3] = np.nan, np.inf, -np.inf
    broken.array.flags.writeable = False
    saved = save_case(tmp_path, broken, segmented(LIVER), name="broken")
    assert saved.warnings[0].startswith("3 voxels were NaN or Inf")
    found = read_volume(tmp_path / "imagesTr" / "broken_0000.nii.gz")
    assert found.nonfinite == 0
    assert found.array[0, 0, 1] == np.nanmax(scan().array)


def flat() -> Volume:
    volume = scan()
    volume.array = np.full_like(volume.array, 7)
    return volume


def elsewhere() -> LabelMap:
    labels = segmented(LIVER)
    labels.grid = Grid(shape=labels.grid.shape, affine=np.eye(4))
    return labels


def twins() -> LabelMap:
    return segmented(LIVER, Label(id=2, name="liver", color=(0, 0, 0)))


def nothing() -> LabelMap:
    labels = segmented(LIVER)
    labels.array[:] = 0
    return labels


@pytest.mark.parametrize(
    ("volume", "labels", "kind", "words"),
    [
        (flat(), segmented(LIVER), InputError, "constant"),
        (scan(), elsewhere(), GeometryError, "differ"),
        (scan(), twins(), InputError, "same name"),
        (scan(), nothing(), InputError, "nothing is segmented"),
        (scan(modality="CT"), segmented(LIVER), InputError, "one modality"),
    ],
)
def test_what_makes_no_case_leaves_the_data_set_as_it_was(
    tmp_path: Path, volume: Volume, labels: LabelMap, kind: type[Exception], words: str
) -> None:
    save(tmp_path, LIVER, seed=5)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(kind, match=words):
        save_case(tmp_path, volume, labels, name="bad")
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "mine.nii.gz").write_bytes(b"mine")
    with pytest.raises(InputError, match="something else"):
        save(tmp_path, LIVER)
    (tmp_path / "dataset.json").write_text('{"labels": {"a": 1}, "channel_names": {"0": "T1", "1": "T2"}}')
    with pytest.raises(InputError, match="2 channels"):
        save(tmp_path, LIVER)
    (tmp_path / "dataset.json").write_text("nonsense")
    with pytest.raises(DatasetError):
        save(tmp_path, LIVER)
    assert files(tmp_path) == ["dataset.json", "imagesTr/mine.nii.gz"]


def test_a_folder_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(ResourceError, match="another run"):
        save(tmp_path, LIVER)
    save(tmp_path, LIVER)
    assert len(files(tmp_path)) == 3, "no lock is left"


def test_a_cancelled_save_leaves_nothing(tmp_path: Path) -> None:
    token = CancelToken()

    def cancel_at_the_labels(done: int, _total: int, _text: str) -> None:
        if done == 1:
            token.cancel()

    with pytest.raises(Cancelled):
        save_case(tmp_path, scan(), segmented(LIVER), name="x", progress=cancel_at_the_labels, cancel=token)
    assert files(tmp_path) == []


def test_what_a_killed_save_left_is_swept_and_completed(tmp_path: Path) -> None:
    save(tmp_path, LIVER)
    (tmp_path / "labelsTr" / "scan.nii.gz").unlink()
    (tmp_path / ".masksam-dead").mkdir()
    (tmp_path / ".masksam-dead" / "image.nii.gz").write_bytes(b"half")
    again = save(tmp_path, LIVER, name="again")
    assert (again.name, again.replaced) == ("scan", False)
    assert files(tmp_path) == ["dataset.json", "imagesTr/scan_0000.nii.gz", "labelsTr/scan.nii.gz"]


def test_a_case_is_taken_out_with_what_no_other_case_has(tmp_path: Path) -> None:
    save(tmp_path, LIVER, seed=0, name="a")
    save(tmp_path, LIVER, SPLEEN, BLOB, seed=1, name="b")
    remove_case(tmp_path, "b")
    assert files(tmp_path) == ["dataset.json", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"]
    found = description(tmp_path)
    assert found["labels"] == {"background": 0, "Liver": 1}
    assert found["numTraining"] == 1
    assert set(found["structures"]) == {"a"}
    assert "Blob" not in found["colors"]
    save(tmp_path, LIVER, seed=2, name="c")
    verify_dataset(tmp_path)


def test_the_last_case_takes_the_data_set_with_it(tmp_path: Path) -> None:
    save(tmp_path, LIVER, name="a")
    remove_case(tmp_path, "a")
    assert files(tmp_path) == []
    save(tmp_path, SPLEEN, name="b", modality="CT")
    assert description(tmp_path)["labels"] == {"background": 0, "Spleen": 1}


def test_only_a_case_that_is_there_and_free_is_taken_out(tmp_path: Path) -> None:
    save(tmp_path, LIVER, name="a")
    save(tmp_path, LIVER, seed=1, name="b")
    with pytest.raises(InputError, match="no such case"):
        remove_case(tmp_path, "../a")
    with FolderLock(tmp_path), pytest.raises(ResourceError):
        remove_case(tmp_path, "a")
    assert len(files(tmp_path)) == 5


def test_a_case_from_elsewhere_is_taken_out(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "other", cases=3)
    remove_case(folder, "case_001")
    assert [case.id for case in read_dataset(folder).cases] == ["case_000", "case_002"]
    assert set(description(folder)["labels"]) == {"background", "ball", "cube"}
    verify_dataset(folder)
