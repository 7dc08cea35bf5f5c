"""Lines, requests, errors and the private folder: what client and worker agree on."""

from __future__ import annotations

import io
import json
import os
import random
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.errors import GeometryError, InputError, MaskSAMError, ModelError, PromptError, ResourceError
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker import folder as folders
from MaskSAMCore.worker import protocol
from MaskSAMCore.worker.folder import PREFIX, PrivateFolder, sweep
from MaskSAMCore.worker.protocol import ArrayRef, Refused, TooLong, lines, parse_request, to_line
from MaskSAMCore.worker.request_queue import MAX_WAITING, RequestQueue
from Testing.workers import REPO, eventually, left, place

VOLUME = {"file": "0" * 32 + ".raw", "dtype": "float32", "shape": [2, 3, 4]}
EYE = np.eye(4).tolist()
POINT = {"kind": "point", "position": [1, 2, 3]}
BOX = {"kind": "box", "corners": [[0, 0, 0], [2, 2, 0]], "scope": "slice"}
MASK = {"kind": "mask", "mask": {"file": "f", "dtype": "uint8", "shape": [1, 2, 3]}, "mask_box": [0, 0, 0]}
CODE = {"scheme": "SCT", "value": "10200004", "meaning": "Liver"}
SEGMENT = {"name": "Liver", "color": [1, 2, 255], "category": CODE, "type": CODE, "modifier": None}
SEGMENT |= {"box": [0, 1, 0, 2, 0, 3], "mask": MASK["mask"]}
GOOD: list[dict[str, Any]] = [
    {"op": "hello", "protocol": 1},
    {"op": "open", "case": 0, "volume": VOLUME, "affine": EYE, "model": "m", "modality": "MR"},
    {"op": "encode", "case": 0},
    {"op": "encode", "case": 0, "position": [1, 2.5, 3], "slabs": 4},
    {"op": "prompt", "case": 0, "structure": 1, "prompts": [POINT, BOX, MASK], "multimask": True},
    {"op": "propagate", "case": 0, "structure": 1, "scope": "slab"},
    {"op": "automatic", "case": 0, "label": 1, "slices": [1, 2]},
    {"op": "segment", "case": 0, "roi": [{"center": [0, 0, 0], "size": [1, 1, 1]}], "tta": True, "step": 1},
    {"op": "drop", "case": 0, "structure": 1},
    {"op": "release", "case": 0},
    {
        "op": "export_seg",
        "segments": [SEGMENT],
        "shape": [1, 2, 3],
        "affine": EYE,
        "files": ["/a.dcm"],
        "path": "/s.dcm",
    },
    {"op": "save_case", "segments": [SEGMENT], "volume": VOLUME, "affine": EYE, "folder": "/set", "name": "case"},
    {"op": "cancel", "target": 3},
    {"op": "quit"},
]


def parsed(message: object) -> protocol.Request:
    return parse_request(json.dumps(message).encode())


def split(data: bytes, limit: int, chunk: int) -> list[bytes | TooLong]:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(chunk)

    return list(lines(Slow(data), limit))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_lines_are_the_same_however_they_arrive(chunk: int) -> None:
    data = b"ab\n\n" + b"c" * 10 + b"\n" + b"d" * 11 + b"\ne\n" + b"f" * 25 + b"\ng\nrest without an end"
    assert split(data, 10, chunk) == [b"ab", b"", b"c" * 10, TooLong(11), b"e", TooLong(25), b"g"]


