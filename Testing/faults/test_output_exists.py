"""faults.md row 6: an output that exists, is read-only or is an input is refused; an input is never touched."""

from __future__ import annotations

import os

import numpy as np
import pytest

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.atomic import check_target
from MaskSAMCore.io.images import write_labels
from MaskSAMCore.volume import Grid, LabelMap

LABELS = LabelMap(array=np.ones((2, 3, 4), np.uint8), grid=Grid(shape=(2, 3, 4), affine=np.eye(4)))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".seg.nrrd", ".mha"])
def test_existing(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match="--overwrite"):
        write_labels(LABELS, path)
    assert path.read_bytes() == b"precious"
    write_labels(LABELS, path, overwrite=True)
    assert path.read_bytes() != b"precious"


@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd"])
def test_an_input_is_never_the_output(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"precious")
    (tmp_path / f"link{suffix}").symlink_to(path)
    for other in (path, tmp_path / "." / path.name, tmp_path / f"link{suffix}"):
        with pytest.raises(InputError, match="also an input"):
            write_labels(LABELS, other, overwrite=True, inputs=[path])
    assert path.read_bytes() == b"precious"


def test_read_only(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(b"precious")
    path.chmod(0o444)
    with pytest.raises(InputError, match="read-only"):
        write_labels(LABELS, path, overwrite=True)
    assert path.read_bytes() == b"precious"
    tmp_path.chmod(0o555)
    try:
        if not os.access(tmp_path, os.W_OK):
            with pytest.raises(InputError, match="read-only"):
                write_labels(LABELS, tmp_path / "b.nii")
    finally:
        tmp_path.chmod(0o755)


def test_no_place_for_it(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        check_target(tmp_path / "none" / "a.nii")
    with pytest.raises(InputError, match="folder"):
        check_target(tmp_path, overwrite=True)
    with pytest.raises(InputError, match="suffix"):
        write_labels(LABELS, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
