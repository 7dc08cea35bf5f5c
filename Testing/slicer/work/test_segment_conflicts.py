"""Conflicts between a structure and other segments, voxel by voxel, on Slicer's own segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.labels import Label
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.choices import OverlapPolicy
from SlicerMaskSAMLib.values.sparse import SparseMask
from SlicerMaskSAMLib.work import segment_conflicts
from SlicerMaskSAMLib.work.segment_conflicts import Click, Outcome, SegmentEdit, connected_component
from Testing.slicer import rig

SHAPE = (6, 10, 12)
PROTECT, REPLACE, OVERLAP = OverlapPolicy.PROTECT, OverlapPolicy.REPLACE, OverlapPolicy.OVERLAP
Place = tuple[slice, slice, slice]
LEFT = np.s_[1:5, 2:8, 0:6]
RIGHT = np.s_[1:5, 2:8, 4:12]
BOTH = np.s_[1:5, 2:8, 4:6]
"""What LEFT and RIGHT share."""


def mask(*places: Place) -> np.ndarray:
    """bool (K, J, I), set in these places."""
    out = np.zeros(SHAPE, bool)
    for place in places:
        out[place] = True
    return out


class Table:
    """A segmentation with a structure that is answered, and its neighbours."""

    def __init__(self) -> None:
        volume = rig.volume(SHAPE)
        self.geometry = bridge.geometry(volume)
        self.segmentation = bridge.new_segmentation(volume.GetScene(), "segmentation", volume=volume)
        self.answered = SparseMask()
        self.taken: Any = {}
        self.last = Outcome()
        self.add("structure")

    def add(self, name: str, *places: Place) -> None:
        bridge.add_segment(self.segmentation, Label(id=1, name=name, color=(1, 2, 3)), segment_id=name)
        self.draw(name, mask(*places))

    def draw(self, name: str, voxels: np.ndarray) -> None:
        bridge.write_segment(self.segmentation, name, self.geometry, self.geometry.box, voxels)

    def voxels(self, name: str = "structure") -> np.ndarray:
        return bridge.read_segment(self.segmentation, name, self.geometry) != 0

    def edit(self, voxels: np.ndarray, policy: OverlapPolicy = PROTECT, clicks: Sequence[Click] = ()) -> None:
        """Write this mask of the engine, after its previous one."""
        after = SparseMask.of(self.geometry.box, voxels)
        edit = SegmentEdit(
            segment_id="structure",
            before=self.answered,
            after=after,
            clicks=tuple(clicks),
            policy=policy,
            taken=self.taken,
        )
        changed = self.answered.differing_box(after)
        self.last = segment_conflicts.resolve(self.segmentation, self.geometry, edit, changed)
        segment_conflicts.write(self.segmentation, self.geometry, self.last)
        self.answered, self.taken = after, self.last.taken

    def undo(self) -> None:
        for change in reversed(self.last.changes):
            now = bridge.read_segment(self.segmentation, change.segment_id, self.geometry, change.box)
            bridge.write_segment(self.segmentation, change.segment_id, self.geometry, change.box, change.undone(now))


@pytest.fixture
def table(scene: Any) -> Table:
    return Table()


@pytest.fixture
def beside(table: Table) -> Table:
    """A table with a neighbour that lies where RIGHT is."""
    table.add("neighbour", RIGHT)
    return table


@pytest.mark.parametrize(
    ("policy", "structure", "neighbour"),
    [
        pytest.param(PROTECT, mask(LEFT) & ~mask(BOTH), mask(RIGHT), id="protected"),
        pytest.param(REPLACE, mask(LEFT), mask(RIGHT) & ~mask(BOTH), id="replaced"),
        pytest.param(OVERLAP, mask(LEFT), mask(RIGHT), id="overlapping"),
    ],
)
def test_the_policy_decides_about_every_voxel_that_both_want(
    beside: Table, policy: OverlapPolicy, structure: np.ndarray, neighbour: np.ndarray
) -> None:
    beside.edit(mask(LEFT), policy)
    assert np.array_equal(beside.voxels(), structure)
    assert np.array_equal(beside.voxels("neighbour"), neighbour)


@pytest.mark.parametrize("policy", OverlapPolicy)
def test_one_undo_brings_back_all_segments(beside: Table, policy: OverlapPolicy) -> None:
    beside.edit(mask(LEFT), policy)
    beside.undo()
    assert not beside.voxels().any()
    assert np.array_equal(beside.voxels("neighbour"), mask(RIGHT))


@pytest.mark.parametrize("policy", OverlapPolicy)
def test_a_third_segment_that_is_not_met_is_not_written(beside: Table, policy: OverlapPolicy) -> None:
    beside.add("far", np.s_[0:1, 0:2, 0:12])
    before = bridge.stamp(beside.segmentation, "far")
    beside.edit(mask(LEFT), policy)
    assert bridge.stamp(beside.segmentation, "far") == before
    assert "far" not in {change.segment_id for change in beside.last.changes}


def test_what_overlaps_already_stays_when_others_are_protected(beside: Table) -> None:
    beside.edit(mask(LEFT), OVERLAP)
    grown = mask(LEFT, np.s_[1:5, 2:9, 0:6])
    beside.edit(grown, PROTECT)
    assert np.array_equal(beside.voxels(), grown)


def test_what_overlapped_before_the_first_answer_stays_too(beside: Table) -> None:
    beside.draw("structure", mask(LEFT))
    beside.edit(mask(LEFT), PROTECT)
    assert np.array_equal(beside.voxels(), mask(LEFT))


def test_replacing_takes_from_all_that_are_there(beside: Table) -> None:
    beside.add("another", BOTH)
    beside.edit(mask(LEFT), REPLACE)
    assert not (beside.voxels("neighbour") & mask(LEFT)).any()
    assert not beside.voxels("another").any()


def test_segments_that_share_voxels_only_for_a_moment_stay_in_one_labelmap(beside: Table) -> None:
    beside.edit(mask(LEFT), REPLACE)
    beside.edit(mask(np.s_[1:5, 2:8, 0:5]), REPLACE)
    assert beside.segmentation.GetSegmentation().GetNumberOfLayers() == 1


def test_what_was_taken_is_given_back_where_the_structure_leaves_it(beside: Table) -> None:
    beside.edit(mask(LEFT), REPLACE)
    beside.edit(mask(np.s_[1:5, 2:8, 0:5]), REPLACE)
    assert np.array_equal(beside.voxels(), mask(np.s_[1:5, 2:8, 0:5]))
    assert np.array_equal(beside.voxels("neighbour"), mask(np.s_[1:5, 2:8, 5:12]))


def test_what_was_taken_at_several_times_is_given_back_together(beside: Table) -> None:
    beside.edit(mask(np.s_[1:5, 2:5, 0:6]), REPLACE)
    beside.edit(mask(LEFT), REPLACE)
    beside.edit(mask(np.s_[0:6, 1:9, 0:8]), REPLACE)
    beside.edit(mask(), REPLACE)
    assert np.array_equal(beside.voxels("neighbour"), mask(RIGHT))


def test_it_is_given_back_under_another_policy_too(beside: Table) -> None:
    beside.edit(mask(LEFT), REPLACE)
    beside.edit(mask(), PROTECT)
    assert np.array_equal(beside.voxels("neighbour"), mask(RIGHT))


def test_what_somebody_else_has_meanwhile_is_not_given_back(beside: Table) -> None:
    beside.edit(mask(LEFT), REPLACE)
    beside.add("new", np.s_[1:5, 2:8, 5:6])
    beside.edit(mask(), REPLACE)
    assert np.array_equal(beside.voxels("neighbour"), mask(RIGHT) & ~mask(np.s_[1:5, 2:8, 5:6]))


def test_it_is_given_back_once(beside: Table) -> None:
    beside.edit(mask(LEFT), REPLACE)
    beside.edit(mask(), REPLACE)
    beside.draw("neighbour", mask())
    beside.edit(mask(LEFT), REPLACE)
    beside.edit(mask(), REPLACE)
    assert not beside.voxels("neighbour").any()


def test_a_segment_that_is_gone_gets_nothing_back(beside: Table) -> None:
    beside.edit(mask(LEFT), REPLACE)
    bridge.remove_segment(beside.segmentation, "neighbour")
    beside.edit(mask(), REPLACE)
    assert not beside.voxels().any()


# -- what was painted by hand ------------------------------------------------------------------------------------------


def test_only_voxels_about_which_the_answer_changed_are_touched(table: Table) -> None:
    table.edit(mask(LEFT))
    edited = mask(LEFT, np.s_[0:1, 0:1, 8:12]) & ~mask(np.s_[3:4, 4:6, 1:3])
    table.draw("structure", edited)
    table.edit(mask(LEFT, np.s_[1:5, 8:9, 0:6]))
    assert np.array_equal(table.voxels(), edited | mask(np.s_[1:5, 8:9, 0:6]))


def test_a_click_that_includes_brings_back_the_piece_that_was_erased_there(table: Table) -> None:
    table.edit(mask(LEFT))
    named, other = np.s_[2:4, 3:5, 1:3], np.s_[2:4, 6:7, 4:6]
    table.draw("structure", mask(LEFT) & ~mask(named, other))
    table.edit(mask(LEFT), clicks=[Click(voxel=(2, 3, 1), positive=True)])
    assert np.array_equal(table.voxels(), mask(LEFT) & ~mask(other))


def test_a_piece_that_is_brought_back_stops_at_protected_segments(beside: Table) -> None:
    beside.edit(mask(LEFT), PROTECT)
    beside.draw("structure", mask(LEFT) & ~mask(np.s_[1:5, 2:8, 2:6]))
    beside.edit(mask(LEFT), PROTECT, [Click(voxel=(2, 3, 3), positive=True)])
    assert np.array_equal(beside.voxels(), mask(LEFT) & ~mask(BOTH))
    assert np.array_equal(beside.voxels("neighbour"), mask(RIGHT))


def test_a_click_that_excludes_removes_the_piece_that_was_painted_there(table: Table) -> None:
    table.edit(mask(LEFT))
    named, other = np.s_[2:4, 3:5, 8:10], np.s_[0:1, 0:1, 0:2]
    table.draw("structure", mask(LEFT, named, other))
    table.edit(mask(LEFT), clicks=[Click(voxel=(3, 4, 9), positive=False)])
    assert np.array_equal(table.voxels(), mask(LEFT, other))


def test_a_click_in_one_slice_decides_about_that_slice_alone(table: Table) -> None:
    painted = np.s_[0:6, 3:5, 8:10]
    table.draw("structure", mask(painted))
    table.edit(mask(LEFT), clicks=[Click(voxel=(3, 4, 9), positive=False, axis=0)])
    assert np.array_equal(table.voxels(), mask(LEFT, painted) & ~mask(np.s_[3:4, 3:5, 8:10]))


def test_a_click_that_the_model_does_not_follow_changes_nothing(table: Table) -> None:
    table.draw("structure", mask(LEFT))
    table.edit(mask(), clicks=[Click(voxel=(2, 3, 1), positive=True)])
    assert np.array_equal(table.voxels(), mask(LEFT))
    assert not table.last.changes


def test_a_click_in_a_protected_segment_names_that_segment(beside: Table) -> None:
    beside.edit(mask(LEFT), clicks=[Click(voxel=(2, 3, 5), positive=True), Click(voxel=(2, 3, 0), positive=True)])
    assert beside.last.protected == ("neighbour",)


def test_after_a_change_of_the_policy_the_same_answer_takes_what_a_click_names(beside: Table) -> None:
    beside.edit(mask(LEFT), PROTECT)
    beside.edit(mask(LEFT), REPLACE, clicks=[Click(voxel=(2, 3, 5), positive=True)])
    assert np.array_equal(beside.voxels(), mask(LEFT))
    assert np.array_equal(beside.voxels("neighbour"), mask(RIGHT) & ~mask(LEFT))


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_a_piece_hangs_together_by_faces() -> None:
    two = mask(np.s_[0:2, 0:2, 0:2], np.s_[2:4, 2:4, 2:4], np.s_[1:2, 1:6, 1:2])
    assert np.array_equal(connected_component(two, (0, 0, 0)), mask(np.s_[0:2, 0:2, 0:2], np.s_[1:2, 1:6, 1:2]))
    assert not connected_component(two, (5, 9, 11)).any()


def test_the_difference_of_two_masks_has_the_smallest_box() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        shape = tuple(int(n) for n in random.integers(1, 7, 3))
        whole = (3, 3 + shape[0], 0, shape[1], 5, 5 + shape[2])
        first = random.random(shape) < 0.5
        second = first ^ (random.random(shape) < 0.1)
        found = SparseMask.of(whole, first).differing_box(SparseMask.of(whole, second))
        places = np.argwhere(first != second)
        if len(places):
            low, high = places.min(axis=0) + (3, 0, 5), places.max(axis=0) + (4, 1, 6)
            assert found == tuple(int(v) for pair in zip(low, high, strict=True) for v in pair)
        else:
            assert found is None


def test_a_sparse_mask_is_read_and_changed_in_any_box() -> None:
    left = SparseMask.of((1, 5, 2, 8, 0, 6), np.ones((4, 6, 6)))
    whole = (0, *(end for n in SHAPE for end in (n, 0)))[:6]
    assert np.array_equal(left.read(whole), mask(LEFT))
    hole = left.put((0, 2, 0, 3, 0, 12), np.zeros((2, 3, 12)))
    assert np.array_equal(hole.read(whole), mask(LEFT) & ~mask(np.s_[0:2, 0:3, 0:12]))
    assert left.differing_box(hole) == (1, 2, 2, 3, 0, 6)
    assert left.differing_box(left) is None
    assert left.differing_box(left.put(None, np.zeros(0))) is None
    assert SparseMask().put((0, 1, 0, 1, 0, 1), np.ones((1, 1, 1))).read((0, 2, 0, 1, 0, 1)).ravel().tolist() == [
        True,
        False,
    ]
    assert left.put((4, 6, 0, 1, 0, 1), np.zeros((2, 1, 1)), reach=(1, 4, 2, 8, 0, 6)).box == (1, 4, 2, 8, 0, 6)
