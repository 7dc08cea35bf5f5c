"""Adapters: small trainable modules that let SAM's features interact across slices (model.md §4).

An adapter returns the correction only; the slot that holds it adds the skip. The last layer starts at zero, so an
untrained network equals SAM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import AdapterKind, Conditioning, DepthBranchKind, DepthPosition
from MaskSAMCore.errors import InputError
from MaskSAMCore.network.convolution import zero_init

Activation = type[nn.Module]
ACTIVATIONS: dict[str, Activation] = {"gelu": nn.GELU, "relu": nn.ReLU}
PARALLEL_SCALE = 0.5
"""Factor of an adapter that lies parallel to an MLP."""
CONDITION_WIDTH, CONDITION_LAYERS = 32, 3
"""Size p to which the condition is reduced, and layers of the hypernetwork (model.md §4.5)."""


class DepthMLP(nn.Module):
    """MLP over the D slices of a patch, D to 4D to D, with weights shared by all channels.

    MaskSAM's DMLP and Self-Prompt-SAM's depth fusion.
    """

    def __init__(self, depth: int, *, act: Activation, zero: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(depth, 4 * depth)
        self.act = act()
        self.down = nn.Linear(4 * depth, depth)
        if zero:
            zero_init(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (G, D, *S, C) to the same shape, without the skip."""
        y = x.movedim(1, -1)
        return self.down(self.act(self.up(y))).movedim(-1, 1)


class DepthConv(nn.Module):
    """Depth-wise 3x3x3 convolution, layer norm over channels, activation (MaskSAM's DConv)."""

    def __init__(self, channels: int, *, act: Activation) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (G, D, h, w, C) to the same shape, without the skip."""
        y = self.conv(x.movedim(-1, 1)).movedim(1, -1)
        return self.act(self.norm(y))


class SpatialConv(nn.Module):
    """Depth-wise 3x3x3 convolution and activation (AutoSAM Adapter)."""

    def __init__(self, channels: int, *, act: Activation) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (G, D, h, w, C) to the same shape."""
        return self.act(self.conv(x.movedim(-1, 1)).movedim(1, -1))


@dataclass(frozen=True, kw_only=True)
class Core:
    """The module inside an adapter's bottleneck.

    Attributes:
        build: Makes the module from the bottleneck's width, D, the activation and the position; the module keeps the
            shape (G, D, *S, C). None for a plain bottleneck.
        tied: Whether the weights depend on D.
        moves: Whether the module can also be placed before or after the bottleneck.
        skip: Whether the module has a skip around it.
    """

    build: Callable[[int, int, Activation, DepthPosition], nn.Module] | None = None
    tied: bool = False
    moves: bool = False
    skip: bool = True


CORES: dict[str, Core] = {
    "plain": Core(),
    # After a zero `up` the depth MLP would still add its bias, so its last layer starts at zero too.
    "depth_mlp": Core(
        build=lambda width, depth, act, position: DepthMLP(depth, act=act, zero=position == "after"),
        tied=True,
        moves=True,
    ),
    "depth_conv": Core(build=lambda width, depth, act, position: DepthConv(width, act=act)),
    "spatial": Core(build=lambda width, depth, act, position: SpatialConv(width, act=act), skip=False),
}
"""Kinds of adapters by their name in the configuration."""


def core_of(kind: AdapterKind) -> Core:
    """The core of a kind of adapter.

    Raises:
        InputError: The kind is not known; lists the known ones.
    """
    if kind not in CORES:
        known = ", ".join(("none", *CORES))
        raise InputError("unknown kind of adapter", where=kind, remedy=f"Choose one of {known}.")
    return CORES[kind]


