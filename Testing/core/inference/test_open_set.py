"""Sessions of the click model: prompts of every kind, undo, deletion, and lists that are given in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from MaskSAMCore.config import presets
from MaskSAMCore.config.schema import Config
from MaskSAMCore.errors import InputError, MaskSAMError, PromptError
from MaskSAMCore.inference.autozoom import Hint, Shape3D
from MaskSAMCore.inference.drawings import along, enclosed, thick
from MaskSAMCore.inference.open_set import CONSTANT, NOTHING, OpenSetSession
from MaskSAMCore.inference.prompts import Prompt, as_clicks_and_boxes
from MaskSAMCore.inference.sessions import open_session
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.network.build import build_model
from MaskSAMCore.network.click_unet import ClickUNet
from MaskSAMCore.progress import Cancelled, CancelToken
from MaskSAMCore.volume import Grid, Triple, Volume
from MaskSAMCore.zoo.installed import load_model
from MaskSAMCore.zoo.model_folder import ModelCard, save_model

SHAPE = (20, 40, 48)
BALL = (10, 20, 24)


class Threshold(ClickUNet):
    """Finds what is half as bright as the prompts' place: enough of an answer to test everything around it."""

    def answer(self, image, maps, told, *, flat):  # type: ignore[no-untyped-def]
        former, ink, negative, region, *_ = maps.unbind(1)
        marked = (ink + region).clamp(max=1)[:, None]
        found = 10 * former[:, None] - 5
        level = (image * marked).sum() / marked.sum().clamp_min(1e-6)
        if level > 1:
            found = 6 * (image / level - 0.5)
        elif marked.any():
            found = found.maximum(2 * marked - 1)
        return torch.where(negative[:, None] < 0.3, found, -5.0)


def card() -> ModelCard:
    config = Config(model=network_config())
    return ModelCard(name="any", config=config, labels=LabelTable(labels=()), plan={})


def network_config():  # type: ignore[no-untyped-def]
    cfg = presets.get("any").model
    return replace(cfg, source=replace(cfg.source, widths=(16, 8, 8)))


