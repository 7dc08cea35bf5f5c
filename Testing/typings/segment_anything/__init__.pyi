"""Types of the parts of segment-anything that this project uses; the package itself has none."""

import numpy as np
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor, device

class ResizeLongestSide:
    def apply_coords(self, coords: NDArray[np.floating], original_size: tuple[int, int]) -> NDArray[np.floating]: ...

class SamPredictor:
    model: Sam
    is_image_set: bool
    input_size: tuple[int, int]
    features: Tensor
    original_size: tuple[int, int]
    transform: ResizeLongestSide
    @property
    def device(self) -> device: ...
    def __init__(self, sam_model: Sam) -> None: ...
    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None: ...
    def reset_image(self) -> None: ...
    def predict(
        self,
        point_coords: NDArray[np.floating] | None = None,
        point_labels: NDArray[np.integer] | None = None,
        box: NDArray[np.floating] | None = None,
        mask_input: NDArray[np.floating] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]: ...
