"""Reads NIfTI-1 and -2, and writes NIfTI-1; the header is checked before memory is allocated.

Used instead of ITK, whose writer does not notice a full disk, and whose reader does not say which of the two transforms
it used.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.volume import SAME_GRID_MM, SKEW_TOLERANCE, Grid

DEFLATE_LIMIT = 1040
"""Largest ratio of decompressed to compressed size; deflate reaches about 1032."""

_V1 = {
    "dim": (40, "i2", 8), "intent": (68, "i2", 1), "datatype": (70, "i2", 1), "bitpix": (72, "i2", 1),
    "pixdim": (76, "f4", 8), "offset": (108, "f4", 1), "slope": (112, "f4", 1), "inter": (116, "f4", 1),
    "units": (123, "u1", 1), "qcode": (252, "i2", 1), "scode": (254, "i2", 1), "quatern": (256, "f4", 3),
    "qoffset": (268, "f4", 3), "srow": (280, "f4", 12),
}  # fmt: skip
_V2 = {
    "dim": (16, "i8", 8), "intent": (504, "i4", 1), "datatype": (12, "i2", 1), "bitpix": (14, "i2", 1),
    "pixdim": (104, "f8", 8), "offset": (168, "i8", 1), "slope": (176, "f8", 1), "inter": (184, "f8", 1),
    "units": (500, "i4", 1), "qcode": (344, "i4", 1), "scode": (348, "i4", 1), "quatern": (352, "f8", 3),
    "qoffset": (376, "f8", 3), "srow": (400, "f8", 12),
}  # fmt: skip
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
    128: "3u1", 2304: "4u1",
}  # fmt: skip
_CODES = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "int8": 256, "uint16": 512}


@dataclass(frozen=True, kw_only=True)
class Header:
    """A checked NIfTI header.

    Attributes:
        grid: Grid of one 3-D frame, RAS mm; it may be skewed.
        frames, channels: Sizes of the fourth and fifth axis; a colour type has 3 or 4 channels.
        dtype: Type of one stored number, with its byte order.
        color: Whether the channels of a voxel are stored together.
        offset: Bytes before the first voxel.
        slope, inter: Scaling to real values; 1 and 0 if the file has none.
        warnings: Messages about ambiguous or corrected values.
    """

    grid: Grid
    frames: int
    channels: int
    dtype: np.dtype
    color: bool
    offset: int
    slope: float
    inter: float
    warnings: tuple[str, ...]


@contextlib.contextmanager
def open_stream(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file, decompressed if its content (not its name) is gzip; errors of reading become InputError."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield gzip.GzipFile(fileobj=file, mode="rb") if packed else file
    except EOFError as error:
        raise InputError("is truncated", where=path, why=str(error), remedy="Copy or download it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        remedy = "Copy or download it again"
        raise InputError(
            "is damaged: its compressed data are invalid", where=path, why=str(error), remedy=remedy
        ) from error
    except OSError as error:
        raise InputError("cannot be read", where=path, why=str(error)) from error


def looks_like_nifti(head: bytes) -> bool:
    """Whether the first bytes (decompressed) are those of a NIfTI header of either version and byte order."""
    sizes = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    return bool(sizes & {348, 540})


def _fields(head: bytes, path: Path) -> tuple[dict[str, np.ndarray], str]:
    for order in "<>":
        size = int(np.frombuffer(head[:4], f"{order}i4")[0])
        if size in (348, 540):
            break
    else:
        raise InputError("is not a NIfTI file", where=path, why="the header has the wrong size")
    if len(head) < size:
        raise InputError("is truncated", where=path, why=f"it has {len(head)} of {size} bytes of the header")
    magic = head[344:348] if size == 348 else head[4:8]
    if magic in (b"ni1\0", b"ni2\0") or (size == 348 and magic not in (b"n+1\0",)):
        why = "a header without its voxels, or Analyze 7.5"
        raise InputError("only single-file NIfTI is supported", where=path, why=why, remedy="Convert it to .nii.gz")
    layout = _V1 if size == 348 else _V2
    found = {k: np.frombuffer(head, order + t, n, at) for k, (at, t, n) in layout.items()}
    return found, order


def _orthonormal(affine: np.ndarray) -> bool:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (lengths == 0).any():
        return False
    unit = affine[:3, :3] / lengths
    return bool(np.abs(unit.T @ unit - np.eye(3)).max() <= SKEW_TOLERANCE)


def _from_quaternion(f: dict[str, np.ndarray], sizes: np.ndarray) -> np.ndarray:
    b, c, d = (float(v) for v in f["quatern"])
    a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    norm = math.sqrt(a * a + b * b + c * c + d * d)
    a, b, c, d = a / norm, b / norm, c / norm, d / norm
    turn = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ])  # fmt: skip
    sense = -1.0 if float(f["pixdim"][0]) < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = turn * (sizes * (1.0, 1.0, sense))
    affine[:3, 3] = f["qoffset"]
    return affine


def _geometry(f: dict[str, np.ndarray], shape: tuple[int, int, int], path: Path) -> tuple[Grid, list[str]]:
    """Grid of the header and warnings, by the rule of ITK and Slicer.

    Directions and origin come from the sform if it has a code, its axes are at right angles, and its code is 1
    (scanner) or the qform has no code; else from the qform if it has a code; else from the sform. Voxel sizes always
    come from `pixdim`. If neither has a code, the axes run to L, P and S from the origin.
    """
    warnings: list[str] = []
    sizes = np.array(f["pixdim"][1:4], dtype=np.float64)
    if shape[0] == 1 and sizes[2] == 0:
        sizes[2] = 1.0
    if not np.isfinite(sizes).all() or (sizes == 0).any():
        raise GeometryError("the voxel spacing is zero or NaN", where=path, why=f"pixdim {sizes.tolist()}")
    if (sizes < 0).any():
        warnings.append(f"negative voxel sizes {sizes.tolist()} were taken as positive")
        sizes = np.abs(sizes)
    scode, qcode = int(f["scode"][0]), int(f["qcode"][0])
    stored = np.vstack([np.array(f["srow"], np.float64).reshape(3, 4), (0, 0, 0, 1)])
    right = _orthonormal(stored)
    if scode > 0 and not np.isfinite(stored).all():
        raise GeometryError("the affine contains NaN or Inf", where=path, why=f"sform\n{stored}")
    if scode > 0 and right and (scode == 1 or qcode <= 0):
        affine, name = stored, "sform"
    elif qcode > 0:
        affine, name = _from_quaternion(f, sizes), "qform"
    elif scode > 0:
        affine, name = stored, "sform"
    else:
        affine, name = np.diag([-sizes[0], -sizes[1], sizes[2], 1.0]), "none"
        warnings.append("the file has no orientation: left and right are not certain")
    if name == "sform" and right:
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if np.abs(lengths - sizes).max() > 1e-3 * sizes.min():
            got, own = np.round(sizes, 4).tolist(), np.round(lengths, 4).tolist()
            warnings.append(f"voxel sizes of the sform {own} differ from pixdim {got} mm: pixdim is used")
        affine = affine.copy()
        affine[:3, :3] *= sizes / lengths
    if scode > 0 and qcode > 0:
        other = _from_quaternion(f, sizes)
        apart = Grid(shape=shape, affine=stored).distance_mm(Grid(shape=shape, affine=other))
        if apart > 0.01 * sizes.min():
            warnings.append(f"sform and qform differ by up to {apart:.3g} mm: the {name} is used")
    scale = {1: 1000.0, 3: 0.001}.get(int(f["units"][0]) & 7, 1.0)
    affine = np.diag([scale, scale, scale, 1.0]) @ affine
    return Grid(shape=shape, affine=affine), warnings


def header_grid(head: bytes, shape: tuple[int, int, int]) -> tuple[Grid, list[str]]:
    """The lattice that a header in memory describes, by the same rules as a file's, and warnings.

    Args:
        head: The bytes of the header.
        shape: (K, J, I) of the voxels.

    Raises:
        InputError: It is no header of a single-file NIfTI.
        GeometryError: The spacing is zero or NaN, or the affine NaN.
    """
    path = Path("the header")
    fields, _ = _fields(head, path)
    return _geometry(fields, shape, path)


def _check_size(path: Path, offset: int, nbytes: int) -> None:
    """Raise InputError if the header implies more voxels than the file can contain."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed and offset + nbytes > size * DEFLATE_LIMIT:
        why = f"the header implies {nbytes} bytes, too many for {size} compressed bytes"
    elif not packed and offset + nbytes > size:
        why = f"the header implies {nbytes} bytes of voxels from byte {offset}, the file has {size} bytes"
    else:
        return
    raise InputError("is truncated, or its header is wrong", where=path, why=why, remedy="Copy or download it again")


