"""faults.md row 28: a constant or all-zero image gives an empty result with a warning and no division by zero."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from MaskSAMCore.inference.predictor import Predictor
from MaskSAMCore.volume import Roi, Volume
from Testing.toy_model import Threshold, bright_scan, make_card, make_plan


@pytest.mark.parametrize("value", [0.0, 100.0, -1000.0])
@pytest.mark.parametrize("kind", ["zscore", "ct"])
def test_constant_scan(value: float, kind: str, caplog: pytest.LogCaptureFixture):
    template, _ = bright_scan()
    volume = Volume(array=np.full_like(template.array, value), grid=template.grid, source="flat.nii.gz")
    network = Threshold(-99.0)
    with caplog.at_level(logging.WARNING), np.errstate(all="raise"):
        result = Predictor.of(network, make_card(plan=make_plan(normalisation=(kind,)))).segment(volume)
    assert not result.labels.array.any()
    assert result.labels.grid is volume.grid
    assert network.calls == 0
    assert any("flat.nii.gz" in w and "constant" in w for w in result.warnings)
    assert "constant" in caplog.text


def test_constant_region_of_a_scan():
    volume, _ = bright_scan((12, 60, 60), at=(slice(3, 8), slice(45, 55), slice(45, 55)))
    volume.array[:, :40, :40] = 0
    result = Predictor.of(Threshold(-99.0), make_card()).segment(
        volume, roi=[Roi(center=(10, 10, 6), size=(8, 8, 8)), Roi(center=(50, 50, 6), size=(8, 8, 4))]
    )
    assert not result.labels.array[:, :40, :40].any()
    assert result.labels.array[:, 45:, 45:].any()
    assert any("constant" in w for w in result.warnings)
