"""The table of a result: voxels and volume of every structure, and on request its statistics, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from MaskSAMCore.label_statistics import Intensities, StructureStatistics, measure_structures
from MaskSAMCore.volume import LabelMap, Volume

VOLUMES = ("label", "structure", "voxels", "volume_ml")
CENTROID = ("centroid_r_mm", "centroid_a_mm", "centroid_s_mm")


def volume_rows(labels: LabelMap) -> list[tuple[int, str, int, float]]:
    """(id, name, voxels, mL) of every structure of the label table, found or not, and of ids without a name."""
    found = dict(zip(*(v.tolist() for v in np.unique(labels.array, return_counts=True)), strict=True))
    names = {label.id: label.name for label in labels.labels.labels} if labels.labels else {}
    ids = [*names, *(i for i in found if i and i not in names)]
    unit = labels.grid.voxel_volume_ml
    return [(i, names.get(i, f"label {i}"), found.get(i, 0), found.get(i, 0) * unit) for i in ids]


def volumes_table(labels: LabelMap, volume: Volume | None = None, channels: Sequence[str] = ()) -> str:
    """`volume_rows` as CSV text, with statistics where the scan is given.

    Columns are `VOLUMES`; with a scan then `mean`, `sd`, `minimum` and `maximum` in the units of the scan (once per
    channel, `mean_NAME` and so on, where there are several), and the centroid in mm, RAS. An empty structure has empty
    cells there.

    Args:
        labels: The result.
        volume: The scan, on the same grid; None for a table without statistics.
        channels: Names of its channels; numbers are taken where they do not fit.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if volume is None:
        writer.writerow(VOLUMES)
    else:
        writer.writerow([*VOLUMES, *_intensity_columns(volume, channels), *CENTROID])
    statistics = {} if volume is None else measure_structures(labels, volume)
    for number, name, voxels, millilitres in volume_rows(labels):
        cells = _cells(statistics[number]) if number in statistics else []
        writer.writerow([number, name, voxels, f"{millilitres:.4f}", *cells])
    return text.getvalue()


def _intensity_columns(volume: Volume, channels: Sequence[str]) -> list[str]:
    if volume.channels == 1:
        return list(Intensities._fields)
    fit = len(set(channels)) == volume.channels
    names = channels if fit else [str(n) for n in range(volume.channels)]
    return [f"{field}_{name}" for name in names for field in Intensities._fields]


def _cells(found: StructureStatistics) -> list[str]:
    cells: list[str] = []
    for values in found.intensities:
        cells += [""] * len(Intensities._fields) if values is None else [f"{value:.7g}" for value in values]
    return cells + ([""] * 3 if found.centroid_ras is None else [f"{mm:.3f}" for mm in found.centroid_ras])
