"""faults.md row 51: two runs into one folder: the second is told which process holds it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from MaskSAMCore.errors import InputError, ResourceError
from MaskSAMCore.io.atomic import LOCK_NAME, FolderLock

HOLD = """
import sys, time
from MaskSAMCore.io.atomic import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_the_holder_is_named(tmp_path, holder):
    with pytest.raises(ResourceError, match=f"process {holder.pid} on {socket.gethostname()}") as caught:
        FolderLock(tmp_path).acquire()
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_killed_holder_leaves_no_lock(tmp_path, holder, caplog):
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK_NAME).exists()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert f"process {holder.pid}, which has ended" in caplog.text
    assert not (tmp_path / LOCK_NAME).exists()


def test_twice_in_one_process(tmp_path):
    with FolderLock(tmp_path), pytest.raises(ResourceError, match=str(os.getpid())):
        FolderLock(tmp_path).acquire()
    with FolderLock(tmp_path):
        pass


def test_another_machine_is_believed(tmp_path):
    text = json.dumps({"pid": 5, "host": "elsewhere", "since": "yesterday"})
    (tmp_path / LOCK_NAME).write_text(text)
    with pytest.raises(ResourceError, match=r"process 5 on elsewhere, since yesterday.*delete"):
        FolderLock(tmp_path).acquire()
    assert (tmp_path / LOCK_NAME).read_text() == text


def test_rubbish_in_the_lock_is_no_holder(tmp_path):
    (tmp_path / LOCK_NAME).write_text("{nonsense")
    with FolderLock(tmp_path):
        pass


def test_no_folder(tmp_path):
    with pytest.raises(InputError):
        FolderLock(tmp_path / "none").acquire()
