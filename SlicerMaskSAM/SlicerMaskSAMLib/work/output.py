"""Output: volumes table, DICOM SEG, training cases, command line."""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

import MaskSAMCore
from MaskSAMCore.errors import InputError
from MaskSAMCore.label_statistics import Intensities, StructureSums
from MaskSAMCore.labels import Code, Label
from MaskSAMCore.terminology import has_codes, lookup
from MaskSAMCore.worker.results import Exported, SavedCase
from MaskSAMCore.zoo.base_weights import home
from SlicerMaskSAMLib.engine.commands import interpreter
from SlicerMaskSAMLib.engine.engine_link import ENGINE_MODALITIES
from SlicerMaskSAMLib.mrml import bridge, labelmaps
from SlicerMaskSAMLib.mrml.bridge import Geometry, Source
from SlicerMaskSAMLib.mrml.modality import modality
from SlicerMaskSAMLib.mrml.parameters import ANY_DEVICE, MaskSAMParameterNode
from SlicerMaskSAMLib.values.shell import shell_command
from SlicerMaskSAMLib.values.sparse import VoxelBox
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.segment_request import SegmentRequest, segment_ids

TABLE_OF = "MaskSAM.segmentation"
"""Role of the node reference from a volumes table to its segmentation."""
NUMBERS = (
    *("Volume [mL]", "Mean", "SD", "Minimum", "Maximum"),
    *("Centroid R [mm]", "Centroid A [mm]", "Centroid S [mm]"),
)
NOT_KNOWN = math.nan
"""In the table where an empty segment has no value."""
VOXELS_PER_STEP = 4_000_000
"""Voxels read before control returns to the GUI."""
COMPARED_STEP = 4
"""Every n-th voxel along rows and columns of a DICOM slice is compared with the file."""
FORBIDDEN_IN_NAMES = '<>:"/\\|?*'
"""Characters that some systems forbid in file names."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentMask:
    """A segment that is not empty: uint8 0/1 (k, j, i) on a box of the grid."""

    label: Label
    box: VoxelBox
    mask: np.ndarray

    def to_message(self) -> dict[str, Any]:
        """The segment as the worker's protocol defines it."""
        codes = {"category": self.label.category, "type": self.label.type, "modifier": self.label.modifier}
        return {
            "name": self.label.name,
            "color": list(self.label.color),
            **{key: _code_message(code) for key, code in codes.items()},
            "box": list(self.box),
            "mask": self.mask.view(bool),  # sent without a conversion of every voxel
        }


def _code_message(code: Code | None) -> dict[str, str] | None:
    return None if code is None else {"scheme": code.scheme, "value": code.value, "meaning": code.meaning}


def training_folder(parameters: MaskSAMParameterNode) -> Path:
    """Folder of training cases: the chosen one, else the user's default folder."""
    return Path(parameters.trainingFolder) if parameters.trainingFolder else home("data") / "training"


