"""Learning rates against model.md §19, check 14."""

from __future__ import annotations

import math

import pytest

from MaskSAMCore.config.schema import TrainConfig
from MaskSAMCore.training.schedule import learning_rate, poly


@pytest.mark.parametrize(
    ("lr", "epoch", "epochs", "expected"),
    [
        (1e-3, 0, 500, 1e-3),
        (1e-3, 1, 500, 9.982e-4),
        (1e-3, 250, 500, 5.3589e-4),
        (1e-3, 499, 500, 3.72e-6),
        (1e-2, 500, 1000, 5.35887e-3),
    ],
)
def test_poly_goldens(lr, epoch, epochs, expected):
    assert poly(lr, epoch, epochs) == pytest.approx(expected, rel=1e-3)


def test_poly_is_constant_within_an_epoch():
    cfg = TrainConfig(epochs=4, iterations=10, lr=1.0)
    assert learning_rate(cfg, 10) == learning_rate(cfg, 19) == poly(1.0, 1, 4)


def test_halving_every_ten_epochs():
    cfg = TrainConfig(schedule="halving", epochs=40, iterations=5, lr=1e-4)
    found = [learning_rate(cfg, epoch * 5 + 4) for epoch in (0, 9, 10, 19, 20, 39)]
    assert found == pytest.approx([1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 1.25e-5])


def test_exponential_warms_up_by_the_papers_formula_and_ends_at_the_final_ratio():
    cfg = TrainConfig(schedule="exponential", epochs=200, iterations=2, lr=5e-4, warmup_epochs=5)
    rates = [learning_rate(cfg, 2 * epoch) for epoch in range(200)]
    assert rates[0] == pytest.approx(5e-4 * math.exp(-10))
    assert rates[4] == pytest.approx(5e-4 * math.exp(-2))
    assert rates[5] == max(rates) == 5e-4
    assert learning_rate(cfg, 11) == rates[5]
    assert rates[6] / rates[5] == pytest.approx(rates[199] / rates[198])
    assert rates[199] == pytest.approx(5e-6, rel=0.03)


def test_a_run_that_ends_within_its_warm_up_has_a_rate():
    cfg = TrainConfig(schedule="exponential", epochs=3, iterations=1, lr=1.0, warmup_epochs=5)
    assert learning_rate(cfg, 2) == pytest.approx(math.exp(-6))


def test_cosine_falls_to_zero_after_warm_up():
    cfg = TrainConfig(schedule="cosine", epochs=2, iterations=50, lr=1.0, warmup_steps=10)
    assert learning_rate(cfg, 0) == pytest.approx(0.1)
    assert learning_rate(cfg, 50) == pytest.approx(0.5)
    assert 0 < learning_rate(cfg, 99) < 1e-3


def test_prompts_behind_a_finished_generator_begin_with_a_new_rate():
    cfg = TrainConfig(
        schedule="cosine", epochs=3, iterations=50, lr=1.0, warmup_steps=5, generator_epochs=2, keep_generator=True
    )
    assert learning_rate(cfg, 99) < 1e-3
    assert learning_rate(cfg, 100) == pytest.approx(0.2)
    assert learning_rate(cfg, 105) > 0.9
    assert learning_rate(cfg, 149) < 1e-2
    alone = TrainConfig(schedule="cosine", epochs=1, iterations=50, lr=1.0, warmup_steps=5)
    assert [learning_rate(cfg, 100 + step) for step in range(50)] == [learning_rate(alone, step) for step in range(50)]
