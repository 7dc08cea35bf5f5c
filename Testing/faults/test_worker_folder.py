"""faults.md row 15, for the worker: the private folder with patient data is gone however client and worker end.

Where both are killed at one moment nobody is left to delete it; the next start does.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.worker.folder import PrivateFolder
from Testing.workers import FAKE, LONG_S, alive, eventually, fake, left, place, point, raw, scan, script

pytestmark = pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX signals and /proc")

CLIENT = """
import os, signal, sys, time
import numpy as np
from MaskSAMCore.worker.client import EngineClient
from Testing.workers import FAKE, point, scan

engine = EngineClient(command=FAKE)
case = engine.open(scan(), np.eye(4), sys.argv[1])
engine.prompt(case, 1, [point(5, 5, 2)])
engine._process.folder.write(scan())  # as if it were just handing something over
job = engine.submit("segment", case=case)
while sys.argv[1] != "plain" and job.progress is None:
    time.sleep(0.01)
print(engine.hello["pid"], flush=True)
"""
ENDS = {
    "close": "engine.close()",
    "end of the program": "sys.exit(0)",
    "error": "raise KeyError",
    "no clean-up": "os._exit(1)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGSEGV": "os.kill(os.getpid(), signal.SIGSEGV)",
    "Ctrl-C": "os.kill(os.getpid(), signal.SIGINT)",
}


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return place(monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["plain", "deaf"])
@pytest.mark.parametrize("end", ENDS)
def test_however_the_client_ends(temporary: Path, end: str, model: str) -> None:
    client = script(CLIENT + ENDS[end], model)
    worker = int(client.stdout.readline())
    assert client.wait(LONG_S) is not None
    assert eventually(lambda: not alive(worker))
    assert eventually(lambda: left(temporary) == [])


FORKED = """
child = os.fork()
if not child:
    time.sleep(600)  # holds the other end of the worker's stdin, and the folder's lock
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_client_is_killed_while_another_process_holds_its_pipes(temporary: Path) -> None:
    client = script(CLIENT + FORKED, "deaf")
    worker, child = int(client.stdout.readline()), int(client.stdout.readline())
    try:
        client.wait(LONG_S)
        assert eventually(lambda: not alive(worker))
        assert eventually(lambda: left(temporary) == [])
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_of_the_client_ends_without_ending_the_engine(temporary: Path) -> None:
    code = CLIENT + "child = os.fork()\nif not child: sys.exit(0)\nos.waitpid(child, 0)\n"
    code += "engine.propagate(case, 1)\nprint(engine.hello['pid'])\n"
    done = script(code, "plain")
    before, after = done.communicate(timeout=LONG_S)[0].split()
    assert before == after
    assert done.returncode == 0
    assert left(temporary) == []


def test_both_are_killed_and_the_next_start_sweeps(temporary: Path) -> None:
    client = script(CLIENT + "time.sleep(600)", "deaf")
    worker = int(client.stdout.readline())
    os.kill(worker, signal.SIGSTOP)  # it must not notice the death of its client
    client.kill()
    client.wait()
    os.kill(worker, signal.SIGKILL)
    assert eventually(lambda: not alive(worker))
    assert len(left(temporary)) == 3, "the folder, the owner's file and the scan were left"
    with fake() as engine:
        assert engine.hello
        assert len(left(temporary)) == 2
    assert left(temporary) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT])
@pytest.mark.parametrize("model", ["plain", "deaf"])
def test_however_the_worker_ends(temporary: Path, model: str, number: int) -> None:
    with fake() as engine:
        case = engine.open(scan(), np.eye(4), model)
        first = engine._process.folder.path
        job = engine.submit("segment", case=case)
        assert eventually(lambda: job.progress)
        os.kill(engine.hello["pid"], number)
        assert eventually(lambda: not first.exists())
    assert left(temporary) == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130), (None, 0)]
)
def test_a_worker_by_itself_cleans_up(temporary: Path, number: int | None, code: int) -> None:
    with raw() as worker:
        assert len(left(temporary)) == 2
        if number is None:
            worker.process.stdin.close()
        else:
            worker.process.send_signal(number)
        assert worker.process.wait(LONG_S) == code
        assert left(temporary) == []


def test_the_worker_deletes_the_folder_of_a_dead_client(temporary: Path) -> None:
    """Its stdin stays open and its parent lives, as behind a launcher; the lock tells."""
    code = "import sys, time; from MaskSAMCore.worker.folder import PrivateFolder; "
    owner = script(code + "print(PrivateFolder.make().path, flush=True); time.sleep(600)")
    folder = Path(owner.stdout.readline().strip())
    PrivateFolder.adopt(folder).write(scan())
    with raw([*FAKE, "--folder", str(folder)]) as worker:
        assert worker.process.poll() is None
        owner.kill()
        owner.wait()
        assert worker.process.wait(LONG_S) == 0
        assert not folder.exists()


def test_memory_with_patient_data_is_not_dumped(temporary: Path) -> None:
    with fake() as engine:
        limits = Path(f"/proc/{engine.hello['pid']}/limits").read_text()
        assert next(line for line in limits.splitlines() if "core file" in line).split()[4:6] == ["0", "0"]


def test_libraries_put_their_temporaries_into_the_folder(temporary: Path) -> None:
    with fake() as engine:
        pid = engine.hello["pid"]
        case = engine.open(scan(), np.eye(4), "parent")  # starts a process, which inherits the place
        engine.prompt(case, 1, [point(5, 5, 2)])
        child = int((temporary / "child").read_text())
        place = f"TMPDIR={engine._process.folder.path}".encode()
        environment = Path(f"/proc/{child}/environ")  # empty until the child has become its program
        assert eventually(lambda: place in environment.read_bytes().split(b"\0"))
        assert alive(pid)


def test_an_array_is_deleted_where_its_request_fails(temporary: Path) -> None:
    with fake() as engine:
        for volume, model in ((scan(), "unknown"), (scan(), "plain")):
            job = engine.submit("open", volume=volume, affine=np.eye(4), model=model)
            job.wait(LONG_S)
            assert [path.name for path in left(temporary)[1:]] == [".owner"]


def test_a_worker_that_ended_badly_leaves_no_zombie(temporary: Path) -> None:
    with fake() as engine:
        first = engine.hello["pid"]
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: not engine.ready)
        assert engine.hello["pid"] != first
        assert not Path(f"/proc/{first}").exists()
