"""Largest components: what is kept, and when validation chooses to."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.preprocessing.postprocess import choose_largest, keep_largest


def scene() -> np.ndarray:
    """A block of class 1 touching one of class 2, and a crumb of each far away."""
    classes = np.zeros((8, 20, 20), np.uint8)
    classes[2:6, 2:8, 2:8] = 1
    classes[2:6, 8:11, 2:8] = 2
    classes[0, 18, 18] = 1
    classes[7, 15, 15] = 2
    return classes


def test_none_changes_nothing():
    classes = scene()
    assert keep_largest(classes, "none") is classes


@pytest.mark.parametrize("mode", ["foreground", "each", "both"])
def test_crumbs_go_and_the_source_stays(mode):
    classes = scene()
    kept = keep_largest(classes, mode)
    assert kept[0, 18, 18] == kept[7, 15, 15] == 0
    assert (kept[2:6, 2:11, 2:8] == classes[2:6, 2:11, 2:8]).all()
    assert classes[0, 18, 18] == 1


def test_structures_apart_survive_only_each_by_itself():
    classes = np.zeros((4, 10, 10), np.uint8)
    classes[:, 1:4, 1:4], classes[:, 7:9, 7:9] = 1, 2
    assert set(np.unique(keep_largest(classes, "each"))) == {0, 1, 2}
    assert set(np.unique(keep_largest(classes, "foreground"))) == {0, 1}


def test_both_is_each_within_the_foreground():
    classes = np.zeros((4, 10, 30), np.uint8)
    classes[:, 1:4, 1:9], classes[:, 1:4, 9:12], classes[:, 1:4, 12:14] = 1, 2, 1  # in one piece, 1 in two
    classes[:, 7:9, 16:30] = 2  # the larger part of 2, somewhere else
    kept = keep_largest(classes, "both")
    assert (kept[:, 1:4, 1:12] == classes[:, 1:4, 1:12]).all()
    assert kept[:, :, 12:].max() == 0
    assert (keep_largest(classes, "each") == 2).sum() == 4 * 2 * 14


def test_corners_touch():
    classes = np.zeros((3, 3, 3), np.uint8)
    classes[0, 0, 0] = classes[1, 1, 1] = 1
    assert keep_largest(classes, "foreground").sum() == 2


def test_empty_stays_empty():
    assert not keep_largest(np.zeros((2, 2, 2), np.uint8), "each").any()


def test_choice_needs_a_gain_and_no_loss():
    assert choose_largest({"none": [0.8, 0.7], "foreground": [0.8, 0.7], "each": [0.9, 0.6]}) == "none"
    assert choose_largest({"none": [0.8, 0.7], "foreground": [0.81, 0.7], "each": [0.81, 0.72]}) == "each"


def test_a_structure_without_a_figure_does_not_count():
    assert choose_largest({"none": [0.8, float("nan")], "each": [0.9, float("nan")]}) == "each"
    assert choose_largest({"none": [float("nan")], "foreground": [float("nan")], "each": [float("nan")]}) == "none"
