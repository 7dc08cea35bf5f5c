"""The Python interface, with a bundled model on a real scan, in every form in which a scan may be given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import MaskSAMCore as masksam
from MaskSAMCore.errors import GeometryError, InputError, ModelError, PromptError
from MaskSAMCore.evaluation.metrics import dice
from MaskSAMCore.io.images import read_labels
from MaskSAMCore.io.in_memory import volume_of
from MaskSAMCore.zoo import installed, model_folder
from Testing.toy_model import bright_scan, make_card, save_tiny

MODEL = "hippocampus-mr"
NAMES = {1: "Anterior hippocampus", 2: "Posterior hippocampus"}


@pytest.fixture(scope="module")
def scan(shared: Path) -> Path:
    """A validation case of the model's fold."""
    name = model_folder.load_card(installed.find_model(MODEL)).provenance["validation_cases"][0]
    return shared / "data" / "hippocampus" / "imagesTr" / f"{name}_0000.nii.gz"


@pytest.fixture(scope="module")
def reference(scan: Path) -> np.ndarray:
    """Its labels (I, J, K)."""
    path = scan.parents[1] / "labelsTr" / scan.name.replace("_0000", "")
    return np.asanyarray(nibabel.load(path).dataobj)


@pytest.fixture(scope="module")
def model(mobile_sam: Path) -> masksam.Model:
    """The bundled model on the CPU."""
    return masksam.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def result(model: masksam.Model, scan: Path) -> masksam.Segmentation:
    """What it finds in the scan, given as a path."""
    return model.segment(str(scan))


def test_at_most_twelve_names_are_public_and_each_is_documented() -> None:
    public = [name for name in masksam.__all__ if not name.startswith("_")]
    assert len(public) <= 12
    assert set(public) <= set(dir(masksam))
    assert all(getattr(masksam, name).__doc__ for name in public)
    with pytest.raises(AttributeError, match="lod"):
        masksam.lod  # noqa: B018


