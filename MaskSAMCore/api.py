"""The Python interface: load a model, segment a scan, click in it.

    import MaskSAMCore as masksam

    model = masksam.load("hippocampus-mr")
    result = model.segment("scan.nii.gz")
    session = model.open("scan.nii.gz")
    mask = session.click((20, 31, 14))

Arrays are (I, J, K) and positions (i, j, k), as nibabel indexes them; millimetres are RAS.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MaskSAMCore.errors import InputError
from MaskSAMCore.interactive_session import InteractiveSession
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.progress import Progress, no_progress
from MaskSAMCore.volume import LabelMap, Roi, Volume

if TYPE_CHECKING:
    from MaskSAMCore.inference.predictor import Predictor

Scan = Any
"""A path, a list of paths (one per channel), a nibabel or SimpleITK image, (array, affine), or a `Volume`."""


def load(model: str | Path, *, device: str = "auto") -> Model:
    """Load a model. Base weights that it needs are downloaded on first use.

    Args:
        model: Name of an installed model (see `list_models`), or the folder of one.
        device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        ModelError: There is no such model, it is damaged, or its base weights cannot be had.
        InputError: The device does not exist.
    """
    from MaskSAMCore.inference.predictor import Predictor

    return Model(Predictor(model, device=device))


def list_models() -> list[str]:
    """Names of the models on this computer: bundled, imported and taught ones."""
    from MaskSAMCore.zoo.installed import installed_models

    return [model.name for model in installed_models() if model.card is not None]


def read_volume(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    frame: int | None = None,
    channel: int | None = None,
    series: str | None = None,
    resample: bool = False,
) -> Volume:
    """Read a scan.

    Args:
        path: NIfTI, NRRD or MetaImage file, DICOM folder, or picture; or a list of files, one per channel.
        frame: Which frame of a 4-D file, from 0; needed where there are several.
        channel: Which channel of a colour file, from 0.
        series: Which series of a DICOM folder; needed where there are several.
        resample: Whether tilted or irregular slices may be resampled; they are refused otherwise.

    Returns:
        A volume: `array` float32 (K, J, I), or (C, K, J, I); `grid.affine` from voxels to RAS mm; `grid.spacing` in mm.

    Raises:
        InputError: The file is missing, damaged or of an unknown format, or a choice is needed.
        GeometryError: The scan has no usable place in space.
    """
    from MaskSAMCore.io.images import read_volume as read

    return read(path, frame=frame, channel=channel, series=series, resample=resample)


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The structures that a model found in a scan.

    Attributes:
        labels: (I, J, K) integers on exactly the grid of the scan; 0 is background.
        affine: 4x4, voxel (i, j, k, 1) to RAS mm.
        names: Name of each label, also of those that were not found.
        volumes_ml: Volume of each structure, mL, by name; 0.0 where it was not found.
        warnings: What a reader should know, such as a scan unlike those of the training.
        device: Where the network ran.
        seconds: Time from the scan in memory to the result.
    """

    labels: np.ndarray
    affine: np.ndarray
    names: dict[int, str]
    volumes_ml: dict[str, float]
    warnings: tuple[str, ...]
    device: str
    seconds: float
    _labelmap: LabelMap
    _table: LabelTable
    _volume: Volume
    _model: str

    def mask(self, structure: str | int) -> np.ndarray:
        """One structure, by name or label, as booleans (I, J, K).

        Raises:
            InputError: The model has no such structure.
        """
        if isinstance(structure, str):
            return self.labels == self._table.only([structure]).labels[0].id
        if structure not in self.names:
            raise InputError("no such label", where=structure, remedy=f"There are {self.names}.")
        return self.labels == structure

    def save(
        self, path: str | os.PathLike[str], *, formats: Sequence[str] | None = None, overwrite: bool = False
    ) -> list[Path]:
        """Write the result as `masksam segment -o` does.

        Args:
            path: A folder, for a label map (.nii.gz), a Slicer segmentation (.seg.nrrd), a table of volumes (.csv)
                and a picture (.png); or one file, by its suffix: .nii.gz .nii .nrrd .mha .seg.nrrd, or .dcm
                (DICOM SEG) or .rtstruct.dcm for a scan from a DICOM folder.
            formats: For a folder, which segmentations in place of nii and seg.nrrd: names of `segment --formats`.
            overwrite: Replace existing files.

        Returns:
            The files that were written.

        Raises:
            InputError: A file exists, or cannot be written in this format.
            ResourceError: The disk is full; nothing is left half-written.
        """
        from MaskSAMCore import outputs

        source = Path(self._volume.source or "scan")
        scan = outputs.Case(name=outputs.case_name(source), scans=(source,))
        names = None if formats is None else outputs.parse_formats(",".join(formats))
        case = outputs.place([scan], Path(path), formats=names)[0]
        if outputs.ready(case, overwrite=overwrite):
            raise InputError("the results exist already", where=case.targets[0], remedy="Allow overwriting.")
        return outputs.write(case, self._volume, self._labelmap, subtitle=self._model, overwrite=overwrite)

    def to_nibabel(self) -> Any:
        """The label map as a `nibabel.Nifti1Image`; needs the package nibabel."""
        from MaskSAMCore.io.in_memory import to_nibabel

        return to_nibabel(self._labelmap)

    def to_sitk(self) -> Any:
        """The label map as a `SimpleITK.Image`."""
        from MaskSAMCore.io.in_memory import to_sitk

        return to_sitk(self._labelmap)


