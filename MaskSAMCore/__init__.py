"""MaskSAM: automatic and interactive segmentation of CT and MRI with an adapted Segment Anything Model.

import MaskSAMCore as masksam

model = masksam.load("hippocampus-mr")
result = model.segment("scan.nii.gz")
print(result.volumes_ml)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from MaskSAMCore.api import (
        InteractiveSession,
        Model,
        Segmentation,
        list_models,
        load,
        read_volume,
    )
    from MaskSAMCore.errors import MaskSAMError

__version__ = "0.1.0"
__all__ = [
    "InteractiveSession",
    "MaskSAMError",
    "Model",
    "Segmentation",
    "__version__",
    "list_models",
    "load",
    "read_volume",
]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used (PEP 562): `import MaskSAMCore` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "MaskSAMError":
        from MaskSAMCore.errors import MaskSAMError

        return MaskSAMError
    from MaskSAMCore import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
