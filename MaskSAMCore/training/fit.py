"""A preset fitted to a data set: its channels, classes and patch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from MaskSAMCore.config.schema import TOKEN_STRIDE, Config
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.preprocessing.plan import Triple, fit_patch

SMALL_PLANE, MEDIUM_PLANE = 128, 256
THINNEST = 4
THICK = 2.0
"""As in nnU-Net's planner: beyond it a convolution across the slices joins what does not belong together."""
STUDENT_LARGEST, STUDENT_MULTIPLE = 128, 8
"""Voxels along an axis of a student's patch, the most as in AutoSAM Adapter."""
PATCH_TOKENS = 64 * 64
"""Image tokens of a patch, as many as SAM's decoder has in one picture: a click costs no more there than with SAM."""


def fit_config(config: Config, dataset: PreparedDataset) -> Config:
    """The preset with the data set's channels and classes, and its patch where `data.fit_patch` asks for it.

    The in-plane patch is the median slice; the stem enlarges small slices, so that the encoder sees 128 to
    512 pixels (model.md §12.2, §15.2). Larger slices make a thinner patch, by `PATCH_TOKENS`. A student's patch is
    the median scan in multiples of 8, up to 128 along every axis: in training a teacher has to answer all of it.
    """
    plan, classes = dataset.plan, dataset.labels.classes
    model = replace(config.model, channels=len(plan.channels), classes=classes)
    if config.data.fit_patch and model.backbone.arch == "swin_unetr":
        depth, height, width = (
            min(-(-n // STUDENT_MULTIPLE) * STUDENT_MULTIPLE, STUDENT_LARGEST) for n in plan.median_shape
        )
        model = replace(model, patch=(depth, height, width))
    elif config.data.fit_patch:
        longest = max(plan.median_shape[1:])
        upsample: Literal[1, 2, 4] = 4 if longest <= SMALL_PLANE else 2 if longest <= MEDIUM_PLANE else 1
        # A single modality needs no mixing, and without the stem no gradient runs through the first stage.
        kind = "repeat" if model.channels == 1 else model.stem.kind
        _, height, width = fit_patch(plan.median_shape, upsample=upsample)
        tokens = (height * upsample // TOKEN_STRIDE) * (width * upsample // TOKEN_STRIDE)
        depth = min(config.model.patch[0], max(PATCH_TOKENS // tokens, THINNEST))
        patch = fit_patch(plan.median_shape, upsample=upsample, depth=depth)
        queries = classes if model.owns_masks else max(model.source.queries, 8 * -(-(classes + 4) // 8))
        model = replace(
            model,
            patch=patch,
            stem=replace(model.stem, kind=kind, upsample=upsample),
            source=replace(model.source, queries=queries, in_plane=_thick(dataset.plan.spacing)),
        )
    return replace(config, model=model)


def _thick(spacing: Triple) -> int:
    """How many of the sizes 1, 1/2, 1/4, ... have slices more than `THICK` times as far apart as their pixels."""
    ratio = spacing[0] / min(spacing[1:])
    return 0 if ratio <= THICK else math.ceil(math.log2(ratio / THICK))