def test_importing_costs_nothing_and_public_names_no_torch(repo: Path) -> None:
    code = (
        "import sys, MaskSAMCore as masksam\n"
        "heavy = {'torch', 'SimpleITK', 'numpy', 'monai'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "masksam.load, masksam.read_volume, masksam.MaskSAMError\n"
        "print(sorted((heavy - {'numpy'}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


@pytest.mark.slow
def test_a_scan_is_segmented_on_its_own_grid(result: masksam.Segmentation, scan: Path, reference: np.ndarray) -> None:
    image = nibabel.load(scan)
    assert result.labels.shape == image.shape == reference.shape
    assert np.allclose(result.affine, image.affine, atol=1e-4)
    assert result.names == NAMES
    assert all(dice(result.labels == label, reference == label) > 0.75 for label in NAMES)
    voxel = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    assert result.volumes_ml == pytest.approx({n: (result.labels == i).sum() * voxel for i, n in NAMES.items()})
    assert (result.mask("anterior HIPPOCAMPUS") == (result.labels == 1)).all()
    assert (result.mask(2) == (result.labels == 2)).all()
    with pytest.raises(InputError, match="no such structure"):
        result.mask("liver")
    with pytest.raises(InputError, match="no such label"):
        result.mask(3)


@pytest.mark.slow
def test_an_image_in_memory_gives_the_same_voxels_as_its_file(
    model: masksam.Model, result: masksam.Segmentation, scan: Path
) -> None:
    found = model.segment(nibabel.load(scan))
    assert (found.labels == result.labels).all()
    assert np.allclose(found.affine, result.affine, atol=1e-4)


@pytest.mark.parametrize("kind", ["nibabel", "SimpleITK", "array", "channel", "integers"])
def test_every_form_of_a_scan_is_the_same_volume(scan: Path, kind: str) -> None:
    image = nibabel.load(scan)
    file = masksam.read_volume(scan)
    given: Any = {
        "nibabel": lambda: image,
        "SimpleITK": lambda: sitk.ReadImage(str(scan)),
        "array": lambda: (image.get_fdata(), image.affine),
        "channel": lambda: (image.get_fdata()[..., None], image.affine),
        "integers": lambda: (image.get_fdata().round().astype(np.int16), image.affine),
    }[kind]()
    volume = volume_of(given)
    assert volume.array.dtype == np.float32
    assert np.allclose(volume.array, file.array.round() if kind == "integers" else file.array, rtol=1e-6)
    assert np.allclose(volume.grid.affine, file.grid.affine, atol=1e-4)
    assert volume_of(file) is file


def test_several_channels_are_the_last_axis_and_vectors_of_an_itk_image() -> None:
    array = np.random.default_rng(0).normal(size=(5, 4, 3, 2)).astype(np.float32)
    volume = volume_of((array, np.diag([1, 2, 3, 1.0])))
    assert volume.array.shape == (2, 3, 4, 5)
    assert volume.array[1, 2, 3, 4] == array[4, 3, 2, 1]
    vectors = sitk.GetImageFromArray(array.transpose(2, 1, 0, 3), isVector=True)
    assert (volume_of(vectors).array == volume.array).all()


def test_voxels_that_are_not_finite_are_replaced_and_the_source_is_left_alone() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    array[1, 1, 1] = np.inf
    volume = volume_of((array, np.eye(4)))
    assert volume.nonfinite == 1
    assert volume.array[1, 1, 1] == 23
    assert np.isinf(array[1, 1, 1])
    assert "1 voxels are NaN or Inf" in volume.warnings[0]


def test_a_skewed_image_is_refused_or_resampled() -> None:
    skewed = np.eye(4)
    skewed[0, 1] = 0.3
    with pytest.raises(GeometryError, match="right angles"):
        volume_of((np.ones((4, 5, 6)), skewed))
    assert volume_of((np.ones((4, 5, 6)), skewed), resample=True).grid.skew < 1e-6


def test_an_array_alone_is_refused_with_a_hint(model: masksam.Model) -> None:
    with pytest.raises(InputError, match=r"Give \(array, affine\).*numpy\.diag"):
        model.segment(np.zeros((4, 4, 4)))


@pytest.mark.parametrize(
    ("scan", "error", "words"),
    [
        (3, InputError, "this is no scan"),
        ([], InputError, "this is no scan"),
        ("no-such-file.nii.gz", InputError, "no-such-file.nii.gz"),
        ((np.zeros((4, 4)), np.eye(4)), InputError, r"\(I, J, K\)"),
        ((np.zeros((4, 4, 4)), np.eye(3)), GeometryError, "4x4"),
        ((np.zeros((4, 4, 4)), np.zeros((4, 4))), GeometryError, "affine"),
        ((np.full((4, 4, 4), np.nan), np.eye(4)), InputError, "no finite voxel"),
        ((np.zeros((4, 4, 4), complex), np.eye(4)), InputError, "real numbers"),
        ((np.zeros((4, 4, 4, 2)), np.eye(4)), InputError, "channels"),
    ],
)
def test_what_is_no_scan_is_refused(model: masksam.Model, scan: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        model.segment(scan)


@pytest.mark.parametrize(("unit", "scale"), [("micron", 1000.0), ("meter", 0.001), ("mm", 1.0)])
def test_the_units_of_an_image_in_memory_are_converted_to_millimetres(unit: str, scale: float) -> None:
    image = nibabel.Nifti1Image(np.ones((2, 3, 4), np.float32), np.diag([scale, 2 * scale, 3 * scale, 1]))
    image.header.set_xyzt_units(unit)
    assert volume_of(image).grid.spacing == pytest.approx((1, 2, 3))


@pytest.mark.slow
def test_a_nifti_in_memory_lies_where_its_file_lies_though_the_sform_is_wrong(shared: Path) -> None:
    path = shared / "data" / "acdc" / "patient091" / "patient091_frame01.nii.gz"
    image = nibabel.load(path)
    assert nibabel.affines.voxel_sizes(image.affine).tolist() == [1, 1, 1], "what this file says in its sform"
    volume, file = volume_of(image), masksam.read_volume(path)
    assert np.allclose(volume.grid.affine, file.grid.affine)
    assert "pixdim is used" in " ".join(volume.warnings)


def test_an_image_made_in_memory_lies_where_its_affine_says() -> None:
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3.0, 11], [0, 0, 0, 1]])
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.Spm99AnalyzeImage):
        given = kind(np.ones((2, 3, 4), np.float32), affine)
        assert np.allclose(volume_of(given).grid.affine, given.affine, atol=1e-4), kind


