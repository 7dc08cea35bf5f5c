"""Augmentation: image and label move together, intensities keep their meaning, everything is repeatable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from MaskSAMCore.config.schema import AugmentConfig
from MaskSAMCore.data.augment import (
    Warp,
    augment,
    augment_case,
    draw_warp,
    extract,
    flip,
    for_fixed_copies,
    generator,
    intensity,
)
from MaskSAMCore.preprocessing.plan import ChannelStats, MirrorRule, Plan

OFF = AugmentConfig(
    rotation=0, scaling=0, noise=0, blur=0, brightness=0, contrast=0, low_resolution=0, gamma_inverted=0, gamma=0,
    mirror=0,
)  # fmt: skip
ALL = MirrorRule(axes=(0, 1, 2), left_right=2, swap=(0, 2, 1))
STATS = ChannelStats(p005=0, p995=1, mean=0, std=1, low=0, high=1)


def plan(spacing=(1.0, 1.0, 1.0)) -> Plan:
    return Plan(
        view="axial",
        spacing=spacing,
        patch=(8, 24, 24),
        normalisation=("zscore",),
        stats=(STATS,),
        anisotropic=spacing[0] > 3 * spacing[1],
        median_shape=(16, 40, 40),
        channels=("MRI",),
    )


def case(shape=(16, 40, 36)) -> tuple[np.ndarray, np.ndarray]:
    """Two blocks with soft borders; the image says in every voxel which class it is."""
    label = np.zeros(shape, np.uint8)
    label[4:12, 8:20, 6:16] = 1
    label[4:12, 20:32, 18:30] = 2
    return label[None].astype(np.float16), label


def test_image_and_label_move_together() -> None:
    image, label = case()
    config = replace(OFF, rotation=1, scaling=1, elastic=1)
    moved = 0
    for seed in range(10):
        warp = draw_warp(config, plan(), (8, 24, 24), generator(seed))
        picture, classes, _ = extract(image, label, (4, 8, 6), (8, 24, 24), warp)
        agree = (picture[0].round() == classes).float().mean()
        assert agree > 0.93, "only borders may differ, where the image has values between the classes"
        moved += not torch.equal(classes, extract(image, label, (4, 8, 6), (8, 24, 24))[1])
    assert moved == 10


def test_no_warp_cuts_out_voxels_as_they_are() -> None:
    image, label = case()
    picture, classes, valid = extract(image, label, (2, 3, 4), (8, 24, 24))
    np.testing.assert_array_equal(picture[0].numpy(), image[0, 2:10, 3:27, 4:28].astype(np.float32))
    np.testing.assert_array_equal(classes.numpy(), label[2:10, 3:27, 4:28])
    same, labels, good = extract(image, label, (2, 3, 4), (8, 24, 24), Warp(np.eye(3)))
    torch.testing.assert_close(same, picture, atol=1e-5, rtol=0)
    assert torch.equal(labels, classes)
    assert valid.all()
    assert good.all()


def test_a_warped_patch_shows_what_lies_beside_it() -> None:
    """Turned by a quarter, a flat patch shows columns of the case that the patch itself does not hold."""
    image = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None], (1, 16, 40, 36)).copy()
    quarter = Warp(np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]))
    picture, _, _ = extract(image, np.zeros(image.shape[1:], np.uint8), (4, 16, 6), (4, 8, 24), quarter)
    assert picture.min() < 16
    assert picture.max() > 24


def test_turning_is_rigid_in_mm() -> None:
    """A ball in mm stays a ball when voxels are not cubes."""
    spacing = np.array((2.0, 1.0, 1.0))
    z, y, x = np.indices((16, 40, 40))
    mm = np.stack([(z - 7.5) * 2, y - 19.5, x - 19.5])
    label = (np.sqrt((mm**2).sum(0)) < 10).astype(np.uint8)
    config = replace(OFF, rotation=1)
    for seed in range(4):
        warp = draw_warp(config, plan(tuple(spacing)), label.shape, generator(seed))
        turned = extract(label[None].astype(np.float32), label, (0, 0, 0), label.shape, warp)[1].numpy()
        dice = 2 * (turned & label).sum() / (turned.sum() + label.sum())
        assert dice > 0.95


def test_thick_slices_are_turned_in_plane_only() -> None:
    image = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (1, 8, 24, 24)).copy()
    config = replace(OFF, rotation=1, scaling=1, blur=1, low_resolution=1, elastic=1)
    for seed in range(5):
        rng = generator(seed)
        warp = draw_warp(config, plan((6.0, 1.0, 1.0)), (8, 24, 24), rng)
        picture, _, _ = extract(image, np.zeros((8, 24, 24), np.uint8), (0, 0, 0), (8, 24, 24), warp)
        picture = intensity(picture, config, rng, in_plane=True)
        torch.testing.assert_close(picture[0, :, 12, 12], torch.arange(8.0), atol=1e-3, rtol=0)


def test_many_classes_take_the_nearest_label() -> None:
    label = np.random.default_rng(0).integers(0, 20, (4, 12, 12)).astype(np.uint8).repeat(3, 1).repeat(3, 2)
    warp = draw_warp(replace(OFF, rotation=1), plan(), label.shape, generator(3))
    classes = extract(label[None].astype(np.float32), label, (0, 0, 0), label.shape, warp)[1]
    assert set(classes.unique().tolist()) <= set(range(20))
    assert len(classes.unique()) > 15


@pytest.mark.parametrize(
    "name", ["noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma"]
)
def test_every_intensity_change_changes_and_stays_close(name: str) -> None:
    image = torch.randn(2, 8, 24, 24, generator=generator(0))
    before = image.clone()
    changed = [intensity(image, replace(OFF, **{name: 1.0}), generator(seed), in_plane=False) for seed in range(6)]
    assert torch.equal(image, before), "the input is not modified"
    assert any(not torch.equal(c, image) for c in changed)
    for result in changed:
        assert torch.isfinite(result).all()
        assert result.shape == image.shape
        mixed = torch.stack([result.flatten(), image.flatten()])
        assert torch.corrcoef(mixed)[0, 1] > 0.4
        if name.startswith("gamma"):
            torch.testing.assert_close(result.mean((1, 2, 3)), image.mean((1, 2, 3)), atol=1e-3, rtol=0)
            torch.testing.assert_close(result.std((1, 2, 3)), image.std((1, 2, 3)), atol=1e-2, rtol=0)


def test_flipping_moves_valid_slices_too() -> None:
    image, label = torch.arange(4.0).view(1, 4, 1, 1), torch.arange(4).view(4, 1, 1) % 3
    valid = torch.tensor([False, True, True, True])
    rule = replace(ALL, axes=(0,), left_right=-1)
    picture, classes, good = flip(image, label, valid, rule, rule.axes)
    assert picture.flatten().tolist() == [3, 2, 1, 0]
    assert classes.flatten().tolist() == [0, 2, 1, 0]
    assert good.tolist() == [True, True, True, False]


def test_the_same_generator_gives_the_same_patch() -> None:
    image, label = case()
    config = for_fixed_copies(AugmentConfig(elastic=0.5))
    one, two, other = (
        augment_case(image, label, config, generator(*seed), plan=plan(), mirror=ALL)
        for seed in ((1, 2), (1, 2), (1, 3))
    )
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert not np.array_equal(one[0], other[0])
    assert one[0].shape == image.shape
    assert one[0].dtype == np.float32
    assert one[1].dtype == label.dtype


def test_a_batch_is_augmented_sample_by_sample() -> None:
    image, label = case()
    images = torch.from_numpy(np.stack([image, image]).astype(np.float32))
    labels = torch.from_numpy(np.stack([label, label]).astype(np.int64))
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[:, 12:] = False
    config = replace(for_fixed_copies(AugmentConfig()), rotation=1.0)
    out, classes, good = augment(images, labels, valid, config, generator(5), plan=plan(), mirror=ALL)
    assert out.shape == images.shape
    assert classes.shape == labels.shape
    assert good.shape == valid.shape
    assert not torch.equal(out[0], out[1])
    assert classes.dtype == torch.int64
    assert good.dtype == torch.bool
    assert 8 <= int(good[0].sum()) <= 14, "padding stays invalid wherever it went"


def test_slices_that_a_deformation_moves_take_their_validity_along() -> None:
    depth = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 1, 8, 12, 12).contiguous()
    label, valid = torch.zeros(1, 8, 12, 12, dtype=torch.long), torch.arange(8)[None] < 5
    config = replace(OFF, scaling=1, scaling_range=(0.5, 0.5))
    image, _, good = augment(depth, label, valid, config, generator(1), plan=plan(), mirror=ALL)
    source = image[0, 0, :, 6, 6].round()
    assert source.min() > 1, "zoomed in about the middle"
    assert source.max() < 6
    assert good[0].tolist() == (source < 5).tolist()
