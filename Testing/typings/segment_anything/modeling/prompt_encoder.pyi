from collections.abc import Sequence

from torch import Tensor, nn

class PositionEmbeddingRandom(nn.Module):
    positional_encoding_gaussian_matrix: Tensor
    def forward_with_coords(self, coords_input: Tensor, image_size: tuple[int, int]) -> Tensor: ...

class PromptEncoder(nn.Module):
    pe_layer: PositionEmbeddingRandom
    point_embeddings: Sequence[nn.Embedding]
    not_a_point_embed: nn.Embedding
    mask_downscaling: nn.Sequential
    no_mask_embed: nn.Embedding
    def __init__(
        self,
        embed_dim: int,
        image_embedding_size: tuple[int, int],
        input_image_size: tuple[int, int],
        mask_in_chans: int,
        activation: type[nn.Module] = ...,
    ) -> None: ...
    def get_dense_pe(self) -> Tensor: ...