def parse_header(head: bytes, path: Path) -> Header:
    """Parse and check a header of at least 352 bytes (NIfTI-2: 544).

    Raises:
        InputError: Sizes or type are impossible, or imply more voxels than the file can contain.
        GeometryError: The spacing is zero or NaN, or the affine NaN or singular.
    """
    f, order = _fields(head, path)
    dim = [int(v) for v in f["dim"]]
    used = dim[1 : dim[0] + 1] if 1 <= dim[0] <= 7 else []
    if not used or min(used) < 1:
        raise InputError("the header has impossible sizes", where=path, why=f"dim = {dim}")
    used += [1] * (7 - len(used))
    if used[5] > 1 or used[6] > 1:
        raise InputError("has more than five dimensions", where=path, why=f"dim = {dim}")
    code = int(f["datatype"][0])
    if code not in _TYPES:
        remedy = "Save it as integers or as 32-bit float"
        raise InputError("the voxel type is not supported", where=path, why=f"NIfTI datatype {code}", remedy=remedy)
    color = _TYPES[code][0] in "34"
    dtype = np.dtype("u1") if color else np.dtype(order + _TYPES[code])
    channels = int(_TYPES[code][0]) if color else used[4]
    if color and used[4] > 1:
        raise InputError("colours in vectors are not supported", where=path, why=f"dim = {dim}, datatype {code}")
    offset = float(f["offset"][0])
    if not math.isfinite(offset) or offset < 0:
        raise InputError("the header has an impossible offset", where=path, why=f"vox_offset = {offset}")
    offset = int(offset) or (352 if len(head) < 540 else 544)
    shape = (used[2], used[1], used[0])
    _check_size(path, offset, math.prod(used[:4]) * channels * dtype.itemsize)
    grid, warnings = _geometry(f, shape, path)
    slope, inter = float(f["slope"][0]), float(f["inter"][0])
    if math.isinf(slope) or math.isinf(inter):
        warnings.append(f"the scale factors {slope}, {inter} are not finite and are ignored")
    if not math.isfinite(slope) or slope == 0:
        slope, inter = 1.0, 0.0
    return Header(
        grid=grid.check(where=path),
        frames=used[3],
        channels=channels,
        dtype=dtype,
        color=color,
        offset=offset,
        slope=slope,
        inter=inter if math.isfinite(inter) else 0.0,
        warnings=tuple(warnings),
    )


