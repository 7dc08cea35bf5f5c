"""Checks headers of NRRD and MetaImage files against the size of the file, before ITK allocates memory."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath

from MaskSAMCore.errors import InputError
from MaskSAMCore.io import nifti


def _text_header(path: Path) -> tuple[dict[str, str], int]:
    """Fields of an NRRD or MetaImage header, with keys in lower case, and the number of header bytes."""
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        while line := file.readline(1 << 16):
            text = line.decode("utf-8", "replace").strip()
            if not text and file.tell() > 1:
                break
            key, mark, value = text.partition("=" if ".mh" in path.suffix.lower() else ":")
            if mark and not value.startswith("="):
                fields[key.strip().lower()] = value.strip()
            if key.strip().lower() == "elementdatafile" or file.tell() > (1 << 20):
                break
        return fields, file.tell()


def _data_file(path: Path, name: str) -> Path:
    """The data file of a detached header; it must be in the folder of the header."""
    if (" " in name and name.split()[0].upper() == "LIST") or "%" in name:
        raise InputError("several data files are not supported", where=path, why=name, remedy="Save it as one file")
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
    folder = path.parent.resolve()
    target = (folder / name.replace("\\", "/")).resolve()
    if outside or not target.is_relative_to(folder):
        raise InputError(
            "its data file is outside its folder", where=path, why=name, remedy="Move the data file beside the header"
        )
    if not target.is_file():
        why, remedy = f"there is no file {name} beside it", "Copy the data file too"
        raise InputError("its data file is missing", where=path, why=why, remedy=remedy)
    return target


_SIZES = {
    "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1, "signed char": 1, "int8": 1, "int8_t": 1, "char": 1,
    "short": 2, "signed short": 2, "int16": 2, "int16_t": 2, "ushort": 2, "unsigned short": 2, "uint16": 2,
    "uint16_t": 2, "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4,
    "uint32_t": 4, "float": 4, "double": 8, "long": 4, "ulong": 4, "longlong": 8, "long long": 8, "int64": 8,
    "int64_t": 8, "uint64": 8, "uint64_t": 8, "long long int": 8, "unsigned long long": 8,
}  # fmt: skip


def check_text_header(path: Path, kind: str) -> None:
    """Check sizes, type and data file of an NRRD (`kind="nrrd"`) or MetaImage (`kind="meta"`) header.

    Raises:
        InputError: A value is not supported, or the file is too short.
    """
    fields, start = _text_header(path)
    meta = kind == "meta"
    sizes = fields.get("dimsize" if meta else "sizes", "").split()
    element = fields.get("elementtype" if meta else "type", "").lower().removeprefix("met_").replace("_", " ")
    data = fields.get("elementdatafile" if meta else "data file", fields.get("datafile", ""))
    packed = fields.get("compresseddata", "").lower() == "true" if meta else "raw" not in fields.get("encoding", "raw")
    if not meta and fields.get("encoding", "raw").lower() in ("ascii", "txt", "text", "hex"):
        packed = True
    if not sizes or not all(s.isdigit() and 0 < int(s) < 1 << 31 for s in sizes):
        raise InputError("the header has impossible sizes", where=path, why=" ".join(sizes) or "none given")
    width = {"uchar": 1, "ushort": 2, "uint": 4}.get(element, _SIZES.get(element))
    if width is None:
        raise InputError("the voxel type is not supported", where=path, why=element or "none given")
    count = math.prod(int(s) for s in sizes) * int(fields.get("elementnumberofchannels", "1") or 1)
    if meta and not data:
        remedy = "Copy or download it again"
        raise InputError("the header is truncated", where=path, why="ElementDataFile is missing", remedy=remedy)
    inside = not data or (meta and data.upper() in ("LOCAL", ""))
    size = path.stat().st_size - start if inside else _data_file(path, data).stat().st_size
    limit = size * nifti.DEFLATE_LIMIT if packed else size
    if count * width > limit:
        why = f"the header implies {count * width} bytes of voxels, the file has {size}"
        raise InputError(
            "is truncated, or its header is wrong", where=path, why=why, remedy="Copy or download it again"
        )
