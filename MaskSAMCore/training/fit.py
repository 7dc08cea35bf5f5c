"""Fits a preset to a data set: channels, classes, patch, and the generator's trunk (model.md §12.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from MaskSAMCore.config.network_schema import TOKEN_STRIDE, ModelConfig
from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.settings import FITTED, OF_THE_DATA, Overruled, check_kept
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.preprocessing.plan import Shape, Triple, fit_patch

Upsample = Literal[1, 2, 4]
Trunk = tuple[tuple[int, ...], tuple[int, ...]]
"""`source.widths` and `source.image_widths`."""

TINY_PLANE = 32
"""For a generator that reads the scan itself: slices of so many pixels are enlarged four times for SAM, those of twice
as many twice, and others are not."""
SMALL_PLANE, MEDIUM_PLANE = 128, 256
"""For other networks: slices of so many pixels are enlarged four times and twice."""
THINNEST = 4
THICK = 2.0
"""As in nnU-Net's planner: beyond this ratio a convolution across the slices joins what does not belong together."""
STUDENT_LARGEST, STUDENT_MULTIPLE = 128, 8
"""Voxels along an axis of a student's patch, the most as in AutoSAM Adapter."""
PATCH_TOKENS = 64 * 64
"""Image tokens of a patch, as many as SAM's decoder has in one picture: a click costs no more there than with SAM."""


@dataclass(frozen=True)
class PatchSize:
    """Largest patch, and the trunk of the generator that goes with it.

    Attributes:
        depth: Slices that a patch has at least, where the scan has them.
        voxels: Most voxels: of whole slices where `depth` of them are no more, else the longer side is shortened.
        trunks: By the factor that slices are enlarged by; each trunk reaches the scan's own size.
    """

    depth: int
    voxels: int
    trunks: Mapping[Upsample, Trunk]


IN_PLANE = PatchSize(
    8,
    150_000,
    {
        1: ((96, 96, 64, 48, 32), (16, 32, 64, 96)),
        2: ((96, 96, 64, 32), (16, 48, 96)),
        4: ((128, 64, 32), (16, 32, 64)),
    },
)
"""For convolutions within slices, and for single slices."""
VOLUMES = PatchSize(32, 200_000, {**IN_PLANE.trunks, 1: ((64, 64, 48, 32, 24), (12, 24, 48, 64))})
"""For convolutions in three dimensions, whose kernels have three times as many weights."""
FITTED_SETTINGS: dict[str, Overruled] = {
    "model.channels": OF_THE_DATA,
    "model.classes": OF_THE_DATA,
    "model": FITTED,
}


def fit_config(config: Config, dataset: PreparedDataset, *, volumes: PatchSize = VOLUMES) -> Config:
    """The preset with the data set's channels and classes, and its patch where `data.fit_patch` asks for it.

    Networks of three kinds are fitted:

    * A generator that ends automatic mode and reads the scan itself (the product): SAM sees the slices hardly enlarged,
      patches are deep, and parts of large slices (docs/EXPERIMENTS.md).
    * Other networks on SAM: the patch is the median slice, enlarged so that the encoder sees 128 to 512 pixels
      (model.md §15.2). Larger slices make a thinner patch, by `PATCH_TOKENS`.
    * Students: the median scan in multiples of 8, up to 128 along every axis, all of which a teacher has to segment.

    Args:
        config: The preset, with the settings of the user.
        dataset: Prepared.
        volumes: Size of the patches for convolutions in three dimensions.
    """
    plan = dataset.plan
    model = replace(config.model, channels=len(plan.channels), classes=dataset.labels.classes)
    if config.data.fit_patch:
        if model.backbone.arch == "swin_unetr":
            model = _fit_student(model, plan.median_shape)
        elif model.owns_masks and model.decoder.kind == "none" and model.source.image_widths:
            model = _fit_generator(model, plan.median_shape, _thick(plan.spacing), volumes)
        else:
            model = _fit_slices(model, plan.median_shape, _thick(plan.spacing))
    return replace(config, model=model)


def check_fitted(settings: Sequence[str], asked: Config, fitted: Config) -> None:
    """Refuse settings that `fit_config` has replaced.

    Raises:
        InputError: Names the setting, the value that replaced it, and why.
    """
    check_kept(settings, asked, fitted, FITTED_SETTINGS)


def _fit_student(model: ModelConfig, median_shape: Shape) -> ModelConfig:
    depth, height, width = (min(-(-n // STUDENT_MULTIPLE) * STUDENT_MULTIPLE, STUDENT_LARGEST) for n in median_shape)
    return replace(model, patch=(depth, height, width))


def _fit_slices(model: ModelConfig, median_shape: Shape, in_plane: int) -> ModelConfig:
    longest = max(median_shape[1:])
    upsample: Upsample = 4 if longest <= SMALL_PLANE else 2 if longest <= MEDIUM_PLANE else 1
    _, height, width = fit_patch(median_shape, upsample=upsample)
    tokens = (height * upsample // TOKEN_STRIDE) * (width * upsample // TOKEN_STRIDE)
    depth = min(model.patch[0], max(PATCH_TOKENS // tokens, THINNEST))
    classes = model.classes
    queries = classes if model.owns_masks else max(model.source.queries, 8 * -(-(classes + 4) // 8))
    # A single modality needs no mixing, and without the stem no gradient runs through the first stage.
    kind = "repeat" if model.channels == 1 else model.stem.kind
    return replace(
        model,
        patch=fit_patch(median_shape, upsample=upsample, depth=depth),
        stem=replace(model.stem, kind=kind, upsample=upsample),
        source=replace(model.source, queries=queries, in_plane=in_plane),
    )


def _fit_generator(model: ModelConfig, median_shape: Shape, in_plane: int, volumes: PatchSize) -> ModelConfig:
    longest = max(median_shape[1:])
    upsample: Upsample = 4 if longest <= TINY_PLANE else 2 if longest <= 2 * TINY_PLANE else 1
    size = IN_PLANE if in_plane or median_shape[0] == 1 else volumes
    depth, height, width = fit_patch(median_shape, upsample=upsample, depth=size.depth)
    while depth * height * width > size.voxels:
        # Of equal sides the one of which the scan has less.
        if (height, -median_shape[1]) > (width, -median_shape[2]):
            height -= TOKEN_STRIDE
        else:
            width -= TOKEN_STRIDE
    depth = min(median_shape[0], size.voxels // (height * width))
    widths, image_widths = size.trunks[upsample]
    kind = "repeat" if model.channels == 1 else model.stem.kind
    return replace(
        model,
        patch=(depth, height, width),
        stem=replace(model.stem, kind=kind, upsample=upsample),
        source=replace(
            model.source,
            queries=model.classes,
            in_plane=in_plane,
            widths=widths,
            image_widths=image_widths,
        ),
    )


def _thick(spacing: Triple) -> int:
    """How many of the sizes 1, 1/2, 1/4, ... have slices more than `THICK` times as far apart as their pixels."""
    ratio = spacing[0] / min(spacing[1:])
    return 0 if ratio <= THICK else math.ceil(math.log2(ratio / THICK))
