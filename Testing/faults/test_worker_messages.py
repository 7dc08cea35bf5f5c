"""faults.md rows 57 and 58, for the worker's pipes: nothing of a broken answer is imported.

Every bad message gets an error reply, the worker answers the next good one, and its folder goes with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.errors import ResourceError
from MaskSAMCore.worker import protocol
from MaskSAMCore.worker.client import EngineClient
from Testing.workers import FAKE, Raw, alive, eventually, left, memory, place, point, raw, scan


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return place(monkeypatch, tmp_path)


def answers(worker: Raw) -> bool:
    """Whether the worker still works; skips replies to what came before."""
    worker.write(b'\n{"id": 4242, "op": "cancel", "target": 1}\n')
    while (reply := worker.read()).get("id") != 4242:
        assert "error" in reply
    return "result" in reply


def test_garbage_on_stdin(temporary: Path) -> None:
    rng = random.Random(0)
    with raw() as worker:
        garbage = b"\n".join(rng.randbytes(rng.randrange(200)) for _ in range(500))
        garbage += b'\n{"id": 1, "op": "open"}\n[[[[\nnull\n{"id": NaN}\n\r\n\x00\n'
        reader: list[bool] = []
        thread = threading.Thread(target=lambda: reader.append(answers(worker)))
        worker.write(garbage)
        thread.start()
        thread.join()
        assert reader == [True]
    assert left(temporary) == []


def test_each_bad_message_has_its_reply(temporary: Path) -> None:
    with raw() as worker:
        for line in (b"garbage", b"{}", b'{"id": 7, "op": "nothing"}', b'{"id": 7, "op": "prompt", "case": {}}'):
            worker.write(line + b"\n")
            reply = worker.read()
            assert reply["error"]["name"] in ("InputError", "PromptError")
            assert reply["error"]["what"]
            assert reply["id"] == (7 if b"7" in line else None)
        assert answers(worker)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="NOT TESTED HERE: needs /proc")
def test_a_message_of_one_gigabyte(temporary: Path) -> None:
    """It is read to its end and refused; its bytes are never held."""
    with raw() as worker:
        pid = worker.process.pid
        assert answers(worker)
        before, most = memory(pid), 0
        part = b"x" * (1 << 20)
        worker.write(b'{"id": 1, "op": "open", "volume": "')
        for _ in range(1024):
            worker.write(part)
            most = max(most, memory(pid))
        worker.write(b'"}\n')
        reply = worker.read()
        assert reply["id"] is None
        assert "too long" in reply["error"]["what"]
        assert str(1 << 30)[:3] in reply["error"]["why"]
        assert most - before < 64 << 20
        assert answers(worker)
    assert left(temporary) == []


@pytest.mark.parametrize(
    "shape", [[1024, 1024, 256], [65535, 65535, 65535], [1, 1, 6], [1, 1, 5]], ids=["1 GB", "1 PB", "more", "less"]
)
def test_a_lie_about_the_size_of_an_array(temporary: Path, shape: list[int]) -> None:
    with raw() as worker:
        folder = next(temporary.glob("masksam-worker-*"))
        name = "0" * 32 + ".raw"
        (folder / name).write_bytes(bytes(22))
        volume = {"file": name, "dtype": "float32", "shape": shape}
        error = worker.ask("open", 1, case=0, volume=volume, affine=np.eye(4).tolist(), model="plain")["error"]
        assert "announced" in error["what"]
        assert answers(worker)
    assert left(temporary) == []


def test_a_length_in_another_protocol_is_garbage(temporary: Path) -> None:
    with raw() as worker:
        worker.write(b"Content-Length: 1073741824\r\n\r\n{}\n" + (1 << 30).to_bytes(8, "little") + b"\n")
        assert answers(worker)


def test_a_message_that_never_ends_and_then_the_client_dies(temporary: Path) -> None:
    worker = Raw(FAKE)
    worker.ask("hello", 0, protocol=1)
    worker.write(b'{"id": 1, "op": ' + b"[" * (5 << 20))
    worker.process.stdin.close()
    assert worker.process.wait(60) == 0
    assert left(temporary) == []
    worker.process.stdout.close()


def test_more_requests_than_can_wait(temporary: Path) -> None:
    with raw() as worker:
        folder = next(temporary.glob("masksam-worker-*"))
        (folder / ("0" * 32 + ".raw")).write_bytes(bytes(24))
        volume = {"file": "0" * 32 + ".raw", "dtype": "float32", "shape": [1, 2, 3]}
        assert "result" in worker.ask("open", 1, case=0, volume=volume, affine=np.eye(4).tolist(), model="slow")
        flood = [{"id": 10 + n, "op": "encode", "case": 0} for n in range(1500)]
        thread = threading.Thread(target=worker.write, args=("".join(f"{json.dumps(m)}\n" for m in flood).encode(),))
        thread.start()
        refused = [reply for reply in (worker.read() for _ in range(460)) if "error" in reply]
        thread.join()
        assert refused
        assert all("too many" in reply["error"]["what"] for reply in refused)
        for target in range(10, 1510):
            worker.write(json.dumps({"id": 10_000 + target, "op": "cancel", "target": target}).encode() + b"\n")
            while worker.read().get("id") != 10_000 + target:
                pass
        assert "result" in worker.ask("release", 2, case=0)


@pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX signals")
def test_a_client_that_reads_nothing_and_dies(temporary: Path) -> None:
    """The worker blocks in its replies; it ends all the same."""
    worker = Raw(FAKE)
    pid = worker.process.pid
    worker.ask("hello", 0, protocol=1)

    def flood() -> None:
        with contextlib.suppress(OSError):
            worker.write(b'{"id": 1, "op": "nothing"}\n' * 100_000)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    assert eventually(lambda: left(temporary))
    worker.process.stdout.close()
    assert eventually(lambda: not alive(pid))
    assert left(temporary) == []
    worker.process.wait()
    thread.join()
    worker.process.stdin.close()


# -- the client's side: a worker that answers nonsense ---------------------------------------------------------------

LIAR = """
import json, os, sys
from MaskSAMCore.worker.__main__ import parser
folder = parser().parse_args().folder
for line in sys.stdin:
    m = json.loads(line)
    if m["op"] == "hello":
        print(json.dumps({"id": m["id"], "result": {"pid": os.getpid()}}), flush=True)
    elif m["op"] == "open":
        case = {"id": 0, "model": "m", "shape": [6, 20, 24], "axis": 0, "labels": [], "warnings": []}
        print(json.dumps({"id": m["id"], "result": case}), flush=True)
    else:
        name = "a" * 32 + ".raw"
        (folder / name).write_bytes(bytes(3))
        print(eval(WHAT), flush=True)
