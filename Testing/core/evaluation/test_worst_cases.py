"""The worst cases are found, and drawn where their structures are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.evaluation.worst_cases import WorstCases
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.volume import Grid, LabelMap, Volume
from Testing.core.training.test_report import red_at

RED = LabelTable(labels=(Label(id=7, name="spot", color=(255, 0, 0)),))


def case(place: slice, *, flip: bool = False) -> tuple[Volume, LabelMap, LabelMap]:
    """A scan of thick slices along the last axis, its prediction and its reference; `flip` stores the rows reversed."""
    affine = np.diag([4.0, 1.0, 1.0, 1.0])
    mask = np.zeros((60, 50, 3), np.uint8)
    mask[place, place] = 7
    image = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    if flip:
        affine[1, 1], affine[1, 3] = -1.0, 49.0
        mask, image = mask[:, ::-1].copy(), image[:, ::-1].copy()
    grid = Grid(shape=mask.shape, affine=affine)
    return Volume(array=image, grid=grid), LabelMap(array=mask, grid=grid), LabelMap(array=mask, grid=grid)


def test_the_worst_come_first_and_cases_without_a_score_do_not_come(tmp_path: Path) -> None:
    worst = WorstCases(2)
    for name, scores in (("a", [0.9, 0.5]), ("b", [0.2, math.nan]), ("c", [math.nan]), ("d", [0.4, 0.4]), ("e", [0.9])):
        worst.add(name, scores, *case(slice(20, 30)))
    drawn = worst.draw(tmp_path / "new", RED)
    assert [(name, pytest.approx(score)) for name, score, _ in drawn] == [("b", 0.2), ("d", 0.4)]
    assert [path for _, _, path in drawn] == sorted((tmp_path / "new").glob("*.png"))


def test_equal_scores_are_no_trouble_and_nothing_found_shows_all(tmp_path: Path) -> None:
    worst = WorstCases(1)
    for name in "ab":
        worst.add(name, [0.0], *case(slice(0, 0)))
    assert [name for name, _, _ in worst.draw(tmp_path, RED)] == ["a"]


def test_a_scan_is_shown_alike_however_it_is_stored(tmp_path: Path) -> None:
    pictures = []
    for flip in (False, True):
        worst = WorstCases()
        worst.add(f"{flip}", [0.5], *case(slice(2, 6), flip=flip))
        pictures.append(worst.draw(tmp_path, RED)[0][2].read_bytes())
    assert pictures[0] == pictures[1]


def test_pictures_are_cropped_to_the_structures(tmp_path: Path) -> None:
    near, far = WorstCases(), WorstCases()
    near.add("near", [0.5], *case(slice(24, 28)))
    far.add("far", [0.5], *case(slice(2, 6)))
    (centre, _), (edge, _) = (red_at(each.draw(tmp_path, RED)[0][2]) for each in (near, far))
    assert abs(centre - edge) > 20, "beside the border of the scan there is less to show"


def test_slices_keep_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Grid(shape=(12, 8, 8), affine=np.diag([1.0, 1.0, 8.0, 1.0]))
    mask = np.zeros(deep.shape, np.uint8)
    mask[7, 3:5, 3:5] = 7
    labels, shown = LabelMap(array=mask, grid=deep), []
    monkeypatch.setattr("MaskSAMCore.training.report.save_overlay", lambda *arrays, **_: shown.append(arrays[1]))
    worst = WorstCases()
    worst.add("a", [0.5], Volume(array=mask.astype(np.float32), grid=deep), labels, labels)
    worst.draw(tmp_path, RED)
    assert np.flatnonzero(shown[0].any(axis=(1, 2))).tolist() == [7]
