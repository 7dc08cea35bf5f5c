"""Types of timm's TinyViT: timm declares none for the modules inside its modules."""

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor, nn

class ConvNorm(nn.Sequential):
    conv: nn.Conv2d
    bn: nn.BatchNorm2d

class PatchEmbed(nn.Module):
    conv1: ConvNorm
    act: nn.Module
    conv2: ConvNorm

class MBConv(nn.Module):
    conv1: ConvNorm
    act1: nn.Module
    conv2: ConvNorm
    act2: nn.Module
    conv3: ConvNorm
    act3: nn.Module

class PatchMerging(nn.Module):
    conv1: ConvNorm
    act1: nn.Module
    conv2: ConvNorm
    act2: nn.Module
    conv3: ConvNorm

class ConvLayer(nn.Module):
    blocks: Sequence[MBConv]

class NormMlp(nn.Module):
    norm: nn.LayerNorm
    fc1: nn.Linear
    act: nn.Module
    fc2: nn.Linear

class Attention(nn.Module):
    num_heads: int
    scale: float
    key_dim: int
    val_dim: int
    out_dim: int
    norm: nn.LayerNorm
    qkv: nn.Linear
    proj: nn.Linear
    attention_biases: nn.Parameter
    attention_bias_idxs: Tensor

class TinyVitBlock(nn.Module):
    window_size: int
    attn: Attention
    mlp: NormMlp
    local_conv: ConvNorm

class TinyVitStage(nn.Module):
    # An identity in a first stage, which in `TinyVit` is always a `ConvLayer`.
    downsample: PatchMerging
    blocks: Sequence[TinyVitBlock]

# `TinyVit` puts a `ConvLayer` and then `TinyVitStage`s into a plain `nn.Sequential`.
class _Stages(nn.Sequential):
    @overload  # type: ignore[override]
    def __getitem__(self, idx: Literal[0]) -> ConvLayer: ...
    @overload
    def __getitem__(self, idx: Literal[1, 2, 3]) -> TinyVitStage: ...
    @overload
    def __getitem__(self, idx: slice) -> Sequence[TinyVitStage]: ...  # [1:]

class TinyVit(nn.Module):
    patch_embed: PatchEmbed
    stages: _Stages
    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: tuple[int, ...] = (96, 192, 384, 768),
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_sizes: tuple[int, ...] = (7, 7, 14, 7),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None: ...