class Adapter(nn.Module):
    """Bottleneck with an optional core that mixes slices; input and output (G, D, *S, C).

    S is (tokens,) or (h, w); the convolutional cores need (h, w).

    Args:
        channels: C.
        kind: Key of `CORES`.
        depth: D, on which the weights of some cores depend.
        ratio: Width of the bottleneck as a share of C.
        position: Place of a core that moves: before, in the middle of, or after the bottleneck.
        act: Key of `ACTIVATIONS`.
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
        core = core_of(kind)
        self.position = position if core.moves else "middle"
        self.down = nn.Linear(channels, width)
        self.act = activation()
        self.core = None if core.build is None else core.build(width, depth, activation, position)
        self.skip = core.skip
        self.up = nn.Linear(width, channels)
        zero_init(self.up)

    def forward(self, x: Tensor) -> Tensor:
        if self.core is None:
            return self.up(self.act(self.down(x)))
        if self.position == "before":
            x = x + self.core(x)
            return self.up(self.act(self.down(x)))
        u = self.act(self.down(x))
        if self.position == "middle":
            return self.up(u + self.core(u) if self.skip else self.core(u))
        y = self.up(u)
        return y + self.core(y)


class Condition(nn.Module):
    """Conditions the bottleneck of an adapter on a prompt: Med-SA's HyP and its alternatives (model.md §4.5).

    A prompt without a condition counts as the zero vector; the biases learn what to do then.

    Args:
        width: m, width of the bottleneck.
        mode: "add", "concat" or "hyper".
        source: Length of the condition vector.
    """

    def __init__(self, width: int, mode: Conditioning, *, source: int = 512) -> None:
        super().__init__()
        self.mode = mode
        self.reduce = nn.Linear(source, CONDITION_WIDTH)
        self.mix: nn.Linear | None = None
        if mode == "add":
            self.mix = nn.Linear(CONDITION_WIDTH, width)
        elif mode == "concat":
            self.mix = nn.Linear(width + CONDITION_WIDTH, width)
        layers = CONDITION_LAYERS if mode == "hyper" else 0
        maps = [nn.Linear(CONDITION_WIDTH, width * width) for _ in range(layers)]
        self.maps = nn.ModuleList(maps)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        for each in maps:
            # Near the identity, so that the layers start as "normalise, rectify" instead of noise.
            nn.init.normal_(each.weight, std=0.02)
            with torch.no_grad():
                each.bias.copy_(torch.eye(width).flatten())

    def forward(self, e: Tensor, condition: Tensor, known: Tensor, act: nn.Module) -> Tensor:
        """The bottleneck after conditioning and activation, (G, D, T, m).

        Args:
            e: (G, D, T, m), before the activation.
            condition: (G, D, 512).
            known: (G, D) bool, which prompts have a condition.
            act: The adapter's activation.
        """
        z = nn.functional.gelu(self.reduce(condition)) * known[..., None]
        if self.mode == "add" and self.mix is not None:
            return act(e + self.mix(z)[..., None, :])
        if self.mode == "concat" and self.mix is not None:
            z = z[..., None, :].expand(*e.shape[:-1], -1)
            return act(self.mix(torch.cat([e, z.to(e.dtype)], dim=-1)))
        for layer, norm in zip(self.maps, self.norms, strict=True):
            weight = layer(z).unflatten(-1, (e.shape[-1], e.shape[-1]))
            e = nn.functional.relu(norm(e @ weight))
        return e


class ConditionedAdapter(nn.Module):
    """An adapter conditioned on the prompt: the HyP-Adapter of Med-SA (model.md §4.5).

    Args:
        channels: C.
        kind: Key of `CORES`; a core with weights for D mixes the slices before the conditioning, others are not used.
        depth: D.
        condition: "add", "concat" or "hyper".
        ratio: Width of the bottleneck as a share of C.
        act: Key of `ACTIVATIONS`; not used by the mode "hyper".
    """

    def __init__(
        self,
        channels: int,
        *,
        kind: AdapterKind,
        depth: int,
        condition: Conditioning,
        ratio: float = 0.25,
        act: str = "gelu",
    ) -> None:
        super().__init__()
        activation = ACTIVATIONS[act]
        width = int(channels * ratio)
        self.down = nn.Linear(channels, width)
        self.act = activation()
        core = core_of(kind)
        self.core = core.build(width, depth, activation, "middle") if core.build is not None and core.tied else None
        self.condition = Condition(width, condition)
        self.up = nn.Linear(width, channels)
        zero_init(self.up)

    def forward(self, x: Tensor, condition: Tensor, known: Tensor) -> Tensor:
        """Correction (G, D, T, C) for x (G, D, T, C), condition (G, D, 512) and known (G, D) bool."""
        e = self.down(x)
        if self.core is not None:
            e = e + self.core(e)
        return self.up(self.condition(e, condition, known, self.act))


class DepthBranch(nn.Module):
    """Weights attention along the slices before it is added to attention within them: Med-SA's SD-Trans (§4.4).

    The attention uses the weights of the block. "gate" scales it with one number per block, which starts at zero. The
    paper adds it unscaled, which changes SAM from the start; the public release passes it through a third adapter
    without a skip, which is "adapter" here.

    Args:
        channels: C.
        kind: "gate" or "adapter".
        ratio, act: Of the adapter, as for `Adapter`.
    """

    def __init__(self, channels: int, *, kind: DepthBranchKind, ratio: float, act: str) -> None:
        super().__init__()
        gate = kind == "gate"
        self.gate = nn.Parameter(torch.zeros(())) if gate else None
        self.adapter = None if gate else Adapter(channels, kind="plain", depth=1, ratio=ratio, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Weight x (..., C), the attention along the slices; the same shape."""
        if self.gate is not None:
            return self.gate * x
        return x if self.adapter is None else self.adapter(x)
