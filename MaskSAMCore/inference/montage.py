"""Montage of a segmentation: three planes of the scan, a row of close-ups, a legend with volumes in mL."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MaskSAMCore.errors import GeometryError
from MaskSAMCore.io.atomic import atomic_path
from MaskSAMCore.labels import PALETTE, Label
from MaskSAMCore.volume import LabelMap, Volume, match_grid, reorient

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLOSE_UPS = 7
LEGEND_ROWS, LARGE_ROWS = 24, 14
WIDTH, LEGEND, PLANES_HEIGHT, CLOSE_HEIGHT, HEAD, GAP, LINE, SMALL_LINE = 14.0, 3.2, 4.6, 2.6, 0.6, 0.12, 0.29, 0.2
"""Inches."""
SIDES = (
    (0.02, 0.5, "left", "center"),
    (0.98, 0.5, "right", "center"),
    (0.5, 0.985, "center", "top"),
    (0.5, 0.02, "center", "bottom"),
)
"""Where a plane's left, right, top and bottom letters stand, as shares of its panel."""
MARGIN_MM = 8.0
"""Around the structures in a close-up."""
CT_AIR = -500.0
CT_WINDOW = (-160.0, 240.0)
"""Soft tissue, Hounsfield units."""
DPI = 120
BACKGROUND, PANEL, TEXT, FAINT = "#14171c", "#000000", "#e8eaed", "#9aa0a6"


@dataclass(frozen=True, kw_only=True)
class Plane:
    """How one plane of a canonical (S, A, R) array is shown, by radiological convention.

    Attributes:
        name: Of the view.
        axis: The array axis that is cut.
        flip: Whether the rows and the columns of the cut are reversed.
        marks: Letters at the left, right, top and bottom.
    """

    name: str
    axis: int
    flip: tuple[bool, bool]
    marks: tuple[str, str, str, str]


PLANES = (
    Plane(name="axial", axis=0, flip=(True, True), marks=("R", "L", "A", "P")),
    Plane(name="coronal", axis=1, flip=(True, True), marks=("R", "L", "S", "I")),
    Plane(name="sagittal", axis=2, flip=(True, True), marks=("A", "P", "S", "I")),
)


