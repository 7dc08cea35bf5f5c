"""Models of d6d6e8e: a trained one gives the same answers, and the bundled ones' networks have the same tensors."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore import segment
from MaskSAMCore.io.images import read_labels, read_volume
from MaskSAMCore.network.build import build_model
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.zoo.installed import load_model
from MaskSAMCore.zoo.model_folder import load_card
from Testing.old.samples import SAMPLES, unpack

SCAN = SAMPLES / "cases" / "imagesTr" / "Scan_0_0000.nii.gz"
FOUND = SAMPLES / "results" / "found.seg.nrrd"
SAME = 0.999
"""Share of the voxels: another processor or another torch may round differently."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, as a recipe's training wrote it."""
    return unpack("model", tmp_path_factory.mktemp("model"))


def test_a_trained_model_loads_with_its_card(model: Path) -> None:
    network, card = load_model(model)
    assert not network.training
    assert [(label.id, label.name) for label in card.labels.labels] == [(1, "Liver"), (2, "Dark cube")]
    assert card.labels.labels[0].type is not None
    assert card.labels.labels[0].type.value == "10200004"
    assert (card.name, card.modality, card.licence, card.base) == ("phantoms", "MR", "CC0", None)
    assert [stage["steps"] for stage in card.provenance["stages"]] == [240, 24]


def test_a_trained_model_finds_what_it_found(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "found.seg.nrrd"
    assert segment.main([str(SCAN), "-m", str(model), "-o", str(target), "--device", "cpu"]) == 0
    before, now = read_labels(FOUND), read_labels(target)
    assert now.grid.same_as(before.grid)
    assert now.labels == before.labels
    assert set(np.unique(before.array)) == {0, 1, 2}
    assert (now.array == before.array).mean() >= SAME


def test_a_segmentation_that_was_written_lies_where_it_lay(tmp_path: Path) -> None:
    found, reference = read_labels(FOUND), read_labels(SAMPLES / "cases" / "labelsTr" / "Scan_0.nii.gz")
    assert found.labels is not None
    assert [(label.id, label.name) for label in found.labels.labels] == [(1, "Liver"), (2, "Dark cube")]
    assert found.grid.same_as(reference.grid)
    assert (found.array == reference.array).mean() >= SAME


@pytest.mark.slow
def test_a_trained_model_answers_a_click_as_it_did(model: Path) -> None:
    volume = read_volume(SCAN)
    with np.load(SAMPLES / "results" / "clicked.npz") as stored:
        position, expected = stored["position"].tolist(), stored["mask"]
    scan = {"volume": volume.array, "affine": volume.grid.affine, "modality": "MR", "source": "scan"}
    click = {"kind": "point", "position": position, "positive": True, "scope": "slab"}
    engine = EngineClient(device="cpu", threads=1)
    try:
        case = engine.submit("open", model=str(model), **scan).result()
        update = engine.submit("prompt", case=case, structure=1, prompts=[click]).result()
    finally:
        engine.close()
    mask = np.zeros_like(expected)
    k0, k1, j0, j1, i0, i1 = update.box
    mask[k0:k1, j0:j1, i0:i1] = update.mask
    assert expected.any()
    assert (mask == expected).mean() >= SAME


@pytest.mark.parametrize("name", ["cardiac-cine-mr", "headneck-ct", "hippocampus-mr"])
def test_the_network_of_a_bundled_model_has_the_same_tensors(name: str) -> None:
    folder = SAMPLES / "bundled" / name
    state = build_model(load_card(folder).config.model).state_dict()
    lines = gzip.decompress((folder / "tensors.txt.gz").read_bytes()).decode().splitlines()
    assert [f"{key} {tuple(value.shape)}" for key, value in sorted(state.items())] == lines
