"""The generator's trunk: from the encoder's features to maps at the patch's resolution (MODEL.md §6.1).

Three of them: the paper's pyramid over levels that all have stride 16 (ViT), the same idea over
levels at their true strides (TinyViT), and the plain stack of Self-Prompt-SAM's first ablation row.
Each returns its stages' outputs, the last at the patch's in-plane size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from MaskSAMCore.config import TOKEN_STRIDE, ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.types import Features, Level

EMBED = 256
IMAGE_WIDTH = 16


class ConvBlock(nn.Sequential):
    """Convolution (3x3x3 unless said), instance norm, leaky ReLU: the CB of MODEL.md §6.1."""

    def __init__(self, channels: int, width: int, *, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv3d(channels, width, kernel, padding=kernel // 2),
            nn.InstanceNorm3d(width, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class Up(nn.ConvTranspose3d):
    """Transposed convolution that doubles height and width: the UP of MODEL.md §6.1.

    Kernel and stride agree, so it is one matrix product per voxel; written as such it runs four
    times as fast on a CPU as the general operator.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, (1, 2, 2), stride=(1, 2, 2))

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """x (B, C, D, h, w) to (B, width, D, 2h, 2w)."""
        batch, _, depth, height, width = x.shape
        y = torch.einsum("bidhw,iouv->bodhuwv", x, self.weight[:, :, 0])
        y = y.reshape(batch, self.out_channels, depth, 2 * height, 2 * width)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None, None]


class Fuse(nn.Module):
    """CB over the trunk's map and a skip, side by side."""

    def __init__(self, width: int, skip: int) -> None:
        super().__init__()
        self.block = ConvBlock(width + skip, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([x, skip.to(x.dtype)], dim=1))


class Pyramid(nn.Module):
    """The paper's trunk, over levels of stride 16 (MODEL.md §6.1).

    The deeper a level, the earlier it joins. Where the levels outnumber the doublings, the rest join
    at the last stage through the same skip module, as in the release (§18.2 row 6).
    """

    def __init__(self, levels: tuple[Level, ...], widths: tuple[int, ...], ups: int) -> None:
        super().__init__()
        self.start = nn.Sequential(ConvBlock(EMBED, widths[0]), ConvBlock(widths[0], widths[0]))
        self.ups = nn.ModuleList(Up(widths[i - 1], widths[i]) for i in range(1, ups + 1))
        deepest_first = levels[::-1]
        joins = range(1, min(ups, len(levels)) + 1)
        self.skips = nn.ModuleList(_ladder(deepest_first[i - 1].channels, widths[i], i) for i in joins)
        self.fuse = nn.ModuleList(Fuse(widths[min(i, ups)], widths[min(i, ups)]) for i in range(1, len(levels) + 1))
        self.bare = nn.ModuleList(ConvBlock(widths[i], widths[i]) for i in range(len(levels) + 1, ups + 1))
        self.channels = tuple(widths[min(i, ups)] for i in range(max(len(levels), ups) + 1))

    def forward(self, features: Features) -> list[Tensor]:
        deepest_first = features.levels[::-1]
        stages = [self.start(features.embed)]
        for i in range(max(len(self.fuse), len(self.ups))):
            x = self.ups[i](stages[-1]) if i < len(self.ups) else stages[-1]
            if i < len(self.fuse):
                skip = self.skips[min(i, len(self.skips) - 1)](deepest_first[i])
                stages.append(self.fuse[i](x, skip))
            else:
                stages.append(self.bare[i - len(self.fuse)](x))
        return stages


