"""faults.md row 50: Ctrl-C or SIGTERM; the step ends, the state is saved, exit 130 or 143."""

from __future__ import annotations

import signal

import pytest

from MaskSAMCore import train
from Testing.runs import arguments, assert_equal, final, start, wait_for_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_the_step_and_leaves_with_its_code(phantom_data, straight_run, tmp_path, number, code):
    run = tmp_path / "run"
    process = start(arguments(phantom_data, run))
    wait_for_checkpoint(process, run)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "resume" in output
    assert train.main(arguments(phantom_data, run, "--resume")) == 0
    assert_equal(final(straight_run), final(run))
