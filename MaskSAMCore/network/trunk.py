"""The generator's trunk: upsamples the encoder's features to the size of the patch (model.md §6.1).

There are three variants: the paper's pyramid over levels that all have stride 16 (ViT), the same idea over levels at
their true strides (TinyViT), and the plain stack of Self-Prompt-SAM's first ablation. Each doubles height and width
until the token grid has become the size of the patch. The scan, through a small encoder, can be fused after every
doubling.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import TOKEN_STRIDE, ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.convolution import Conv3d
from MaskSAMCore.network.types import Features, Level

EMBED = 256

Kernel = tuple[int, int, int]
WHOLE: Kernel = (3, 3, 3)
IN_PLANE: Kernel = (1, 3, 3)


def same_padding(kernel: Kernel) -> Kernel:
    """Padding (D, H, W) with which a convolution of stride 1 and an odd kernel keeps the size."""
    depth, height, width = kernel
    return depth // 2, height // 2, width // 2


class ConvBlock(nn.Sequential):
    """Convolution, instance norm, leaky ReLU: the CB of model.md §6.1.

    The instance norm is a group norm with one group per channel: the same numbers, faster on a CPU.

    Args:
        channels, width: Channels of input and output.
        kernel: (D, H, W), odd.
        stride: In-plane stride.
    """

    def __init__(self, channels: int, width: int, *, kernel: Kernel = WHOLE, stride: int = 1) -> None:
        super().__init__(
            Conv3d(channels, width, kernel, stride=(1, stride, stride), padding=same_padding(kernel)),
            nn.GroupNorm(width, width),
            nn.LeakyReLU(0.01, inplace=True),
        )


class Up(nn.ConvTranspose3d):
    """Transposed convolution that doubles height and width: the UP of model.md §6.1.

    Kernel and stride are equal, so it is one matrix product per voxel, which runs four times as fast on a CPU as the
    general operator.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, (1, 2, 2), stride=(1, 2, 2))

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map x (B, C, D, h, w) to (B, width, D, 2h, 2w)."""
        batch, _, depth, height, width = x.shape
        y = torch.einsum("bidhw,iouv->bodhuwv", x, self.weight[:, :, 0])
        y = y.reshape(batch, self.out_channels, depth, 2 * height, 2 * width)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None, None]


class Fuse(nn.Module):
    """A `ConvBlock` over the concatenated trunk and skip features."""

    def __init__(self, width: int, skip: int, *, kernel: Kernel = WHOLE) -> None:
        super().__init__()
        self.block = ConvBlock(width + skip, width, kernel=kernel)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([x, skip.to(x.dtype)], dim=1))


class Body(nn.Module):
    """Base class of the trunk's variants; `grow` is called with 0, 1, ... doublings and the previous output.

    Attributes:
        channels: Per doubling, the channels of the stages that it adds.
    """

    channels: tuple[tuple[int, ...], ...]

    def grow(self, doublings: int, x: Tensor | None, features: Features) -> list[Tensor]:
        """Stages at 2^doublings times the resolution of the tokens; the last is passed on.

        Args:
            doublings: 0 for the stages at the token grid.
            x: (B, C, D, h, w), last stage of the previous doubling; None for 0.
            features: Output of the encoder.
        """
        raise NotImplementedError


class Pyramid(Body):
    """The paper's trunk over levels of stride 16 (model.md §6.1).

    Deeper levels are fused earlier. If there are more levels than doublings, the others are fused at the last stage
    through the same skip module, as in the release (§18.2 row 6).
    """

    def __init__(self, levels: tuple[Level, ...], widths: tuple[int, ...], kernels: tuple[Kernel, ...]) -> None:
        super().__init__()
        ups, count = len(widths) - 1, len(levels)
        self.start = nn.Sequential(ConvBlock(EMBED, widths[0]), ConvBlock(widths[0], widths[0]))
        self.ups = nn.ModuleList(Up(widths[i - 1], widths[i]) for i in range(1, ups + 1))
        deepest_first = levels[::-1]
        joins = range(1, min(ups, count) + 1)
        self.skips = nn.ModuleList(_ladder(deepest_first[i - 1].channels, widths[i], i) for i in joins)
        at = [min(i, ups) for i in range(1, count + 1)]
        self.fuse = nn.ModuleList(Fuse(widths[i], widths[i], kernel=kernels[i]) for i in at)
        bare = range(count + 1, ups + 1)
        self.bare = nn.ModuleDict({str(i): ConvBlock(widths[i], widths[i], kernel=kernels[i]) for i in bare})
        self.channels = tuple((width,) * max(1, at.count(i)) for i, width in enumerate(widths))

    def grow(self, doublings: int, x: Tensor | None, features: Features) -> list[Tensor]:
        if x is None:
            return [self.start(features.embed)]
        x = self.ups[doublings - 1](x)
        if str(doublings) in self.bare:
            return [self.bare[str(doublings)](x)]
        deepest_first = features.levels[::-1]
        last = len(self.fuse) if doublings == len(self.ups) else doublings
        stages = []
        for n in range(doublings - 1, last):
            x = self.fuse[n](x, self.skips[min(n, len(self.skips) - 1)](deepest_first[n]))
            stages.append(x)
        return stages


class ScaledPyramid(Body):
    """The trunk over levels at their true strides (TinyViT; model.md §3).

    Every stage halves the stride and fuses the levels of that stride, deepest first. Skips are 1x1x1 convolutions with
    norm, which adapt width and scale of a frozen level. Stages finer than the finest level have no skip, or fuse the
    scan. `widths[i]` belongs to stride 16 / 2^i.

    Args:
        levels: The encoder's feature levels.
        widths, kernels: Per stage.
        joined: Stages that the scan is fused into.
    """

    def __init__(
        self, levels: tuple[Level, ...], widths: tuple[int, ...], kernels: tuple[Kernel, ...], joined: Collection[int]
    ) -> None:
        super().__init__()
        ups = len(widths) - 1
        self.start = ConvBlock(EMBED, widths[0])
        self.ups = nn.ModuleList(Up(widths[i - 1], widths[i]) for i in range(1, ups + 1))
        self.order = [
            [n for n in reversed(range(len(levels))) if levels[n].stride == TOKEN_STRIDE >> i] for i in range(ups + 1)
        ]
        used = [(i, n) for i, found in enumerate(self.order) for n in found]
        self.skips = nn.ModuleDict(
            {str(n): ConvBlock(levels[n].channels, widths[i], kernel=(1, 1, 1)) for i, n in used}
        )
        self.fuse = nn.ModuleDict({str(n): Fuse(widths[i], widths[i], kernel=kernels[i]) for i, n in used})
        empty = [i for i, found in enumerate(self.order) if not found and i and i not in joined]
        self.bare = nn.ModuleDict({str(i): ConvBlock(widths[i], widths[i], kernel=kernels[i]) for i in empty})
        outputs = [(widths[i],) * max(1, len(found)) for i, found in enumerate(self.order)]
        first = (widths[0],) if self.order[0] else ()
        self.channels = (first + outputs[0], *outputs[1:])

    def grow(self, doublings: int, x: Tensor | None, features: Features) -> list[Tensor]:
        x = self.start(features.embed) if x is None else self.ups[doublings - 1](x)
        stages = [] if doublings else [x]
        for n in self.order[doublings]:
            x = self.fuse[str(n)](x, self.skips[str(n)](features.levels[n]))
            stages.append(x)
        if not stages:
            stages.append(self.bare[str(doublings)](x) if str(doublings) in self.bare else x)
        return stages


class Stack(Body):
    """Upsamples the neck's output alone, without skips (Self-Prompt-SAM's ablation S1)."""

    def __init__(self, widths: tuple[int, ...], kernels: tuple[Kernel, ...]) -> None:
        super().__init__()
        self.start = nn.Sequential(ConvBlock(EMBED, widths[0]), ConvBlock(widths[0], widths[0]))
        self.steps = nn.ModuleList(
            nn.Sequential(Up(widths[i - 1], widths[i]), ConvBlock(widths[i], widths[i], kernel=kernels[i]))
            for i in range(1, len(widths))
        )
        self.channels = tuple((width,) for width in widths)

    def grow(self, doublings: int, x: Tensor | None, features: Features) -> list[Tensor]:
        return [self.start(features.embed) if x is None else self.steps[doublings - 1](x)]


class ImageEncoder(nn.Module):
    """Convolutional features of the scan at several sizes; stage j has in-plane stride 2^j.

    Args:
        channels: M of the scan.
        widths: Per stage.
        kernels: Per stage.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], kernels: tuple[Kernel, ...]) -> None:
        super().__init__()
        stages = []
        for j, width in enumerate(widths):
            before = widths[j - 1] if j else channels
            first = ConvBlock(before, width, kernel=kernels[j], stride=2 if j else 1)
            stages.append(nn.Sequential(first, ConvBlock(width, width, kernel=kernels[j])))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps (B, widths[j], D, H / 2^j, W / 2^j) of an image (B, M, D, H, W), finest first."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return maps


