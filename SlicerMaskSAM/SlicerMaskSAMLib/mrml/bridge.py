"""MRML volumes and segments as numpy arrays on a volume's grid.

Arrays are (K, J, I), boxes (k0, k1, j0, j1, i0, i1) with upper ends exclusive, points mm in RAS. A volume's own frame
is that of its IJK-to-RAS matrix; parent transforms lead from there to the world.
"""

from __future__ import annotations

from SlicerMaskSAMLib.mrml.segments import (
    add_segment,
    extent,
    new_segmentation,
    other_segments,
    outdated_surfaces,
    read_segment,
    refresh_surface,
    remove_segment,
    segment_label,
    set_label,
    stamp,
    write_segment,
)
from SlicerMaskSAMLib.mrml.volumes import (
    Geometry,
    RoiMessage,
    Source,
    fingerprint,
    geometry,
    ijk_to_world,
    roi_region,
    same_frame,
    scalars,
    source,
    view_plane,
    view_region,
    world_to_ijk,
)

__all__ = [
    "Geometry",
    "RoiMessage",
    "Source",
    "add_segment",
    "extent",
    "fingerprint",
    "geometry",
    "ijk_to_world",
    "new_segmentation",
    "other_segments",
    "outdated_surfaces",
    "read_segment",
    "refresh_surface",
    "remove_segment",
    "roi_region",
    "same_frame",
    "scalars",
    "segment_label",
    "set_label",
    "source",
    "stamp",
    "view_plane",
    "view_region",
    "world_to_ijk",
    "write_segment",
]
