"""Scan to network input and back: orientation, spacing, intensities, crop, padding, plans."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from MaskSAMCore.config.check import check_model
from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.config.schema import Config, DataConfig
from MaskSAMCore.config.serialize import from_dict, to_dict
from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.preprocessing.plan import (
    VIEWS,
    ChannelStats,
    Fingerprint,
    Plan,
    choose_view,
    fingerprint,
    fit_patch,
    make_plan,
    modality_of,
)
from MaskSAMCore.preprocessing.preprocess import (
    classes_to_ids,
    ids_to_classes,
    preprocess,
    preprocess_labels,
    restore_labels,
    restore_probabilities,
)
from MaskSAMCore.preprocessing.resample import pad_to, take
from MaskSAMCore.volume import Grid, LabelMap, Volume

STATS = ChannelStats(p005=-100.0, p995=200.0, mean=50.0, std=25.0, low=-1000.0, high=300.0)
TABLE = LabelTable(labels=(Label(id=3, name="a", color=(1, 2, 3)), Label(id=700, name="b", color=(4, 5, 6))))


def plan(view="axial", spacing=(1.0, 1.0, 1.0), kind="zscore", channels=1) -> Plan:
    return Plan(
        view=view,
        spacing=spacing,
        patch=(4, 16, 16),
        normalisation=(kind,) * channels,
        stats=(STATS,) * channels,
        anisotropic=spacing[0] > 3 * min(spacing[1:]),
        median_shape=(8, 16, 16),
        channels=("x",) * channels,
    )


def canonical(shape=(5, 7, 9), spacing=(1.0, 1.0, 1.0)) -> Volume:
    """A scan without any symmetry whose axes run to S, A, R; spacing in that order, mm."""
    array = np.random.default_rng(1).normal(100, 20, shape).astype(np.float32)
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = (10, -20, 30)
    return Volume(array=array, grid=Grid(shape=shape, affine=affine))


def stored_as(volume: Volume, axes, flips) -> Volume:
    """The same scan with its kji axes permuted and reversed."""
    array = volume.array.transpose(axes)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    affine = np.eye(4)
    first = np.zeros(3)
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        affine[:3, 2 - new] = volume.grid.affine[:3, 2 - old] * (-1 if flip else 1)
        first[2 - old] = volume.grid.shape[old] - 1 if flip else 0
    affine[:3, 3] = volume.grid.to_ras(first)
    return Volume(array=np.ascontiguousarray(array), grid=Grid(shape=array.shape, affine=affine))


ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))


@pytest.mark.parametrize("view", VIEWS)
def test_every_orientation_gives_the_same_input_and_comes_back(view: str) -> None:
    scan = canonical()

    def planned(array: np.ndarray) -> np.ndarray:
        turned = array.transpose(VIEWS[view])
        return turned[:, ::-1, ::-1] if view == "picture" else turned

    expected = planned(scan.array)
    expected = (expected - expected.mean()) / expected.std()
    labels = np.random.default_rng(2).integers(0, 4, scan.grid.shape).astype(np.uint8)
    for axes, flips in ORIENTATIONS:
        stored = stored_as(scan, axes, flips)
        stored_labels = stored_as(Volume(array=labels, grid=scan.grid), axes, flips).array
        ready = preprocess(stored, plan(view))
        np.testing.assert_allclose(ready.image[0], expected, atol=1e-5)
        classes = preprocess_labels(LabelMap(array=stored_labels, grid=stored.grid), ready.record, plan(view))
        np.testing.assert_array_equal(classes, planned(labels))
        scores = np.stack([classes == c for c in range(4)]).astype(np.float32)
        np.testing.assert_array_equal(restore_labels(scores, ready.record), stored_labels)


def test_resampling_shifts_nothing() -> None:
    """The centre of mass in mm stays where it is, also for a thing off the middle."""
    shape = (20, 24, 28)
    z, y, x = np.indices(shape)
    array = 100 * np.exp(-((z - 6) ** 2 + (y - 15) ** 2 + (x - 18) ** 2) / 18).astype(np.float32)
    array += 1
    scan = Volume(array=array, grid=Grid(shape=shape, affine=np.eye(4)))
    for spacing in ((0.6, 0.7, 0.8), (1.6, 1.5, 1.4)):
        ready = preprocess(scan, plan(spacing=spacing))
        bright = np.clip(ready.image[0] - np.median(ready.image[0]) - 0.5, 0, None)
        centre = [
            (np.indices(bright.shape)[a] * bright).sum() / bright.sum() * n / m + (n / m - 1) / 2
            for a, (n, m) in enumerate(zip(shape, bright.shape, strict=True))
        ]
        np.testing.assert_allclose(centre, (6, 15, 18), atol=0.1)


@pytest.mark.parametrize(("spacing", "least"), [((0.8,) * 3, 0.97), ((1.2,) * 3, 0.93), ((1.0, 0.75, 0.9), 0.97)])
def test_real_labels_come_back_through_another_spacing(shared, spacing, least: float) -> None:
    from MaskSAMCore.io.images import read_labels, read_volume

    folder = shared / "data" / "hippocampus"
    for case in ("001", "003"):
        scan = read_volume(folder / "imagesTr" / f"hippocampus_{case}_0000.nii.gz")
        truth = read_labels(folder / "labelsTr" / f"hippocampus_{case}.nii.gz")
        ready = preprocess(scan, plan("coronal", spacing))
        classes = preprocess_labels(truth, ready.record, plan("coronal", spacing))
        assert classes.shape == ready.image.shape[1:] != scan.grid.shape
        back = restore_labels(np.stack([classes == c for c in range(3)]).astype(np.float32), ready.record)
        for c in (1, 2):
            dice = 2 * ((back == c) & (truth.array == c)).sum() / ((back == c).sum() + (truth.array == c).sum())
            assert dice > least, (case, c, dice)


def test_ct_is_clipped_and_standardised_with_the_data_sets_numbers() -> None:
    scan = canonical()
    scan.array[:] = 0
    scan.array[0, 0, :4] = (-1000, 50, 75, 3000)
    image = preprocess(scan, plan(kind="ct")).image[0]
    np.testing.assert_allclose(image[0, 0, :4], (-6, 0, 1, 6), atol=1e-5)


def test_the_content_is_cropped_and_the_result_put_back_in_its_place() -> None:
    scan = canonical((12, 14, 16))
    inside = np.zeros(scan.grid.shape, bool)
    inside[3:8, 4:9, 5:11] = True
    scan.array[~inside] = 0
    ready = preprocess(scan, plan())
    assert ready.image.shape == (1, 7, 7, 8), "content and one voxel around it"
    scores = np.zeros((2, 7, 7, 8), np.float32)
    scores[1] = 1
    result = restore_labels(scores, ready.record)
    assert result[2:9, 3:10, 4:12].all()
    assert result.sum() == 7 * 7 * 8
    whole = np.stack(list(restore_probabilities(torch.from_numpy(scores), ready.record)))
    np.testing.assert_array_equal(whole.argmax(0), result)
    np.testing.assert_allclose(whole.sum(0), 1)


def test_scores_that_are_no_distribution_become_probabilities() -> None:
    scan = canonical((6, 7, 8))
    record = preprocess(scan, plan()).record
    scores = torch.rand((3, *record.shape), generator=torch.Generator().manual_seed(1))
    scores[:, 0] = 0
    found = np.stack(list(restore_probabilities(scores, record)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.argmax(0), restore_labels(scores, record))
    inside = record.apply(found)
    assert (inside[0, 0] == 1).all()
    np.testing.assert_allclose(inside[:, 1:], (scores / scores.sum(0))[:, 1:], rtol=1e-5)


def test_several_channels_are_normalised_by_themselves() -> None:
    scan = canonical()
    scan = Volume(array=np.stack([scan.array, 1000 + 50 * scan.array]), grid=scan.grid)
    image = preprocess(scan, plan(channels=2)).image
    np.testing.assert_allclose(image[0], image[1], atol=1e-4)
    with pytest.raises(InputError, match="channels"):
        preprocess(scan, plan(channels=1))


def test_scores_of_another_grid_are_refused() -> None:
    record = preprocess(canonical(), plan()).record
    with pytest.raises(GeometryError, match="network's grid"):
        restore_labels(np.zeros((2, 5, 7, 8), np.float32), record)
    with pytest.raises(GeometryError, match="grid of its scan"):
        record.apply(np.zeros((5, 7, 8)))


def test_ids_and_classes() -> None:
    ids = np.array([[0, 3], [700, 3]], np.int32)
    classes = ids_to_classes(ids, TABLE)
    np.testing.assert_array_equal(classes, [[0, 1], [2, 1]])
    back = classes_to_ids(classes, TABLE)
    np.testing.assert_array_equal(back, ids)
    assert back.dtype == np.uint16
    with pytest.raises(InputError, match="found 5"):
        ids_to_classes(np.array([5]), TABLE)


def test_a_patch_over_the_border_repeats_it() -> None:
    array = np.random.default_rng(0).normal(size=(2, 4, 5, 6))
    padded = np.pad(array, ((0, 0), (8, 8), (8, 8), (8, 8)), mode="edge")
    for start in itertools.product((-7, -1, 0, 2), (-3, 1), (-8, 0, 5)):
        d, h, w = (slice(s + 8, s + 8 + n) for s, n in zip(start, (3, 8, 5), strict=True))
        np.testing.assert_array_equal(take(array, start, (3, 8, 5)), padded[:, d, h, w])


def test_padding_is_centred_and_undone() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    padded, crop = pad_to(array, (5, 3, 7))
    assert padded.shape == (5, 3, 7)
    np.testing.assert_array_equal(padded[crop], array)
    np.testing.assert_array_equal(padded[0, :, crop[2]], array[0])
    assert pad_to(array, (1, 2, 3))[0] is array


def fingerprint_of(spacings, shapes, channels=("MRI",)) -> Fingerprint:
    return Fingerprint(
        spacings=tuple(spacings),
        shapes=tuple(shapes),
        stats=(STATS,) * len(channels),
        channels=channels,
        modality=modality_of(channels),
    )


def test_the_plan_of_anisotropic_data() -> None:
    spacings = [(5.0, 1.0, 1.0)] + [(10.0, 1.5, 1.5)] * 9
    found = make_plan(fingerprint_of(spacings, [(10, 200, 200)] * 10), Config())
    assert found.view == "axial"
    assert found.anisotropic
    assert found.spacing[1:] == (1.5, 1.5)
    assert found.spacing[0] == pytest.approx(np.percentile([s[0] for s in spacings], 10))
    assert found.spacing[0] < 10, "the coarse axis takes its 10th percentile, not the median"


def test_thick_slices_are_kept_where_the_data_are_anisotropic() -> None:
    spacings, shapes = [(5.0, 1.0, 1.0), *[(10.0, 1.5, 1.5)] * 2], [(18, 300, 300), *[(9, 200, 200)] * 2]
    config = Config(data=DataConfig(slices="auto"))
    found = make_plan(fingerprint_of(spacings, shapes), config)
    assert found.keep_slices
    assert found.spacing == (10.0, 1.5, 1.5)
    assert found.median_shape == (9, 200, 200)
    assert from_dict(Plan, to_dict(found)) == found
    assert found.spacing_for((5.0, 1.0, 1.0)) == (5.0, 1.5, 1.5)
    thin = make_plan(fingerprint_of([(1.0, 1.0, 1.0), (2.0, 1.0, 1.0)], [(10, 20, 30)] * 2), config)
    assert not thin.keep_slices
    assert thin.spacing_for((2.0, 1.0, 1.0)) == thin.spacing


@pytest.mark.parametrize("view", ["axial", "coronal"])
def test_a_scan_with_slices_of_its_own_loses_none(view: str) -> None:
    order = list(VIEWS[view])
    spacing = np.empty(3)
    spacing[order] = (5.0, 1.0, 1.0)
    scan = canonical((10, 12, 14), tuple(spacing))
    kept = replace(plan(view, (10.0, 2.0, 2.0)), keep_slices=True)
    shape = np.array(scan.grid.shape)[order]
    ready = preprocess(scan, kept)
    assert ready.image.shape[1:] == (shape[0], *(shape[1:] // 2))
    assert ready.record.nearest_depth
    assert kept.voxels(scan.grid) == pytest.approx(ready.image.size)
    dropped = preprocess(scan, plan(view, (10.0, 2.0, 2.0)))
    assert dropped.image.shape[1] == shape[0] // 2


def test_the_coarse_axis_becomes_depth() -> None:
    assert choose_view((1.0, 1.0, 1.0)) == "axial"
    assert choose_view((1.0, 4.0, 1.0)) == "coronal"
    assert choose_view((1.0, 1.0, 4.0)) == "sagittal"
    assert choose_view((3.0, 4.7, 4.7)) == "axial", "no axis stands out"
    found = make_plan(fingerprint_of([(0.5, 4.0, 0.6)] * 3, [(100, 20, 90)] * 3), Config())
    assert (found.view, found.spacing, found.median_shape) == ("coronal", (4.0, 0.5, 0.6), (20, 100, 90))


def test_the_configuration_decides_over_the_data() -> None:
    config = Config(
        model=ModelConfig(channels=1, patch=(8, 32, 48)), data=DataConfig(view="sagittal", spacing=(2.0, 1.0, 1.0))
    )
    found = make_plan(fingerprint_of([(1.0, 1.0, 1.0)], [(10, 20, 30)], ("CT",)), config)
    assert (found.view, found.spacing, found.patch) == ("sagittal", (2.0, 1.0, 1.0), (8, 32, 48))
    assert found.normalisation == ("ct",)
    assert found.modality == "CT"
    assert found.median_shape == (15, 10, 20)
    assert found.left_right_axis == 0
    assert from_dict(Plan, to_dict(found)) == found
    with pytest.raises(InputError, match="channels=2"):
        make_plan(fingerprint_of([(1.0, 1.0, 1.0)], [(10, 20, 30)], ("T1", "T2")), config)


def test_a_window_takes_the_place_of_the_statistics_of_ct_alone() -> None:
    data = DataConfig(window=(-125.0, 275.0, -125.0, 400.0))
    one = [(1.0, 1.0, 1.0)], [(10, 20, 30)]
    found = make_plan(fingerprint_of(*one, ("CT",)), Config(data=data)).stats[0]
    assert (found.p005, found.p995, found.mean, found.std) == data.window
    assert found.high == STATS.high
    assert make_plan(fingerprint_of(*one, ("MRI",)), Config(data=data)).stats[0] == STATS
    for wrong in ((10.0, 10.0, 0.0, 1.0), (0.0, 10.0, 0.0, 0.0)):
        with pytest.raises(InputError, match="window is empty"):
            make_plan(fingerprint_of(*one, ("CT",)), Config(data=DataConfig(window=wrong)))


def test_modalities_by_channel_name() -> None:
    names = {("CT",): "CT", ("MRI",): "MR", ("T1", "FLAIR"): "MR", ("cine MRI",): "MR", ("ADC",): "MR", ("x",): ""}
    assert {channels: modality_of(channels) for channels in names} == names


@pytest.mark.parametrize("median", [(9, 256, 216), (118, 58, 105), (300, 512, 512), (35, 50, 36), (3, 7, 900)])
@pytest.mark.parametrize("upsample", [1, 2, 4])
def test_the_generic_patch_fits_the_encoder(median, upsample: int) -> None:
    patch = fit_patch(median, upsample=upsample)
    if upsample == 4:
        check_model(ModelConfig(patch=patch, classes=2))
    assert all(n * upsample % 16 == 0 and n * upsample <= 1024 and n <= 512 for n in patch[1:])
    assert patch[0] == min(16, median[0])
    for side, size in zip(patch[1:], median[1:], strict=True):
        assert side >= size or side == min(512, 1024 // upsample)


def test_the_fingerprint_measures_the_foreground() -> None:
    scan = canonical((10, 10, 10), (2.0, 1.0, 0.5))
    labels = np.zeros(scan.grid.shape, np.uint8)
    labels[2:5, 2:5, 2:5] = 1
    scan.array[labels == 1] = 7
    found = fingerprint([(scan, LabelMap(array=labels, grid=scan.grid))], channels=("MRI",))
    assert found.spacings == ((2.0, 1.0, 0.5),)
    assert found.shapes == ((10, 10, 10),)
    assert found.stats[0].mean == pytest.approx(7)
    assert found.stats[0].p995 == pytest.approx(7)
    assert found.stats[0].high > 100, "the whole scan's range is kept beside the foreground's"
