from collections.abc import Sequence
from typing import Literal, overload

from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import nn

# What `MaskDecoder` puts into its plain `nn.Sequential`, each at its place.
class _Upscaling(nn.Sequential):
    @overload  # type: ignore[override]
    def __getitem__(self, idx: Literal[0, 3]) -> nn.ConvTranspose2d: ...
    @overload
    def __getitem__(self, idx: Literal[1]) -> LayerNorm2d: ...
    @overload
    def __getitem__(self, idx: Literal[2, 4]) -> nn.Module: ...

class MLP(nn.Module):
    layers: nn.ModuleList

class MaskDecoder(nn.Module):
    transformer: TwoWayTransformer
    iou_token: nn.Embedding
    mask_tokens: nn.Embedding
    output_upscaling: _Upscaling
    output_hypernetworks_mlps: Sequence[MLP]
    iou_prediction_head: MLP
    def __init__(
        self,
        *,
        transformer_dim: int,
        transformer: TwoWayTransformer,
        num_multimask_outputs: int = 3,
        activation: type[nn.Module] = ...,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
    ) -> None: ...
