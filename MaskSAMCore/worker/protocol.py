"""The protocol between client and worker: one JSON object per line, UTF-8, over stdin and stdout.

Request   `{"id": 7, "op": "prompt", "case": 0, "structure": 1, "prompts": [...]}`; `REQUESTS` lists all of them.
Reply     `{"id": 7, "result": {...}}` or `{"id": 7, "error": {"name", "what", "where", "why", "remedy"}}`; the id is
          null if that of the request could not be read.
Event     `{"event": "progress", "id": 7, "done": 3, "total": 9, "text": "encoding"}`.

The first request is `hello` with the version of the protocol. Positions are (i, j, k) in voxels of the scan, with voxel
centres at integers; arrays and their boxes are in (k, j, i) order. An array is `{"file", "dtype", "shape"}`: raw
little-endian numbers in a file of the private folder, which the client deletes, whoever wrote it. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from MaskSAMCore import errors
from MaskSAMCore.errors import InputError, MaskSAMError, PromptError
from MaskSAMCore.progress import Cancelled

VERSION = 1
MAX_LINE = 4 << 20
"""Bytes of the longest line that is read; a longer one is skipped."""
CHUNK = 1 << 16
"""Bytes that are read at once."""
MAX_PROMPTS = 10_000
MAX_POINTS = 4096
"""Points of a scribble or lasso."""
MAX_AXIS = 1 << 16
"""Voxels along an axis."""
MAX_SEGMENTS = 1000
MAX_FILES = 8192
"""Files of a DICOM series."""
KINDS = {"uint8": 1, "uint16": 2, "float32": 4}
"""Number types of arrays, with their bytes."""
ARRAYS = {"volume": "float32", "mask": "uint8"}
"""Fields of requests that are arrays, and the number types in which they are sent."""
SCOPES = ("slice", "slab", "volume")
_NAMES = {
    kind.__name__: kind
    for kind in (MaskSAMError, InputError, errors.GeometryError, PromptError, errors.ModelError, errors.ResourceError)
}


@dataclass(frozen=True, kw_only=True)
class ArrayRef:
    """Reference to an array in a file of the private folder; `file` is its name there."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return math.prod(self.shape) * KINDS[self.dtype]

    def plain(self) -> dict[str, Any]:
        """The reference as it is written in a message."""
        return {"file": self.file, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked request: all fields of its operation are there and have the right types."""

    id: int
    op: str
    fields: dict[str, Any]


class Refused(Exception):
    """Raised for a line that is not a valid request; `id` is its number, None if that could not be read."""

    def __init__(self, number: int | None, error: MaskSAMError) -> None:
        super().__init__(number, error)
        self.id, self.error = number, error


class Readable(Protocol):
    """A raw stream, whose `read` waits for the first byte only and returns what is there."""

    def read(self, size: int, /) -> bytes | None: ...


@dataclass(frozen=True)
class TooLong:
    """A line that was longer than allowed; `size` in bytes."""

    size: int


def lines(stream: Readable, limit: int = MAX_LINE) -> Iterator[bytes | TooLong]:
    """Lines of a stream, without line ends; an unfinished line at the end of the stream is dropped."""
    kept, skipped = bytearray(), 0
    while chunk := stream.read(CHUNK):
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            size = skipped + len(kept) + len(part)
            yield TooLong(size) if size > limit else bytes(kept + part)
            kept.clear()
            skipped = 0
        if skipped or len(kept) + len(rest) > limit:
            skipped += len(kept) + len(rest)
            kept.clear()
        else:
            kept += rest


def to_line(message: Mapping[str, Any]) -> bytes:
    """A message as a line, in ASCII, so that an unpaired surrogate does no harm."""
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """Parse a line as a message.

    Raises:
        InputError: It is not a JSON object.
    """
    try:
        message = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        start = line[:40].decode("utf-8", "backslashreplace")
        raise InputError("not a line of JSON", where=repr(start), why=str(error)[:200]) from error
    if not isinstance(message, dict):
        raise InputError("a message must be a JSON object", why=f"found {type(message).__name__}")
    return message


def parse_request(line: bytes) -> Request:
    """Parse and check a line as a request.

    Raises:
        Refused: The line is not a valid request.
    """
    number = None
    try:
        message = from_line(line)
        op = message.pop("op", None)
        number = _id(message.pop("id", None))
        return Request(id=number, op=str(op), fields=check_request(op, message))
    except InputError as error:
        raise Refused(number, error) from error


def check_request(op: object, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check the fields of a request; returns them with defaults for those that are left out.

    Raises:
        PromptError: A prompt is malformed or holds NaN or Inf; names its number and position.
        InputError: The operation is unknown, or a field is missing, unknown or of the wrong type.
    """
    if not isinstance(op, str) or op not in REQUESTS:
        raise InputError("unknown operation", where=_short(op), remedy=f"Use one of {', '.join(REQUESTS)}.")
    return _checked(REQUESTS[op], fields, op)


def error_fields(error: MaskSAMError) -> dict[str, str]:
    """The fields of an error in a reply."""
    if isinstance(error, Cancelled):
        name = "Cancelled"
    else:
        name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _NAMES)
    return {"name": name, "what": error.what, "where": error.where, "why": error.why, "remedy": error.remedy}


