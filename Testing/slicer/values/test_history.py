"""Undo and redo: what steps keep, give back, and forget."""

from __future__ import annotations

import numpy as np
import pytest

from SlicerMaskSAMLib.values.history import History, SegmentChange, UndoStep

RNG = np.random.default_rng(4)
BOX = (10, 18, 20, 29, 30, 41)
"""(8, 9, 11) voxels somewhere in a volume."""


def noise(share: float = 0.5) -> np.ndarray:
    """A mask of BOX's shape with no order at all."""
    return (RNG.random((8, 9, 11)) < share).astype(np.uint8)


def change(before: np.ndarray, after: np.ndarray) -> SegmentChange:
    found = SegmentChange.between("Segment_1", BOX, before, after)
    assert found is not None
    return found


def part(change: SegmentChange, array: np.ndarray) -> np.ndarray:
    """The change's own box out of an array that fills BOX."""
    k0, k1, j0, j1, i0, i1 = change.box
    return array[k0 - BOX[0] : k1 - BOX[0], j0 - BOX[2] : j1 - BOX[2], i0 - BOX[4] : i1 - BOX[4]]


def steps(*texts: str, size: int = 0) -> list[UndoStep]:
    """Steps whose voxels take `size` bytes each."""
    weight = SegmentChange(segment_id="", box=(0, 1, 0, 1, 0, 1), flipped=bytes(size), before=b"")
    return [UndoStep(text=text, changes=(weight,), geometry=None) for text in texts]


def filled(history: History, *all_steps: UndoStep) -> History:
    for step in all_steps:
        history.push(step)
    return history


def undoable(history: History) -> list[str]:
    """What undo takes back, the latest first, until there is nothing left."""
    found = []
    while step := history.undo():
        found.append(step.text)
    return found


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_undo_and_redo_give_the_voxels_back_exactly(share: float) -> None:
    before, after = noise(), noise(share)
    step = change(before, after)
    assert np.array_equal(step.undone(part(step, after)), part(step, before))
    assert np.array_equal(step.redone(part(step, before)), part(step, after))
    assert step.undone(part(step, after)).dtype == np.uint8


def test_a_change_keeps_the_smallest_box_and_knows_its_size() -> None:
    before = np.zeros((8, 9, 11), np.uint8)
    after = before.copy()
    after[2:5, 4, 6:8] = 1
    step = change(before, after)
    assert step.box == (12, 15, 24, 25, 36, 38)
    assert step.shape == (3, 1, 2)
    assert (
        step.nbytes == len(step.flipped) + len(step.before) == UndoStep(text="", changes=(step,), geometry=None).nbytes
    )


def test_nothing_changed_is_no_change() -> None:
    mask = noise()
    assert SegmentChange.between("Segment_1", BOX, mask, 255 * mask) is None


def test_what_was_edited_elsewhere_in_the_meantime_stays() -> None:
    before = np.zeros((8, 9, 11), np.uint8)
    after = before.copy()
    after[1, 1, 1] = after[6, 6, 6] = 1
    step = change(before, after)
    edited = after.copy()
    edited[3, 3, 3] = 1
    expected = before.copy()
    expected[3, 3, 3] = 1
    assert np.array_equal(step.undone(part(step, edited)), part(step, expected))
    assert np.array_equal(step.redone(step.undone(part(step, edited))), part(step, edited))


def test_the_given_arrays_are_left_alone() -> None:
    before, after = noise(), noise()
    kept = before.copy(), after.copy()
    step = change(before, after)
    step.undone(part(step, after))
    step.redone(part(step, before))
    assert np.array_equal(before, kept[0])
    assert np.array_equal(after, kept[1])


def test_a_large_step_is_kept_in_a_fiftieth_of_its_memory() -> None:
    k, j, i = np.ogrid[:200, :200, :200]
    after = ((k - 100) ** 2 + (j - 100) ** 2 + (i - 100) ** 2 < 90**2).astype(np.uint8)
    step = SegmentChange.between("Segment_1", (0, 200, 0, 200, 0, 200), np.zeros_like(after), after)
    assert step is not None
    assert step.nbytes * 50 < after.nbytes


def test_steps_are_undone_backwards_and_done_again_forwards() -> None:
    history = filled(History(), *steps("one", "two", "three"))
    assert history.undo_text == "three"
    assert [history.undo().text, history.undo().text] == ["three", "two"]
    assert (history.undo_text, history.redo_text) == ("one", "two")
    assert [history.redo().text, history.redo().text, history.redo()] == ["two", "three", None]
    assert undoable(history) == ["three", "two", "one"]
    assert history.undo_text == ""


def test_something_new_forgets_what_was_undone() -> None:
    history = filled(History(), *steps("one", "two"))
    history.undo()
    history.push(*steps("other"))
    assert history.redo_text == ""
    assert history.redo() is None
    assert undoable(history) == ["other", "one"]


def test_the_oldest_steps_go_when_there_are_too_many() -> None:
    history = filled(History(limit=3), *steps("one", "two", "three", "four"))
    assert undoable(history) == ["four", "three", "two"]


def test_the_oldest_steps_go_when_they_take_too_much_memory_but_some_are_always_kept() -> None:
    history = filled(History(budget=250, least=2), *steps("one", "two", "three", size=100))
    assert undoable(history) == ["three", "two"]
    history = filled(History(budget=250, least=2), *steps("four", "five", "six", size=1000))
    assert undoable(history) == ["six", "five"]


def test_twenty_steps_are_kept_by_default_whatever_they_take() -> None:
    texts = [str(number) for number in range(22)]
    history = filled(History(budget=0), *steps(*texts, size=10))
    assert undoable(history) == texts[:1:-1]


def test_clear_forgets_both_directions() -> None:
    history = filled(History(), *steps("one", "two"))
    history.undo()
    history.clear()
    assert history.undo() is None
    assert history.redo() is None