class Output:
    """Writes the chosen segmentation, on the grid of the chosen volume.

    Args:
        context: Its parameters name volume, segmentation and model, read when they are needed.
        dicom_files: Returns the file of an instance UID; None for Slicer's DICOM database.
        python: Interpreter of the printed command; Slicer's if empty.
    """

    def __init__(
        self,
        context: Context,
        *,
        dicom_files: Callable[[str], str] | None = None,
        python: str = "",
    ) -> None:
        self._context, self._dicom_files, self._python = context, dicom_files, python or interpreter()

    # -- the table ---------------------------------------------------------------------------------------------------

    def volumes_table(self) -> Steps:
        """Steps to a table node with a row for each segment; the table made before is filled anew.

        The columns are those of `segment --statistics`: voxels, mL, intensities in the volume's units, centroid. Voxels
        are those of the volume's own grid, the centroid is in world RAS. Unknown values are NaN: those of an empty
        segment, and the intensities in a volume of several components.

        Raises:
            InputError: There is no volume, or no segmentation with segments.
        """
        volume, segmentation = self._require_inputs()
        names, voxels = vtk.vtkStringArray(), vtk.vtkIntArray()
        numbers = [vtk.vtkDoubleArray() for _ in NUMBERS]
        for segment_id in segment_ids(segmentation):
            sums = yield from self._measured(volume, segmentation, segment_id)
            names.InsertNextValue(segmentation.GetSegmentation().GetSegment(segment_id).GetName())
            voxels.InsertNextValue(sums.voxels)
            for column, value in zip(numbers, _numbers(sums, volume), strict=True):
                column.InsertNextValue(value)
            yield None
        table = self._table(segmentation)
        table.RemoveAllColumns()
        for name, column in zip(("Structure", "Voxels", *NUMBERS), (names, voxels, *numbers), strict=True):
            column.SetName(name)
            table.AddColumn(column)
        logic = slicer.app.applicationLogic()
        logic.GetSelectionNode().SetActiveTableID(table.GetID())
        logic.PropagateTableSelection()
        self._context.log(f"The volumes are in the table {table.GetName()}.")
        return table

    def _measured(self, volume: Any, segmentation: Any, segment_id: str) -> Steps:
        """Steps to the `StructureSums` of a segment."""
        geometry = bridge.geometry(volume)
        values = bridge.scalars(volume) if volume.GetImageData().GetNumberOfScalarComponents() == 1 else None
        sums = StructureSums()
        for box in _slabs(bridge.extent(segmentation, segment_id, geometry)):
            yield None
            k0, k1, j0, j1, i0, i1 = box
            mask = bridge.read_segment(segmentation, segment_id, geometry, box)
            sums.add(mask, None if values is None else values[k0:k1, j0:j1, i0:i1], (k0, j0, i0))
        return sums

    def _table(self, segmentation: Any) -> Any:
        scene = self._context.scene
        for node in slicer.util.getNodesByClass("vtkMRMLTableNode", scene):
            if node.GetNodeReferenceID(TABLE_OF) == segmentation.GetID():
                return node
        name = scene.GenerateUniqueName(f"{segmentation.GetName()} volumes")
        table = scene.AddNewNodeByClass("vtkMRMLTableNode", name)
        table.SetNodeReferenceID(TABLE_OF, segmentation.GetID())
        return table

    # -- files written by the engine ---------------------------------------------------------------------------------

    def export_dicom(self, path: str, *, allow_uncoded: bool = False) -> Steps:
        """Steps to a DICOM SEG that refers to the volume's series.

        Args:
            path: The .dcm file to write; an existing file is replaced.
            allow_uncoded: Whether structures without a DICOM code are exported as Tissue.

        Raises:
            InputError: Everything that is missing, in one message; overlapping segments, found by the engine,
                separately.
            MaskSAMError: The engine cannot write it; the message names the place where the result was kept, if it was.
        """
        volume, segmentation = self._require_inputs()
        origin = self._source(volume)
        problems = [] if origin.kind == "dicom" else [_no_dicom(volume, origin)]
        problems += self._misplaced(volume, segmentation)
        labels = [bridge.segment_label(segmentation, each) for each in segment_ids(segmentation)]
        uncoded = [label.name for label in labels if not has_codes(label) and lookup(label.name) is None]
        if uncoded and not allow_uncoded:
            problems.append(f"no DICOM code for {', '.join(uncoded)}; set the terminology, or export as Tissue")
        if problems:
            raise InputError("this segmentation cannot be exported as DICOM SEG", why="; ".join(problems))
        geometry = bridge.geometry(volume)
        masks = yield from self._segment_masks(segmentation, geometry)
        model = self._context.model
        exported: Exported = yield self._context.engine_link.client.submit(
            "export_seg",
            files=list(origin.paths),
            path=str(Path(path).absolute()),
            shape=list(geometry.shape),
            affine=geometry.affine,
            segments=[mask.to_message() for mask in masks],
            model=model.name if model is not None else "MaskSAM",
            allow_uncoded=allow_uncoded,
        )
        self._context.log(f"Exported {', '.join(exported.structures)} to {exported.path}.")
        return exported

    def save_case(self, name: str = "") -> Steps:
        """Steps to a training case: the volume on its own grid, segments as labels.

        Where segments overlap, the voxels go to the later one in the list, with a message.

        Args:
            name: Name of the case; the volume's if empty.

        Raises:
            InputError: Something is missing, or the segments are not aligned with the volume's voxels.
            MaskSAMError: The engine cannot save it; the message names the place where the result was kept, if it was.
        """
        volume, segmentation = self._require_inputs()
        problems = self._misplaced(volume, segmentation)
        if problems:
            raise InputError(
                "this cannot be saved as a training case",
                why="; ".join(problems),
                remedy="Choose the volume that was segmented.",
            )
        geometry, folder, model = (
            bridge.geometry(volume),
            training_folder(self._context.parameters),
            self._context.model,
        )
        masks = yield from self._segment_masks(segmentation, geometry)
        found = modality(volume) or (model.card.modality if model is not None and model.card is not None else "")
        saved: SavedCase = yield self._context.engine_link.client.submit(
            "save_case",
            folder=str(folder.expanduser().absolute()),
            name=name or volume.GetName() or "case",
            volume=bridge.scalars(volume),
            affine=geometry.affine,
            segments=[mask.to_message() for mask in masks],
            modality=found if found in ENGINE_MODALITIES else None,
        )
        self._context.log(f"Saved as training case {saved.name}: {', '.join(saved.labels)}.")
        for line in saved.notes:
            self._context.log(line)
        self._context.changed()
        return saved

    # -- the command -------------------------------------------------------------------------------------------------

    def command_line(self, slice_node: Any = None) -> str:
        """The command that segments the volume's file as Segment would, voxel for voxel.

        Args:
            slice_node: The slice view used for Region.VIEW.

        Raises:
            InputError: Volume, model, region or structures are missing, or no file contains the volume as it is.
        """
        request = SegmentRequest.of(self._context, slice_node)
        origin = self._source(request.volume)
        if not origin.kind or (origin.kind == "file" and len(origin.paths) > 1):
            why = origin.problem or f"it was read from {len(origin.paths)} files"
            raise InputError("no command gives this segmentation", where=request.name, why=why)
        scan = [origin.paths[0]]
        if origin.kind == "dicom":
            _check_slice(request.volume, origin.paths[len(origin.paths) // 2])
            first = Path(origin.paths[0])
            scan = [str(first.parent), "--series", f"./{first.name}"]
        out = "".join("_" if mark in FORBIDDEN_IN_NAMES or mark < " " else mark for mark in request.name)
        words = [self._python, "-m", "MaskSAMCore.segment", *scan, "-m", request.model, "-o", f"./{out}.seg.nrrd"]
        words += ["--step", repr(request.step)]
        for region in request.regions:
            words.append("--roi=" + ",".join(repr(float(mm)) for mm in (*region["center"], *region["size"])))
        if self._context.parameters.skippedStructures:
            words += _structures([label.name for label in request.labels.values()])
        if self._context.parameters.device != ANY_DEVICE:
            words += ["--device", self._context.parameters.device]
        return shell_command(words, {} if _installed() else {"PYTHONPATH": str(_package_home())})

    # -- shared ------------------------------------------------------------------------------------------------------

    def _require_inputs(self) -> tuple[Any, Any]:
        """The chosen volume and segmentation."""
        parameters = self._context.parameters
        volume, segmentation = parameters.inputVolume, parameters.segmentation
        if volume is None or volume.GetImageData() is None:
            raise InputError("no volume is chosen", remedy="Choose a volume first.")
        if not segment_ids(segmentation):
            raise InputError("nothing is segmented", remedy="Segment or draw something first.")
        return volume, segmentation

    def _source(self, volume: Any) -> Source:
        """The volume's files; DICOM files count as DICOM however they were loaded."""
        found = bridge.source(volume, self._dicom_files)
        if found.kind == "file" and all(_is_dicom(path) for path in found.paths):
            return Source(kind="dicom", paths=found.paths)
        return found

    @staticmethod
    def _misplaced(volume: Any, segmentation: Any) -> list[str]:
        """Reasons why the segments are not aligned with the volume's voxels."""
        if not bridge.same_frame(volume, segmentation):
            return [f"{segmentation.GetName()} and {volume.GetName()} have different parent transforms"]
        geometry, off_grid = bridge.geometry(volume), []
        for segment_id in segment_ids(segmentation):
            segment = labelmaps.segment_of(segmentation, segment_id)
            image = segment.GetRepresentation(labelmaps.BINARY)
            if not labelmaps.is_empty(image) and labelmaps.aligned_voxels(image, geometry) is None:
                off_grid.append(segment.GetName())
        if not off_grid:
            return []
        return [f"{', '.join(off_grid)} lies on another grid than {volume.GetName()}"]

    def _segment_masks(self, segmentation: Any, geometry: Geometry) -> Steps:
        """Steps to the segments that are not empty."""
        masks = []
        for number, segment_id in enumerate(segment_ids(segmentation), start=1):
            yield None
            label = bridge.segment_label(segmentation, segment_id, number)
            box = bridge.extent(segmentation, segment_id, geometry)
            if box is None:
                self._context.log(f"{label.name} is empty and was left out.")
            else:
                mask: np.ndarray = np.empty(
                    [high - low for low, high in zip(box[::2], box[1::2], strict=True)], np.uint8
                )
                for slab in _slabs(box):
                    yield None
                    here = slice(slab[0] - box[0], slab[1] - box[0])
                    mask[here] = bridge.read_segment(segmentation, segment_id, geometry, slab)
                masks.append(SegmentMask(label=label, box=box, mask=mask))
        if not masks:
            raise InputError("nothing is segmented", remedy="Segment or draw something first.")
        return masks


def _slabs(box: VoxelBox | None) -> Iterator[VoxelBox]:
    """A box as slabs that are read in a few milliseconds each; empty for None."""
    if box is None:
        return
    k0, k1, j0, j1, i0, i1 = box
    slices = max(1, VOXELS_PER_STEP // ((j1 - j0) * (i1 - i0)))
    for low in range(k0, k1, slices):
        yield low, min(low + slices, k1), j0, j1, i0, i1


def _numbers(sums: StructureSums, volume: Any) -> list[float]:
    """Values of the columns `NUMBERS`."""
    (found,) = sums.intensities
    middle = sums.centroid_ijk
    return [
        sums.voxels * bridge.geometry(volume).voxel_volume_ml,
        *(found or [NOT_KNOWN] * len(Intensities._fields)),
        *([NOT_KNOWN] * 3 if middle is None else map(float, bridge.ijk_to_world(volume, [middle])[0])),
    ]


def _no_dicom(volume: Any, origin: Source) -> str:
    why = origin.problem or f"it was read from {origin.paths[0]}"
    return f"{volume.GetName()} does not come from DICOM: {why}"


def _is_dicom(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _check_slice(volume: Any, path: str) -> None:
    """Compare a volume with one of its DICOM files.

    Slicer does not record changes made after reading.

    Raises:
        InputError: They differ, or the file cannot be read.
    """
    from MaskSAMCore.io.images import read_volume

    read = read_volume(path)
    k, j, i = (
        np.arange(0, size, step) for size, step in zip(read.grid.shape, (1, COMPARED_STEP, COMPARED_STEP), strict=True)
    )
    k = k[len(k) // 2 :][:1]
    wanted = read.array[np.ix_(k, j, i)].ravel()
    places = np.stack(np.meshgrid(k, j, i, indexing="ij"), axis=-1).reshape(-1, 3)[:, ::-1]
    geometry = bridge.geometry(volume)
    ijk = geometry.to_ijk(read.grid.to_ras(places))
    near = np.rint(ijk).astype(int)
    same = np.abs(ijk - near).max() < labelmaps.ALIGNED and bool(geometry.inside(near).all())
    if not same or not np.allclose(bridge.scalars(volume)[tuple(near.T[::-1])], wanted, rtol=1e-4, atol=1e-4):
        why = "it was changed since it was read; save it first"
        raise InputError("no command gives this segmentation", where=volume.GetName(), why=why)


def _structures(names: list[str]) -> list[str]:
    """Options that name structures; a name with a comma needs an option of its own."""
    plain = [name for name in names if "," not in name]
    texts = [",".join(plain)] if plain else []
    return [f"--structures={text}" for text in (*texts, *(name for name in names if "," in name))]


def _package_home() -> Path:
    return Path(MaskSAMCore.__file__).resolve().parents[1]


def _installed() -> bool:
    """Whether every program of this interpreter finds the package."""
    return _package_home() in {Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib")}
