"""Adapters: the small trainable modules that turn SAM's slices into a volume (MODEL.md §4).

An adapter returns the correction alone; the slot that holds it adds the skip. The last layer
starts at zero, so a fresh network equals vanilla SAM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MaskSAMCore.config import AdapterKind, DepthPosition

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class DepthMLP(nn.Module):
    """Mixes the D slices of a patch, D to 4D to D, with weights that all channels share.

    MaskSAM's DMLP, Self-Prompt-SAM's depth fusion.
    """

    def __init__(self, depth: int, *, act: type[nn.Module], zero: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(depth, 4 * depth)
        self.act = act()
        self.down = nn.Linear(4 * depth, depth)
        if zero:
            _zero(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """x (G, D, *S, C) to the same shape; without the skip."""
        y = x.movedim(1, -1)
        return self.down(self.act(self.up(y))).movedim(-1, 1)


class DepthConv(nn.Module):
    """Depth-wise 3x3x3 convolution, layer norm over channels, activation (MaskSAM's DConv)."""

    def __init__(self, channels: int, *, act: type[nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """x (G, D, h, w, C) to the same shape; without the skip."""
        y = self.conv(x.movedim(-1, 1)).movedim(1, -1)
        return self.act(self.norm(y))


class Adapter(nn.Module):
    """Bottleneck with an optional depth core; input and output (G, D, *S, C).

    S is (tokens,) or (h, w); the convolutional core needs (h, w).

    Args:
        channels: C.
        kind: plain, depth_mlp or depth_conv.
        depth: D, to which the depth MLP's weights are tied.
        ratio: Width of the bottleneck as a share of C.
        position: Where the depth MLP stands: before the bottleneck, in its middle, or after it.
        act: Name of the activation.
    """

    def __init__(
        self,
        channels: int,
        *,
        kind: AdapterKind,
        depth: int,
        ratio: float = 0.25,
        position: DepthPosition = "middle",
        act: str = "gelu",
    ) -> None:
        super().__init__()
        activation = ACTIVATIONS[act]
        width = int(channels * ratio)
        self.position = position if kind == "depth_mlp" else "middle"
        self.down = nn.Linear(channels, width)
        self.act = activation()
        self.core: nn.Module | None = None
        if kind == "depth_mlp":
            # Behind a zero `up` the outer depth MLP would still add its bias, so it starts at zero too.
            self.core = DepthMLP(depth, act=activation, zero=position == "after")
        elif kind == "depth_conv":
            self.core = DepthConv(width, act=activation)
        self.up = nn.Linear(width, channels)
        _zero(self.up)

    def forward(self, x: Tensor) -> Tensor:
        if self.core is None:
            return self.up(self.act(self.down(x)))
        if self.position == "before":
            x = x + self.core(x)
            return self.up(self.act(self.down(x)))
        u = self.act(self.down(x))
        if self.position == "middle":
            return self.up(u + self.core(u))
        y = self.up(u)
        return y + self.core(y)


def _zero(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