def test_a_line_that_is_too_long_is_not_stored() -> None:
    class Endless(io.RawIOBase):
        left = 256 << 20

        def read(self, size: int | None = -1) -> bytes:
            self.left -= size or 0
            return b"x" * (size or 0) if self.left > 0 else b"\n"[: 1 if self.left > -(size or 0) else 0]

    tracemalloc.start()
    try:
        found = list(lines(Endless(), 1 << 20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [type(line) for line in found] == [TooLong]
    assert found[0].size > 255 << 20
    assert peak < 4 << 20


@pytest.mark.parametrize("message", GOOD, ids=lambda m: m["op"])
def test_every_request_is_understood(message: dict[str, Any]) -> None:
    request = parsed({"id": 5, **message})
    assert request.id == 5
    assert request.op == message["op"]
    assert set(request.fields) == set(protocol.REQUESTS[request.op])


def test_the_list_of_requests_is_the_one_that_was_agreed() -> None:
    assert set(protocol.REQUESTS) == {message["op"] for message in GOOD}


def test_what_is_left_out_has_its_default() -> None:
    fields = parsed({"id": 1, "op": "prompt", "case": 0, "structure": 1, "prompts": [POINT]}).fields
    assert fields["multimask"] is False
    expected = {"kind": "point", "position": (1.0, 2.0, 3.0), "positive": True, "candidate": None}
    assert fields["prompts"] == (expected | {"scope": "slab", "space": "ijk"},)


BAD = [
    (b"", None, "JSON"),
    (b"{", None, "JSON"),
    (b"\xff\xfe", None, "JSON"),
    (b"\x00\x00", None, "JSON"),
    (b"[" * 100_000, None, "JSON"),
    (b'{"id": 1' + b"0" * 10_000 + b"}", None, ""),
    (b"null", None, "object"),
    (b"[1, 2]", None, "object"),
    (b"{}", None, "id"),
    (b'{"op": "quit"}', None, "id"),
    (b'{"id": -1, "op": "quit"}', None, "id"),
    (b'{"id": true, "op": "quit"}', None, "id"),
    (b'{"id": "1", "op": "quit"}', None, "id"),
    (b'{"id": 1e400, "op": "quit"}', None, "id"),
    (b'{"id": 1}', 1, "unknown operation"),
    (b'{"id": 1, "op": "exec"}', 1, "unknown operation"),
    (b'{"id": 1, "op": ["quit"]}', 1, "unknown operation"),
    (b'{"id": 1, "op": "quit", "now": true}', 1, "quit.now"),
    (b'{"id": 1, "op": "release"}', 1, "release.case"),
    (b'{"id": 1, "op": "release", "case": -1}', 1, "release.case"),
    (b'{"id": 1, "op": "release", "case": 1.5}', 1, "release.case"),
    (b'{"id": 1, "op": "release", "case": 99999999999999999999}', 1, "release.case"),
    (b'{"id": 1, "op": "hello", "protocol": null}', 1, "hello.protocol"),
]


@pytest.mark.parametrize(("line", "number", "text"), BAD)
def test_garbage_is_refused_with_its_reason(line: bytes, number: int | None, text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_request(line)
    assert refused.value.id == number
    assert text in str(refused.value.error)
    to_line(protocol.error_fields(refused.value.error))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"volume": None}, "open.volume"),
        ({"volume": "x"}, "open.volume"),
        ({"volume": VOLUME | {"dtype": "float64"}}, "open.volume.dtype"),
        ({"volume": VOLUME | {"dtype": ["float32"]}}, "open.volume.dtype"),
        ({"volume": VOLUME | {"shape": [2, 3]}}, "open.volume.shape"),
        ({"volume": VOLUME | {"shape": [0, 3, 4]}}, "open.volume.shape"),
        ({"volume": VOLUME | {"shape": [2, 3, 1 << 40]}}, "open.volume.shape[2]"),
        ({"volume": VOLUME | {"offset": 3}}, "open.volume.offset"),
        ({"affine": EYE[:3]}, "open.affine"),
        ({"affine": [*EYE[:3], [0, 0, 0, "1"]]}, "open.affine[3][3]"),
        ({"affine": [*EYE[:3], [0, 0, 0, float("nan")]]}, "open.affine[3][3]"),
        ({"model": ""}, "open.model"),
        ({"model": "a\0b"}, "open.model"),
        ({"model": 3}, "open.model"),
        ({"modality": "XX"}, "open.modality"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], text: str) -> None:
    with pytest.raises(Refused) as refused:
        parsed({"id": 1, **GOOD[1], **change})
    assert text in str(refused.value.error)
    assert refused.value.id == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"segments": []}, "save_case.segments"),
        ({"segments": [SEGMENT | {"color": [0, 0, 256]}]}, "save_case.segments[0].color[2]"),
        ({"segments": [SEGMENT, SEGMENT | {"type": {"scheme": "SCT"}}]}, "save_case.segments[1].type.value"),
        ({"segments": [SEGMENT | {"box": [0, 1, 0, 2]}]}, "save_case.segments[0].box"),
        ({"segments": [SEGMENT | {"mask": VOLUME}]}, "save_case.segments[0].mask.dtype"),
        ({"volume": VOLUME | {"shape": [1, 2, 3, 4]}}, "save_case.volume.shape"),
        ({"case": 0}, "save_case.case"),
    ],
)
def test_a_wrong_segment_is_named(change: dict[str, Any], text: str) -> None:
    good = next(message for message in GOOD if message["op"] == "save_case")
    with pytest.raises(Refused) as refused:
        parsed({"id": 1, **good, **change})
    assert text in str(refused.value.error)


