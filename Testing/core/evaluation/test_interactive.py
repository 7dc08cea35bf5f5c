"""Simulated users: their rules, the figures, the tables, and the command on real sessions."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore import evaluate
from MaskSAMCore.data.simulate import Click
from MaskSAMCore.evaluation import interactive, simulated_users
from MaskSAMCore.evaluation.drawn_prompts import drawn_lasso, drawn_scribble
from MaskSAMCore.evaluation.methods import ModelMethod, PropagatedSam
from MaskSAMCore.evaluation.simulated_users import (
    MAX_CLICKS,
    SLICES,
    VOLUMES,
    Study,
    Trial,
    click_through,
    drawn_box,
    evenly_spaced,
)
from MaskSAMCore.labels import PALETTE, Label, LabelTable
from MaskSAMCore.training.card import model_readme
from MaskSAMCore.volume import Grid, LabelMap, Volume
from MaskSAMCore.zoo import model_folder

TABLE = LabelTable(labels=(Label(id=1, name="ball", color=PALETTE[0]), Label(id=4, name="never", color=PALETTE[1])))


@dataclass
class Script:
    """A method that gives prepared masks one after the other, the last one for ever."""

    masks: list[np.ndarray]
    name: str = "script"
    seen: list[list[Click]] = field(default_factory=list)
    drawn: list = field(default_factory=list)
    forgotten: int = 0

    def reset(self) -> None:
        self.forgotten += 1

    def clicks(self, clicks):
        self.seen.append(list(clicks))
        return self.masks[min(len(clicks), len(self.masks)) - 1]

    def box(self, box):
        self.drawn.append(box)
        return self.masks[-1]


def block(*slices: slice, shape: tuple[int, ...] = (20, 30)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[slices] = True
    return mask


TARGET = block(slice(5, 14), slice(10, 21))
HALF = block(slice(5, 14), slice(10, 16))
SPILLED = TARGET | block(slice(5, 14), slice(21, 30))


def test_a_user_begins_in_the_middle_and_corrects_the_largest_error():
    script = Script([HALF, SPILLED, TARGET])
    found, idle = click_through(TARGET, script, (1, 1))
    assert idle == 0
    first, second, third = script.seen[-1]
    assert first.positive
    assert first.position == (9, 14)
    assert second.positive
    assert TARGET[second.position]
    assert not HALF[second.position]
    assert not third.positive
    assert SPILLED[third.position]
    assert not TARGET[third.position]
    assert [len(clicks) for clicks in script.seen] == [1, 2, 3]
    assert found == pytest.approx((12 / 17, 22 / 31, 1.0))
    assert script.forgotten == 1


def test_distances_are_measured_in_mm():
    tall = block(slice(0, 20), slice(10, 15))
    script = Script([tall])
    click_through(tall, script, (0.1, 1.0))
    # Nine rows are 0.9 mm: the middle of the height decides, not of the width.
    assert script.seen[0][0].position[0] in (9, 10)


def test_a_user_stops_when_content_or_tired():
    dice, idle = click_through(TARGET, Script([HALF]), (1, 1))
    assert len(dice) == MAX_CLICKS
    assert idle == (MAX_CLICKS - 1) / MAX_CLICKS
    nearly = TARGET.copy()
    nearly[5, 10] = False
    assert len(click_through(TARGET, Script([nearly]), (1, 1)).dice) == 10
    assert len(click_through(TARGET, Script([HALF] * 12 + [nearly]), (1, 1)).dice) == 13
    assert click_through(TARGET, Script([TARGET]), (1, 1)) == ((1.0,), 0.0)


def test_a_click_that_changes_its_own_voxel_alone_is_idle():
    dot = HALF.copy()
    dot[9, 18] = True
    course = click_through(TARGET, Script([HALF, dot, TARGET]), (1, 1))
    assert course.idle == pytest.approx(1 / 3)


def trial(clicks, boxes=(), **changes) -> Trial:
    values = {"protocol": SLICES, "case": "a", "label": 1, "name": "ball", "method": "m", "place": 3}
    return Trial(**(values | changes), clicks=tuple(clicks), boxes=tuple(boxes))


def test_figures_of_one_trial():
    found = trial([0.5, 0.86, 0.84, 0.7, 0.91], [0.3, 0.6]).figures()
    assert tuple(found) == simulated_users.COLUMNS
    assert [found[c] for c in ("dice_1", "dice_3", "dice_5")] == [0.5, 0.84, 0.91]
    assert [found["box_50"], found["box_75"]] == [0.3, 0.6]
    assert [found["noc_80"], found["noc_85"], found["noc_90"], found["reached_90"]] == [2, 2, 5, 1]
    assert found["dice_10"] == 0.91
    assert np.isnan(found["scribble"])
    content = trial([0.2, 1.0]).figures()
    assert (content["dice_3"], content["dice_5"], content["noc_90"]) == (1.0, 1.0, 2)
    never = trial([0.2] * MAX_CLICKS).figures()
    assert (never["noc_85"], never["reached_85"], never["noc_90"]) == (MAX_CLICKS, 0, MAX_CLICKS)
    assert np.isnan(never["box_50"])


def test_slices_at_even_distances():
    assert evenly_spaced([3, 4, 5, 6, 7, 8, 9], 3) == [4, 6, 8]
    assert evenly_spaced([3, 4], 3) == [3, 4]
    assert evenly_spaced([3, 4, 9], 0) == [3, 4, 9]
    assert evenly_spaced(np.arange(30), 1) == [15]


@pytest.mark.parametrize("overlap", [0.5, 0.75])
def test_boxes_overlap_as_said_and_depend_on_the_seed_alone(overlap):
    x0, y0, x1, y1 = drawn_box(TARGET, overlap, (0, 1))
    common = (min(x1, 21) - max(x0, 10)) * (min(y1, 14) - max(y0, 5))
    assert common / ((x1 - x0) * (y1 - y0) + 9 * 11 - common) == pytest.approx(overlap)
    assert drawn_box(TARGET, overlap, (0, 1)) == (x0, y0, x1, y1) != drawn_box(TARGET, overlap, (0, 2))


def test_boxes_stay_in_the_picture_and_are_a_pixel_wide():
    for seed in range(40):
        for thin in (
            block(slice(0, 1), slice(0, 1)),
            block(slice(19, 20), slice(0, 30)),
            block(slice(7, 8), slice(29, 30)),
        ):
            x0, y0, x1, y1 = drawn_box(thin, 0.5, (seed,))
            assert min(x0, y0) >= 0
            assert x1 <= 30
            assert y1 <= 20
            assert min(x1 - x0, y1 - y0) > 1 - 1e-9


@dataclass
class FakeUpdate:
    box: tuple[int, ...] | None
    mask: np.ndarray


class FakeSession:
    """A session whose structure is a cube around every positive click, or the box; it reports changed boxes only."""

    def __init__(self, shape: tuple[int, int, int], axis: int = 0) -> None:
        self.shape, self.axis = shape, axis
        self.last = np.zeros(shape, bool)
        self.asked: list[list] = []

    def drop(self, structure):
        self.last[...] = False

    def prompt(self, structure, prompts, *, cancel=None):
        self.asked.append(list(prompts))
        mask = np.zeros(self.shape, bool)
        for prompt in prompts:
            if prompt.kind == "box":
                low, high = (np.array(corner[::-1]) for corner in prompt.corners)
                low, high = np.ceil(low - 0.5).astype(int), np.floor(high + 0.5).astype(int)
                mask[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
            elif prompt.positive:
                mask[tuple(slice(max(int(p) - 2, 0), int(p) + 3) for p in prompt.position[::-1])] = True
        changed = np.argwhere(mask != self.last)
        self.last = mask
        if not len(changed):
            return FakeUpdate(None, np.zeros((0, 0, 0), np.uint8))
        low, high = changed.min(0), changed.max(0) + 1
        box = tuple(int(v) for pair in zip(low, high, strict=True) for v in pair)
        inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        return FakeUpdate(box, mask[inside].astype(np.uint8))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_prompts_of_a_slice_are_places_in_the_scan(axis):
    shape = (12, 20, 30)
    session = FakeSession(shape, axis)
    answers = ModelMethod("m", session, Grid(shape=shape, affine=np.eye(4)), (axis, 7))
    plane = tuple(n for a, n in enumerate(shape) if a != axis)
    found = answers.clicks([Click(position=(5, 9), positive=True)])
    assert (found == block(slice(3, 8), slice(7, 12), shape=plane)).all()
    (prompt,) = session.asked[-1]
    assert prompt.scope == "slice"
    assert prompt.position[2 - axis] == 7
    found = answers.clicks([Click(position=(5, 9), positive=True), Click(position=(8, 15), positive=True)])
    both = block(slice(3, 8), slice(7, 12), shape=plane) | block(slice(6, 11), slice(13, 18), shape=plane)
    assert (found == both).all()
    assert len(session.asked[-1]) == 2
    answers.reset()
    assert (answers.box((4, 2, 10, 7)) == block(slice(2, 7), slice(4, 10), shape=plane)).all()
    (prompt,) = session.asked[-1]
    assert prompt.corners[0][2 - axis] == prompt.corners[1][2 - axis] == 7


def ball_case() -> tuple[Volume, LabelMap]:
    k, j, i = np.mgrid[:12, :20, :30]
    ball = ((k - 6) / 4) ** 2 + ((j - 9) / 6) ** 2 + ((i - 17) / 6) ** 2 <= 1
    grid = Grid(shape=ball.shape, affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    volume = Volume(array=np.where(ball, 100, 0).astype(np.float32), grid=grid)
    return volume, LabelMap(array=ball.astype(np.uint8), grid=grid)


class FakeSam:
    """A SAM that takes what is bright around the last click or in the box; it notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[dict] = []

    @property
    def features(self):
        return self.image

    @features.setter
    def features(self, image):
        self.image = image

    def set_image(self, image):
        self.image = image
        self.asked.append({"image": image})

    def predict(self, points=None, labels=None, box=None, mask_input=None):
        self.asked.append({"points": points, "labels": labels, "box": box, "mask_input": mask_input})
        found = self.image > 128
        if box is not None:
            x0, y0, x1, y1 = (round(v) for v in box)
            found = found & block(slice(y0, y1), slice(x0, x1), shape=found.shape)
        elif len(points) == 1:
            found = found & block(slice(0, 9), shape=found.shape)

        @dataclass
        class Answer:
            logits: np.ndarray
            low_res: np.ndarray

        return Answer(np.where(found, 5.0, -5.0)[None], np.full((1, 256, 256), float(len(self.asked))))


