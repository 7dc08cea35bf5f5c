"""AutoSAM Adapter: SAM's encoder in three dimensions, a prompt U-Net, and a decoder (model.md §6.8, §10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.network.convolution import Conv3d
from MaskSAMCore.network.encoder import NECK_CHANNELS
from MaskSAMCore.network.segmenter import DirectSegmenter
from MaskSAMCore.network.stem import ModalityStem
from MaskSAMCore.network.volume_encoder import LEVELS, VolumeEncoder

UNET_WIDTHS = (16, 32, 64, 128, 160)
MLA_WIDTH = 128


def conv(channels: int, width: int) -> nn.Sequential:
    """Convolution 3x3x3, instance norm, ReLU; no biases, as the published parameter counts imply."""
    return nn.Sequential(
        Conv3d(channels, width, 3, padding=1, bias=False), nn.InstanceNorm3d(width), nn.ReLU(inplace=True)
    )


class PromptUNet(nn.Module):
    """The paper's automatic prompt generator: a 3-D U-Net whose output replaces one level of the encoder."""

    def __init__(self, channels: int = NECK_CHANNELS) -> None:
        super().__init__()
        widths = UNET_WIDTHS
        inner = (channels, *widths[:-1])
        self.down = nn.ModuleList(nn.Sequential(conv(i, o), conv(o, o)) for i, o in zip(inner, widths, strict=True))
        self.up = nn.ModuleList(
            nn.Sequential(conv(deep + skip, skip), conv(skip, skip))
            for deep, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.out = nn.Conv3d(widths[0], channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, 256, T, h, w) to the same shape.

        Axes of fewer than four tokens are not halved, because an instance norm needs more than one.
        """
        skips: list[Tensor] = []
        for stage in self.down:
            if skips:
                halves = [2 if size >= 4 else 1 for size in x.shape[2:]]
                x = F.max_pool3d(x, halves)
            x = stage(x)
            skips.append(x)
        for stage, skip in zip(self.up, skips[-2::-1], strict=True):
            x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=True)
            x = stage(torch.cat([x, skip], 1))
        return self.out(x)


class MlaDecoder(nn.Module):
    """Multi-layer aggregation: concatenates all levels and the scan, and maps them to class logits (model.md §10.7).

    `decoder.fusion_res=half` concatenates at twice the tokens' grid, as the release does: half the scan's size with the
    presets. `full` does so at the scan's own size, as the paper says, with eight times the computation and memory.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.full = cfg.decoder.fusion_res == "full"
        self.levels = nn.ModuleList(
            nn.Sequential(conv(NECK_CHANNELS, MLA_WIDTH), conv(MLA_WIDTH, MLA_WIDTH)) for _ in range(LEVELS)
        )
        self.fuse = conv(LEVELS * MLA_WIDTH + cfg.channels, MLA_WIDTH)
        self.head = Conv3d(MLA_WIDTH, cfg.classes, 3, padding=1, bias=False)

    def forward(self, levels: list[Tensor], image: Tensor) -> Tensor:
        """Class logits (B, K, D, H, W) of levels (B, 256, T, h, w) and image (B, M, D, H, W)."""
        size = image.shape[2:] if self.full else [2 * n for n in levels[0].shape[2:]]
        maps = [_resize(stage(level), size) for stage, level in zip(self.levels, levels, strict=True)]
        fused = self.fuse(torch.cat([*maps, _resize(image, size).to(maps[0].dtype)], 1))
        return _resize(self.head(fused), image.shape[2:])


class VolumeSAM(DirectSegmenter):
    """AutoSAM Adapter: encoder, prompt U-Net, aggregation decoder; without SAM's prompt encoder and mask decoder."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.stem = ModalityStem(cfg)
        self.encoder = VolumeEncoder(cfg)
        level = {"last": LEVELS - 1, "first": 0, "none": None}[cfg.source.apg_level]
        self.level = level
        self.prompt_unet = None if level is None else PromptUNet()
        self.mla = MlaDecoder(cfg)

    def set_checkpointing(self, enabled: bool) -> None:
        """Switch gradient checkpointing of the encoder on or off."""
        self.encoder.checkpointing = enabled

    def logits(self, image: Tensor) -> Tensor:
        """Class logits (B, K, D, H, W) of an image (B, M, D, H, W); D * stem.upsample must be a multiple of 16."""
        levels = self.encoder(self.stem(image))
        if self.prompt_unet is not None and self.level is not None:
            levels[self.level] = self.prompt_unet(levels[self.level])
        return self.mla(levels, image)


def _resize(x: Tensor, size: list[int] | torch.Size) -> Tensor:
    if list(x.shape[2:]) == list(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)
