"""Dialogs for consent and file names, with Qt."""

from __future__ import annotations

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _


class Dialogs:
    """Asks the user. A dialog that is cancelled returns False or ""."""

    def consent(self, text: str) -> bool:
        """Whether the user agrees."""
        return bool(slicer.util.confirmOkCancelDisplay(text))

    def model_file(self) -> str:
        """File of a model or of base weights to import."""
        kinds = _("Models and base weights") + " (*.zip *.pt *.pth *.safetensors);;" + _("All files") + " (*)"
        return qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), _("Import model file"), "", kinds)

    def dicom_file(self) -> str:
        """File to which a DICOM segmentation is written."""
        kinds = _("DICOM segmentation") + " (*.dcm)"
        parent = slicer.util.mainWindow()
        return qt.QFileDialog.getSaveFileName(parent, _("Export DICOM SEG"), "segmentation.dcm", kinds)

    def folder(self, start: str) -> str:
        """Folder of training cases."""
        parent = slicer.util.mainWindow()
        return qt.QFileDialog.getExistingDirectory(parent, _("Folder of training cases"), start)
