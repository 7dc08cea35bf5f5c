"""Pictures of a run: its curves, and overlays of validation cases. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from MaskSAMCore.io.atomic import atomic_path
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.training.log import MetricsLog


def save_curves(log: MetricsLog, table: LabelTable, path: Path) -> None:
    """Loss and validation Dice over epochs as one PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*log.series("loss"), color="black", label="training loss")
    left.set(xlabel="epoch", ylabel="loss", title="Training")
    left.legend(frameon=False)
    for label in table.labels:
        color = tuple(c / 255 for c in label.color)
        right.plot(*log.series(f"val {label.name}"), marker=".", color=color, label=label.name)
    right.set(xlabel="epoch", ylabel="Dice", ylim=(0, 1), title="Validation (prepared grid)")
    right.grid(alpha=0.3)
    right.legend(frameon=False)
    _save(figure, path)


def save_overlay(
    image: np.ndarray,
    reference: np.ndarray,
    predicted: np.ndarray,
    table: LabelTable,
    path: Path,
    *,
    picture: bool = False,
    aspect: float = 1.0,
) -> None:
    """Reference (left) and prediction (right) in the slices that hold most of the structures.

    Args:
        image: (D, H, W) intensities, any scale.
        reference, predicted: (D, H, W) classes.
        picture: Rows run down and columns to the right, as in a photograph; else to the anterior and to the right.
        aspect: Height of a voxel over its width.
    """
    area = (reference > 0).sum((1, 2))
    used = np.flatnonzero(area) if area.any() else np.arange(len(area))
    slices = used[np.linspace(0, len(used) - 1, num=min(4, len(used))).round().astype(int)]
    low, high = np.percentile(image, (0.5, 99.5))
    figure = Figure(figsize=(2.4 * len(slices), 5), layout="constrained")
    axes: Any = figure.subplots(2, len(slices), squeeze=False)
    for row, (name, classes) in enumerate((("reference", reference), ("prediction", predicted))):
        for column, z in enumerate(slices):
            axis = axes[row][column]
            origin: Literal["upper", "lower"] = "upper" if picture else "lower"
            axis.imshow(image[z], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin=origin, aspect=aspect)
            if not picture:
                # The patient's right is on the viewer's left.
                axis.invert_xaxis()
            for index, label in enumerate(table.labels, start=1):
                if (classes[z] == index).any():
                    color = tuple(c / 255 for c in label.color)
                    axis.contour(classes[z] == index, levels=[0.5], colors=[color], linewidths=1.2)
            axis.set(xticks=[], yticks=[], title=f"slice {z}" if row == 0 else "")
        axes[row][0].set_ylabel(name)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, overwrite=True) as temporary:
        FigureCanvasAgg(figure).print_figure(str(temporary), dpi=110, format="png")