def test_both_methods_get_the_same_first_click_points_and_boxes():
    volume, reference = ball_case()
    session, sam = FakeSession(volume.grid.shape), FakeSam()
    study = Study(name="model", labels=TABLE, sam=sam, sam_name="zero-shot", slices=3)
    found = list(study.trials("case", volume, reference, session))
    # The structure that the case lacks is left out; whole volumes are the model's alone.
    assert [(t.protocol, t.place, t.method) for t in found] == [
        *((SLICES, place, method) for place in (3, 6, 9) for method in ("model", "zero-shot")),
        (VOLUMES, None, "model"),
    ]
    firsts = [asked[0] for asked in session.asked if len(asked) == 1 and asked[0].scope == "slice"]
    theirs = [
        asked for asked in sam.asked if "image" not in asked and (asked["box"] is not None or len(asked["points"]) == 1)
    ]
    # Per slice the first click, one random point, and two boxes.
    assert len(firsts) == len(theirs) == 12
    ours = [[prompt.position[:2] for prompt in asked] for asked in session.asked if len(asked) == 3]
    given = [asked for asked in sam.asked if asked.get("points") is not None and len(asked["points"]) == 3]
    assert len(given) == 3
    for asked in given:
        assert [tuple(point - 0.5) for point in asked["points"]] in ours
        assert list(asked["labels"]) == [1, 1, 1]
        assert asked["mask_input"] is None
    assert all(len(t.points) == 2 for t in found if t.protocol == SLICES)
    for ours, other in zip(firsts, theirs, strict=True):
        if ours.kind == "point":
            assert tuple(other["points"][0] - 0.5) == ours.position[:2]
            assert other["mask_input"] is None
        else:
            (x0, y0, _), (x1, y1, _) = ours.corners
            assert tuple(other["box"]) == pytest.approx((x0, y0, x1 + 1, y1 + 1))
    # Its own logits come back with the second click.
    second = next(
        n for n, asked in enumerate(sam.asked) if asked.get("points") is not None and len(asked["points"]) == 2
    )
    assert sam.asked[second]["mask_input"][0, 0] == second
    assert found[1].clicks[-1] == 1.0
    assert len(found[1].clicks) == 2
    again = list(study.trials("case", volume, reference, FakeSession(volume.grid.shape)))
    assert again == found


