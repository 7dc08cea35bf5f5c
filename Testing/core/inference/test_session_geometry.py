"""Geometry of interactive sessions: planes, orientations, windows and small scans, on the scan's own voxels."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from MaskSAMCore.inference.frame import Frame
from MaskSAMCore.inference.predictor import Predictor
from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.inference.tiles import Tile, paint
from MaskSAMCore.preprocessing.preprocess import preprocess
from MaskSAMCore.preprocessing.resample import resample
from MaskSAMCore.volume import Grid, Volume
from Testing.toy_model import Threshold, bright_scan, make_card, make_plan
from Testing.toy_session import Flood, at, box, click, dice, open_session, whole_plan

IN = (8.0, 15.0, 5.0)
"""(i, j, k) inside of the bright block of `bright_scan`, whose k are 3 to 7."""


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_every_orientation_is_prompted_in_mm_and_answered_on_its_own_voxels(order, signs):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (row, sign) in enumerate(zip(order, signs, strict=True)):
        affine[row, axis] = sign
    affine[:3, 3] = (10, -20, 30)
    volume, block = bright_scan((10, 20, 30), affine, at=(slice(2, 5), slice(3, 9), slice(15, 27)))
    session = open_session(volume, plan=whole_plan(volume, patch=(8, 32, 32)))
    inside = volume.grid.to_ras([16, 4, 3])
    update = session.prompt(1, [Prompt.point_ras(inside, volume.grid, scope="volume")])
    assert np.array_equal(session.mask(1) > 0, block)
    assert update.extent == (2, 5, 3, 9, 15, 27)
    assert update.axis == 2 - order.index(2)
    assert set(update.quality) == set(np.flatnonzero(block.any(axis=tuple({0, 1, 2} - {update.axis}))))
    edges = volume.grid.to_ras([[14.6, 2.6, 1.6], [26.4, 8.4, 4.4]])
    session.prompt(2, [Prompt.box_ras(*edges, volume.grid)])
    assert np.array_equal(session.mask(2) > 0, block)


@pytest.mark.parametrize("view", ["axial", "coronal", "sagittal"])
def test_oblique_anisotropic_scans(view: str):
    angle = np.deg2rad(12)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = affine @ np.diag([0.8, 0.9, 2.0, 1.0])
    volume, block = bright_scan((12, 40, 40), affine)
    session = open_session(volume, plan=whole_plan(volume, view=view))
    session.prompt(1, [Prompt.point_ras(volume.grid.to_ras(IN), volume.grid, scope="volume")])
    assert dice(session.mask(1) > 0, block) > 0.85


@pytest.mark.parametrize("spacing", [(0.93, 0.83, 1.73), (0.43, 0.48, 0.47), (2.5, 1.3, 4.0)])
def test_a_click_finds_exactly_what_automatic_mode_finds(spacing: tuple[float, float, float]):
    """With a network that thresholds alike; so the way to the network's grid and back is the same."""
    volume, _ = bright_scan((12, 40, 40), np.diag([*spacing, 1.0]), at=(slice(3, 8), slice(17, 22), slice(16, 21)))
    plan = whole_plan(volume, patch=(4, 32, 32))
    automatic = Predictor.of(Threshold(0.5), make_card(plan=plan)).segment(volume).labels.array > 0
    session = open_session(volume, Flood(0.5), plan=plan)
    session.prompt(1, [click(18, 19, 5, scope="volume")])
    assert automatic.any()
    assert np.array_equal(session.mask(1) > 0, automatic)


@pytest.mark.parametrize("thickness", [0.3, 4.0])
def test_scope_slice_is_one_slice_of_the_scan_whatever_its_thickness(thickness: float):
    volume, _ = bright_scan(
        (16, 24, 24), np.diag([1, 1, thickness, 1.0]), at=(slice(4, 12), slice(5, 15), slice(5, 15))
    )
    session = open_session(volume)
    session.prompt(1, [click(8, 8, 7, scope="slice")])
    found = np.flatnonzero(session.mask(1).any(axis=(1, 2)))
    assert 7 in found
    assert len(found) == (1 if thickness > 1 else len(found))
    assert np.ptp(found) * thickness < 1


@pytest.mark.parametrize("shape", [(8, 30, 20), (16, 60, 40), (5, 13, 9), (20, 71, 90)])
def test_painting_equals_resampling_the_whole(shape: tuple[int, int, int]):
    """Enlarged, shrunk and shrunk by more than two, where the kernel smoothes."""
    volume = Volume(
        array=np.random.default_rng(1).normal(size=(16, 60, 40)), grid=Grid(shape=(16, 60, 40), affine=np.eye(4))
    )
    spacing = tuple(n / m for n, m in zip((16, 60, 40), shape, strict=True))
    frame = Frame(preprocess(volume, make_plan(spacing=spacing)).record)
    assert frame.record.shape == shape
    rng = np.random.default_rng(0)
    logits = resample(torch.from_numpy(rng.normal(size=(4, 6, 6)).astype(np.float32)), shape, mode="cubic") * 9
    planes = {z: Tile(0, 0, plane.half().numpy()) for z, plane in enumerate(logits)}
    whole = (0, shape[1], 0, shape[2])
    found = np.zeros((16, 60, 40), bool)
    for d, tile in paint({}, planes, dict.fromkeys(range(shape[0]), whole), frame).items():
        found[d] = tile.cut((0, 60, 0, 40))
    expected = resample(logits.half().float().sigmoid(), (16, 60, 40), mode="linear").numpy()
    differ = found != (expected > 0.5)
    assert 0.1 < found.mean() < 0.9
    assert (np.abs(expected[differ] - 0.5) < 1e-4).all()


