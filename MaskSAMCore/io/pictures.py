"""Reads two-dimensional pictures (PNG, JPEG, TIFF) as one slice with three colours, or with labels.

Pictures are turned upright. Ambiguous files, such as those with transparency, are refused. Rows run to posterior and
columns to left, as in 3D Slicer and ITK for files without orientation. A pixel counts as 1 mm, because the resolution
in such files is meant for printers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from MaskSAMCore.errors import InputError
from MaskSAMCore.volume import Grid

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
NO_SIZE = "is a picture without a pixel size: a pixel counts as 1 mm"
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")
_LOSSY = "JPEG"
_ORIENTATION = 0x0112
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TOP = 65535
"""White of a 16-bit grey picture, even if its camera uses fewer bits."""


def is_picture(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a picture."""
    return head.startswith(_MAGIC)


def read_picture(path: Path) -> tuple[np.ndarray, Grid, list[str]]:
    """Read a picture as it is displayed.

    Grey becomes three equal colours; 16-bit grey is scaled to 0 to 255, with fractions; a palette is applied; an alpha
    channel without transparency is dropped; the EXIF rotation is applied.

    Returns:
        (3, 1, H, W) float32 from 0 to 255, the grid, and warnings.

    Raises:
        InputError: The file is damaged, has several pages, is partly transparent, or is not grey or RGB.
    """
    image = _open(path)
    warnings = [NO_SIZE]
    image, turned = _upright(image)
    if turned:
        warnings.append("was rotated as its EXIF data say")
    if image.mode in _DEEP:
        return _slice(np.stack([_grey(image, path)] * 3)), _grid(image), warnings
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise InputError(
            "its colours are not supported",
            where=path,
            why=f"they are of the kind {image.mode}; supported are grey of 8 and 16 bits, RGB and palettes",
            remedy="Save it as RGB.",
        )
    seen = image.convert("RGBA")
    if np.asarray(seen)[..., 3].min() < 255:
        raise InputError(
            "is partly transparent",
            where=path,
            why="its colours depend on the viewer",
            remedy="Save it without an alpha channel.",
        )
    return _slice(np.moveaxis(np.asarray(seen)[..., :3], -1, 0).astype(np.float32)), _grid(image), warnings


def read_label_picture(path: Path) -> tuple[np.ndarray, Grid]:
    """Read labels (1, H, W) from a picture whose grey values, or palette indices, are the labels.

    Raises:
        InputError: The file is damaged, a JPEG, or in colour.
    """
    image = _open(path)
    if image.format == _LOSSY:
        raise InputError(
            "a JPEG is not a label map",
            where=path,
            why="its compression changes the values",
            remedy="Save it as PNG.",
        )
    image, _ = _upright(image)
    if image.mode == "I" or image.mode in _DEEP:
        array = np.asarray(image).astype(np.int32)
    elif image.mode in ("1", "L", "P"):
        array = np.asarray(image).astype(np.uint8)
    else:
        raise InputError(
            "is not a label map: a label is one whole number per pixel",
            where=path,
            why=f"this picture is of the kind {image.mode}",
            remedy="Save the labels as a grey PNG of 8 or 16 bits.",
        )
    if array.min() < 0 or array.max() > _TOP:
        raise InputError("is not a label map: ids are whole numbers from 0 to 65535", where=path)
    return array[None].astype(np.uint8 if array.max() < 256 else np.uint16), _grid(image)


def _open(path: Path) -> Image:
    from PIL import Image as pillow

    try:
        image = pillow.open(path)
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            why, remedy = f"there are {pages}", "Save each page as a file."
            raise InputError("has several pages", where=path, why=why, remedy=remedy)
        image.load()
    except pillow.DecompressionBombError as error:
        raise InputError("the picture is too large", where=path, why=str(error), remedy="Save a part of it.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InputError("the picture cannot be read", where=path, why=str(error)) from error
    return image


def _upright(image: Image) -> tuple[Image, bool]:
    from PIL import ImageOps

    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image, False
    return ImageOps.exif_transpose(image), True


def _grey(image: Image, path: Path) -> np.ndarray:
    values = np.asarray(image).astype(np.float32)
    if values.min() < 0 or values.max() > _TOP:
        raise InputError("has values beyond 16 bits", where=path, remedy="Save it as grey of 8 or 16 bits.")
    return values * (255 / _TOP)


def _slice(colours: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(colours[:, None])


def _grid(image: Image) -> Grid:
    return Grid(shape=(1, image.height, image.width), affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