def test_without_an_unchanged_sam_only_the_model_is_judged():
    volume, reference = ball_case()
    study = Study(name="model", labels=TABLE, slices=0)
    found = list(study.trials("case", volume, reference, FakeSession(volume.grid.shape)))
    assert {t.method for t in found} == {"model"}
    assert len(found) == 9 + 1


class BallSession(FakeSession):
    """A session without labels: it answers drawings too."""

    def prompt(self, structure, prompts, *, cancel=None):
        kind = prompts[0].kind
        if kind in ("scribble", "lasso"):
            middle = tuple(np.mean(prompts[0].points, axis=0))
            prompts = [replace(prompts[0], kind="point", position=middle)]
            self.asked.append([kind])
        return super().prompt(structure, prompts, cancel=cancel)


def test_a_model_without_labels_is_tested_in_whole_volumes_with_drawings_too():
    volume, reference = ball_case()
    session, sam = BallSession(volume.grid.shape), FakeSam()
    study = Study(name="any", labels=TABLE, sam=sam, sam_name="sam", slices=3)
    ours, theirs = study.open_set_trials("case", volume, reference, session)
    assert (ours.protocol, ours.method, theirs.method) == (VOLUMES, "any", "sam")
    assert 0 < ours.scribble < 1
    assert 0 < ours.lasso < 1
    assert np.isnan(theirs.scribble)
    assert [asked for asked in session.asked if isinstance(asked[0], str)] == [["scribble"], ["lasso"]]
    # Every slice is encoded once, however many clicks there are.
    images = [asked for asked in sam.asked if "image" in asked]
    assert 0 < len(images) <= volume.grid.shape[0]