def save_montage(
    volume: Volume,
    labels: LabelMap,
    path: str | os.PathLike,
    *,
    title: str = "",
    subtitle: str = "",
    overwrite: bool = False,
) -> None:
    """Write a `montage` as PNG; the file is complete or absent.

    Raises:
        GeometryError: Scan and labels lie on different grids.
        InputError: The file exists and `overwrite` is false.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = montage(volume, labels, title=title, subtitle=subtitle)
    with atomic_path(path, overwrite=overwrite) as part:
        FigureCanvasAgg(figure).print_figure(str(part), dpi=DPI, format="png", facecolor=BACKGROUND)


def montage(volume: Volume, labels: LabelMap, *, title: str = "", subtitle: str = "") -> Figure:
    """Draw a segmentation over its scan, as a figure without a window; the first channel is shown.

    Args:
        volume: The scan.
        labels: On the scan's grid; its label table has the names and colours of the structures.
        title: Usually the case.
        subtitle: Usually the model.

    Raises:
        GeometryError: Scan and labels lie on different grids.
    """
    from matplotlib.figure import Figure

    match_grid(labels.grid, volume.grid, where=labels.source or volume.source)
    image, grid, record = reorient(volume.as_channels()[0], volume.grid)
    view = _View(image, record.apply(labels.array), grid.spacing[::-1], _structures(labels))
    cut = view.close_up_plane()
    positions = view.close_ups(cut)
    wide = [view.extent(plane, close=False) for plane in PLANES]
    near = view.extent(cut, close=True)
    scale = min((WIDTH - LEGEND - 4 * GAP) / sum(w for _, w in wide), PLANES_HEIGHT / max(h for h, _ in wide))
    zoom = min((WIDTH - (len(positions) + 1) * GAP) / (len(positions) * near[1]), CLOSE_HEIGHT / near[0])
    upper = max(max(h for h, _ in wide) * scale, _legend_height(view.structures))
    height = HEAD + upper + HEAD / 2 + near[0] * zoom + GAP
    figure = Figure(figsize=(WIDTH, height), facecolor=BACKGROUND)

    def panel(x: float, top: float, across: float, down: float) -> Axes:
        return figure.add_axes((x / WIDTH, (height - top - down) / height, across / WIDTH, down / height))

    x, centre = GAP, view.centre()
    for plane, (high, across) in zip(PLANES, wide, strict=True):
        view.draw(panel(x, HEAD, across * scale, high * scale), plane, centre[plane.axis])
        x += across * scale + GAP
    _legend(panel(x, HEAD, WIDTH - x - GAP, upper), labels, view.structures, upper)
    for column, position in enumerate(positions):
        place = panel(GAP + column * (near[1] * zoom + GAP), HEAD * 1.5 + upper, near[1] * zoom, near[0] * zoom)
        view.draw(place, cut, position, close=True)
    line = 1 - HEAD / 2 / height
    figure.text(
        GAP / WIDTH, line, title or Path(volume.source).name, color=TEXT, fontsize=15, weight="bold", va="center"
    )
    figure.text(1 - GAP / WIDTH, line, subtitle, color=FAINT, fontsize=10, ha="right", va="center")
    line = 1 - (HEAD * 1.25 + upper) / height
    figure.text(GAP / WIDTH, line, f"{cut.name} close-ups", color=FAINT, fontsize=9, va="center")
    return figure


def _structures(labels: LabelMap) -> list[Label]:
    """The labels that occur, by id; those that the table lacks are named by their number."""
    known = {label.id: label for label in labels.labels.labels} if labels.labels else {}
    ids = [int(i) for i in np.unique(labels.array) if i]
    return [known.get(i, Label(id=i, name=f"label {i}", color=PALETTE[n % len(PALETTE)])) for n, i in enumerate(ids)]


def _legend_height(structures: list[Label]) -> float:
    rows = min(len(structures), LEGEND_ROWS)
    return rows * (LINE if rows <= LARGE_ROWS else SMALL_LINE) + LINE


def _legend(axes: Axes, labels: LabelMap, structures: list[Label], height: float) -> None:
    """Draw colour, name and volume of every structure; `height` of the panel in inches."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(height, 0))
    volumes = labels.volumes_ml()
    axes.text(0.06, LINE / 2, "structure", color=FAINT, fontsize=9, va="center")
    axes.text(1.0, LINE / 2, "mL", color=FAINT, fontsize=9, ha="right", va="center")
    shown = structures[: LEGEND_ROWS if len(structures) <= LEGEND_ROWS else LEGEND_ROWS - 1]
    large = len(shown) <= LARGE_ROWS
    size, pitch = (11, LINE) if large else (8, SMALL_LINE)
    for row, label in enumerate(shown):
        y = LINE + (row + 0.5) * pitch
        axes.plot(0.08, y, marker="s", markersize=size, color=_rgb(label), markeredgewidth=0)
        axes.text(0.15, y, _short(label.name), color=TEXT, fontsize=size, va="center")
        axes.text(1.0, y, f"{volumes[label.id]:.2f}", color=TEXT, fontsize=size, ha="right", va="center")
    if len(shown) < len(structures):
        more = f"and {len(structures) - len(shown)} more"
        axes.text(0.15, LINE + (len(shown) + 0.5) * pitch, more, color=FAINT, fontsize=size, va="center")
    if not structures:
        axes.text(0.06, 1.5 * LINE, "nothing found", color=TEXT, fontsize=11, va="center")


def _short(name: str, most: int = 30) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _rgb(label: Label) -> tuple[float, float, float]:
    red, green, blue = label.color
    return red / 255, green / 255, blue / 255


