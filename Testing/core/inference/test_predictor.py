"""Automatic segmentation: labels on the scan's grid, regions, mirroring and warnings."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch

from MaskSAMCore.errors import InputError, ResourceError
from MaskSAMCore.inference.predictor import Predictor, context
from MaskSAMCore.labels import PALETTE, Label, LabelTable
from MaskSAMCore.progress import Cancelled, CancelToken
from MaskSAMCore.volume import Grid, Roi, Volume
from Testing.toy_model import BRIGHT, Threshold, bright_scan, make_card, make_plan, save_tiny


def predictor(**changes) -> Predictor:
    return Predictor.of(Threshold(), make_card(**changes))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_finds_the_block_on_the_grid_of_the_scan_with_the_ids_of_the_table():
    volume, block = bright_scan()
    result = predictor().segment(volume)
    assert result.labels.grid is volume.grid
    assert result.labels.labels is BRIGHT
    assert result.labels.array.dtype == np.uint8
    assert np.array_equal(result.labels.array, block * 3)
    assert result.windows > 1
    assert result.device == "cpu"
    assert result.warnings == ()


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_every_orientation_comes_back_on_its_own_voxels(order: tuple[int, ...], signs: tuple[int, ...]):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (row, sign) in enumerate(zip(order, signs, strict=True)):
        affine[row, axis] = sign
    volume, block = bright_scan((10, 20, 30), affine, at=(slice(2, 5), slice(3, 9), slice(15, 27)))
    result = predictor(plan=make_plan(patch=(8, 16, 16))).segment(volume)
    assert np.array_equal(result.labels.array > 0, block)


@pytest.mark.parametrize("view", ["coronal", "sagittal"])
def test_other_views_and_anisotropic_oblique_grids(view: str):
    angle = np.deg2rad(12)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = affine @ np.diag([0.8, 0.9, 2.0, 1.0])
    volume, block = bright_scan((12, 40, 40), affine)
    found = predictor(plan=make_plan(view=view)).segment(volume).labels.array > 0
    assert dice(found, block) > 0.85


def test_a_volume_smaller_than_a_patch_keeps_its_grid():
    volume, block = bright_scan((1, 9, 7), at=(slice(0, 1), slice(2, 6), slice(2, 5)))
    assert np.array_equal(predictor().segment(volume).labels.array > 0, block)


def test_mirroring_gives_the_same_and_skips_the_sides_that_labels_have():
    volume, block = bright_scan()
    free = predictor().segment(volume, tta=True)
    assert np.array_equal(free.labels.array > 0, block)
    sided = LabelTable(labels=BRIGHT.labels, mirrored=False)
    kept = predictor(labels=sided).segment(volume, tta=True)
    plain = predictor().segment(volume)
    assert (free.windows, kept.windows) == (8 * plain.windows, 4 * plain.windows)


def test_a_region_is_solved_alone_and_the_rest_is_background():
    volume, block = bright_scan((12, 60, 60), at=(slice(3, 8), slice(10, 50), slice(10, 50)))
    roi = Roi(center=(20, 20, 6), size=(20, 20, 30))
    found = predictor().segment(volume, roi=roi)
    inside = np.zeros(block.shape, bool)
    inside[roi.slices(volume.grid)] = True
    assert np.array_equal(found.labels.array > 0, block & inside)
    assert found.windows < predictor().segment(volume).windows


def test_several_regions_are_united():
    volume, block = bright_scan((12, 60, 60), at=(slice(3, 8), slice(10, 50), slice(10, 50)))
    rois = [Roi(center=(20, 20, 6), size=(20, 20, 30)), Roi(center=(25, 40, 6), size=(20, 30, 30))]
    found = predictor().segment(volume, roi=rois).labels.array > 0
    inside = np.zeros(block.shape, bool)
    for roi in rois:
        inside[roi.slices(volume.grid)] = True
    assert np.array_equal(found, block & inside)


def test_a_region_outside_the_scan_is_refused():
    volume, _ = bright_scan()
    with pytest.raises(InputError, match="region of interest"):
        predictor().segment(volume, roi=Roi(center=(500, 0, 0), size=(10, 10, 10)))


def test_context_of_a_region_is_as_much_as_training_saw():
    grid = Grid(shape=(50, 60, 70), affine=np.diag([1.0, 2.0, 1.0, 1.0]))
    small = (slice(20, 22), slice(10, 14), slice(0, 4))
    plan = make_plan(patch=(4, 16, 16), median_shape=(8, 24, 30))
    around = context(small, grid, plan)
    # 8 slices; 24 mm are 12 voxels of 2 mm; 30 voxels from the edge on
    assert around == (slice(17, 25), slice(6, 18), slice(0, 30))
    hounsfield = make_plan(patch=(4, 16, 16), median_shape=(8, 24, 30), normalisation=("ct",))
    assert context(small, grid, hounsfield) == (slice(19, 23), slice(8, 16), slice(0, 16))
    thick = Grid(shape=(50, 60, 70), affine=np.diag([1.0, 2.0, 4.0, 1.0]))
    assert context(small, thick, plan)[0] == slice(20, 22)
    assert context(small, thick, replace(plan, keep_slices=True))[0] == slice(17, 25)
    large = (slice(0, 50), slice(0, 60), slice(0, 70))
    assert context(large, grid, plan) == large


def test_region_in_context_gives_the_same_as_the_whole_scan():
    """The windows of a region see real surroundings, so a threshold on the normalised scan answers alike."""
    volume, block = bright_scan((12, 60, 60), at=(slice(3, 8), slice(25, 35), slice(25, 35)))
    plan = make_plan(median_shape=(12, 60, 60))
    roi = Roi(center=(30, 30, 6), size=(14, 14, 30))
    found = predictor(plan=plan).segment(volume, roi=roi)
    assert np.array_equal(found.labels.array > 0, block)
    assert found.windows < predictor(plan=plan).segment(volume).windows


def test_windows_of_a_region_reach_beyond_it():
    """A network that fails at the border of its windows still segments the whole region."""

    class Shortsighted(Threshold):
        def segment_patch(self, image: torch.Tensor) -> torch.Tensor:
            scores = super().segment_patch(image)
            known = torch.zeros_like(scores)
            known[..., 3:-3, 3:-3] = scores[..., 3:-3, 3:-3]
            return known

    volume, block = bright_scan((12, 60, 60), at=(slice(3, 8), slice(10, 50), slice(10, 50)))
    roi = Roi(center=(30, 30, 6), size=(15, 15, 30))
    card = make_card(plan=make_plan(median_shape=(12, 60, 60)))
    found = Predictor.of(Shortsighted(), card).segment(volume, roi=roi).labels.array > 0
    part = roi.slices(volume.grid)
    assert np.array_equal(found[part], block[part])


def test_probabilities_lie_on_the_grid_of_the_scan_and_sum_to_1():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])[[1, 0, 2, 3]]
    volume, block = bright_scan(affine=affine)
    result = predictor().segment(volume, probabilities=True)
    found = result.probabilities
    assert found.dtype == np.float16
    assert found.shape == (2, *volume.grid.shape)
    np.testing.assert_allclose(found.astype(np.float32).sum(0), 1, atol=1e-3)
    clear = np.abs(found[1] - found[0]) > 0.01
    assert clear.mean() > 0.9
    assert np.array_equal((found[1] > found[0])[clear], (result.labels.array > 0)[clear])
    assert found[1][block].max() == pytest.approx(0.9, abs=1e-3)
    assert predictor().segment(volume).probabilities is None


def test_outside_of_regions_the_background_is_certain():
    volume, block = bright_scan()
    rois = [Roi(center=(9, 17, 5), size=(7, 30, 30)), Roi(center=(12, 17, 5), size=(7, 30, 30))]
    result = predictor().segment(volume, roi=rois, probabilities=True)
    inside = np.zeros(block.shape, bool)
    for roi in rois:
        inside[roi.slices(volume.grid)] = True
    assert (result.probabilities[0][~inside] == 1).all()
    assert (result.probabilities[1][~inside] == 0).all()
    assert (result.probabilities[0][inside] < 1).all()
    assert np.array_equal(result.probabilities[1] > 0.5, result.labels.array > 0)


def test_probabilities_of_a_constant_scan_are_background():
    volume, _ = bright_scan()
    volume.array[:] = 5
    assert (predictor().segment(volume, probabilities=True).probabilities[0] == 1).all()


def test_probabilities_that_do_not_fit_are_refused_before_anything_is_segmented(monkeypatch):
    model, (volume, _) = predictor(), bright_scan()
    monkeypatch.setattr("MaskSAMCore.device.available_ram", lambda: 250_000)
    with pytest.raises(ResourceError, match=r"probabilities of 2 classes.*--save-probabilities"):
        model.segment(volume, probabilities=True)
    assert model.network.calls == 0


def test_ids_above_255_widen_the_type():
    labels = LabelTable(labels=(Label(id=700, name="far", color=PALETTE[0]),))
    volume, block = bright_scan()
    found = predictor(labels=labels).segment(volume).labels.array
    assert found.dtype == np.uint16
    assert np.array_equal(found, block * np.uint16(700))


def test_cancel_ends_it_and_progress_names_the_region():
    volume, _ = bright_scan((12, 60, 60))
    token, told = CancelToken(), []

    def progress(done: int, total: int, text: str) -> None:
        told.append(text)
        token.cancel()

    rois = [Roi(center=(20, 20, 6), size=(20, 20, 30))] * 2
    with pytest.raises(Cancelled):
        predictor().segment(volume, roi=rois, progress=progress, cancel=token)
    assert told == ["region 1 of 2: segmenting"]


def test_a_saved_model_is_loaded_by_its_folder(tmp_path):
    volume, _ = bright_scan((4, 16, 16), at=(slice(1, 3), slice(4, 9), slice(4, 9)))
    loaded = Predictor(save_tiny(tmp_path / "toy"), device="cpu")
    assert loaded.card.name == "toy"
    assert not loaded.network.training
    result = loaded.segment(volume)
    assert result.labels.grid is volume.grid
    assert set(np.unique(result.labels.array)) <= {0, 3}


def test_wrong_number_of_channels_is_refused():
    volume, _ = bright_scan()
    two = Volume(array=np.stack([volume.array] * 2), grid=volume.grid, source="two")
    with pytest.raises(InputError, match="channels"):
        predictor().segment(two)


@pytest.mark.gpu
def test_gpu_and_cpu_agree():
    volume, block = bright_scan()
    result = Predictor.of(Threshold(), make_card(), torch.device("cuda")).segment(volume)
    assert np.array_equal(result.labels.array > 0, block)
    assert result.device.startswith("cuda")