"""
NONSENSE = {
    "no JSON": "'garbage'",
    "half a line": "(sys.stdout.write('{\"id\": '), sys.stdout.flush(), os._exit(0))",
    "an array of another size": "json.dumps({'id': m['id'], 'result': {'structure': 1, 'box': [0, 1, 0, 2, 0, 2], "
    "'mask': {'file': name, 'dtype': 'uint8', 'shape': [1, 2, 2]}}})",
    "an array from elsewhere": "json.dumps({'id': m['id'], 'result': {'box': [0, 1, 0, 2, 0, 2], "
    "'mask': {'file': '../x', 'dtype': 'uint8', 'shape': [1, 2, 2]}}})",
    "an unknown type": "json.dumps({'id': m['id'], 'result': {'mask': {'file': name, 'dtype': 'O', 'shape': [1]}}})",
    "half an array and no answer": "os._exit(1)",
}


@pytest.mark.parametrize("what", NONSENSE)
def test_an_answer_that_is_broken_is_not_imported(temporary: Path, what: str) -> None:
    code = f"WHAT = {NONSENSE[what]!r}\n{LIAR}"
    with EngineClient(command=[sys.executable, "-c", code]) as engine:
        case = engine.open(scan(), np.eye(4), "m")
        with pytest.raises(ResourceError, match="stopped"):
            engine.prompt(case, 1, [point(5, 5, 2)])
        assert eventually(lambda: left(temporary) == [])


@pytest.mark.parametrize("result", ["{}", "[]", "None", "{'structure': 1, 'box': None}"])
def test_an_answer_that_lacks_something_is_an_error(temporary: Path, result: str) -> None:
    code = f"WHAT = \"json.dumps({{'id': m['id'], 'result': {result}}})\"\n{LIAR}"
    with EngineClient(command=[sys.executable, "-c", code]) as engine:
        case = engine.open(scan(), np.eye(4), "m")
        with pytest.raises(Exception, match="malformed"):
            engine.prompt(case, 1, [point(5, 5, 2)])


def test_the_longest_line_is_longer_than_the_longest_list_of_prompts() -> None:
    prompt = point(123.456789012345, 234.567890123456, 345.678901234567, positive=False, scope="volume", space="ijk")
    line = protocol.to_line({"prompts": [prompt] * protocol.MAX_PROMPTS})
    assert len(line) < protocol.MAX_LINE