def test_results_are_saved_and_given_as_other_libraries_have_them(
    result: masksam.Segmentation, scan: Path, tmp_path: Path
) -> None:
    written = result.save(tmp_path / "out")
    assert {path.name.split(".", 1)[1] for path in written} == {"nii.gz", "seg.nrrd", "csv", "png"}
    labels = read_labels(next(path for path in written if path.name.endswith(".nii.gz")))
    assert (result.labels == labels.array.T).all()
    with pytest.raises(InputError, match="exist already"):
        result.save(tmp_path / "out")
    assert result.save(tmp_path / "out", overwrite=True) == written
    assert result.save(tmp_path / "one.mha") == [tmp_path / "one.mha"]
    with pytest.raises(InputError, match="DICOM"):
        result.save(tmp_path / "one.dcm")

    image = result.to_nibabel()
    assert (np.asanyarray(image.dataobj) == result.labels).all()
    assert np.allclose(image.affine, nibabel.load(scan).affine, atol=1e-4)
    itk, source = result.to_sitk(), sitk.ReadImage(str(scan))
    assert (result.labels == sitk.GetArrayFromImage(itk).T).all()
    assert np.allclose(itk.GetOrigin(), source.GetOrigin(), atol=1e-3)
    assert np.allclose(itk.GetDirection(), source.GetDirection(), atol=1e-5)


@pytest.mark.slow
def test_structures_and_regions_can_be_chosen(model: masksam.Model, result: masksam.Segmentation, scan: Path) -> None:
    found = model.segment(scan, structures=["posterior hippocampus"])
    assert found.names == {2: NAMES[2]}
    assert (found.labels == np.where(result.labels == 2, 2, 0)).all()
    corner = result.affine @ (0, 0, 0, 1)
    box = (*corner[:3], 20, 20, 20)
    assert not model.segment(scan, roi=box).labels[15:].any()
    for wrong in ((1, 2, 3), "here", [(1, 2, 3, 4, 5, 6), (1, 2)]):
        with pytest.raises(InputError, match="six numbers"):
            model.segment(scan, roi=wrong)
    with pytest.raises(InputError, match="no such structure"):
        model.segment(scan, structures=["liver"])


@pytest.mark.slow
def test_clicks_boxes_and_undo(model: masksam.Model, scan: Path, reference: np.ndarray) -> None:
    session = model.open(scan)
    inside = np.argwhere(reference == 1)
    ijk = tuple(inside[len(inside) // 2])
    assert session.shape == reference.shape
    assert not session.mask().any()
    first = session.click(ijk, NAMES[1])
    assert first.dtype == bool
    assert first[ijk]
    assert dice(first, reference == 1) > 0.6
    outside = tuple(np.argwhere(first & (reference != 1))[0])
    second = session.click(outside, positive=False)
    assert not second[outside]
    assert second[ijk]
    low, high = np.argwhere(reference == 2).min(0), np.argwhere(reference == 2).max(0)
    boxed = session.box(high, low, "the tail")
    assert dice(boxed, reference == 2) > 0.6
    assert (session.mask(NAMES[1]) == second).all()
    assert (session.mask(1) == second).all(), "a label of the model is its structure"
    assert not session.undo().any(), "the box was all that the tail had"
    assert (session.undo() == first).all()
    assert not session.undo().any()
    with pytest.raises(PromptError, match="nothing to undo"):
        session.undo()


@pytest.mark.slow
def test_a_prompt_that_is_refused_changes_nothing(model: masksam.Model, scan: Path, reference: np.ndarray) -> None:
    session = model.open(scan)
    mask = session.click(tuple(np.argwhere(reference == 1)[40]))
    for wrong in ((999, 0, 0), (-3, 0, 0)):
        with pytest.raises(PromptError, match="outside"):
            session.click(wrong)
    for wrong in ((1, 2), "abc", 5, (None, 1, 2)):
        with pytest.raises(PromptError, match="three numbers"):
            session.click(wrong)
    assert (session.mask() == mask).all()
    session.undo()
    with pytest.raises(PromptError, match="nothing to undo"):
        session.undo()


def test_a_typo_in_a_models_name_gets_a_suggestion() -> None:
    with pytest.raises(ModelError, match='Did you mean "hippocampus-mr"'):
        masksam.load("hipocampus-mr")
    assert {"hippocampus-mr", "cardiac-cine-mr", "headneck-ct"} <= set(masksam.list_models())


@pytest.mark.slow
def test_a_model_folder_is_loaded_and_takes_an_array(tmp_path: Path) -> None:
    model = masksam.load(save_tiny(tmp_path / "toy", make_card()), device="cpu")
    assert (model.name, model.structures, model.device) == ("toy", ("bright",), "cpu")
    volume, _ = bright_scan((4, 16, 16), at=(slice(1, 3), slice(4, 9), slice(4, 9)))
    found = model.segment((volume.array.T, volume.grid.affine))
    assert found.labels.shape == (16, 16, 4)
