"""Convolutions whose axes change places on a CPU, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from MaskSAMCore.network.convolution import SMALL, Conv3d

THIN = (1, 16, 8, 144, 128)
"""A patch of a cardiac scan: 16 channels x 8 slices x 144 rows are less than `SMALL`."""


def pair(channels: int, width: int, kernel: tuple[int, int, int], **options: object) -> tuple[Conv3d, nn.Conv3d]:
    """The same convolution twice, ours and PyTorch's."""
    torch.manual_seed(0)
    ours = Conv3d(channels, width, kernel, padding=tuple(k // 2 for k in kernel), **options)  # type: ignore[arg-type]
    theirs = nn.Conv3d(channels, width, kernel, padding=tuple(k // 2 for k in kernel), **options)  # type: ignore[arg-type]
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def kernels(work: nn.Module, x: torch.Tensor) -> set[str]:
    """Names of the operators of a forward and a backward pass."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work(x).sum().backward()
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize(
    "shape", [(1, 16, 8, 40, 36), (1, 16, 36, 40, 16), (1, 16, 40, 36, 8), (2, 16, 8, 40, 36), (1, 16, 3, 5, 4)]
)
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3)])
@pytest.mark.parametrize("options", [{}, {"stride": (1, 2, 2)}, {"bias": False}, {"groups": 4}])
def test_result_and_gradients_are_those_of_the_plain_one(
    shape: tuple[int, ...], kernel: tuple[int, int, int], options: dict[str, object]
) -> None:
    ours, theirs = pair(16, 8, kernel, **options)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=draw)
    found = []
    for work in (ours, theirs):
        given = x.clone().requires_grad_()
        y = work(given)
        weight = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
        (y * weight).sum().backward()
        found.append([y.detach(), given.grad, *(p.grad for p in work.parameters())])
    for mine, other in zip(*found, strict=True):
        assert mine is not None
        assert other is not None
        assert mine.shape == other.shape
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_a_thin_patch_is_kept_from_the_slow_implementation() -> None:
    ours, theirs = pair(16, 16, (1, 3, 3))
    x = torch.randn(THIN, requires_grad=True)
    assert THIN[1] * THIN[2] * THIN[3] <= SMALL
    if "aten::slow_conv3d_forward" not in kernels(theirs, x):
        pytest.skip("this PyTorch needs no help")
    assert "aten::slow_conv3d_forward" not in kernels(ours, x)
