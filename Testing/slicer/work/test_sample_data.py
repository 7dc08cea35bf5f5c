"""The sample data: registered under its name, and loaded with what the model needs to find something."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MaskSAMCore import demo
from MaskSAMCore.errors import InputError
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.choices import Region
from SlicerMaskSAMLib.values.tasks import Steps, Task
from SlicerMaskSAMLib.work import sample_data
from Testing.slicer import environment
from Testing.workers import eventually

AFFINE = np.array([[1.0, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72], [0, 0, 0, 1]])
"""Of the template, ijk to RAS mm."""


@pytest.fixture
def scan(home: Path) -> Path:
    """An image of the template's grid, where the sample scan is kept."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.zeros((189, 233, 197), np.uint8))
    image.SetOrigin((98, 134, -72))  # LPS
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    path = home / "samples" / demo.SCAN
    path.parent.mkdir()
    SimpleITK.WriteImage(image, str(path))
    return path


@pytest.fixture
def parameters(scene: Any) -> Any:
    from SlicerMaskSAMLib.mrml.parameters import MaskSAMParameterNode

    return MaskSAMParameterNode(environment.parameter_node())


class SampleDataLogic:
    """As Slicer publishes it: what a source is, and that all its fields are of one length."""

    sources: dict[str, list[dict[str, Any]]]

    @classmethod
    def registerCustomSampleDataSource(
        cls,
        category: str = "Custom",
        sampleName: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        customDownloader: Any = None,
        thumbnailFileName: str | None = None,
        loadFileType: Any = "VolumeFile",
        loadFiles: Any = None,
        loadFileProperties: Any = None,
        checksums: Any = None,
    ) -> None:
        assert {type(value) for value in (uris, fileNames, nodeNames, checksums)} == {str}
        source = {"name": sampleName, "uri": uris, "node": nodeNames, "file": fileNames}
        cls.sources.setdefault(category, []).append(
            source | {"checksum": checksums, "thumbnail": thumbnailFileName, "type": loadFileType}
        )


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    module = type(sys)("SampleData")
    module.SampleDataLogic = type("Logic", (SampleDataLogic,), {"sources": {}})
    monkeypatch.setitem(sys.modules, "SampleData", module)
    return module.SampleDataLogic.sources


def returned(steps: Steps) -> Any:
    """What steps return, driven as the module's timer drives them."""
    out, errors = [], []

    def all_of_them() -> Steps:
        out.append((yield from steps))

    task = Task("setup", all_of_them(), on_error=errors.append)
    assert eventually(lambda: (task.tick(), task.ended)[1])
    assert errors == []
    return out[0]


def test_the_sample_has_a_name_an_address_a_hash_and_a_picture(sources: dict[str, list[dict[str, Any]]]):
    sample_data.register()
    (source,) = sources["MaskSAM"]
    assert source["name"] == source["node"] == "MaskSAMHead"
    assert source["type"] == "VolumeFile"
    assert source["uri"].startswith("https://")
    assert source["uri"].endswith(demo.MEMBER)
    assert source["file"].endswith(".nii.gz")
    assert Path(source["thumbnail"]).is_file()
    assert source["checksum"] == f"SHA256:{sample_data.SHA256}"


def test_the_button_loads_the_scan_with_region_and_model(scene: Any, parameters: Any, scan: Path):
    volume = returned(sample_data.steps(scene, parameters))
    assert volume.GetName() == "MaskSAMHead"
    assert volume.GetImageData().GetDimensions() == (197, 233, 189)
    np.testing.assert_allclose(bridge.geometry(volume).affine, AFFINE)
    assert (parameters.region, parameters.model) == (Region.ROI, "hippocampus-mr")
    assert bridge.roi_region(volume, parameters.roi) == {"center": (28.0, -22.0, -14.0), "size": (36.0, 54.0, 44.0)}


def test_the_scan_is_shown(scene: Any, scan: Path):
    import slicer

    composite = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    volume = sample_data.load(scan)
    assert slicer.app.applicationLogic().GetSelectionNode().GetActiveVolumeID() == volume.GetID()
    assert composite.GetBackgroundVolumeID() == volume.GetID()


def test_a_scan_that_cannot_be_read_is_named(scene: Any, tmp_path: Path):
    (tmp_path / "half.nii.gz").write_bytes(b"half a download")
    with pytest.raises(InputError, match=r"half\.nii\.gz: the sample scan cannot be read"):
        sample_data.load(tmp_path / "half.nii.gz")
