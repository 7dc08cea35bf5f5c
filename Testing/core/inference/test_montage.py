"""The montage of a result: orientation, proportions, names and volumes."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.inference.montage import PLANES, montage, save_montage
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.volume import Grid, LabelMap, Volume
from Testing.toy_model import BRIGHT, bright_scan

RED = LabelTable(labels=(Label(id=3, name="a structure in red", color=(255, 0, 0)),))


def case(affine: np.ndarray | None = None, labels: LabelTable = RED) -> tuple[Volume, LabelMap]:
    """A block at the right, posterior, inferior end of a scan in RAS (low j and k, high i)."""
    volume, block = bright_scan((20, 40, 30), affine, at=(slice(2, 8), slice(4, 12), slice(18, 28)))
    return volume, LabelMap(array=block.astype(np.uint8) * 3, grid=volume.grid, labels=labels)


def texts(figure) -> list[str]:
    return [t.get_text() for t in figure.texts] + [t.get_text() for axes in figure.axes for t in axes.texts]


def where_bright(axes) -> tuple[float, float]:
    """Centre of the bright block as shares of the picture: from the left, from the top."""
    rows, columns = np.nonzero(np.asarray(axes.images[0].get_array()) > 100)
    height, width = axes.images[0].get_array().shape
    return float(columns.mean() / width), float(rows.mean() / height)


def test_planes_show_right_on_the_left_and_anterior_on_top():
    figure = montage(*case())
    shown = [where_bright(axes) for axes in figure.axes[:3]]
    (axial_x, axial_y), (coronal_x, coronal_y), (sagittal_x, sagittal_y) = shown
    assert axial_x < 0.5 < axial_y  # right and posterior
    assert coronal_x < 0.5 < coronal_y  # right and inferior
    assert sagittal_x > 0.5
    assert sagittal_y > 0.5
    for axes, plane in zip(figure.axes[:3], PLANES, strict=True):
        marks = {t.get_text(): t.get_position() for t in axes.texts}
        left, right, top, bottom = plane.marks
        assert marks[left][0] < marks[right][0]
        assert marks[bottom][1] < marks[top][1]


def test_other_axis_orders_look_the_same():
    """LPS storage with the axes in another order; the picture follows the patient, not the array."""
    volume, labels = case()
    affine = np.array([[0, 0, -1, 29.0], [0, -1, 0, 39], [1, 0, 0, 0], [0, 0, 0, 1]])
    turned = [np.ascontiguousarray(a.transpose(2, 1, 0)[::-1, ::-1]) for a in (volume.array, labels.array)]
    grid = Grid(shape=turned[0].shape, affine=affine)
    other = montage(Volume(array=turned[0], grid=grid), LabelMap(array=turned[1], grid=grid, labels=RED))
    for a, b in zip(montage(volume, labels).axes[:3], other.axes[:3], strict=True):
        assert where_bright(a) == pytest.approx(where_bright(b))


def test_pixels_keep_their_proportions():
    figure = montage(*case(np.diag([1.0, 1.0, 4.0, 1.0])))
    width, height = figure.get_size_inches()
    for axes in (a for a in figure.axes if a.images):
        box = axes.get_position()
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        across = (right - left) / (box.width * width)
        assert (bottom - top) / (box.height * height) == pytest.approx(across, rel=1e-6)
        extent = axes.images[0].get_extent()
        assert extent[1] in (30, 40)
        assert extent[2] in (40, 80)


def test_legend_names_structures_and_their_volumes():
    figure = montage(*case(np.diag([2.0, 1.0, 1.0, 1.0])), title="case 7", subtitle="model m")
    found = texts(figure)
    assert {"a structure in red", "0.96", "case 7", "model m", "sagittal close-ups"} <= set(found)


def test_thick_slices_are_shown_in_their_own_plane():
    assert "sagittal close-ups" in texts(montage(*case(np.diag([5.0, 1.0, 1.0, 1.0]))))


@pytest.mark.slow
def test_nothing_found_is_said_and_many_structures_fit():
    volume, labels = case()
    empty = LabelMap(array=np.zeros_like(labels.array), grid=volume.grid, labels=BRIGHT)
    assert "nothing found" in texts(montage(volume, empty))
    many = np.zeros(volume.grid.shape, np.uint8)
    many.reshape(-1)[: 60 * 50] = np.repeat(np.arange(1, 61), 50)
    found = texts(montage(volume, LabelMap(array=many, grid=volume.grid)))
    assert "label 1" in found
    assert "and 37 more" in found


def test_one_slice_and_constant_scans_are_drawn():
    grid = Grid(shape=(1, 30, 30), affine=np.eye(4))
    array = np.zeros(grid.shape, np.uint8)
    array[0, 5:9, 5:9] = 3
    montage(Volume(array=np.zeros(grid.shape, np.float32), grid=grid), LabelMap(array=array, grid=grid, labels=RED))


def test_png_is_written_whole_and_shows_the_colour(tmp_path):
    volume, labels = case()
    path = tmp_path / "a b.png"
    save_montage(volume, labels, path)
    pixels = imread(path)
    assert pixels.shape[1] == 1680
    red = (pixels[..., 0] > 0.8) & (pixels[..., 1] < 0.2) & (pixels[..., 2] < 0.2)
    assert red.sum() > 500
    assert [p.name for p in tmp_path.iterdir()] == ["a b.png"]
    with pytest.raises(InputError, match="exists"):
        save_montage(volume, labels, path)


def test_labels_of_another_grid_are_refused():
    volume, labels = case()
    other = LabelMap(array=labels.array, grid=Grid(shape=labels.grid.shape, affine=np.diag([2.0, 1, 1, 1])))
    with pytest.raises(GeometryError):
        montage(volume, other)