def test_plain_sam_goes_from_slice_to_slice_until_the_structure_ends():
    volume, reference = ball_case()
    ball = reference.array > 0
    method = PropagatedSam("sam", FakeSam(), volume, 0)
    first = method.clicks([Click(position=(6, 9, 17), positive=True)])
    # The fake takes the upper half for a click, and what is bright in the box elsewhere.
    assert first[6, :9].any()
    assert not first[6, 9:].any()
    assert first[4:9].any(axis=(1, 2)).all()
    assert not (first & ~ball).any()
    method.reset()
    assert not method.found.any()


def test_a_click_outside_of_a_slice_without_a_mask_stops_plain_sam_there():
    volume, _ = ball_case()
    method = PropagatedSam("sam", FakeSam(), volume, 0)
    alone = method.clicks([Click(position=(6, 9, 17), positive=True)])
    assert alone[8].any()
    method.reset()
    found = method.clicks([Click(position=(6, 9, 17), positive=True), Click(position=(8, 1, 1), positive=False)])
    assert not found[8:].any()
    assert found[7].any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_scribble_and_a_lasso_are_drawn_in_the_largest_slice(axis):
    ball = np.moveaxis(np.asarray(ball_case()[1].array > 0), 0, axis)
    line, outline = drawn_scribble(ball, axis), drawn_lasso(ball, axis)
    for prompt in (line, outline):
        assert {round(point[2 - axis]) for point in prompt.points} == {6}
    inside = [ball[tuple(round(v) for v in reversed(point))] for point in line.points]
    assert all(inside)
    length = np.ptp(np.array(line.points), axis=0).max()
    assert length == pytest.approx(0.7 * 12, abs=2)
    assert np.ptp(np.array(outline.points), axis=0).max() == pytest.approx(1.15 * 13, abs=1)


