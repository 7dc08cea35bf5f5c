from segment_anything.modeling.image_encoder import ImageEncoderViT as ImageEncoderViT
from segment_anything.modeling.mask_decoder import MaskDecoder as MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder as PromptEncoder
from segment_anything.modeling.transformer import TwoWayTransformer as TwoWayTransformer
from torch import nn

class Sam(nn.Module):
    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder
    # The image encoder may be any module with `img_size`, (B, 3, S, S) to (B, 256, S / 16, S / 16).
    def __init__(self, image_encoder: nn.Module, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None: ...
