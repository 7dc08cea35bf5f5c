"""faults.md row 39: `--resume` where there is nothing is an error, never a silent restart."""

from __future__ import annotations

import pytest

from MaskSAMCore.errors import ModelError
from MaskSAMCore.training import checkpoint


@pytest.mark.parametrize("exists", [True, False])
def test_resume_from_nothing(tmp_path, exists):
    folder = tmp_path / "checkpoints"
    if exists:
        folder.mkdir()
    with pytest.raises(ModelError, match="no checkpoint to resume from") as error:
        checkpoint.newest(folder)
    assert str(folder) in str(error.value)
    assert "without --resume" in str(error.value)
    assert error.value.exit_code == 2
