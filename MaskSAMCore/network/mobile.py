"""MobileSAM's encoder: timm's TinyViT with SAM's neck and adapter slots (model.md §3).

With `attention_kernel="fast"` each frozen batch norm is merged into the convolution before it, feature maps are
channels-last, and attention uses PyTorch's fused kernel: the same numbers up to rounding in about half the time on a
CPU. `reference` calls timm's modules as they are.
"""

from __future__ import annotations

import re
import warnings
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, channels_last, nn

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.network.attention import from_windows, tiny_attention, tiny_depth_attention, to_windows
from MaskSAMCore.network.encoder import NECK_CHANNELS, AdaptedEncoder
from MaskSAMCore.network.types import Features, Level, fold, unfold

if TYPE_CHECKING:
    from timm.models.tiny_vit import ConvNorm, MBConv, PatchMerging, TinyVit, TinyVitBlock

WIDTHS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (2, 4, 5, 10)
WINDOWS = (7, 7, 14, 7)
STRIDES = (4, 8, 16, 16)
PREFIX = "image_encoder."


class MobileImageEncoder(nn.Module):
    """MobileSAM's image encoder: timm's TinyViT with SAM's neck in place of the classifier."""

    def __init__(self) -> None:
        super().__init__()
        from segment_anything.modeling.common import LayerNorm2d

        tiny = _tiny_vit()
        self.patch_embed = tiny.patch_embed
        self.stages = tiny.stages
        self.neck = nn.Sequential(
            nn.Conv2d(WIDTHS[3], NECK_CHANNELS, 1, bias=False),
            LayerNorm2d(NECK_CHANNELS),
            nn.Conv2d(NECK_CHANNELS, NECK_CHANNELS, 3, padding=1, bias=False),
            LayerNorm2d(NECK_CHANNELS),
        )