def test_a_single_voxel_can_be_drawn_around():
    dot = block(slice(4, 5), slice(7, 8), slice(9, 10), shape=(8, 12, 16))
    assert drawn_scribble(dot, 0).points == ((9.0, 7.0, 4.0),)
    assert len(drawn_lasso(dot, 0).points) >= 3


FOUND = [
    trial([0.5, 0.6, 0.9, 0.9, 0.95], [0.7, 0.8], points=(0.4, 0.5)),
    trial([0.7, 0.8, 0.9, 0.9, 0.91], [0.9, 0.9], points=(0.6, 0.9), case="b"),
    trial([0.1] * MAX_CLICKS, [0.2, 0.3], points=(0.1, 0.1), method="zero-shot MobileSAM"),
    trial([0.9, 0.9, 0.9, 0.9, 0.9], protocol=VOLUMES, place=None, label=2, name="cube"),
]


def test_means_over_volumes_weigh_each_volume_alike():
    found = [
        trial([0.2], protocol=VOLUMES, case="a", name="ball"),
        trial([0.4], protocol=VOLUMES, case="a", name="cube", label=2),
        trial([0.9], protocol=VOLUMES, case="b", name="ball"),
    ]
    lines = interactive.volume_means(found)
    assert [(line.title, line.targets, line.cases) for line in lines] == [
        ("a", 2, 1),
        ("b", 1, 1),
        (interactive.OVER_VOLUMES, 3, 2),
    ]
    assert [line.mean["dice_1"] for line in lines] == pytest.approx([0.3, 0.9, 0.6])
    assert interactive.card_figures(found)[VOLUMES]["mean over volumes, m"]["dice_1"] == pytest.approx(0.6)
    assert "mean over volumes" in "\n".join(interactive.report(found))
    rows = [row for row in csv.DictReader(interactive.table(found).splitlines()) if row["structure"] == "all"]
    assert [(row["case"], row["dice_1"]) for row in rows][:2] == [("a", "0.3"), ("b", "0.9")]
    assert interactive.volume_means(found[2:]) == []


def test_means_of_every_structure_and_of_all():
    lines = {(x.protocol, x.name, x.method): x for x in interactive.summaries(FOUND)}
    assert list(lines)[:2] == [(SLICES, "ball", "m"), (SLICES, "ball", "zero-shot MobileSAM")]
    ball = lines[SLICES, "ball", "m"]
    assert (ball.targets, ball.cases) == (2, 2)
    assert ball.mean["dice_1"] == pytest.approx(0.6)
    assert ball.mean["box_50"] == pytest.approx(0.8)
    assert ball.mean["noc_85"] == 3
    assert ball.mean["reached_85"] == 1
    assert ball.mean["points_1"] == pytest.approx(0.5)
    assert ball.mean["points_3"] == pytest.approx(0.7)
    assert lines[SLICES, "all", "m"].mean == pytest.approx(ball.mean, nan_ok=True)
    assert (SLICES, "cube", "m") not in lines
    assert (VOLUMES, "cube", "m") in lines
    kept = interactive.card_figures(FOUND)
    assert kept[SLICES]["ball, zero-shot MobileSAM"]["noc_90"] == MAX_CLICKS
    assert "box_50" not in kept[VOLUMES]["cube, m"]
    assert kept[VOLUMES]["all, m"]["targets"] == 1
    text = "\n".join(interactive.report(FOUND))
    assert "20.00 (0 %)" in text
    assert "3.00 (100 %)" in text
    assert "nan" not in text
    rows = list(csv.DictReader(interactive.table(FOUND).splitlines()))
    assert len(rows) == len(FOUND) + len(lines)
    assert rows[0]["dice_1"] == "0.5"
    assert rows[0]["slice"] == "3"
    assert rows[3]["box_75"] == ""


