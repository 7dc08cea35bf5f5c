"""The generator's own masks of what was meant by clicks, boxes and former masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from MaskSAMCore.config import presets
from MaskSAMCore.errors import InputError
from MaskSAMCore.network.build import build_model, is_for_prompts
from MaskSAMCore.network.mask_recall import recall_masks
from MaskSAMCore.network.prompt_broadcast import SlicePrompts, broadcast_prompts
from MaskSAMCore.network.types import PromptBatch

DEPTH, SIZE = 3, (16, 24)
INNER, RING, APART = 1, 2, 3
"""A disc of 4 x 4 voxels, what surrounds it (8 x 8), and a third thing elsewhere, which the last slice lacks."""


@pytest.fixture
def labels() -> torch.Tensor:
    """(D, H, W)."""
    found = torch.zeros(DEPTH, *SIZE, dtype=torch.long)
    found[:, 2:10, 2:10] = RING
    found[:, 4:8, 4:8] = INNER
    found[:2, 5:14, 15:22] = APART
    return found


@pytest.fixture
def classes(labels: torch.Tensor) -> torch.Tensor:
    """(1, 4, D, H, W), logits of a generator that is sure."""
    return 12 * torch.nn.functional.one_hot(labels, 4).permute(3, 0, 1, 2)[None].float()


def clicks(*places: tuple[int, int], label: int = 1) -> SlicePrompts:
    points = tuple(((x + 0.5) / SIZE[1], (y + 0.5) / SIZE[0]) for y, x in places)
    return SlicePrompts(points=points, labels=(label,) * len(points))


def box(y0: int, x0: int, y1: int, x1: int) -> SlicePrompts:
    return SlicePrompts(box=(x0 / SIZE[1], y0 / SIZE[0], x1 / SIZE[1], y1 / SIZE[0]))


def meant(classes: torch.Tensor, said: dict[int, SlicePrompts], **masks: torch.Tensor) -> torch.Tensor:
    return recall_masks(classes, broadcast_prompts([[said]], DEPTH, **masks), 1)[0, 0]


@pytest.mark.parametrize(
    ("said", "structures"),
    [
        (clicks((5, 6)), [INNER]),
        (clicks((3, 3)), [RING]),
        (clicks((3, 3), (5, 5)), [INNER, RING]),
        (box(4, 4, 8, 8), [INNER]),
        (box(2, 2, 10, 10), [RING]),
        (box(5, 14, 14, 22), [APART]),
    ],
)
def test_what_a_prompt_means(classes, labels, said: SlicePrompts, structures: list[int]) -> None:
    found = meant(classes, {1: said})
    assert torch.equal(found > 0, torch.isin(labels, torch.tensor(structures)))


def test_nothing_that_is_known_leaves_everything_open(classes) -> None:
    for said in (clicks((14, 2)), clicks((5, 5), label=0), box(0, 0, 2, 2)):
        assert meant(classes, {0: said}).abs().max() < 0.1


def test_a_structure_that_was_found_in_part_or_with_strays_is_meant_all_the_same(classes, labels) -> None:
    wide = box(4, 14, 15, 24)  # its overlap with what is there is less than a half
    found = meant(classes, {1: wide})
    assert torch.equal(found > 0, labels == APART)
    strayed = labels.clone()
    strayed[:, 15, ::6] = INNER
    classes = 12 * torch.nn.functional.one_hot(strayed, 4).permute(3, 0, 1, 2)[None].float()
    found = meant(classes, {1: box(4, 4, 8, 8)})
    assert torch.equal(found > 0, strayed == INNER)


def test_a_click_on_a_border_means_one_side_of_it(classes, labels) -> None:
    classes[:, INNER, 0, 5, 6], classes[:, RING, 0, 5, 6] = 10.0, 9.6  # 0.60 and 0.40
    found = meant(classes, {0: clicks((5, 6))})
    assert torch.equal(found[1] > 0, labels[1] == INNER)


def test_corrections_of_a_mask_do_not_change_what_is_meant(classes, labels) -> None:
    former = torch.where(labels == INNER, 5.0, -5.0)[None, None]
    corrected = {1: clicks((3, 3))}  # in what the generator takes for the ring
    assert torch.equal(meant(classes, corrected) > 0, labels == RING)
    found = meant(classes, corrected, masks=former)
    assert torch.equal(found > 0, labels == INNER)


def test_a_mask_that_is_not_sure_of_itself_leaves_the_clicks_to_decide(classes, labels) -> None:
    former = torch.where(labels == APART, 0.05, -0.05)[None, None]
    found = meant(classes, {1: clicks((5, 5))}, masks=former)
    assert torch.equal(found > 0, labels == INNER)


def test_in_half_precision_the_answer_is_the_same(classes) -> None:
    said = {0: clicks((5, 6)), 1: box(4, 4, 8, 8)}
    with torch.autocast("cpu", torch.bfloat16):
        found = meant(classes, said)
    assert found.dtype == torch.float32
    assert torch.equal(found, meant(classes, said))


def test_the_slice_in_which_it_was_said_decides(classes, labels) -> None:
    found = meant(classes, {2: clicks((8, 18))})
    assert found.abs().max() < 0.1, "nothing lies there in that slice; in the others, something does"
    both = meant(classes, {0: clicks((8, 18)), 2: clicks((5, 5))})
    assert torch.equal(both > 0, torch.isin(labels, torch.tensor([INNER, APART])))


def test_a_former_mask_means_what_it_covers(classes, labels) -> None:
    mask = torch.where(labels == RING, 5.0, -5.0)[None, None]
    mask[..., 2, :] = -5.0
    known = torch.tensor([[[True, False, False]]])
    found = meant(classes, {}, masks=mask, masks_known=known)
    assert torch.equal(found > 0, labels == RING)
    both = torch.where((labels == RING) | (labels == INNER), 5.0, -5.0)[None, None]
    assert torch.equal(meant(classes, {}, masks=both) > 0, torch.isin(labels, torch.tensor([INNER, RING])))
    wide = torch.full_like(mask, 5.0)  # most of it is nothing that is known
    assert meant(classes, {}, masks=wide).abs().max() < 4
    nowhere = torch.full_like(mask, -5.0)
    assert meant(classes, {}, masks=nowhere).abs().max() < 0.1


def test_every_prompt_has_its_own_answer_and_nothing_is_learned_through_it(classes) -> None:
    classes.requires_grad_()
    batch = broadcast_prompts([[{1: clicks((5, 5))}, {0: box(2, 2, 10, 10)}], [{1: clicks((8, 18))}, {}]], DEPTH)
    found = recall_masks(classes.expand(2, -1, -1, -1, -1), batch, 2)
    assert found.shape == (2, 2, DEPTH, *SIZE)
    assert not found.requires_grad
    assert not torch.allclose(found[0, 0], found[0, 1])
    assert found[1, 1].abs().max() == 0
    assert recall_masks(classes, PromptBatch(), 2).abs().max() == 0


def test_the_network_answers_with_it_before_it_has_learned_to_click() -> None:
    tiny = presets.get("tiny").model
    owned = replace(
        tiny,
        decoder=replace(tiny.decoder, click_masks=True),
        loss=replace(tiny.loss, assignment="own"),
        source=replace(tiny.source, queries=tiny.classes),
    )

    network = build_model(owned).eval()
    added = {name for name, _ in network.named_parameters()} - {n for n, _ in build_model(tiny).named_parameters()}
    assert added == {"clicks.meant.weight", "clicks.trust"}
    assert all(is_for_prompts(name) for name in added)
    with torch.no_grad():
        slab = network.slab(torch.randn(1, 1, 4, 16, 16))
        said = broadcast_prompts([[{1: SlicePrompts(points=((0.5, 0.5),), labels=(1,))}]], 4)
        with_it = network.prompted(slab, said).masks
        network.clicks.trust.zero_()
        without = network.prompted(slab, said).masks
        own = recall_masks(network.generator.logits([slab.fine])[-1], said, 1)
    torch.testing.assert_close(with_it - without, own[:, :, :, None], atol=1e-4, rtol=1e-3)
    with pytest.raises(InputError, match="click_masks"):
        build_model(replace(owned, loss=replace(owned.loss, assignment="cheapest")))
