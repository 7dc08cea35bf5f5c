"""Zero-shot SAM on one slice, as its authors released it: the baseline of our models.

All but the encoder is segment-anything's own code. The encoder is ours without adapters, with the base weights alone.
Pictures are 8-bit RGB of 1024 pixels, as in SAM's training. Coordinates are (x, y) in pixels, from the upper left
corner of the slice: the centre of pixel i is i + 0.5, and a box around the columns a to b is (a, b + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MaskSAMCore import device as devices
from MaskSAMCore.config.network_schema import (
    BackboneConfig,
    DecoderConfig,
    DepthConfig,
    EncoderAdapterConfig,
    ImageAdapterConfig,
    LossConfig,
    ModelConfig,
    SourceConfig,
    StemConfig,
    TokenAdapterConfig,
)
from MaskSAMCore.config.serialize import from_dict
from MaskSAMCore.errors import InputError, ModelError, PromptError
from MaskSAMCore.network.build import build_model
from MaskSAMCore.network.encoder import AdaptedEncoder
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.network.prompts import CANVAS_PIXELS
from MaskSAMCore.zoo.base_weights import load_base

if TYPE_CHECKING:
    from segment_anything import SamPredictor

PERCENTILES = (0.5, 99.5)
"""Of the intensities of the whole scan; they become black and white."""


@dataclass(frozen=True, kw_only=True)
class SamMasks:
    """SAM's masks of one prompt.

    Attributes:
        logits: (m, H, W) float32 at the slice's own size; above 0 is the mask. m = 1, or 3 with `multimask`.
        quality: (m,) SAM's estimate of the IoU.
        low_res: (m, 256, 256) logits, the mask prompt of the next click.
    """

    logits: np.ndarray
    quality: np.ndarray
    low_res: np.ndarray

    @property
    def best(self) -> int:
        """Index of the mask with the highest estimate."""
        return int(self.quality.argmax())


def bare_config(arch: str) -> ModelConfig:
    """Configuration of plain SAM of an architecture, for one slice of 1024 x 1024 pixels at a time.

    Raises:
        InputError: There is no such architecture.
    """
    return ModelConfig(
        classes=2,
        patch=(1, CANVAS_PIXELS, CANVAS_PIXELS),
        backbone=from_dict(BackboneConfig, {"arch": arch}, where="model.backbone"),
        stem=StemConfig(kind="repeat", upsample=1),
        depth=DepthConfig(pe_encoder=False, pe_decoder="none"),
        enc_adapter=EncoderAdapterConfig(kind="none"),
        dec_tokens=TokenAdapterConfig(kind="none"),
        dec_image=ImageAdapterConfig(kind="none"),
        source=SourceConfig(kind="gt", class_tokens=False),
        decoder=DecoderConfig(class_head=False),
        head="argmax",
        loss=LossConfig(kind="binary"),
    )


class _Encoder(nn.Module):
    """Our encoder with the interface of segment-anything's: (B, 3, 1024, 1024) to (B, 256, 64, 64)."""

    img_size = CANVAS_PIXELS

    def __init__(self, encoder: AdaptedEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.frozen_features(x[:, :, None]).embed[:, :, 0]


def sam_predictor(arch: str, weights: Path | None, device: torch.device | str = "cpu") -> SamPredictor:
    """Segment-anything's predictor around an unchanged SAM.

    Args:
        arch: As in `model.backbone.arch`.
        weights: The checkpoint; None leaves random weights, for tests.
        device: Where it runs.

    Raises:
        ModelError: The checkpoint cannot be read or belongs to another architecture, or `arch` is none of SAM's.
    """
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam

    network = build_model(bare_config(arch))
    if not isinstance(network, MaskSAM) or not isinstance(network.encoder, AdaptedEncoder):
        raise ModelError("is not an architecture of SAM", where=arch)
    if weights is not None:
        load_base(network, weights)
    sam = Sam(_Encoder(network.encoder), network.prompts.sam, network.decoder.sam)
    return SamPredictor(sam.to(device).eval())


class ZeroShot:
    """Plain SAM for one slice at a time: `set_image`, then `predict`; arguments as of `sam_predictor`."""

    def __init__(self, arch: str, weights: Path | None, device: torch.device | str = "cpu") -> None:
        self.predictor = sam_predictor(arch, weights, device)

    def set_image(self, image: np.ndarray) -> None:
        """Encode a slice, (H, W) or (H, W, 3) uint8; see `picture`.

        Raises:
            InputError: The array has another type or shape.
        """
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
            raise InputError(
                "the picture must be 8-bit grey or RGB", where="set_image", why=f"{image.dtype} of shape {image.shape}"
            )
        self.predictor.set_image(np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image)

    def show(self, image: np.ndarray, low: float, high: float) -> None:
        """Encode a slice (H, W) of a scan, black at `low` and white at `high`, in the device's fastest number type."""
        place = self.predictor.device
        dtype = devices.inference_dtype(place)
        with torch.autocast(place.type, dtype=dtype, enabled=dtype is not None):
            self.set_image(picture(image, low, high))
        self.features = self.features.float()

    @property
    def features(self) -> Tensor:
        """What was encoded of the slice; that of another slice of the same size may be put in its place."""
        return self.predictor.features

    @features.setter
    def features(self, features: Tensor) -> None:
        self.predictor.features = features

    @torch.inference_mode()
    def propose(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """SAM's three masks for each of many points, every point on its own.

        Args:
            points: (P, 2), x before y.

        Returns:
            Logits (3 P, H, W) float32 at the slice's own size, from SAM's mask of 256 pixels; and (3 P,) SAM's
            estimates of the IoU.
        """
        predictor = self.predictor
        model, size = predictor.model, predictor.original_size
        scaled = torch.from_numpy(predictor.transform.apply_coords(points - self._pixel() / 2, size)).float()
        sparse, dense = model.prompt_encoder(
            points=(scaled[:, None].to(predictor.device), torch.ones(len(points), 1, device=predictor.device)),
            boxes=None,
            masks=None,
        )
        low, quality = model.mask_decoder(
            image_embeddings=self.features,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        height, width = (round(n * low.shape[-1] / CANVAS_PIXELS) for n in predictor.input_size)
        shown = F.interpolate(low.flatten(0, 1)[None, :, :height, :width].float(), size, mode="bilinear")[0]
        return shown.cpu().numpy(), quality.flatten().float().cpu().numpy()

    def predict(
        self,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        *,
        multimask: bool = False,
    ) -> SamMasks:
        """Masks of one object from all of the prompts.

        Args:
            points: (P, 2), x before y.
            labels: (P,), 1 for foreground and 0 for background; with `points`.
            box: (4,), half-open x0, y0, x1, y1.
            mask_input: (256, 256) logits of an earlier answer.
            multimask: Return SAM's three candidates, which are meant for a single click, and not its one mask.

        Raises:
            InputError: No slice was set.
            PromptError: There is neither point, box nor mask, or a point without its label.
        """
        if not self.predictor.is_image_set:
            raise InputError("no slice was set", where="predict", remedy="Call set_image first.")
        if points is None and box is None and mask_input is None:
            raise PromptError("no prompt was given", remedy="Give a point, a box or a mask.")
        if points is not None and (labels is None or len(labels) != len(points)):
            raise PromptError("every point needs a label", why=f"{len(points)} points, labels {labels}")
        pixel = self._pixel()
        logits, quality, low = self.predictor.predict(
            None if points is None else np.asarray(points, np.float64).reshape(-1, 2) - pixel / 2,
            None if points is None else np.asarray(labels),
            None if box is None else np.asarray(box, np.float64) - [0, 0, *pixel],
            None if mask_input is None else np.asarray(mask_input)[None],
            multimask_output=multimask,
            return_logits=True,
        )
        return SamMasks(logits=logits, quality=quality, low_res=low)

    def _pixel(self) -> np.ndarray:
        """(x, y) size of one of SAM's pixels in pixels of the slice; half of it is from a border to a centre."""
        scaled, size = self.predictor.input_size[::-1], self.predictor.original_size[::-1]
        return np.array(size, np.float64) / scaled


def grey_values(array: np.ndarray) -> tuple[float, float]:
    """Intensities of a scan that become black and white: its `PERCENTILES`, without NaN and Inf."""
    values = array.reshape(-1)[:: max(1, array.size // 1_000_000)]
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    return low, high if high > low else low + 1.0


def colours(image: np.ndarray) -> np.ndarray:
    """A slice of a colour picture, (3, H, W) from 0 to 255, as the (H, W, 3) uint8 that `set_image` takes."""
    return np.moveaxis(np.clip(image, 0, 255).round().astype(np.uint8), 0, -1)


def picture(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """A slice (H, W) as 8-bit grey values, black at `low` and white at `high`; NaN is black."""
    scaled = (np.nan_to_num(np.asarray(image, np.float64), nan=low, posinf=high, neginf=low) - low) / (high - low)
    return (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