class _View:
    """A scan and its classes as canonical arrays (S, A, R), and the positions of the cuts."""

    def __init__(
        self, image: np.ndarray, classes: np.ndarray, spacing: tuple[float, ...], structures: list[Label]
    ) -> None:
        if image.shape != classes.shape:
            raise GeometryError("scan and labels differ in size", why=f"{image.shape} and {classes.shape}")
        self.image, self.classes, self.spacing, self.structures = image, classes, spacing, structures
        self.window = low, high = _window(image)
        found = classes > 0
        self.areas = [found.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        body = _body(image, low + 0.05 * (high - low))
        self.body = [
            (min(a, c), max(b, d)) if self.structures else (a, b)
            for (a, b), (c, d) in zip(body, self.box(), strict=True)
        ]

    def centre(self) -> tuple[int, ...]:
        """Per axis, the slice with the largest area of structures; the middle one where there are none."""
        return tuple(int(area.argmax()) if area.any() else len(area) // 2 for area in self.areas)

    def box(self) -> list[tuple[int, int]]:
        """First and last slice per axis that holds a structure, or the whole scan."""
        used = [np.flatnonzero(area) for area in self.areas]
        return [(int(u[0]), int(u[-1])) if len(u) else (0, len(a) - 1) for u, a in zip(used, self.areas, strict=True)]

    def close_up_plane(self) -> Plane:
        """The plane across the coarsest axis, which has the finest pixels; axial if all axes are alike."""
        coarse = int(np.argmax(self.spacing))
        others = [s for axis, s in enumerate(self.spacing) if axis != coarse]
        return PLANES[coarse if self.spacing[coarse] > 1.1 * max(others) else 0]

    def close_ups(self, plane: Plane) -> list[int]:
        """Evenly spaced slices through the structures, descending."""
        first, last = self.box()[plane.axis]
        count = min(CLOSE_UPS, last - first + 1)
        inset = (last - first) / (2 * count)
        return sorted({round(p) for p in np.linspace(first + inset, last - inset, count)}, reverse=True)

    def limits(self, plane: Plane, *, close: bool) -> list[tuple[float, float]]:
        """Shown part of the plane, in mm from the top and from the left: the body, or with `close` the structures."""
        out = []
        for axis, flipped in zip((a for a in range(3) if a != plane.axis), plane.flip, strict=True):
            size, total = self.spacing[axis], self.spacing[axis] * self.image.shape[axis]
            first, last = self.box()[axis] if close else self.body[axis]
            margin = MARGIN_MM if close else 0.0
            low, high = max(first * size - margin, 0.0), min((last + 1) * size + margin, total)
            out.append((total - high, total - low) if flipped else (low, high))
        return out

    def extent(self, plane: Plane, *, close: bool) -> tuple[float, float]:
        """(height, width) of the shown part, mm."""
        (top, bottom), (left, right) = self.limits(plane, close=close)
        return bottom - top, right - left

    def draw(self, axes: Axes, plane: Plane, position: int, *, close: bool = False) -> None:
        """Draw one cut with its overlay: the body with letters at its sides, or with `close` the structures alone."""
        from matplotlib.patheffects import withStroke

        height, width = (self.spacing[a] for a in range(3) if a != plane.axis)
        image, classes = (_cut(array, plane, position) for array in (self.image, self.classes))
        rows, columns = image.shape
        low, high = self.window
        axes.set_facecolor(PANEL)
        axes.imshow(
            image,
            cmap="gray",
            vmin=low,
            vmax=high,
            extent=(0.0, columns * width, rows * height, 0.0),
            interpolation="bilinear",
        )
        x, y = (np.arange(columns) + 0.5) * width, (np.arange(rows) + 0.5) * height
        for label in self.structures:
            mask = classes == label.id
            if mask.any() and min(mask.shape) > 1:
                axes.contourf(x, y, mask, levels=[0.5, 1.5], colors=[_rgb(label)], alpha=0.35)
                axes.contour(x, y, mask, levels=[0.5], colors=[_rgb(label)], linewidths=1.4)
        (top, bottom), (left, right) = self.limits(plane, close=close)
        axes.set(xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top))
        for spine in axes.spines.values():
            spine.set_visible(False)
        style: dict[str, Any] = {
            "transform": axes.transAxes,
            "color": TEXT,
            "path_effects": [withStroke(linewidth=2, foreground="k")],
        }
        count = f"{position + 1}/{self.image.shape[plane.axis]}"
        axes.text(0.02, 0.02, count if close else f"{plane.name} {count}", fontsize=8 if close else 9, **style)
        for text, (u, v, across, along) in zip(() if close else plane.marks, SIDES, strict=False):
            axes.text(u, v, text, ha=across, va=along, fontsize=11, **style)


def _cut(array: np.ndarray, plane: Plane, position: int) -> np.ndarray:
    cut = np.take(array, position, axis=plane.axis)
    return cut[:: -1 if plane.flip[0] else 1, :: -1 if plane.flip[1] else 1]


def _body(image: np.ndarray, darkest: float) -> list[tuple[int, int]]:
    """First and last slice per axis that has a voxel brighter than `darkest`."""
    bright = image > darkest
    used = [np.flatnonzero(bright.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return [(int(u[0]), int(u[-1])) if len(u) else (0, n - 1) for u, n in zip(used, image.shape, strict=True)]


def _window(image: np.ndarray) -> tuple[float, float]:
    """Intensities shown as black and white: soft tissue for CT, else the percentiles 0.5 and 99.5."""
    flat = image.reshape(-1)
    values = flat[:: max(1, flat.size // 500_000)]
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    if values.min() < CT_AIR:
        return CT_WINDOW
    low, high = np.percentile(values, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))