def to_real(raw: np.ndarray, slope: float, inter: float, out: np.ndarray) -> None:
    """Scale stored numbers in double precision into `out` (float32); overflow becomes Inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        if slope == 1.0 and inter == 0.0:
            out[...] = raw
        else:
            out[...] = np.multiply(raw, slope, dtype=np.float64) + inter


def _read_exactly(stream: io.BufferedIOBase, buffer: memoryview, path: Path, what: str) -> None:
    done = 0
    while done < len(buffer):
        got = stream.readinto(buffer[done:])
        if not got:
            raise InputError("is truncated", where=path, why=f"it ends in {what}", remedy="Copy or download it again")
        done += got


def _skip(stream: io.BufferedIOBase, count: int, path: Path) -> None:
    buffer = memoryview(bytearray(min(count, 1 << 20) or 1))
    while count > 0:
        part = min(count, len(buffer))
        _read_exactly(stream, buffer[:part], path, "the voxels")
        count -= part


def read_header(path: Path) -> Header:
    """Read and check the header only; see `parse_header`."""
    with open_stream(path) as stream:
        return parse_header(stream.read(544), path)


def read_nifti(path: Path, *, frame: int = 0, channel: int = 0) -> tuple[np.ndarray, Header]:
    """Read one 3-D frame and channel as float32 `(K, J, I)`, and the header.

    Slices are converted one by one, so that only the result is in memory. The file is read to its end, so that gzip
    verifies its checksum.

    Raises:
        InputError: The file is truncated or damaged, or the header is invalid.
        GeometryError: The affine is not usable.
    """
    with open_stream(path) as stream:
        header = parse_header(stream.read(544), path)
        stream.seek(header.offset)
        planes, rows, columns = header.grid.shape
        width = header.channels if header.color else 1
        size = rows * columns * width * header.dtype.itemsize
        volumes = (channel * header.frames if not header.color else 0) + frame
        _skip(stream, volumes * planes * size, path)
        out: np.ndarray = np.empty(header.grid.shape, dtype=np.float32)
        buffer = bytearray(size)
        raw = np.frombuffer(buffer, dtype=header.dtype).reshape(rows, columns, width)
        for k in range(planes):
            _read_exactly(stream, memoryview(buffer), path, f"slice {k + 1} of {planes}")
            to_real(raw[..., channel if header.color else 0], header.slope, header.inter, out[k])
        while stream.read(1 << 20):
            pass
    return out, header


def _quaternion(grid: Grid) -> tuple[float, np.ndarray]:
    from scipy.spatial.transform import Rotation

    turn = grid.directions.copy()
    sense = 1.0 if np.linalg.det(turn) > 0 else -1.0
    turn[:, 2] *= sense
    x, y, z, w = Rotation.from_matrix(turn).as_quat()
    return sense, np.array([x, y, z]) * (1.0 if w >= 0 else -1.0)


def build_header(dtype: np.dtype, grid: Grid, path: Path) -> bytes:
    """Build the 352 bytes of a NIfTI-1 header with equal sform and qform, both with code 1 (scanner).

    Raises:
        GeometryError: The grid is skewed, or the header does not reproduce it within `SAME_GRID_MM`.
        InputError: NIfTI-1 does not support the size or type.
    """
    grid.check(where=path)
    if grid.skew > SKEW_TOLERANCE:
        raise GeometryError("a skewed grid cannot be written", where=path, why=f"directions\n{grid.directions}")
    name = np.dtype(dtype).name
    if name not in _CODES or max(grid.shape) > 32767:
        raise InputError("is not supported by NIfTI-1", where=path, why=f"{name} voxels, size (k, j, i) {grid.shape}")
    head = bytearray(352)
    sense, quatern = _quaternion(grid)
    values = {
        "dim": [3, *grid.shape[::-1], 1, 1, 1, 1], "datatype": [_CODES[name]], "bitpix": [8 * np.dtype(dtype).itemsize],
        "pixdim": [sense, *grid.spacing, 1, 1, 1, 1], "offset": [352], "slope": [1], "inter": [0], "units": [2],
        "qcode": [1], "scode": [1], "quatern": quatern, "qoffset": grid.origin, "srow": grid.affine[:3].ravel(),
    }  # fmt: skip
    head[:4] = (348).to_bytes(4, "little")
    head[344:348] = b"n+1\0"
    for key, value in values.items():
        at, kind, count = _V1[key]
        data = np.asarray(value, dtype="<" + kind).tobytes()
        head[at : at + count * np.dtype(kind).itemsize] = data
    back = {k: np.frombuffer(bytes(head), "<" + t, n, at) for k, (at, t, n) in _V1.items()}
    apart = _geometry(back, grid.shape, path)[0].distance_mm(grid)
    if apart > SAME_GRID_MM:
        why = f"voxels would move by {apart:.3g} mm"
        raise GeometryError("the affine cannot be stored exactly", where=path, why=why)
    return bytes(head)


def write_nifti(array: np.ndarray, grid: Grid, part: Path, *, packed: bool) -> None:
    """Write `(K, J, I)` voxels to `part`, with gzip compression if `packed`; a full disk raises OSError."""
    head = build_header(array.dtype, grid, part)
    little = array.dtype.newbyteorder("<")
    level = 6 if array.dtype.itemsize <= 2 else 1
    with open(part, "wb") as file:
        out = gzip.GzipFile("", "wb", level, file, mtime=0) if packed else file
        out.write(head)
        for plane in array:
            out.write(np.ascontiguousarray(plane, dtype=little).tobytes())
        if packed:
            out.close()
