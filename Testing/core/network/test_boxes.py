"""Extents, fusion and GIoU (model.md §6.3, §6.5; checks 9 and 12 of §19)."""

from __future__ import annotations

import pytest
import torch

from MaskSAMCore.network.boxes import fuse_boxes, giou, hard_box
from MaskSAMCore.network.gt_source import class_masks, gt_prompts


def test_extents_are_half_open_fractions_x_first() -> None:
    mask = torch.zeros(10, 20, dtype=torch.bool)
    mask[2, 4] = mask[6, 9] = True
    box, empty = hard_box(mask)
    assert torch.allclose(box, torch.tensor([4 / 20, 2 / 10, 10 / 20, 7 / 10]))
    assert not empty


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 7), (4, 0), (4, 7)])
def test_one_pixel_at_the_border_has_its_own_area(row: int, column: int) -> None:
    mask = torch.zeros(5, 8, dtype=torch.bool)
    mask[row, column] = True
    box, _ = hard_box(mask)
    assert torch.allclose(box, torch.tensor([column / 8, row / 5, (column + 1) / 8, (row + 1) / 5]))


def test_a_mask_without_a_pixel_is_empty() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[1, 3, 4] = True
    box, empty = hard_box(masks)
    assert empty.tolist() == [True, False]
    assert not box[0].any()


def test_fusion_follows_its_name_and_spares_the_learned_box_where_the_mask_is_empty() -> None:
    learned = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.1, 0.2, 0.3, 0.4]])
    extents = torch.tensor([[0.4, 0.0, 0.8, 1.0], [0.0, 0.0, 0.0, 0.0]])
    parts = {"learned": learned, "extents": extents, "empty": torch.tensor([False, True])}
    average = torch.tensor([[0.3, 0.1, 0.7, 0.8], [0.1, 0.2, 0.3, 0.4]])
    assert torch.allclose(fuse_boxes("average", **parts), average)  # type: ignore[arg-type]
    assert fuse_boxes("learned", **parts) is learned
    assert fuse_boxes("mask", **parts) is extents
    assert fuse_boxes("none", **parts) is None
    assert fuse_boxes("mask", learned=None, extents=extents, empty=parts["empty"]) is extents
    assert fuse_boxes("average", learned=learned, extents=None, empty=None) is learned
    assert fuse_boxes("average", learned=None, extents=None, empty=None) is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1), -0.5),
        ((0, 0, 1, 1), (0, 0, 0.5, 1), 0.5),
        ((0, 0, 0.6, 0.6), (0.2, 0.2, 0.8, 0.8), 0.160714),
    ],
)
def test_giou_goldens(a: tuple[float, ...], b: tuple[float, ...], expected: float) -> None:
    first, second = torch.tensor(a), torch.tensor(b)
    assert giou(first, second).item() == pytest.approx(expected, abs=1e-6)
    assert giou(second, first).item() == pytest.approx(expected, abs=1e-6)


def test_giou_of_boxes_without_area_is_a_number() -> None:
    zero, some = torch.zeros(4), torch.tensor([0.1, 0.1, 0.4, 0.4])
    assert giou(zero, zero).isfinite()
    assert -1 <= giou(zero, some).item() < 0


def test_ground_truth_prompts_box_every_structure_that_is_there() -> None:
    labels = torch.zeros(2, 3, 8, 16, dtype=torch.long)
    labels[1, 2, 2:4, 4:8] = 1
    labels[0, 0, 7, 15] = 3
    prompts = gt_prompts(labels, 4)
    assert prompts.boxes is not None
    assert prompts.valid is not None
    assert prompts.boxes.shape == (2, 3, 3, 4)
    assert prompts.valid.nonzero().tolist() == [[0, 2, 0], [1, 0, 2]]
    assert torch.allclose(prompts.boxes[1, 0, 2], torch.tensor([0.25, 0.25, 0.5, 0.5]))
    assert torch.allclose(prompts.boxes[0, 2, 0], torch.tensor([15 / 16, 7 / 8, 1, 1]))
    assert not prompts.boxes[~prompts.valid].any()
    assert prompts.masks is None
    assert prompts.class_tokens is None
    assert class_masks(labels, 4)[1, 0, 2].sum() == 8
