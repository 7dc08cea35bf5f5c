"""faults.md row 30: a wrong modality or range of values is warned of before the network runs."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from MaskSAMCore.inference.predictor import Predictor
from MaskSAMCore.preprocessing.plan import ChannelStats
from MaskSAMCore.volume import Grid, Roi, Volume
from Testing.toy_model import Threshold, make_card, make_plan

HU = ChannelStats(p005=-100, p995=300, mean=60, std=80, low=-1000, high=1200)
CT = make_plan(normalisation=("ct",), stats=(HU,), channels=("CT",), modality="CT")
RNG = np.random.default_rng(0)


def scan(array: np.ndarray, modality: str | None = None, spacing: float = 1.0) -> Volume:
    grid = Grid(shape=array.shape, affine=np.diag([spacing] * 3 + [1.0]))
    return Volume(array=array.astype(np.float32), grid=grid, source="scan.nii.gz", modality=modality)


def warnings(volume: Volume, plan=None, **options) -> tuple[str, ...]:
    return Predictor.of(Threshold(), make_card(plan=plan)).segment(volume, **options).warnings


MR = RNG.uniform(0, 200, (8, 24, 24))
HOUNSFIELD = RNG.uniform(-1000, 1200, (8, 24, 24))


def test_the_right_scan_raises_no_doubt():
    assert warnings(scan(MR, "MR")) == ()
    assert warnings(scan(MR * 40)) == ()  # MR has no unit
    assert warnings(scan(HOUNSFIELD, "CT"), CT) == ()
    assert warnings(scan(HOUNSFIELD), CT) == ()


@pytest.mark.parametrize(
    ("array", "modality", "plan", "words"),
    [
        (MR, "CT", None, "trained on MR"),
        (HOUNSFIELD, "MR", CT, "trained on CT"),
        (HOUNSFIELD, None, None, "is it a CT?"),
        (HOUNSFIELD / 2200 + 0.45, None, CT, "are they HU?"),
        (HOUNSFIELD + 1000, None, CT, "air"),
        (RNG.integers(0, 3, (8, 24, 24)), None, None, "label map"),
    ],
)
def test_the_wrong_scan_is_doubted(array: np.ndarray, modality: str | None, plan, words: str):
    found = warnings(scan(array, modality), plan)
    assert len(found) == 1
    assert words in found[0]
    assert found[0].startswith("scan.nii.gz: ")


def test_extent_and_spacing_are_doubted_but_not_inside_a_region():
    whole_head = scan(RNG.uniform(0, 200, (30, 60, 60)))
    assert any("region of interest" in w for w in warnings(whole_head))
    assert warnings(whole_head, roi=Roi(center=(30, 30, 15), size=(20, 20, 8))) == ()
    assert any("coarser" in w for w in warnings(scan(RNG.uniform(0, 200, (4, 8, 8)), spacing=4.0)))


def test_it_is_said_before_the_network_runs(caplog: pytest.LogCaptureFixture):
    said = []

    class Watching(Threshold):
        def segment_patch(self, image):
            said.append("is it a CT?" in caplog.text)
            return super().segment_patch(image)

    with caplog.at_level(logging.WARNING):
        Predictor.of(Watching(), make_card()).segment(scan(HOUNSFIELD))
    assert said
    assert all(said)