class ScaledPyramid(nn.Module):
    """The trunk over levels at their true strides (TinyViT; MODEL.md §3).

    Every stage halves the stride and takes the levels that have it, deepest first. Skips are
    1x1x1 convolutions with norm, which bring a frozen level to the trunk's width and scale. Stages
    finer than the finest level go on without a skip. `widths[i]` belongs to stride 16 / 2^i.
    """

    def __init__(self, levels: tuple[Level, ...], widths: tuple[int, ...], ups: int) -> None:
        super().__init__()
        self.start = ConvBlock(EMBED, widths[0])
        self.ups = nn.ModuleList(Up(widths[i - 1], widths[i]) for i in range(1, ups + 1))
        self.order = [
            [n for n in reversed(range(len(levels))) if levels[n].stride == TOKEN_STRIDE >> i] for i in range(ups + 1)
        ]
        used = [(i, n) for i, found in enumerate(self.order) for n in found]
        self.skips = nn.ModuleDict({str(n): ConvBlock(levels[n].channels, widths[i], kernel=1) for i, n in used})
        self.fuse = nn.ModuleDict({str(n): Fuse(widths[i], widths[i]) for i, n in used})
        empty = [i for i, found in enumerate(self.order) if not found and i]
        self.bare = nn.ModuleDict({str(i): ConvBlock(widths[i], widths[i]) for i in empty})
        outputs = [[widths[i]] * max(1, len(found)) for i, found in enumerate(self.order)]
        first = [widths[0]] if self.order[0] else []
        self.channels = tuple(first + [width for stage in outputs for width in stage])

    def forward(self, features: Features) -> list[Tensor]:
        x = self.start(features.embed)
        stages = [x]
        for i, found in enumerate(self.order):
            if i:
                x = self.ups[i - 1](x)
            for n in found:
                key = str(n)
                x = self.fuse[key](x, self.skips[key](features.levels[n]))
                stages.append(x)
            if i and not found:
                x = self.bare[str(i)](x)
                stages.append(x)
        return stages


class Stack(nn.Module):
    """The neck's output alone, doubled in size again and again (Self-Prompt-SAM's row S1)."""

    def __init__(self, widths: tuple[int, ...], ups: int) -> None:
        super().__init__()
        self.start = nn.Sequential(ConvBlock(EMBED, widths[0]), ConvBlock(widths[0], widths[0]))
        self.steps = nn.ModuleList(
            nn.Sequential(Up(widths[i - 1], widths[i]), ConvBlock(widths[i], widths[i])) for i in range(1, ups + 1)
        )
        self.channels = tuple(widths[: ups + 1])

    def forward(self, features: Features) -> list[Tensor]:
        stages = [self.start(features.embed)]
        for step in self.steps:
            stages.append(step(stages[-1]))
        return stages


class Trunk(nn.Module):
    """The configured trunk; with `image_skip`, the scan itself joins its last stage.

    Args:
        cfg: Of the whole model. `source.widths` shorter than the stages repeats its last value.
        levels: What the encoder's features are.

    Attributes:
        channels: Channels of every stage's output.

    Raises:
        ModelError: A level's stride fits no stage of the trunk.
    """

    def __init__(self, cfg: ModelConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        ups = int(math.log2(TOKEN_STRIDE // cfg.stem.upsample))
        given = cfg.source.widths
        widths = given[: ups + 1] + given[-1:] * (ups + 1 - len(given))
        strides = {level.stride for level in levels}
        self.body: Pyramid | ScaledPyramid | Stack
        if cfg.source.trunk == "stacked":
            self.body = Stack(widths, ups)
        elif strides == {TOKEN_STRIDE}:
            self.body = Pyramid(levels, widths, ups)
        else:
            _check_strides(strides, ups)
            self.body = ScaledPyramid(levels, widths, ups)
        self.channels = self.body.channels
        self.image: ConvBlock | None = None
        self.join: Fuse | None = None
        if cfg.source.image_skip:
            self.image = ConvBlock(cfg.channels, IMAGE_WIDTH)
            self.join = Fuse(self.channels[-1], IMAGE_WIDTH)

    def forward(self, features: Features, image: Tensor) -> list[Tensor]:
        """Maps of every stage, the last (B, C, D, H, W).

        Args:
            features: Of the encoder.
            image: (B, M, D, H, W), the scan; read with `image_skip` only.
        """
        stages = self.body(features)
        if self.image is not None and self.join is not None:
            stages[-1] = self.join(stages[-1], self.image(image))
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
            "the encoder has levels that the generator cannot take",
            where="model.stem.upsample",
            why=f"strides {sorted(strides - fitting)} are finer than the patch",
            remedy="Choose a smaller stem.upsample, or source.trunk=stacked.",
        )
