"""The named sample data: a head in which the bundled model finds a hippocampus. Slicer's scene.

It is the ICBM 152 T1 template, the scan of `make demo`. Slicer's Sample Data module downloads it from where it is
published; the panel's own button takes it out of a package of the Python package index, without holding Slicer up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MaskSAMCore.config.resources import resource
from MaskSAMCore.demo import CENTRES, MODEL, SCAN, SIZE
from MaskSAMCore.errors import InputError
from SlicerMaskSAMLib.engine.commands import core_command
from SlicerMaskSAMLib.values.choices import Region
from SlicerMaskSAMLib.values.tasks import Steps

NAME = "MaskSAMHead"
CATEGORY = "MaskSAM"
SIDE = "right"
_COMMIT = "a0115edefd75f5c9c31802ea0336c2e015cc784e"
_FILE = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
URL = f"https://raw.githubusercontent.com/nilearn/nilearn/{_COMMIT}/{_FILE}"
SHA256 = "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6"


def register() -> None:
    """Put the scan on the page of Slicer's Sample Data module; to be called when Slicer has started."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=NAME,
        thumbnailFileName=str(resource("Icons", "SlicerMaskSAM.png")),
        uris=URL,
        fileNames=SCAN,
        nodeNames=NAME,
        checksums=f"SHA256:{SHA256}",
    )


def steps(scene: Any, parameters: Any) -> Steps:
    """Bring the scan, load it, and choose a region and the model for it. Returns the volume, for the caller to choose.

    Raises:
        MaskSAMError: The scan cannot be brought, or not be read.
    """
    found = yield core_command("demo", "--scan-only")
    volume = load(Path(found.stdout.strip()))
    parameters.roi = add_region(scene)
    parameters.region = Region.ROI
    parameters.model = MODEL
    return volume


def load(path: Path) -> Any:
    """Load the scan as Slicer would, and show it in the views. Returns the volume node.

    Raises:
        InputError: It cannot be read.
    """
    import slicer

    volume = slicer.modules.volumes.logic().AddArchetypeVolume(str(path), NAME, 0)
    if volume is None:
        raise InputError("the sample scan cannot be read", where=path, remedy="Delete the file, and try again.")
    application = slicer.app.applicationLogic()
    application.GetSelectionNode().SetActiveVolumeID(volume.GetID())
    application.PropagateVolumeSelection()
    return volume


def add_region(scene: Any) -> Any:
    """The region of interest around one hippocampus of the scan, mm RAS."""
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", f"{SIDE.capitalize()} hippocampus")
    roi.SetCenter(*CENTRES[SIDE])
    roi.SetSize(*SIZE)
    roi.CreateDefaultDisplayNodes()
    roi.GetDisplayNode().SetFillVisibility(False)
    return roi