class MobileEncoder(AdaptedEncoder):
    """TinyViT with 64/128/160/320 channels and adapter slots in its ten attention blocks (stages 1 to 3).

    Its levels are the outputs of the four stages, at stride 4, 8, 16 and 16. A block is attention, then a local
    convolution, then the MLP:

        a = attn(x), windows joined;  x = x + a + A(a);  x = conv(x);  x = x + mlp(x) + s * A(norm x)

    The paper adds depth positions after a ViT's absolute positions. TinyViT has none, so the table (D, 128) is added
    before the first attention block, after the convolutional stage, which stays constant (model.md §14.4).
    """

    sam: MobileImageEncoder

    def __init__(self, cfg: ModelConfig) -> None:
        levels = tuple(Level(channels=c, stride=s) for c, s in zip(WIDTHS, STRIDES, strict=True))
        widths = [WIDTHS[stage] for stage in (1, 2, 3) for _ in range(DEPTHS[stage])]
        super().__init__(cfg, sam=MobileImageEncoder(), widths=widths, levels=levels, pe_width=WIDTHS[1])
        self.fast = cfg.backbone.attention_kernel == "fast"

    def _encode(self, x: Tensor, *, adapt: bool) -> Features:
        depth = x.shape[2]
        y = fold(x)
        if self.fast:
            y = y.contiguous(memory_format=channels_last)
        y = self._conv_stage(y)
        levels = [unfold(y, depth)]
        index = 0
        for stage in self.sam.stages[1:]:
            y = self._merge(stage.downsample, y).permute(0, 2, 3, 1)
            if index == 0:
                y = self._add_depth_pe(y, depth, adapt)
            for block in stage.blocks:
                y = self._run(self._block, block, index, y, depth, adapt)
                index += 1
            y = y.permute(0, 3, 1, 2)
            levels.append(unfold(y, depth))
        embed = self.sam.neck(y)
        return Features(levels=tuple(levels), embed=unfold(embed, depth))

    def _conv_stage(self, x: Tensor) -> Tensor:
        """Patch embedding and stage 0: (N, 3, S_h, S_w) to (N, 64, S_h / 4, S_w / 4)."""
        embed = self.sam.patch_embed
        x = self._conv_norm(embed.conv2, embed.act(self._conv_norm(embed.conv1, x)))
        for block in self.sam.stages[0].blocks:
            x = self._run(self._mb_conv, block, x)
        return x

    def _mb_conv(self, block: MBConv, x: Tensor) -> Tensor:
        y = block.act1(self._conv_norm(block.conv1, x))
        y = block.act2(self._conv_norm(block.conv2, y))
        return block.act3(self._conv_norm(block.conv3, y) + x)

    def _merge(self, merging: PatchMerging, x: Tensor) -> Tensor:
        """A stage's downsampling: (N, C, H, W) to (N, C', H / 2, W / 2), or to (N, C', H, W) in the last stage."""
        y = merging.act1(self._conv_norm(merging.conv1, x))
        y = merging.act2(self._conv_norm(merging.conv2, y))
        return self._conv_norm(merging.conv3, y)

    def _block(self, block: TinyVitBlock, index: int, x: Tensor, depth: int, adapt: bool) -> Tensor:
        windows = to_windows(x, block.window_size)
        a = tiny_attention(block.attn, windows.flatten(1, 2), kernel=self.backbone.attention_kernel)
        a = from_windows(a.view_as(windows), (x.shape[1], x.shape[2]))
        a = self._depth_slot(index, a, partial(tiny_depth_attention, block.attn, x, depth), adapt)
        x = x + self._attn_slot(index, a, depth, adapt)
        x = self._conv_norm(block.local_conv, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        mlp = block.mlp
        n = mlp.norm(x)
        return self._mlp_slot(index, x + mlp.fc2(mlp.act(mlp.fc1(n))), n, depth, adapt)

    def _conv_norm(self, layer: ConvNorm, x: Tensor) -> Tensor:
        """Convolution and frozen batch norm; a single convolution with merged weights if `fast`.

        The weights are merged in every call: that is cheap, and a stored copy would have to follow loading, casting
        and moving of the model.
        """
        if not self.fast:
            return layer(x)
        conv, norm = layer.conv, layer.bn
        if norm.running_mean is None or norm.running_var is None:
            return layer(x)
        gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight = conv.weight * gain[:, None, None, None]
        bias = norm.bias - norm.running_mean * gain
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def map_mobile_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a MobileSAM checkpoint to those of `MobileImageEncoder`.

    Args:
        state: A whole checkpoint (`image_encoder.*`, `prompt_encoder.*`, `mask_decoder.*`), or the
            image encoder's part without its prefix.

    Returns:
        A new dictionary with the encoder's tensors renamed (with the prefix if they had it), without its unused
        classifier; other tensors are unchanged.
    """
    mapped = {}
    for key, value in state.items():
        whole = key.startswith(PREFIX)
        name = key.removeprefix(PREFIX)
        if re.match(r"(norm_)?head\.", name):
            continue
        name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", name)
        name = re.sub(r"^layers\.", "stages.", name)
        name = re.sub(r"^patch_embed\.seq\.([02])\.", lambda m: f"patch_embed.conv{int(m[1]) // 2 + 1}.", name)
        name = name.replace(".c.weight", ".conv.weight")
        mapped[PREFIX + name if whole else name] = value
    return mapped


def _tiny_vit() -> TinyVit:
    with warnings.catch_warnings():
        # Importing one timm model imports all; an unrelated one uses a part of torch that is being retired.
        warnings.simplefilter("ignore", FutureWarning)
        from timm.models.tiny_vit import TinyVit

    tiny = TinyVit(embed_dims=WIDTHS, depths=DEPTHS, num_heads=HEADS, window_sizes=WINDOWS, drop_path_rate=0.0)
    # MobileSAM keeps stride 16 in its last stage.
    tiny.stages[3].downsample.conv2.conv.stride = (1, 1)
    return tiny
