"""faults.md row 24, for preprocessing: padded to a patch, cropped back, same grid."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.preprocessing.preprocess import preprocess, preprocess_labels, restore_labels
from MaskSAMCore.preprocessing.resample import pad_to
from MaskSAMCore.volume import Grid, LabelMap, Volume
from Testing.core.preprocessing.test_preprocess import plan

PATCH = (8, 32, 32)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((1, 40, 36), (1.0, 1.0, 1.0)),
        ((1, 1, 1), (1.0, 1.0, 1.0)),
        ((3, 40, 36), (1.0, 1.0, 1.0)),
        ((20, 7, 5), (1.0, 1.0, 1.0)),
        ((4, 50, 50), (25.0, 0.5, 0.5)),
        ((8, 60, 60), (0.25, 1.0, 1.0)),
    ],
)
@pytest.mark.parametrize("view", ["axial", "sagittal"])
def test_padded_and_cropped_back(shape, spacing, view: str) -> None:
    affine = np.diag([*spacing[::-1], 1.0])
    rng = np.random.default_rng(0)
    scan = Volume(array=rng.normal(size=shape).astype(np.float32), grid=Grid(shape=shape, affine=affine))
    labels = np.zeros(shape, np.uint8)
    labels[: (shape[0] + 1) // 2, : (shape[1] + 1) // 2] = 1
    ready = preprocess(scan, plan(view))
    assert np.isfinite(ready.image).all()
    padded, crop = pad_to(ready.image, PATCH)
    assert all(n >= p for n, p in zip(padded.shape[1:], PATCH, strict=True))
    np.testing.assert_array_equal(padded[(slice(None), *crop)], ready.image)
    classes = preprocess_labels(LabelMap(array=labels, grid=scan.grid), ready.record, plan(view))
    inside, crop = pad_to(classes, PATCH)
    scores = np.stack([inside == c for c in range(2)]).astype(np.float32)[(slice(None), *crop)]
    back = restore_labels(scores, ready.record)
    assert back.shape == shape
    assert 2 * (back & labels).sum() / (back.sum() + labels.sum()) > 0.9