def test_boxes_may_be_drawn_in_any_plane():
    volume, block = bright_scan()
    session = open_session(volume)
    session.prompt(1, [box((5, 12, 5), (14, 21, 5))])
    assert np.array_equal(session.mask(1) > 0, block & at((slice(4, 8),), block.shape))
    session.prompt(2, [box((5, 16, 3), (14, 16, 7))])
    assert np.array_equal(session.mask(2) > 0, block), "coronal: its slices, as far as the structure goes in depth"
    session.prompt(3, [box((9, 12, 3), (9, 21, 7))])
    assert np.array_equal(session.mask(3) > 0, block), "sagittal"
    session.prompt(4, [box((9, 12, 3), (9, 21, 7), scope="slice")])
    assert np.flatnonzero(session.mask(4).any(axis=(1, 2))).tolist() == [5]


def test_a_box_that_spans_slices_limits_the_result_until_a_click_outside():
    volume, block = bright_scan((12, 16, 16), at=(slice(1, 11), slice(4, 10), slice(4, 10)))
    session = open_session(volume)
    prompts = [box((2, 2, 3), (11, 7, 6))]
    session.prompt(1, prompts)
    held = block & at((slice(3, 7), slice(0, 9)), block.shape)  # a tenth more than the box
    assert np.array_equal(session.mask(1) > 0, held)
    session.prompt(1, [*prompts, click(5, 5, 4)])
    assert np.array_equal(session.mask(1) > 0, held), "a click inside keeps the limit"
    session.prompt(1, [*prompts, click(5, 9, 5)])
    assert session.mask(1)[5, 9, 5], "a click outside lifts it"


def test_a_box_larger_than_a_window_is_answered_by_all_it_touches():
    volume, block = bright_scan((4, 40, 40), at=(slice(0, 4), slice(3, 35), slice(4, 36)))
    session = open_session(volume)
    update = session.prompt(1, [box((3, 2, 2), (36, 36, 2))])
    assert update.encoded == 16
    assert np.array_equal(session.mask(1) > 0, block)


def test_a_click_takes_the_window_in_which_it_lies_most_centrally_and_stays_there():
    volume, _ = bright_scan((4, 16, 40), at=(slice(0, 4), slice(3, 13), slice(2, 38)))
    session = open_session(volume)
    clicks = [click(11, 8, 2), click(13, 8, 2), click(15, 8, 2)]
    assert session.prompt(1, clicks[:1]).encoded == 1
    assert session.mask(1).any(axis=(0, 1)).nonzero()[0].tolist() == list(range(2, 16))
    assert session.prompt(1, clicks[:2]).encoded == 0, "the next window would hold them better, but not by much"
    assert session.prompt(1, clicks).encoded == 1, "too near to the window's border"
    assert session.mask(1).any(axis=(0, 1)).nonzero()[0].tolist() == list(range(2, 24))


@pytest.mark.parametrize("shape", [(1, 9, 7), (1, 1, 1), (3, 5, 30), (2, 30, 3)])
def test_scans_smaller_than_a_patch(shape: tuple[int, int, int]):
    part = tuple(slice(n // 3, max(2 * n // 3, n // 3 + 1)) for n in shape)
    volume, block = bright_scan(shape, at=part)
    session = open_session(volume)
    update = session.prompt(1, [click(*((s.start + s.stop) // 2 for s in part[::-1]), scope="volume")])
    if min(volume.array.shape) and volume.array.min() == volume.array.max():
        assert "constant" in update.messages[0]
    else:
        assert np.array_equal(session.mask(1) > 0, block)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_gives_nothing_and_says_so(value: float):
    volume = Volume(array=np.full((6, 20, 20), value, np.float32), grid=Grid(shape=(6, 20, 20), affine=np.eye(4)))
    network = Flood()
    session = open_session(volume, network)
    update = session.prompt(1, [click(5, 5, 3)])
    assert update.voxels == 0
    assert "constant" in update.messages[0]
    assert network.encoded == 0
    assert any("constant" in text for text in session.warnings)
    assert session.encode() == 0
    assert session.automatic(3) == []


def test_a_wider_scan_than_in_training_is_standardised_around_each_window():
    """Without that, a far brighter part of the scan would hide the structure."""
    volume, block = bright_scan((12, 48, 96), at=(slice(3, 8), slice(12, 22), slice(5, 15)))
    volume.array[:, :, 60:] = 3000
    plan = make_plan(median_shape=(12, 48, 40))
    session = open_session(volume, plan=plan)
    session.prompt(1, [click(*IN, scope="volume")])
    assert np.array_equal(session.mask(1) > 0, block)
    plain = open_session(volume, plan=make_plan(median_shape=(12, 48, 96)))
    plain.prompt(1, [click(*IN, scope="volume")])
    assert plain.mask(1).sum() < 10


def test_a_scan_no_wider_than_in_training_has_the_windows_of_automatic_mode():
    volume, _ = bright_scan()
    session = open_session(volume)
    image = preprocess(volume, whole_plan(volume)).image
    assert np.array_equal(session._slabs.window((2, 8, 16)), image[:, 2:6, 8:24, 16:32])


def test_what_the_network_is_told_of_a_small_scan_goes_on_beyond_its_border():
    """As labels did in training, where the border is repeated."""
    volume, _ = bright_scan((2, 10, 10), at=(slice(0, 2), slice(4, 10), slice(3, 10)))
    network = Flood()
    session = open_session(volume, network)
    session.prompt(1, [click(8, 8, 1), click(7, 7, 1)])
    batch = network.batches[-1]
    assert batch.masks_known is None
    assert batch.masks.shape == (1, 1, 4, 16, 16)
    told = batch.masks[0, 0] > 0
    assert bool(told[:, 8:, 7:].all())
    assert not bool(told[:, :6].any())
    assert not bool(told[:, :, :5].any())
