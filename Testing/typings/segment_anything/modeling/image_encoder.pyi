from collections.abc import Callable, Sequence

from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn

class PatchEmbed(nn.Module):
    proj: nn.Conv2d

class Attention(nn.Module):
    num_heads: int
    scale: float
    qkv: nn.Linear
    proj: nn.Linear
    # They exist with `use_rel_pos` only, with which this project builds every encoder.
    rel_pos_h: nn.Parameter
    rel_pos_w: nn.Parameter

class Block(nn.Module):
    norm1: nn.LayerNorm
    attn: Attention
    norm2: nn.LayerNorm
    mlp: MLPBlock
    window_size: int

class ImageEncoderViT(nn.Module):
    img_size: int
    patch_embed: PatchEmbed
    pos_embed: nn.Parameter
    blocks: Sequence[Block]
    neck: nn.Sequential
    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_chans: int = 256,
        qkv_bias: bool = True,
        norm_layer: Callable[[int], nn.Module] = ...,
        act_layer: type[nn.Module] = ...,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        global_attn_indexes: tuple[int, ...] = (),
    ) -> None: ...

def add_decomposed_rel_pos(
    attn: Tensor, q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, q_size: tuple[int, int], k_size: tuple[int, int]
) -> Tensor: ...