def scan(*, spacing: Triple = (1.0, 1.0, 2.0)) -> Volume:
    """Two bright balls and noise; spacing (i, j, k)."""
    z, y, x = np.indices(SHAPE)
    array = np.random.default_rng(0).normal(0, 2, SHAPE)
    for middle in (BALL, (10, 20, 8)):
        gap = ((z - middle[0]) * spacing[2]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2
        array[gap < 64] += 100
    return Volume(array=array.astype(np.float32), grid=Grid(shape=SHAPE, affine=np.diag([*spacing, 1.0])))


@pytest.fixture
def session() -> OpenSetSession:
    opened = open_session(Threshold(network_config()), card(), scan())
    assert isinstance(opened, OpenSetSession)
    return opened


def click(kji: Sequence[float], *, positive: bool = True) -> Prompt:
    k, j, i = kji
    return Prompt(kind="point", position=(i, j, k), positive=positive)


def ijk(*places: Sequence[float]) -> tuple[Triple, ...]:
    return tuple((i, j, k) for k, j, i in places)


INSIDE: dict[str, Prompt] = {
    "point": click(BALL),
    "scribble": Prompt(kind="scribble", points=ijk((10, 18, 24), (10, 22, 24)), thickness=2.0),
    "lasso": Prompt(kind="lasso", points=ijk((10, 17, 21), (10, 17, 27), (10, 23, 27), (10, 23, 21))),
    "flat box": Prompt(kind="box", corners=((22, 18, 10), (26, 22, 10))),
    "box": Prompt(kind="box", corners=((22, 18, 9), (26, 22, 11))),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_any_first_prompt_finds_the_structure_alone(session: OpenSetSession, kind: str) -> None:
    update = session.prompt(1, [INSIDE[kind]])
    mask = session.mask(1)
    truth = scan().array > 50
    truth[:, :, :16] = False
    overlap = 2 * (mask.astype(bool) & truth).sum() / (mask.sum() + truth.sum())
    assert overlap > 0.6
    assert update.voxels == mask.sum()
    assert update.extent is not None
    k0, k1, j0, j1, i0, i1 = update.extent
    assert mask[k0:k1, j0:j1, i0:i1].sum() == mask.sum()
    assert np.array_equal(update.mask, mask[k0:k1, j0:j1, i0:i1])


def test_clicked_voxels_obey_always(session: OpenSetSession) -> None:
    outside, inside = (2, 3, 40), (10, 22, 24)
    session.prompt(1, [click(BALL), click(outside), click(inside, positive=False)])
    mask = session.mask(1)
    assert mask[outside]
    assert not mask[inside]


def test_a_correction_leaves_what_is_elsewhere(session: OpenSetSession) -> None:
    session.prompt(1, [click(BALL)])
    before = session.mask(1)
    session.prompt(1, [click(BALL), click((2, 3, 40), positive=False)])
    assert np.array_equal(session.mask(1), before), "nothing was wrong there"


def test_undo_deletion_and_one_go_give_equal_voxels(session: OpenSetSession) -> None:
    prompts = [INSIDE["point"], click((10, 20, 8)), INSIDE["scribble"], click((10, 24, 24), positive=False)]
    steps = []
    for count in range(1, len(prompts) + 1):
        session.prompt(1, prompts[:count])
        steps.append(session.mask(1))
    for count in range(len(prompts) - 1, 0, -1):
        session.prompt(1, prompts[:count])
        assert np.array_equal(session.mask(1), steps[count - 1])
    other = open_session(Threshold(network_config()), card(), scan())
    other.prompt(7, prompts)
    assert np.array_equal(other.mask(7), steps[-1])
    kept = [prompts[0], *prompts[2:]]
    session.prompt(1, kept)
    other.prompt(8, kept)
    assert np.array_equal(session.mask(1), other.mask(8))


def test_updates_lead_from_one_answer_to_the_next(session: OpenSetSession) -> None:
    shown = np.zeros(SHAPE, np.uint8)
    for prompts in ([click(BALL)], [click(BALL), click((10, 20, 8))], [click((10, 20, 8))], [INSIDE["box"]]):
        update = session.prompt(1, prompts)
        if update.box is not None:
            k0, k1, j0, j1, i0, i1 = update.box
            shown[k0:k1, j0:j1, i0:i1] = update.mask
        assert np.array_equal(shown, session.mask(1))
    session.take_back(1)
    assert np.array_equal(session.mask(1), open_and_click((10, 20, 8)))
    assert session.drop(1).box is not None
    assert not session.mask(1).any()
    assert session.prompt(1, [click((2, 3, 40), positive=False)]).messages == (NOTHING,)


def open_and_click(kji: Sequence[float]) -> np.ndarray:
    other = open_session(Threshold(network_config()), card(), scan())
    other.prompt(1, [click(kji)])
    return other.mask(1)


def test_an_existing_mask_is_where_a_correction_starts(session: OpenSetSession) -> None:
    given = np.zeros(SHAPE, np.uint8)
    given[5:8, 30:36, 40:46] = 1
    start = Prompt(kind="mask", mask=given[5:8, 30:36, 40:46], mask_box=(5, 30, 40))
    session.prompt(1, [start])
    assert np.array_equal(session.mask(1), given)
    session.prompt(1, [start, click(BALL)])
    assert session.mask(1)[BALL]
    assert session.mask(1)[6, 32, 42]


@pytest.mark.parametrize("thick_axis", [0, 1, 2])
def test_thick_slices_along_any_axis(thick_axis: int) -> None:
    spacing = [1.0, 1.0, 1.0]
    spacing[2 - thick_axis] = 4.0
    array = np.zeros((24, 24, 24), np.float32)
    array[8:16, 8:16, 8:16] = 100
    volume = Volume(array=array, grid=Grid(shape=array.shape, affine=np.diag([*spacing, 1.0])))
    opened = open_session(Threshold(network_config()), card(), volume)
    assert opened.axis == thick_axis
    opened.prompt(1, [click((12, 12, 12))])
    found = opened.mask(1).astype(bool)
    assert 2 * (found & (array > 0)).sum() / (found.sum() + (array > 0).sum()) > 0.7


def test_what_cannot_be_answered_is_refused_by_number_and_place(session: OpenSetSession) -> None:
    bad = {
        "three points": Prompt(kind="lasso", points=((1, 1, 1), (2, 2, 1))),
        "in a slice": Prompt(kind="lasso", points=((1, 1, 1), (9, 2, 3), (3, 9, 9))),
        "outside": Prompt(kind="scribble", points=((400, 1, 1), (402, 2, 1))),
        "not finite": Prompt(kind="scribble", points=((float("nan"), 1, 1),)),
        "thickness": Prompt(kind="scribble", points=((1, 1, 1),), thickness=-1.0),
    }
    for what, prompt in bad.items():
        with pytest.raises(PromptError, match="prompt 2 of 2") as raised:
            session.prompt(1, [click(BALL), prompt])
        assert what.split()[-1] in str(raised.value).replace("3 points", "three points")
    assert not session.mask(1).any()
    with pytest.raises(PromptError, match="finds nothing by itself"):
        session.automatic(1)


def test_a_cancel_leaves_the_structure_as_it_was(session: OpenSetSession) -> None:
    session.prompt(1, [click(BALL)])
    before, token = session.mask(1), CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        session.prompt(1, [click(BALL), click((10, 20, 8))], cancel=token)
    assert np.array_equal(session.mask(1), before)


def test_constant_and_colour_images() -> None:
    grid = Grid(shape=SHAPE, affine=np.eye(4))
    flat = open_session(Threshold(network_config()), card(), Volume(array=np.ones(SHAPE, np.float32), grid=grid))
    assert any(CONSTANT in text for text in flat.warnings)
    assert flat.prompt(1, [click(BALL)]).messages == (CONSTANT,)
    colours = Volume(array=np.ones((3, *SHAPE), np.float32), grid=grid)
    with pytest.raises(InputError, match="number of channels"):
        open_session(Threshold(network_config()), card(), colours)


def test_voxels_that_are_no_numbers_are_told_and_left_out() -> None:
    volume = scan()
    array = volume.array.copy()
    array[0, :5, :5] = np.nan
    opened = open_session(Threshold(network_config()), card(), replace(volume, array=array))
    assert any("25 voxels were NaN" in text for text in opened.warnings)
    opened.prompt(1, [click(BALL)])
    assert opened.mask(1)[BALL]


def test_the_model_is_a_folder_without_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model(network_config())
    folder = save_model(tmp_path / "any", card(), network.state_dict(), "# any\n")
    loaded, found = load_model(folder)
    assert isinstance(loaded, ClickUNet)
    assert found.takes_any_structure
    with pytest.raises(MaskSAMError, match="finds nothing by itself"):
        found.require_automatic()


def test_a_model_without_them_takes_a_scribble_as_a_click_and_a_lasso_as_a_box() -> None:
    made = as_clicks_and_boxes([INSIDE["scribble"], INSIDE["lasso"], replace(INSIDE["box"], positive=False)])
    assert [each.kind for each in made] == ["point", "box", "point"]
    assert made[0].position == (24, 22, 10)
    assert made[1].corners == ((21.0, 17.0, 10.0), (27.0, 23.0, 10.0))
    assert not made[2].positive


def test_a_line_has_no_gaps_and_a_thickness() -> None:
    line = along(np.array([[0.0, 0, 0], [0, 3, 4]]))
    assert np.abs(np.diff(line, axis=0)).max() <= 0.5
    wide = thick(line, np.array([1.0, 1, 1]), 4.0, (9, 9, 9))
    assert set(wide[:, 0]) == {0.0}, "a line in a slice stays in it"
    assert len(np.unique(np.rint(wide), axis=0)) > len(np.unique(np.rint(line), axis=0))


def test_a_lasso_encloses_its_inside() -> None:
    inside, corner = enclosed(np.array([[4.0, 2, 2], [4, 2, 8], [4, 8, 8], [4, 8, 2]]), (9, 20, 20))
    shown = Shape3D(block=inside, corner=corner).trimmed()
    assert shown.corner.tolist() == [4, 2, 2] or shown.corner.tolist() == [4, 3, 2]
    assert 25 <= inside.sum() <= 49
    assert inside.shape[0] == 1


def test_a_hint_has_bounds_and_a_middle() -> None:
    region = Hint(region=np.ones((1, 3, 5), bool), corner=np.array([4, 2, 2]))
    assert region.middle.tolist() == [4, 3, 4]
    points = Hint(points=np.array([[0.0, 0, 0], [1, 1, 1], [2, 2, 2]]))
    assert points.middle.tolist() == [1, 1, 1]
