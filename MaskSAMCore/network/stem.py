"""Maps the M channels of a scan to the three channels of SAM's input (model.md §5.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.network.convolution import Conv3d

SAM_CHANNELS = 3


class ModalityStem(nn.Module):
    """Maps (B, M, D, H, W) to (B, 3, D, up * H, up * W), with `up = stem.upsample`.

    `stem.kind` is one of:
        conv: The papers' stack of 3-D convolutions with in-plane upsampling. With `stem.residual`, which is not in the
            papers, `y = lift(up(x)) + gamma * branch(x)`: `lift` is a 1x1 convolution that starts as the mean of the
            channels, `gamma` (3,) starts at zero, and the branch has no last activation, so that an untrained network
            sees the scan itself. This adds 3 M + 3 parameters to the released stem, which has 33 945 at x4 and 897 at
            x1 for M = 1.
        lean: The x1 stack with the residual at the size of the scan, upsampled afterwards; not in the papers.
        repeat, none: No parameters; three channels are used as they are, any other number as their mean, repeated.

    The input is normalised: scans as in preprocessing, colour pictures by SAM's mean and standard deviation.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.channels = cfg.channels
        self.upsample = cfg.stem.upsample
        self.kind = cfg.stem.kind
        self.branch: nn.Sequential | None = None
        self.lift: nn.Conv3d | None = None
        self.gamma: nn.Parameter | None = None
        if self.kind in ("repeat", "none"):
            return
        residual = cfg.stem.residual or self.kind == "lean"
        upsample = 1 if self.kind == "lean" else cfg.stem.upsample
        self.branch = _branch(cfg.channels, upsample, last_act=not residual)
        if residual:
            self.lift = nn.Conv3d(cfg.channels, SAM_CHANNELS, 1, bias=False)
            nn.init.constant_(self.lift.weight, 1 / cfg.channels)
            self.gamma = nn.Parameter(torch.zeros(SAM_CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, M, D, H, W) to (B, 3, D, up * H, up * W)."""
        if self.branch is None:
            return self.frozen(x)
        if self.lift is None or self.gamma is None:
            return self.branch(x)
        if self.kind == "lean":
            return self._enlarge(self.lift(x) + self.gamma[:, None, None, None] * self.branch(x))
        return self.lift(self._enlarge(x)) + self.gamma[:, None, None, None] * self.branch(x)

    def frozen(self, x: Tensor) -> Tensor:
        """The mapping without trained parameters, for the frozen encoder (model.md §14.4); shapes as of `forward`."""
        if self.kind in ("repeat", "none") and self.channels == SAM_CHANNELS:
            return self._enlarge(x)
        mean = x if self.channels == 1 else x.mean(1, keepdim=True)
        return self._enlarge(mean).expand(-1, SAM_CHANNELS, -1, -1, -1)

    def _enlarge(self, x: Tensor) -> Tensor:
        if self.upsample == 1:
            return x
        slices = F.interpolate(x.flatten(0, 1), scale_factor=float(self.upsample), mode="bilinear", align_corners=False)
        return slices.unflatten(0, x.shape[:2])


def _branch(channels: int, upsample: int, *, last_act: bool) -> nn.Sequential:
    """The released stack for x4 and x1; x2 is x4 with one of its two upsamplings."""
    if upsample == 1:
        layers = [*_conv(channels, 8), *_conv(8, SAM_CHANNELS)]
    else:
        layers = [*_conv(channels, 16)]
        if upsample == 4:
            layers += _up(16, 16)
        layers += [*_up(16, 32), *_conv(32, 32), *_conv(32, SAM_CHANNELS)]
    return nn.Sequential(*(layers if last_act else layers[:-1]))


def _conv(inner: int, outer: int) -> list[nn.Module]:
    return [
        Conv3d(inner, outer, 3, padding=1),
        nn.InstanceNorm3d(outer, affine=True),
        nn.LeakyReLU(0.01),
    ]


def _up(inner: int, outer: int) -> list[nn.Module]:
    # The released parameter counts (model.md §16.2) need instance norms without parameters here.
    return [nn.ConvTranspose3d(inner, outer, (1, 2, 2), stride=(1, 2, 2)), nn.InstanceNorm3d(outer), nn.GELU()]