def test_whatever_is_done_to_a_request_it_is_understood_or_refused() -> None:
    rng = random.Random(0)
    values = [
        None,
        True,
        -1,
        0,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        [],
        {},
        [1],
        [[1]],
        {"kind": "point"},
        1 << 70,
    ]

    def change(value: Any, depth: int = 0) -> Any:
        if rng.random() < 0.1 + 0.1 * depth:
            return rng.choice(values)
        if isinstance(value, dict):
            kept = {key: change(each, depth + 1) for key, each in value.items() if rng.random() > 0.05}
            return kept | ({"more": rng.choice(values)} if rng.random() < 0.05 else {})
        return [change(each, depth + 1) for each in value] if isinstance(value, list) else value

    outcomes = set()
    for number in range(3000):
        message = {"id": 1, **rng.choice(GOOD)}
        line = bytearray(json.dumps(change(message)).encode())
        if number % 3 == 0:
            for _ in range(rng.randint(1, 5)):
                line[rng.randrange(len(line))] = rng.randrange(256)
        try:
            outcomes.add(type(parse_request(bytes(line))))
        except Refused as refused:
            to_line(protocol.error_fields(refused.error))
            outcomes.add(Refused)
    assert outcomes == {protocol.Request, Refused}


def test_errors_come_back_as_what_they_were() -> None:
    for kind in (MaskSAMError, InputError, GeometryError, PromptError, ModelError, ResourceError):
        error = kind("what \ud800", where="wo", why="why", remedy="do")
        back = protocol.error_from(json.loads(to_line(protocol.error_fields(error))))
        assert type(back) is kind
        assert str(back) == str(error)
    assert isinstance(protocol.error_from(protocol.error_fields(Cancelled())), Cancelled)
    assert type(protocol.error_from({"name": "SystemExit", "what": "x"})) is MaskSAMError
    assert type(protocol.error_from(None)) is MaskSAMError


def test_a_number_that_json_does_not_know_is_not_sent() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_line({"quality": float("nan")})


# -- the queue -------------------------------------------------------------------------------------------------------


def request(number: int, op: str) -> protocol.Request:
    return protocol.Request(id=number, op=op, fields={})


def test_work_in_the_background_waits_and_is_taken_up_again() -> None:
    queue = RequestQueue()
    queue.put(request(1, "encode"))
    queue.put(request(2, "prompt"))
    first = queue.take()
    queue.done(first)
    assert first.request.id == 2
    assert not first.interrupted
    behind = queue.take()
    queue.put(request(3, "encode"))
    assert not behind.token.cancelled
    queue.put(request(4, "prompt"))
    assert behind.token.cancelled
    assert queue.again(behind)
    order = []
    for _ in range(3):
        task = queue.take()
        assert not task.token.cancelled
        order.append(task.request.id)
        queue.done(task)
    assert order == [4, 1, 3]


def test_interrupted_work_that_is_cancelled_as_well_is_not_taken_up() -> None:
    queue = RequestQueue()
    queue.put(request(1, "encode"))
    task = queue.take()
    queue.put(request(2, "prompt"))
    assert queue.cancel_running(1)
    assert not queue.again(task)
    assert queue.take().request.id == 2


def test_the_queue_has_an_end() -> None:
    queue = RequestQueue()
    for number in range(MAX_WAITING + 1):
        queue.put(request(number, "prompt"))
    with pytest.raises(InputError, match="too many"):
        queue.put(request(MAX_WAITING + 1, "prompt"))
    with pytest.raises(InputError, match="in use"):
        queue.put(request(3, "prompt"))


# -- the folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return place(monkeypatch, tmp_path)


