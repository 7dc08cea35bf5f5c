"""faults.md row 48: not enough memory is estimated first, and refused with the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore import device
from MaskSAMCore.errors import ResourceError
from MaskSAMCore.inference import checks
from MaskSAMCore.inference import predictor as module
from MaskSAMCore.inference.predictor import Predictor
from MaskSAMCore.volume import Grid, Roi, Volume
from Testing.toy_model import Threshold, bright_scan, make_card


def huge() -> Volume:
    """A scan that would need terabytes, made of one voxel."""
    shape = (20_000, 20_000, 20_000)
    array = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), shape, (0, 0, 0))
    return Volume(array=array, grid=Grid(shape=shape, affine=np.eye(4)), source="huge.nii.gz")


def test_a_scan_beyond_the_memory_is_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "available_ram", lambda: 1 << 20)
    monkeypatch.setattr(module, "preprocess", lambda *_: pytest.fail("the work had begun"))
    network = Threshold()
    volume, _ = bright_scan((12, 200, 200))
    with pytest.raises(ResourceError, match=r"phantom.*0\.0 GiB needed, 0\.0 GiB free"):
        Predictor.of(network, make_card()).segment(volume)
    assert network.calls == 0


def test_the_numbers_are_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "available_ram", lambda: 16 << 30)
    with pytest.raises(ResourceError) as caught:
        checks.require_memory(huge().grid, Predictor.of(Threshold(), make_card()).plan, 20, 1, "huge.nii.gz")
    assert "huge.nii.gz" in str(caught.value)
    assert "16.0 GiB free" in str(caught.value)
    assert "--roi" in str(caught.value)
    assert caught.value.exit_code == 1


def test_the_estimate_covers_what_is_really_held():
    """Sums (K + weights) and the image in float32, at the least."""
    grid, plan = bright_scan()[0].grid, Predictor.of(Threshold(), make_card()).plan
    voxels = float(np.prod(grid.shape))
    needed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "require_ram", lambda n, **_: needed.append(n))
        checks.require_memory(grid, plan, 10, 1)
    assert needed[0] >= 4 * voxels * (10 + 1 + 1)


def test_a_region_of_a_scan_that_is_too_large_can_be_done(monkeypatch: pytest.MonkeyPatch):
    volume, _ = bright_scan((12, 200, 200))
    whole = 4 * volume.array.size * 4
    monkeypatch.setattr(device, "available_ram", lambda: whole)
    with pytest.raises(ResourceError):
        Predictor.of(Threshold(), make_card()).segment(volume)
    Predictor.of(Threshold(), make_card()).segment(volume, roi=Roi(center=(10, 17, 5), size=(10, 10, 8)))
