"""faults.md row 22: no left-right mirroring unless pairs are declared; where they are, labels swap."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from MaskSAMCore.config.schema import AugmentConfig, DataConfig
from MaskSAMCore.data.augment import augment_case, flip, generator
from MaskSAMCore.data.raw import read_case, read_dataset
from MaskSAMCore.errors import InputError
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.preprocessing.plan import VIEWS, mirror_rule
from MaskSAMCore.preprocessing.preprocess import preprocess, preprocess_labels
from Testing.core.preprocessing.test_preprocess import plan

SIDED = ("right_parotid", "left_parotid")


def table(*, declared: bool) -> LabelTable:
    names = ("brainstem", "spinal_cord", "mandible", *SIDED)
    partner = dict(zip(SIDED, SIDED[::-1], strict=True)) if declared else {}
    labels = [Label(id=i, name=n, color=(0, 0, 0), mirror=partner.get(n, "")) for i, n in enumerate(names, 1)]
    return LabelTable(labels=tuple(labels), mirrored=declared)


@pytest.mark.parametrize(("view", "side"), [("axial", 2), ("coronal", 2), ("sagittal", 0)])
def test_the_axis_of_the_sides_is_left_alone(view: str, side: int) -> None:
    rule = mirror_rule(plan(view), table(declared=False), DataConfig())
    assert side not in rule.axes
    assert len(rule.axes) == 2
    assert rule.left_right == -1
    assert mirror_rule(plan(view), table(declared=True), DataConfig()).left_right == side
    never = mirror_rule(plan(view), table(declared=True), DataConfig(left_right="never"))
    assert side not in never.axes
    assert never.left_right == -1
    alone = mirror_rule(plan(view), table(declared=True), DataConfig(mirroring="sides"))
    assert alone.axes == (side,)
    assert alone.left_right == side
    assert mirror_rule(plan(view), table(declared=False), DataConfig(mirroring="sides")).axes == ()


def test_always_is_refused_where_labels_have_sides_without_pairs() -> None:
    with pytest.raises(InputError, match="right_parotid, left_parotid"):
        mirror_rule(plan(), table(declared=False), DataConfig(left_right="always"))
    plain = LabelTable(labels=(Label(id=1, name="anterior", color=(0, 0, 0)),))
    assert mirror_rule(plan(), plain, DataConfig(left_right="always")).axes == (0, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_parotids_of_a_real_scan_keep_their_sides(shared: Path, view: str) -> None:
    """Stored P-L-I: after any augmentation the right parotid lies to the right of the left one."""
    dataset = read_dataset(shared / "data" / "headneck_ct")
    volume, labels = read_case(dataset, dataset.cases[1])
    how = plan(view, (6.0, 6.0, 6.0), kind="ct")
    ready = preprocess(volume, how)
    classes = preprocess_labels(labels, ready.record, how, dataset.labels)
    right, left = (dataset.labels.labels[i].name for i in (3, 4))
    assert (right, left) == SIDED
    side = how.left_right_axis
    names = ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma", "scaling")
    config = AugmentConfig(**dict.fromkeys(names, 0.0), rotation=0.0, mirror=0.5)
    turned = AugmentConfig(rotation=0.7, rotation_degrees=20, mirror=0.5)
    for declared in (False, True):
        rule = mirror_rule(how, table(declared=declared), DataConfig())
        exchanged = 0
        for seed in range(10):
            for settings in (config, turned):
                image, changed = augment_case(ready.image, classes, settings, generator(seed), plan=how, mirror=rule)
                centre = [np.argwhere(changed == c).mean(0)[side] for c in (4, 5)]
                # a picture's columns run to the left
                assert (centre[0] > centre[1]) != (view == "picture"), (declared, seed)
                if settings is config:
                    exchanged += _is_flipped(image[0], ready.image[0], side)
        assert (exchanged > 0) == declared, "the picture itself is mirrored too, but only where that is declared"


def _is_flipped(image: np.ndarray, before: np.ndarray, side: int) -> bool:
    """Whether one of the mirrorings that include `side` made `image` out of `before`."""
    others = [axis for axis in range(3) if axis != side]
    ways = [(side,), (side, others[0]), (side, others[1]), (side, *others)]
    return any(np.array_equal(image, np.flip(before, way)) for way in ways)


def test_a_mirrored_label_map_exchanges_the_pair() -> None:
    rule = mirror_rule(plan(), table(declared=True), DataConfig())
    label = torch.tensor([0, 1, 4, 5]).view(1, 1, 4)
    only = replace(rule, axes=(2,))
    _, swapped, _ = flip(label[None].float(), label, torch.tensor([True]), only, only.axes)
    assert swapped.flatten().tolist() == [4, 5, 1, 0], "reversed, and right became left"
    depth = replace(rule, axes=(0, 1))
    _, kept, _ = flip(label[None].float(), label, torch.tensor([True]), depth, depth.axes)
    assert torch.equal(kept, label), "mirroring along another axis exchanges nothing"