def error_from(fields: object) -> MaskSAMError:
    """The error of a reply; an unknown name becomes MaskSAMError."""
    found = fields if isinstance(fields, dict) else {"what": _short(fields)}
    what, where, why, remedy = (str(found.get(key, "")) for key in ("what", "where", "why", "remedy"))
    if found.get("name") == "Cancelled":
        return Cancelled(what)
    kind = _NAMES.get(str(found.get("name")), MaskSAMError)
    return kind(what or "the engine failed", where=where, why=why, remedy=remedy)


# -- checks of single fields: (value, its name) to the checked value, or InputError -----------------------------------

Check = Callable[[Any, str], Any]


@dataclass(frozen=True)
class Field:
    """A field of a request; a field with a default may be left out."""

    check: Check
    default: Any = ...


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _wrong(where: str, needed: str, value: object) -> InputError:
    return InputError(f"must be {needed}", where=where, why=f"found {_short(value)}")


def _checked(known: Mapping[str, Field], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError("unknown field", where=f"{where}.{unknown[0][:80]}", remedy=f"Use one of {', '.join(known)}.")
    out = {}
    for name, field in known.items():
        if name in given:
            out[name] = field.check(given[name], f"{where}.{name}")
        elif field.default is ...:
            raise InputError("missing field", where=f"{where}.{name}")
        else:
            out[name] = field.default
    return out


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise _wrong(where, "a whole number from 0", value)
    return value


def _id(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise _wrong("id", "a whole number from 0", value)
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300:  # excludes NaN
        return float(value)
    raise _wrong(where, "a finite number", value)


def _byte(value: Any, where: str) -> int:
    if _whole(value, where) > 255:
        raise _wrong(where, "at most 255", value)
    return value


def _share(value: Any, where: str) -> float:
    if not 0 < _number(value, where) <= 1:
        raise _wrong(where, "above 0 and at most 1", value)
    return float(value)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or len(value) > 4096 or "\0" in value:
        raise _wrong(where, "a text of 1 to 4096 characters", value)
    return value


def _maybe(check: Check) -> Field:
    return Field(lambda value, where: None if value is None else check(value, where), None)


def _one_of(*values: str) -> Check:
    def check(value: Any, where: str) -> str:
        if value not in values or not isinstance(value, str):
            raise _wrong(where, f"one of {', '.join(values)}", value)
        return value

    return check


def _list(check: Check, least: int, most: int) -> Check:
    def check_all(value: Any, where: str) -> tuple:
        if not isinstance(value, list) or not least <= len(value) <= most:
            found = f"{len(value)} of them" if isinstance(value, list) else value
            raise _wrong(where, f"a list of {least if least == most else f'{least} to {most}'}", found)
        return tuple(check(each, f"{where}[{index}]") for index, each in enumerate(value))

    return check_all


def _array(*kinds: str, axes: tuple[int, ...]) -> Check:
    fields = {
        "file": Field(_text),
        "dtype": Field(_one_of(*kinds)),
        "shape": Field(_list(_whole, min(axes), max(axes))),
    }

    def check(value: Any, where: str) -> ArrayRef:
        if not isinstance(value, dict):
            raise _wrong(where, "an array: file, dtype and shape", value)
        ref = ArrayRef(**_checked(fields, value, where))
        if not all(1 <= size <= MAX_AXIS for size in ref.shape):
            raise _wrong(f"{where}.shape", f"of 1 to {MAX_AXIS} voxels along each axis", list(ref.shape))
        return ref

    return check


array_ref = _array(*KINDS, axes=(1, 4))
"""Check of any array in a message."""


def _of(fields: Mapping[str, Field]) -> Check:
    def check(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        return _checked(fields, value, where)

    return check


_TRIPLE = _list(_number, 3, 3)
_COMMON = {
    "kind": Field(_one_of("point", "scribble", "box", "lasso", "mask")),
    "scope": Field(_one_of(*SCOPES), "slab"),
    "space": Field(_one_of("ijk", "ras"), "ijk"),
}
_LINE = _COMMON | {"positive": Field(_flag, True)}
_PROMPTS: dict[str, dict[str, Field]] = {
    "point": _COMMON | {"position": Field(_TRIPLE), "positive": Field(_flag, True), "candidate": _maybe(_whole)},
    "box": _COMMON | {"corners": Field(_list(_TRIPLE, 2, 2)), "positive": Field(_flag, True)},
    "scribble": _LINE | {"points": Field(_list(_TRIPLE, 1, MAX_POINTS)), "thickness": Field(_number, 0.0)},
    "lasso": _LINE | {"points": Field(_list(_TRIPLE, 3, MAX_POINTS))},
    "mask": _LINE | {"mask": Field(_array("uint8", axes=(3, 3))), "mask_box": Field(_list(_whole, 3, 3), (0, 0, 0))},
}


def _prompt(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    kind = _one_of(*_PROMPTS)(value.get("kind"), f"{where}.kind")
    return _checked(_PROMPTS[kind], value, where)


def _prompts(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    try:
        found = _list(lambda prompt, _: prompt, 1, MAX_PROMPTS)(value, where)
        return tuple(_prompt(each, f"prompt {index} of {len(found)}") for index, each in enumerate(found, start=1))
    except InputError as error:
        raise PromptError(error.what, where=error.where, why=error.why, remedy=error.remedy) from error


_CASE = {"case": Field(_whole)}
_STRUCTURE = _CASE | {"structure": Field(_whole)}
_REGION = _of({"center": Field(_TRIPLE), "size": Field(_TRIPLE)})
_AFFINE = {"affine": Field(_list(_list(_number, 4, 4), 4, 4))}
_CODE = _maybe(_of({"scheme": Field(_text), "value": Field(_text), "meaning": Field(_text)}))
_SEGMENT = _of(
    {"name": Field(_text), "color": Field(_list(_byte, 3, 3)), "category": _CODE, "type": _CODE, "modifier": _CODE}
    | {"box": Field(_list(_whole, 6, 6)), "mask": Field(_array("uint8", axes=(3, 3)))}
)
_SEGMENTS = {"segments": Field(_list(_SEGMENT, 1, MAX_SEGMENTS))}

REQUESTS: dict[str, dict[str, Field]] = {
    # must be the first; answers versions, device and models
    "hello": {"protocol": Field(_whole)},
    # open a scan (K, J, I) or (C, K, J, I) with its affine (ijk to RAS mm) and a model; `case` is the caller's number
    "open": _CASE
    | _AFFINE
    | {
        "volume": Field(_array("float32", axes=(3, 4))),
        "model": Field(_text),
        "modality": _maybe(_one_of("CT", "MR")),
        "source": Field(_text, "the scan"),
    },
    # encode in the background, interrupted by other requests: from a position (ijk) outward, at most so many slabs
    "encode": _CASE | {"position": _maybe(_TRIPLE), "slabs": _maybe(_whole)},
    # all prompts of a structure; answers the changed voxels
    "prompt": _STRUCTURE | {"prompts": Field(_prompts), "multimask": Field(_flag, False)},
    # the same prompts again, the last one with this scope
    "propagate": _STRUCTURE | {"scope": Field(_one_of(*SCOPES), "volume")},
    # automatic prompts for a label, as boxes and points to edit
    "automatic": _CASE | {"label": Field(_whole), "slices": _maybe(_list(_whole, 1, MAX_AXIS))},
    # segment all structures of the model, in the whole scan or in boxes (centre and size, RAS mm)
    "segment": _CASE
    | {"roi": Field(_list(_REGION, 0, 64), ()), "tta": Field(_flag, False), "step": Field(_share, 0.5)},
    "drop": _STRUCTURE,
    "release": _CASE,
    # write segments on the grid of a DICOM series, given by its files, as a DICOM SEG that refers to it
    "export_seg": _AFFINE
    | _SEGMENTS
    | {
        "shape": Field(_list(_whole, 3, 3)),
        "files": Field(_list(_text, 1, MAX_FILES)),
        "path": Field(_text),
        "model": Field(_text, "MaskSAM"),
        "allow_uncoded": Field(_flag, False),
    },
    # add a scan (K, J, I) with its segments to a data set in nnU-Net's raw format
    "save_case": _AFFINE
    | _SEGMENTS
    | {
        "volume": Field(_array("float32", axes=(3, 3))),
        "folder": Field(_text),
        "name": Field(_text),
        "modality": _maybe(_one_of("CT", "MR")),
    },
    # these two are answered at once, even while the engine works
    "cancel": {"target": Field(_whole)},
    "quit": {},
}
