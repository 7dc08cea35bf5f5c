"""model.md §13.1 and checks 19 and 20: where windows begin, how they are weighted, summed and mirrored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from MaskSAMCore.errors import InputError
from MaskSAMCore.inference.sliding_window import (
    Placement,
    gaussian,
    mirrorings,
    slide,
    slide_model,
    window_count,
    windows,
)
from MaskSAMCore.preprocessing.plan import MirrorRule
from MaskSAMCore.preprocessing.windows import starts
from MaskSAMCore.progress import Cancelled, CancelToken


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def identity(patches: torch.Tensor) -> torch.Tensor:
    return torch.cat([patches, 1 - patches], dim=1)


def test_starts_of_the_design():
    assert starts(9, 4) == [0, 2, 3, 5]
    assert len(starts(104, 9)) == 23
    assert len(starts(128, 26)) == 9
    assert starts(4, 4) == starts(3, 4) == [0]
    assert starts(8, 4, step=1.0) == [0, 4]


def test_windows_cover_every_voxel_and_stay_inside():
    seen = np.zeros((9, 17, 20), int)
    for window in windows(seen.shape, (4, 8, 8)):
        assert seen[window].shape == (4, 8, 8)
        seen[window] += 1
    assert seen.min() >= 1
    assert window_count((9, 17, 20), (4, 8, 8)) == 4 * 4 * 4
    assert window_count((2, 3, 20), (4, 8, 8)) == 4


@pytest.mark.parametrize("step", [0.0, -0.5, 1.5, float("nan")])
def test_impossible_steps_are_refused(step: float):
    with pytest.raises(InputError, match="step"):
        list(windows((9, 9, 9), (4, 4, 4), step=step))


def test_gaussian_is_that_of_the_design():
    weight = gaussian((4, 16, 33))
    assert weight.shape == (4, 16, 33)
    assert weight.max() == 1
    assert weight.min() > 0
    assert torch.equal(weight, weight.flip(0, 1, 2))
    # two voxels off the centre of 33 are half a sigma of 33/8
    assert weight[1, 7, 18] / weight[1, 7, 16] == pytest.approx(np.exp(-0.5 * (2 / (33 / 8)) ** 2), rel=1e-5)


def test_constant_network_gives_constant_scores():
    values = torch.tensor([0.2, 0.5, 0.3])
    scores = slide(
        lambda x: values.view(1, 3, 1, 1, 1).expand(len(x), 3, *x.shape[2:]), image(1, 9, 20, 21), (4, 8, 8), 3
    )
    assert scores.shape == (3, 9, 20, 21)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, values.view(3, 1, 1, 1).expand_as(scores), atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 20, 21), (1, 20, 21), (2, 5, 30), (4, 8, 8)])
@pytest.mark.parametrize("batch", [1, 3])
def test_identity_network_gives_the_volume_back(shape: tuple[int, int, int], batch: int):
    scan = image(1, *shape)
    scores = slide(identity, scan, (4, 8, 8), 2, placement=Placement(batch=batch))
    assert scores.shape == (2, *shape)
    assert np.allclose(scores[0].numpy(), scan[0], atol=1e-5)


def test_windows_see_the_repeated_border_of_a_small_volume():
    seen = []

    def network(patches: torch.Tensor) -> torch.Tensor:
        seen.append(patches.clone())
        return identity(patches)

    slide(network, np.full((1, 2, 3, 3), 7, np.float32), (4, 8, 8), 2)
    assert len(seen) == 1
    assert seen[0].shape == (1, 1, 4, 8, 8)
    assert bool((seen[0] == 7).all())


def test_mirrorings_are_all_combinations_of_the_allowed_axes():
    everywhere = MirrorRule(axes=(0, 1, 2), left_right=2, swap=(0, 1))
    assert len(mirrorings(everywhere)) == 8
    assert mirrorings(MirrorRule(axes=(0, 1), left_right=-1, swap=(0, 1))) == [(), (0,), (1,), (0, 1)]
    assert mirrorings(None) == [()]


def test_mirroring_changes_nothing_for_an_equivariant_network():
    scan = image(1, 9, 20, 21)
    rule = MirrorRule(axes=(0, 1, 2), left_right=2, swap=(0, 1))
    plain = slide(identity, scan, (4, 8, 8), 2)
    assert torch.allclose(plain, slide(identity, scan, (4, 8, 8), 2, mirror=rule), atol=1e-5)


def test_mirroring_averages_a_network_that_is_not_equivariant():
    ramp = torch.arange(8.0).view(1, 1, 1, 1, 8)

    def network(patches: torch.Tensor) -> torch.Tensor:
        return ramp.expand(len(patches), 1, *patches.shape[2:])

    rule = MirrorRule(axes=(2,), left_right=-1, swap=(0,))
    scores = slide(network, image(1, 4, 8, 8), (4, 8, 8), 1, mirror=rule)
    assert torch.allclose(scores, torch.full_like(scores, 3.5))


def test_left_and_right_classes_change_places_with_the_sides():
    """A network that calls what lies at low indices class 1 and the rest class 2, as a pair of sides."""

    def network(patches: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(patches), 3, *patches.shape[2:])
        out[:, 1, ..., :4] = 1
        out[:, 2, ..., 4:] = 1
        return out

    scan = image(1, 4, 8, 8)
    pair = MirrorRule(axes=(2,), left_right=2, swap=(0, 2, 1))
    plain = slide(network, scan, (4, 8, 8), 3)
    assert torch.allclose(slide(network, scan, (4, 8, 8), 3, mirror=pair), plain)
    without = MirrorRule(axes=(2,), left_right=2, swap=(0, 1, 2))
    assert not torch.allclose(slide(network, scan, (4, 8, 8), 3, mirror=without), plain)
    other_axis = MirrorRule(axes=(1,), left_right=2, swap=(0, 2, 1))
    assert torch.allclose(slide(network, scan, (4, 8, 8), 3, mirror=other_axis), plain)


def test_progress_counts_windows_and_mirrorings():
    told = []
    rule = MirrorRule(axes=(0, 1), left_right=-1, swap=(0, 1))
    slide(identity, image(1, 4, 8, 16), (4, 8, 8), 2, mirror=rule, progress=lambda *event: told.append(event))
    assert [done for done, _, _ in told] == list(range(1, 13))
    assert {total for _, total, _ in told} == {12}


def test_cancel_stops_before_the_next_window():
    token, calls = CancelToken(), []

    def network(patches: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        token.cancel()
        return identity(patches)

    with pytest.raises(Cancelled):
        slide(network, image(1, 4, 8, 32), (4, 8, 8), 2, cancel=token)
    assert len(calls) == 1


def test_slide_model_takes_patch_and_classes_from_the_model():
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.cfg = type("Cfg", (), {"patch": (4, 8, 8), "classes": 2})()

        def segment_patch(self, patches: torch.Tensor) -> torch.Tensor:
            return identity(patches)

    scan = image(1, 5, 9, 9)
    scores = slide_model(Model(), torch.from_numpy(scan))
    assert np.allclose(scores[0].numpy(), scan[0], atol=1e-5)