class Trunk(nn.Module):
    """The configured trunk; with `source.image_widths`, it also fuses the scan.

    Args:
        cfg: Configuration of the whole model. The last value of `source.widths` is repeated for further stages.
        levels: The encoder's feature levels.

    Attributes:
        channels: Channels of the output of every stage.

    Raises:
        ModelError: A level's stride fits no stage of the trunk, or the scan has more sizes than the trunk.
    """

    def __init__(self, cfg: ModelConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        self.doublings = int(math.log2(TOKEN_STRIDE // cfg.stem.upsample))
        source, given = cfg.source, cfg.source.widths
        widths = given[: self.doublings + 1] + given[-1:] * (self.doublings + 1 - len(given))
        finest_first = tuple(IN_PLANE if j < source.in_plane else WHOLE for j in range(self.doublings + 1))
        kernels = finest_first[::-1]
        strides = {level.stride for level in levels}
        self.body: Body
        if source.trunk == "stacked":
            self.body = Stack(widths, kernels)
        elif strides == {TOKEN_STRIDE}:
            self.body = Pyramid(levels, widths, kernels)
        else:
            _check_strides(strides, self.doublings)
            joined = [self.doublings - j for j in range(len(source.image_widths))]
            self.body = ScaledPyramid(levels, widths, kernels, joined)
        self.channels = tuple(width for stages in self.body.channels for width in stages)
        self.image: ImageEncoder | None = None
        self.join = nn.ModuleDict()
        if source.image_widths:
            _check_sizes(source.image_widths, self.doublings)
            self.image = ImageEncoder(cfg.channels, source.image_widths, finest_first)
            for j, width in enumerate(source.image_widths):
                i = self.doublings - j
                self.join[str(i)] = Fuse(widths[i], width, kernel=kernels[i])

    def forward(self, features: Features, image: Tensor) -> list[Tensor]:
        """Feature maps of every stage, the last (B, C, D, H, W).

        Args:
            features: Output of the encoder.
            image: (B, M, D, H, W), the scan; used with `source.image_widths` only.
        """
        scan = [] if self.image is None else self.image(image)
        stages: list[Tensor] = []
        for i in range(self.doublings + 1):
            stages += self.body.grow(i, stages[-1] if stages else None, features)
            if str(i) in self.join:
                stages[-1] = self.join[str(i)](stages[-1], scan[self.doublings - i])
        return stages


def _ladder(channels: int, width: int, steps: int) -> nn.Sequential:
    layers: list[nn.Module] = [Up(channels, width), ConvBlock(width, width)]
    for _ in range(steps - 1):
        layers += [Up(width, width), ConvBlock(width, width)]
    return nn.Sequential(*layers)


def _check_strides(strides: set[int], ups: int) -> None:
    fitting = {TOKEN_STRIDE >> i for i in range(ups + 1)}
    if not strides <= fitting:
        raise ModelError(
            "the encoder has finer levels than the generator has stages",
            where="model.stem.upsample",
            why=f"strides {sorted(strides - fitting)} are finer than the patch",
            remedy="Choose a smaller stem.upsample, or source.trunk=stacked.",
        )


def _check_sizes(widths: tuple[int, ...], doublings: int) -> None:
    if len(widths) > doublings + 1:
        raise ModelError(
            "more widths than the generator has stages",
            where="model.source.image_widths",
            why=f"{len(widths)} widths, {doublings + 1} stages with this model.stem.upsample",
            remedy="Give fewer widths, or choose a smaller stem.upsample.",
        )
