"""Volume, centroid and intensities of structures, against plain numpy and SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore import label_statistics
from MaskSAMCore.errors import GeometryError
from MaskSAMCore.label_statistics import Intensities, StructureSums, measure_structures
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.volume import Grid, LabelMap, Volume

AFFINE = np.array([[0.0, -0.8, 0.1, 5], [1.1, 0, 0, -7], [0, 0.05, 2.5, 11], [0, 0, 0, 1]])
TABLE = LabelTable(
    labels=tuple(Label(id=n, name=name, color=(1, 2, 3)) for n, name in ((2, "two"), (7, "seven"), (9, "absent")))
)
RNG = np.random.default_rng(3)
SHAPE = (9, 12, 14)


def labels() -> LabelMap:
    array = np.zeros(SHAPE, np.uint16)
    array[1:6, 2:9, 3:11] = 2
    array[2:4, 4:6, 5:7] = 0
    array[7, 11, 13] = 7
    array[0, 0, :4] = 300
    return LabelMap(array=array, grid=Grid(shape=SHAPE, affine=AFFINE), labels=TABLE)


def volume(dtype: type, channels: int = 0) -> Volume:
    array = (RNG.normal(0, 50, (channels, *SHAPE) if channels else SHAPE)).round(2)
    array = array.clip(0, 255) if dtype is np.uint8 else array
    return Volume(array=array.astype(dtype), grid=Grid(shape=SHAPE, affine=AFFINE))


@pytest.mark.parametrize("at_once", [1, 100, 4_000_000])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_statistics_are_those_of_numpy(dtype: type, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_statistics, "AT_ONCE", at_once)
    scan, map_ = volume(dtype), labels()
    found = measure_structures(map_, scan)
    assert list(found) == [2, 7, 9, 300]
    for number in (2, 7, 300):
        inside = map_.array == number
        values = scan.array[inside].astype(np.float64)
        centroid = map_.grid.to_ras(np.argwhere(inside)[:, ::-1]).mean(axis=0)
        sd = values.std(ddof=1) if len(values) > 1 else 0.0
        one = found[number]
        assert one.voxels == len(values)
        assert one.volume_ml == pytest.approx(len(values) * map_.grid.voxel_volume_ml)
        assert one.centroid_ras == pytest.approx(centroid)
        assert one.intensities[0] == pytest.approx((values.mean(), sd, values.min(), values.max()))


def test_statistics_are_those_of_itk() -> None:
    scan, map_ = volume(np.float32), labels()
    itk = sitk.LabelStatisticsImageFilter()
    itk.Execute(sitk.GetImageFromArray(scan.array), sitk.GetImageFromArray(map_.array))
    mine = measure_structures(map_, scan)[2].intensities[0]
    assert mine == pytest.approx((itk.GetMean(2), itk.GetSigma(2), itk.GetMinimum(2), itk.GetMaximum(2)))


def test_an_empty_structure_has_neither_centroid_nor_intensities() -> None:
    empty = measure_structures(labels(), volume(np.int16, 2))[9]
    assert (empty.voxels, empty.volume_ml, empty.centroid_ras) == (0, 0, None)
    assert empty.intensities == (None, None)


def test_channels_have_statistics_of_their_own() -> None:
    scan = volume(np.float32, 3)
    found = measure_structures(labels(), scan)[2].intensities
    assert [one.maximum for one in found] == [channel[labels().array == 2].max() for channel in scan.array]


def test_values_that_are_not_finite_are_left_out() -> None:
    scan = volume(np.float32)
    scan.array[1, 2, 3:6] = np.nan, np.inf, -np.inf
    scan.array[7, 11, 13] = np.nan
    inside = labels().array == 2
    good = scan.array[inside & np.isfinite(scan.array)]
    found = measure_structures(labels(), scan)
    assert found[2].voxels == inside.sum()
    assert found[2].intensities[0].mean == pytest.approx(good.mean(dtype=np.float64))
    assert found[7].intensities == (None,)
    assert found[7].centroid_ras is not None


def test_large_values_keep_their_digits() -> None:
    """A sum of squares would lose them all."""
    values = 1e9 + np.arange(1000.0).reshape(10, 10, 10)
    sums = StructureSums()
    for plane in range(10):
        sums.add(np.ones((1, 10, 10), np.uint8), values[plane : plane + 1], (plane, 0, 0))
    assert sums.intensities[0] == pytest.approx((1e9 + 499.5, np.arange(1000).std(ddof=1), 1e9, 1e9 + 999), rel=1e-12)
    assert sums.centroid_ijk == (4.5, 4.5, 4.5)


def test_one_voxel() -> None:
    scan = volume(np.int16)
    value = float(scan.array[7, 11, 13])
    assert measure_structures(labels(), scan)[7].intensities == (Intensities(value, 0.0, value, value),)


def test_another_size_is_refused() -> None:
    map_ = labels()
    small = LabelMap(array=map_.array[1:], grid=map_.grid.crop((slice(1, 9), slice(None), slice(None))))
    with pytest.raises(GeometryError, match="not on the grid"):
        measure_structures(small, volume(np.int16))
