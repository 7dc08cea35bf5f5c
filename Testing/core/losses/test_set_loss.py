"""The set loss and the loss of given prompts (model.md §9.3; check 13 of §19)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from MaskSAMCore.config.network_schema import LossConfig, ModelConfig
from MaskSAMCore.losses.set_loss import BinaryLoss, SetLoss, binary_loss, build_loss, dice_loss, mask_terms
from MaskSAMCore.network.types import QueryOutputs

TERMS = {"class", "bce", "dice", "aux_bce", "aux_dice", "box_l1", "box_giou"}
K, N, SHAPE = 3, 4, (3, 8, 12)


def labels() -> Tensor:
    return torch.randint(K, (2, *SHAPE), generator=torch.Generator().manual_seed(1))


def outputs(seed: int = 0) -> QueryOutputs:
    draw = torch.Generator().manual_seed(seed)
    low, share = torch.rand(2, N, SHAPE[0], 2, 2, generator=draw).unbind(-1)
    boxes = torch.cat([low, low + (1 - low) * share], dim=-1)
    return QueryOutputs(
        masks=torch.randn(2, N, *SHAPE, generator=draw).requires_grad_(),
        cls=torch.randn(2, N, SHAPE[0], K + 1, generator=draw).requires_grad_(),
        aux_masks=torch.randn(2, N, *SHAPE, generator=draw).requires_grad_(),
        aux_boxes=boxes.requires_grad_(),
        fused_boxes=boxes.detach().flip(1),
    )


def perfect(y: Tensor) -> QueryOutputs:
    """Query c predicts class c, the last one nothing."""
    sure = 20.0
    one_hot = F.one_hot(y, K).permute(0, 4, 1, 2, 3).float()
    masks = torch.cat([one_hot, torch.zeros_like(one_hot[:, :1])], dim=1) * 2 * sure - sure
    cls = torch.zeros(2, N, SHAPE[0], K + 1)
    for query in range(N):
        cls[:, query, :, query] = sure
    boxes = torch.tensor([0.0, 0, 1, 1]).expand(2, N, SHAPE[0], 4).clone()
    return QueryOutputs(masks=masks, cls=cls, aux_masks=masks.clone(), aux_boxes=boxes, fused_boxes=boxes)


def test_dice_golden() -> None:
    logits = torch.tensor([[40.0] * 4 + [-40.0] * 4])
    truth = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0]])
    assert dice_loss(logits, truth).item() == pytest.approx(1 - (4 + 1) / (6 + 1), abs=1e-6)


def test_uniform_class_logits_cost_the_logarithm_of_the_number_of_classes() -> None:
    y = torch.randint(4, (2, *SHAPE), generator=torch.Generator().manual_seed(2))
    even = replace(outputs(), cls=torch.zeros(2, N, SHAPE[0], 5))
    assert SetLoss(LossConfig(), 4)(even, y)["class"].item() == pytest.approx(math.log(5), abs=1e-6)


def test_a_perfect_prediction_costs_nothing() -> None:
    y = labels()
    terms = SetLoss(LossConfig(), K)(perfect(y), y)
    assert set(terms) == TERMS | {"loss"}
    # Every class fills these random slices to their borders or nearly so: its box is not exactly 1.
    for name in TERMS - {"box_l1", "box_giou"}:
        assert terms[name].item() == pytest.approx(0, abs=1e-5), name
    assert terms["box_l1"].item() < 0.2


def test_unmatched_queries_weigh_a_tenth() -> None:
    y = torch.zeros(2, *SHAPE, dtype=torch.long)
    wrong = perfect(y)
    assert wrong.cls is not None
    wrong.cls.zero_()
    wrong.cls[:, 0, :, 0] = 20.0
    # One query of four is matched (cost 0); three at ln 4, of weight 0.1.
    expected = 0.3 * math.log(4) / 1.3
    assert SetLoss(LossConfig(), K)(wrong, y)["class"].item() == pytest.approx(expected, abs=1e-4)


def test_own_queries_answer_for_their_classes_however_wrong_they_are() -> None:
    y, cfg = labels(), LossConfig(assignment="own")
    out = perfect(y)
    assert SetLoss(cfg, K)(out, y)["bce"].item() < 1e-3
    turned = replace(out, masks=out.masks[:, [1, 0, 2, 3]], cls=out.cls[:, [1, 0, 2, 3]])  # type: ignore[index]
    assert SetLoss(LossConfig(), K)(turned, y)["bce"].item() < 1e-3
    wrong = SetLoss(cfg, K)(turned, y)
    assert wrong["bce"].item() > 5
    assert wrong["class"].item() > 5


def test_the_generators_masks_compete_for_every_voxel() -> None:
    y, cfg = labels(), LossConfig(assignment="own", generator=0.7)
    out, right = outputs(), perfect(y)
    terms = SetLoss(cfg, K)(out, y)
    assert out.aux_masks is not None
    assert right.aux_masks is not None
    mine = out.aux_masks[:, :K].softmax(1)
    cross = F.nll_loss(mine.log(), y)
    dice = [2 * (mine[:, c] * (y == c)).sum() + 1 for c in (1, 2)]
    both = [mine[:, c].sum() + (y == c).sum() + 1 for c in (1, 2)]
    expected = cross + 1 - (dice[0] / both[0] + dice[1] / both[1]) / 2
    assert terms["generator"].item() == pytest.approx(expected.item(), rel=1e-5)
    without = SetLoss(replace(cfg, generator=0.0), K)(out, y)
    assert "generator" not in without
    assert (terms["loss"] - without["loss"]).item() == pytest.approx(0.7 * expected.item(), rel=1e-4)
    assert SetLoss(cfg, K).generator((right.aux_masks,), y)["loss"].item() < 1e-3


def log_dice_by_hand(x: Tensor, y: Tensor) -> float:
    p = x.float().softmax(1)
    there = [k for k in range(1, K) if (y == k).any()]
    dice = [2 * p[:, k][y == k].sum() / (p[:, k].sum() + (y == k).sum()) for k in there]
    cross = F.nll_loss(p.log(), y)
    return float(cross - sum(d.log() for d in dice) / max(len(there), 1))


@pytest.mark.parametrize("present", [(0, 1, 2), (0, 2), (0,)])
def test_log_dice_is_of_the_structures_that_are_there(present: tuple[int, ...]) -> None:
    y = torch.tensor(present)[torch.randint(len(present), (2, *SHAPE), generator=torch.Generator().manual_seed(3))]
    x = 3 * torch.randn(2, N, *SHAPE, generator=torch.Generator().manual_seed(4))
    loss = SetLoss(LossConfig(assignment="own", generator=1.0, generator_dice="log"), K).generator((x,), y)["loss"]
    assert float(loss) == pytest.approx(log_dice_by_hand(x[:, :K], y), rel=1e-4)


def test_log_dice_pulls_hardest_where_next_to_nothing_is_found() -> None:
    y = torch.zeros(1, *SHAPE, dtype=torch.long)
    y[0, 0, 0, 0] = 1
    x = torch.zeros(1, N, *SHAPE)
    x[:, 0] = 6.0

    def pull(kind: Literal["linear", "log"]) -> float:
        given = x.clone().requires_grad_()
        cfg = LossConfig(assignment="own", generator=1.0, generator_dice=kind)
        SetLoss(cfg, K).generator((given,), y)["loss"].backward()
        assert given.grad is not None
        return -float(given.grad[0, 1, 0, 0, 0])

    assert pull("log") > 10 * pull("linear") > 0


def test_the_generator_alone_learns_nothing_from_padding() -> None:
    y, criterion = labels(), SetLoss(LossConfig(assignment="own"), K)
    masks = torch.randn(2, N, *SHAPE).requires_grad_()
    valid = torch.ones(2, SHAPE[0], dtype=torch.bool)
    valid[1, 1] = False
    terms = criterion.generator((masks,), y, valid)
    terms["loss"].backward()
    assert masks.grad is not None
    assert masks.grad[1, :K, 0].abs().min() > 0
    assert not masks.grad[1, :, 1].any()
    assert not masks.grad[:, K:].any()
    other = masks.detach().clone()
    other[1, :, 1] = torch.nan
    assert criterion.generator((other,), y, valid)["loss"] == terms["loss"]
    nothing = criterion.generator((masks,), y, torch.zeros_like(valid))
    assert nothing["loss"] == 0


def test_the_total_is_the_weighted_sum_and_only_it_has_a_gradient() -> None:
    cfg = LossConfig(bce=1.1, dice=0.7)
    terms = SetLoss(cfg, K)(outputs(), labels())
    weights = {"class": 0.2, "bce": 1.1, "dice": 0.7, "aux_bce": 0.5, "aux_dice": 0.5, "box_l1": 0.5, "box_giou": 0.2}
    total = sum(weights[name] * terms[name].item() for name in TERMS)
    assert terms["loss"].item() == pytest.approx(total, rel=1e-5)
    assert terms["loss"].requires_grad
    assert not any(terms[name].requires_grad for name in TERMS)


def test_mask_terms_are_sums_over_pairs_divided_by_the_count() -> None:
    x = torch.randn(5, *SHAPE[1:], generator=torch.Generator().manual_seed(4))
    y = torch.rand(5, *SHAPE[1:], generator=torch.Generator().manual_seed(5)) < 0.3
    cross, overlap = mask_terms(x, y, 10)
    assert cross.item() == pytest.approx(F.binary_cross_entropy_with_logits(x, y.float()).item() / 2, rel=1e-5)
    one = dice_loss(x.flatten(1), y.flatten(1).float())
    assert overlap.item() == pytest.approx(one.sum().item() / 10, rel=1e-5)


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ({"aux_boxes"}, {"box_l1", "box_giou"}),
        ({"aux_masks"}, {"aux_bce", "aux_dice"}),
        ({"cls"}, {"class"}),
        ({"cls", "aux_masks", "aux_boxes", "fused_boxes"}, {"class", "aux_bce", "aux_dice", "box_l1", "box_giou"}),
    ],
)
def test_what_does_not_exist_has_no_term(gone: set[str], missing: set[str]) -> None:
    terms = SetLoss(LossConfig(), K)(replace(outputs(), **dict.fromkeys(gone)), labels())
    assert set(terms) == (TERMS | {"loss"}) - missing
    assert terms["loss"].isfinite()


def test_padding_slices_have_neither_value_nor_gradient() -> None:
    valid = torch.ones(2, SHAPE[0], dtype=torch.bool)
    valid[1, 2] = False
    criterion = SetLoss(LossConfig(), K)
    first, second, y = outputs(), outputs(), labels()
    with torch.no_grad():
        for tensor in (second.masks, second.cls, second.aux_masks, second.aux_boxes):
            assert tensor is not None
            tensor[1, :, 2] = torch.nan
    other = y.clone()
    other[1, 2] = 1
    a, b = criterion(first, y, valid), criterion(second, other, valid)
    assert a["loss"].item() == pytest.approx(b["loss"].item(), rel=1e-6)
    assert a["loss"].item() != pytest.approx(criterion(first, y)["loss"].item(), rel=1e-6)
    b["loss"].backward()
    for tensor in (second.masks, second.cls, second.aux_masks, second.aux_boxes):
        assert tensor is not None
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert not tensor.grad[1, :, 2].any()
        assert tensor.grad[0].any()


def test_a_padded_volume_counts_as_if_it_were_not_there() -> None:
    criterion, y, both = SetLoss(LossConfig(), K), labels(), outputs()
    one = QueryOutputs(**{name: value[:1] for name, value in vars(both).items() if value is not None})
    valid = torch.tensor([[True] * SHAPE[0], [False] * SHAPE[0]])
    padded, alone = criterion(both, y, valid), criterion(one, y[:1])
    for name, value in alone.items():
        assert padded[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_box_terms_are_the_distance_and_one_minus_giou() -> None:
    y = torch.zeros(2, *SHAPE, dtype=torch.long)
    narrow = perfect(y)
    assert narrow.aux_boxes is not None
    narrow.aux_boxes[:] = torch.tensor([0.0, 0, 0.25, 1])
    terms = SetLoss(LossConfig(), K)(narrow, y)
    assert terms["box_l1"].item() == pytest.approx(0.75)
    assert terms["box_giou"].item() == pytest.approx(0.75)


def test_a_batch_of_nothing_but_padding_has_a_loss_of_zero() -> None:
    out = outputs()
    loss = SetLoss(LossConfig(), K)(out, labels(), torch.zeros(2, SHAPE[0], dtype=torch.bool))["loss"]
    loss.backward()
    assert loss.item() == 0
    assert out.masks.grad is not None
    assert not out.masks.grad.any()


def test_the_same_assignment_supervises_final_and_generator_masks() -> None:
    # The final masks alone would match the queries otherwise than the sum of all costs does.
    y = labels()
    right = perfect(y)
    misled = replace(right, masks=torch.zeros_like(right.masks))
    terms = SetLoss(LossConfig(), K)(misled, y)
    assert terms["aux_dice"].item() == pytest.approx(0, abs=1e-5)
    assert terms["bce"].item() == pytest.approx(math.log(2), abs=1e-5)


def test_half_precision_outputs_are_compared_in_full() -> None:
    half = {name: value.detach().bfloat16() for name, value in vars(outputs()).items() if value is not None}
    full = {name: value.float() for name, value in half.items()}
    criterion = SetLoss(LossConfig(), K)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = criterion(QueryOutputs(**half), labels())
    assert low["loss"].dtype == torch.float32
    assert low["loss"].item() == pytest.approx(criterion(QueryOutputs(**full), labels())["loss"].item(), rel=1e-5)


def test_costs_are_computed_in_full_too() -> None:
    # One pixel in 256 decides between the queries; a sum in half precision would not see it.
    masks = torch.ones(1, 2, 1, 32, 32)
    masks[0, 1, 0, 0, 0] = 1.5
    even = QueryOutputs(masks=masks, cls=None)
    criterion = SetLoss(LossConfig(dice=0.0), 1)
    y = torch.zeros(1, 1, 32, 32, dtype=torch.long)
    better = F.softplus(torch.tensor([-1.0] * 1023 + [-1.5])).mean().item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert criterion(even, y)["bce"].item() == pytest.approx(better, rel=1e-6)


def test_large_masks_use_uncertain_points_and_repeat_them_with_the_seed() -> None:
    x = torch.full((1, 260, 256), -12.0)
    x[:, :20] = 0.1
    y = torch.zeros(1, 260, 256, dtype=torch.bool)
    values = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        values.append(mask_terms(x, y, 1)[0].item())
    assert values[0] == values[1] != values[2]
    everywhere = F.binary_cross_entropy_with_logits(x, y.float()).item()
    # A thirteenth of the pixels is uncertain; sampling finds nearly all of its candidates there.
    assert values[0] > 1.7 * everywhere


def test_given_prompts_are_compared_with_their_own_class() -> None:
    cfg = ModelConfig(classes=K, loss=LossConfig(kind="binary", bce=1.0, dice=1.0))
    criterion = build_loss(cfg)
    assert isinstance(criterion, BinaryLoss)
    assert isinstance(build_loss(ModelConfig()), SetLoss)
    y = labels()
    y[0, 0] = 0
    sure = torch.stack([y == c for c in range(1, K)], dim=1) * 40.0 - 20.0
    exists = torch.stack([(y == c).flatten(2).any(-1) for c in range(1, K)], dim=1)
    sure[:, :, 0][~exists[:, :, 0]] = torch.nan
    terms = criterion(QueryOutputs(masks=sure, cls=None, valid=exists), y, torch.ones(2, SHAPE[0], dtype=torch.bool))
    assert terms["loss"].item() == pytest.approx(0, abs=1e-5)
    swapped = criterion(QueryOutputs(masks=sure.flip(1), cls=None, valid=exists), y)
    assert swapped["loss"].item() > 1


def test_given_prompts_that_do_not_exist_cost_nothing() -> None:
    logits = torch.randn(2, 2, *SHAPE, generator=torch.Generator().manual_seed(9), requires_grad=True)
    terms = binary_loss(logits, logits.detach() > 0, torch.zeros(2, 2, SHAPE[0], dtype=torch.bool))
    terms["loss"].backward()
    assert terms["loss"].item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