@pytest.mark.slow
def test_a_readme_shows_both_kinds_of_figures(straight_run):
    card = model_folder.load_card(straight_run / "model")
    automatic = {"ball": {"dice": 0.91, "cases": 3}}
    card = replace(card, metrics={"evaluate A": automatic, "evaluate B": interactive.card_figures(FOUND)})
    text = model_readme(card)
    assert "| | dice | cases |\n|---|---|---|\n| ball | 0.91 | 3 |" in text
    assert "`evaluate B`" in text
    assert "Single slices:" in text
    assert "Whole volumes:" in text
    heads = "Dice, 1 click | 3 clicks | 5 clicks | 10 clicks | 1 random point | 3 random points | box 0.5 | box 0.75"
    assert f"| | {heads} | NoC@0.80 | reached |" in text
    assert "Random points lie anywhere" in text
    assert "| ball, zero-shot MobileSAM | 0.1 |" in text
    assert "{" not in text
    for row in (line for line in text.splitlines() if line.startswith("| ball, m")):
        assert row.count("|") == 18


@pytest.mark.parametrize(
    "options",
    [
        ["a", "b", "--interactive"],
        ["d", "--model", "m", "--slices", "3"],
        ["d", "--model", "m", "--interactive", "--slices", "-1"],
        ["d", "--model", "m", "--interactive", "--tta"],
        ["d", "--model", "m", "--interactive", "--step", "0.5"],
        ["d", "--model", "m", "--interactive", "--tolerance", "2"],
    ],
)
def test_options_that_do_not_go_together_end_with_2(options, capsys):
    with pytest.raises(SystemExit) as caught:
        evaluate.main(options)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_on_a_trained_model(phantom_data: Path, straight_run: Path, tmp_path: Path, capsys):
    model = shutil.copytree(straight_run / "model", tmp_path / "model")
    before = model_folder.load_card(model)
    arguments = ["--interactive", "--model", model, phantom_data, "--fold", "0", "--slices", "1", "--device", "cpu"]
    assert evaluate.main([str(a) for a in (*arguments, "-o", tmp_path / "t.csv", "--record")]) == 0
    said = capsys.readouterr().out
    assert "single slices" in said
    assert "whole volumes" in said
    assert "Device: CPU" in said
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8")))
    assert {r["protocol"] for r in rows} == {SLICES, VOLUMES}
    assert all(0 <= float(r["dice_1"]) <= 1 and 1 <= float(r["noc_90"]) <= MAX_CLICKS for r in rows)
    card = model_folder.verify_model(model)
    command = next(key for key in card.metrics if "--interactive" in key)
    assert set(before.metrics) < set(card.metrics)
    assert "--record" not in command
    assert card.metrics[command][SLICES]["all, " + card.name]["targets"] == len(
        [r for r in rows if r["protocol"] == SLICES and r["case"] != "mean"]
    )
    assert command in (model / "README.md").read_text()
    assert json.dumps(card.metrics)


@pytest.mark.slow
def test_a_bad_fold_is_told_before_anything_runs(phantom_data: Path, straight_run: Path, capsys):
    arguments = ["--interactive", "--model", straight_run / "model", phantom_data, "--fold", "9", "--device", "cpu"]
    assert evaluate.main([str(a) for a in arguments]) == 2
    assert "no such fold" in capsys.readouterr().err