def test_only_the_user_can_enter_it(temporary: Path) -> None:
    made = PrivateFolder.make()
    ref = made.write(np.zeros(3, np.uint8))
    assert made.path.parent == temporary
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((made.path / ref.file).stat().st_mode) == 0o600
    assert made.remove()
    assert left(temporary) == []


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("array", [
    np.arange(24, dtype=np.int16).reshape(2, 3, 4),
    np.arange(48, dtype=">f8").reshape(2, 2, 3, 4)[:, :, ::-1],
    np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4)),
    np.zeros((0, 0, 0), np.uint8),
])  # fmt: skip
def test_arrays_come_back(temporary: Path, array: np.ndarray, mapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "CHUNK_BYTES", 50)
    made = PrivateFolder.make()
    ref = made.write(array, "float32")
    back = PrivateFolder.adopt(made.path).read(ref, mapped=mapped)
    assert back.dtype == np.float32
    assert np.array_equal(back, array)
    made.discard(ref)
    assert [path.name for path in left(temporary)[1:]] == [".owner"]
    assert np.array_equal(back, array), "a mapped array outlives its file's name"
    made.remove()


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 3), (60_000, 60_000, 60_000)])
def test_a_lie_about_the_size_is_refused_before_anything_is_allocated(temporary: Path, shape: tuple[int, ...]) -> None:
    made = PrivateFolder.make()
    ref = made.write(np.zeros((2, 3, 4), np.float32))
    with pytest.raises(InputError, match="announced"):
        made.read(ArrayRef(file=ref.file, dtype="float32", shape=shape))
    made.remove()


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", ".owner", "a" * 32 + ".raw", "", "\0", "A" * 31 + "/.raw"]
)
def test_only_files_of_the_folder_are_read(temporary: Path, name: str) -> None:
    made = PrivateFolder.make()
    with pytest.raises(InputError):
        made.read(ArrayRef(file=name, dtype="uint8", shape=(1, 1, 1)))
    (made.path / ("b" * 32 + ".raw")).symlink_to("/etc/hostname")
    size = os.stat("/etc/hostname").st_size
    with pytest.raises(InputError):
        made.read(ArrayRef(file="b" * 32 + ".raw", dtype="uint8", shape=(1, 1, size)))
    made.remove()


def test_no_other_folder_is_adopted_since_it_would_be_deleted(temporary: Path) -> None:
    victim, named = temporary / "home", temporary / f"{PREFIX}x"
    for path in (victim, named):
        path.mkdir(mode=0o700)
        (path / "precious").touch()
    link = temporary / f"{PREFIX}link"
    link.symlink_to(victim)
    for path in (victim, named, link, temporary / "absent"):
        with pytest.raises(InputError, match="private folder"):
            PrivateFolder.adopt(path)
    sweep()
    assert (victim / "precious").exists()
    assert (named / "precious").exists()


@pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX modes")
def test_a_file_system_that_lets_everybody_in_is_not_used(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tempfile.mkdtemp

    def open_to_all(**options: Any) -> str:
        path = made(**options)
        os.chmod(path, 0o777)
        return path

    monkeypatch.setattr(tempfile, "mkdtemp", open_to_all)
    with pytest.raises(ResourceError, match="TMPDIR"):
        PrivateFolder.make()
    assert left(temporary) == []


def test_nothing_is_written_after_the_end(temporary: Path) -> None:
    made = PrivateFolder.make()
    made.remove()
    with pytest.raises(FileNotFoundError, match="closed"):
        made.write(np.zeros(3, np.uint8))
    assert left(temporary) == []


HOLD = """
import sys, time
import numpy as np
from MaskSAMCore.worker.folder import PrivateFolder
made = PrivateFolder.make()
made.write(np.zeros(3, np.uint8))
print(made.path, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX locks")
def test_the_folder_of_a_dead_process_is_swept_and_no_other(temporary: Path) -> None:
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLD], cwd=REPO, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    dead, living = (Path(process.stdout.readline().strip()) for process in holders)
    fresh = temporary / f"{PREFIX}fresh"
    fresh.mkdir(mode=0o700)
    old = temporary / f"{PREFIX}old"
    old.mkdir(mode=0o700)
    os.utime(old, (time.time() - 7200,) * 2)
    watched = PrivateFolder.adopt(dead)
    assert not watched.abandoned()
    holders[0].kill()
    holders[0].wait()
    try:
        assert eventually(watched.abandoned)
        made = PrivateFolder.make()
        assert not dead.exists()
        assert not old.exists()
        assert len(left(living)) == 0
        assert len(list(living.iterdir())) == 2
        assert fresh.exists()
        made.remove()
    finally:
        holders[1].kill()
        holders[1].wait()
