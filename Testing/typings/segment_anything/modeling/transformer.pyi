from collections.abc import Sequence

from segment_anything.modeling.common import MLPBlock
from torch import nn

class Attention(nn.Module):
    embedding_dim: int
    internal_dim: int
    num_heads: int
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

class TwoWayAttentionBlock(nn.Module):
    self_attn: Attention
    norm1: nn.LayerNorm
    cross_attn_token_to_image: Attention
    norm2: nn.LayerNorm
    mlp: MLPBlock
    norm3: nn.LayerNorm
    norm4: nn.LayerNorm
    cross_attn_image_to_token: Attention
    skip_first_layer_pe: bool

class TwoWayTransformer(nn.Module):
    layers: Sequence[TwoWayAttentionBlock]
    final_attn_token_to_image: Attention
    norm_final_attn: nn.LayerNorm
    def __init__(self, depth: int, embedding_dim: int, num_heads: int, mlp_dim: int) -> None: ...
