"""The bridge: which files a volume came from, and why there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer.util

from MaskSAMCore.io.images import read_volume
from SlicerMaskSAMLib.mrml import bridge
from Testing.dicom_phantom import dicom_series, ramp
from Testing.slicer import environment


@pytest.fixture
def saved(scene: Any, tmp_path: Path) -> Path:
    """A volume in a file."""
    volume = environment.add_volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    path = tmp_path / "scan é.nrrd"
    volume.AddDefaultStorageNode()
    volume.GetStorageNode().SetFileName(str(path))
    assert volume.GetStorageNode().WriteData(volume)
    return path


def test_a_volume_that_was_loaded_has_its_file(saved: Path) -> None:
    volume = environment.load_volume(saved)
    environment.add_transform(environment.affine(origin=(1, 2, 3)), volume)
    volume.SetName("Renamed")
    assert bridge.source(volume) == bridge.Source(kind="file", paths=(str(saved),))


def test_a_volume_that_was_changed_has_none(saved: Path) -> None:
    volume = environment.load_volume(saved)
    bridge.scalars(volume)[0, 0, 0] = 99
    slicer.util.arrayFromVolumeModified(volume)
    found = bridge.source(volume)
    assert found.kind == ""
    assert found.paths == ()
    assert "changed" in found.problem


def test_a_volume_on_another_grid_has_none(saved: Path) -> None:
    volume = environment.load_volume(saved)
    environment.add_transform(environment.affine(origin=(1, 2, 3)), volume)
    volume.HardenTransform()
    assert "changed" in bridge.source(volume).problem


def test_a_volume_that_was_never_saved_has_none(scene: Any) -> None:
    volume = environment.add_volume(np.zeros((2, 3, 4), np.int16))
    assert "never saved" in bridge.source(volume).problem
    volume.AddDefaultStorageNode()
    assert "never saved" in bridge.source(volume).problem


def test_a_file_that_is_gone_is_named(saved: Path) -> None:
    volume = environment.load_volume(saved)
    saved.unlink()
    assert saved.name in bridge.source(volume).problem


def series(folder: Path) -> list[Path]:
    dicom_series(folder, ramp((4, 5, 6)))
    return sorted(folder.glob("*"))


def test_a_series_has_its_files_in_the_order_of_its_slices(scene: Any, tmp_path: Path) -> None:
    volume, files = environment.load_dicom(series(tmp_path))
    found = bridge.source(volume, files.get)
    assert found.kind == "dicom"
    assert found.paths == tuple(files.values())
    assert len(found.paths) == 4


def test_a_series_without_its_database_is_reported(scene: Any, tmp_path: Path) -> None:
    volume, files = environment.load_dicom(series(tmp_path))
    Path(files.popitem()[1]).unlink()
    Path(next(iter(files.values()))).unlink()
    assert "2 of its 4 DICOM files" in bridge.source(volume, lambda instance: files.get(instance, "")).problem
    assert "0 of its 4 DICOM files" in bridge.source(volume).problem


def test_slicers_own_database_is_asked(scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, files = environment.load_dicom(series(tmp_path))

    class Database:
        def fileForInstance(self, instance: str) -> str:
            return files[instance]

    monkeypatch.setattr(slicer, "dicomDatabase", Database(), raising=False)
    assert bridge.source(volume).kind == "dicom"


def test_a_series_that_was_dragged_into_the_window_has_its_files(scene: Any, tmp_path: Path) -> None:
    paths = series(tmp_path)
    found = bridge.source(environment.load_volume(paths[0]))
    assert found.kind == "file"
    assert set(found.paths) == {str(path) for path in paths}


def test_a_part_of_a_series_is_not_the_series(scene: Any, tmp_path: Path) -> None:
    volume, files = environment.load_dicom(series(tmp_path))
    part = environment.add_volume(bridge.scalars(volume)[:2].copy(), bridge.geometry(volume).affine)
    part.SetAttribute("DICOM.instanceUIDs", volume.GetAttribute("DICOM.instanceUIDs"))
    assert bridge.source(part, files.get).kind == ""


@pytest.mark.parametrize("name", ["siemens_mr", "ge_mr", "jpeg2000", "rle", "ct_head"])
def test_real_series_lie_where_the_engine_reads_them(scene: Any, shared: Path, name: str) -> None:
    volume, files = environment.load_dicom(sorted((shared / "data" / "dicom" / name).glob("*.dcm")))
    read = read_volume(Path(next(iter(files.values()))).parent)
    place = bridge.geometry(volume)
    centre = (np.array(read.array.shape[::-1]) - 1) / 2
    assert np.allclose(place.to_ras(centre), read.grid.to_ras(centre), atol=0.01)
    ijk = np.rint(place.to_ijk(read.grid.to_ras([(3, 4, 1)])))[0].astype(int)
    assert np.isclose(bridge.scalars(volume)[tuple(ijk[::-1])], read.array[1, 4, 3], atol=1)