class Model:
    """A loaded model; made by `load`.

    Attributes:
        name: Of the model.
        structures: Names of what it finds.
        device: Where it computes.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.name = predictor.card.name
        self.structures = tuple(label.name for label in predictor.card.labels.labels)

    @property
    def device(self) -> str:
        """Where the network computes now, such as "cuda:0"."""
        return str(self._predictor.device)

    def segment(
        self,
        scan: Scan,
        *,
        roi: Sequence[float] | Sequence[Sequence[float]] | None = None,
        structures: Sequence[str] | None = None,
        tta: bool = False,
        progress: Progress = no_progress,
    ) -> Segmentation:
        """Find all structures in a scan, without a prompt.

        Args:
            scan: A path, a list of paths (one per channel), a nibabel or SimpleITK image, (array, affine) with the
                array (I, J, K), or what `read_volume` gave.
            roi: Search only in this box: centre and size (R, A, S, dR, dA, dS) in mm; or a list of such boxes.
            structures: Keep only these.
            tta: Average over mirrored copies: slower, a little better.
            progress: Called with (done, total, text) after every window.

        Raises:
            InputError: The scan cannot be used, a box misses it, or the model takes prompts only.
            ResourceError: The scan needs more memory than is free.
        """
        from MaskSAMCore.outputs import only

        table = self._predictor.card.labels
        table = table if structures is None else table.only(structures)
        volume = _volume(scan)
        found = self._predictor.segment(volume, roi=_rois(roi), tta=tta, progress=progress)
        labelmap = found.labels if structures is None else only(found.labels, table)
        names = {label.id: label.name for label in table.labels}
        volumes = labelmap.volumes_ml()
        return Segmentation(
            labels=labelmap.array.T,
            affine=labelmap.grid.affine,
            names=names,
            volumes_ml={name: volumes.get(number, 0.0) for number, name in names.items()},
            warnings=found.warnings,
            device=found.device,
            seconds=found.seconds,
            _labelmap=labelmap,
            _table=table,
            _volume=volume,
            _model=self.name,
        )

    def open(self, scan: Scan) -> InteractiveSession:
        """Open a scan for clicks and boxes.

        Args:
            scan: As for `segment`.

        Raises:
            InputError: The scan cannot be used.
            ModelError: The model takes no prompts.
        """
        from MaskSAMCore.inference.checks import require_prompts
        from MaskSAMCore.inference.sessions import open_session

        require_prompts(self._predictor.card)
        volume = _volume(scan)
        session = open_session(self._predictor.network, self._predictor.card, volume, device=self._predictor.device)
        return InteractiveSession(session, {label.name: label.id for label in self._predictor.card.labels.labels})


def _volume(scan: Scan) -> Volume:
    from MaskSAMCore.io.in_memory import volume_of

    if isinstance(scan, (str, os.PathLike)) or (
        isinstance(scan, (list, tuple)) and scan and all(isinstance(part, (str, os.PathLike)) for part in scan)
    ):
        return read_volume(scan)
    return volume_of(scan)


def _rois(roi: Any) -> list[Roi]:
    if roi is None:
        return []
    try:
        boxes = np.atleast_2d(np.asarray(roi, dtype=np.float64))
    except (TypeError, ValueError):
        boxes = np.empty((0, 0))
    if boxes.ndim != 2 or boxes.shape[1] != 6:
        raise InputError(
            "a region is six numbers", where="roi", why=f"found {roi!r}", remedy="Give (R, A, S, dR, dA, dS) in mm."
        )
    return [Roi(center=tuple(box[:3]), size=tuple(box[3:])) for box in boxes.tolist()]
