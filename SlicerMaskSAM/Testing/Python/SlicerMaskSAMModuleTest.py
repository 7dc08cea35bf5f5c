"""Tests of the module that run inside Slicer.

Run them by "Reload and Test" in Slicer's developer mode, or by ctest in a build tree. Tests that need the engine are
skipped until Set up was pressed, those that need the sample scan are skipped without a network.
"""

from __future__ import annotations

import time
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import slicer.util

from MaskSAMCore.errors import MaskSAMError
from SlicerMaskSAMLib.engine.install import Setup
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.choices import Scope, Speed
from SlicerMaskSAMLib.values.status import Phase
from SlicerMaskSAMLib.values.tasks import Steps, Task
from SlicerMaskSAMLib.work import sample_data

MODULE = "SlicerMaskSAM"
PLAUSIBLE_ML = (1.0, 8.0)
"""Volume of a hippocampus."""
LONG_S = 1800.0


class SlicerMaskSAMModuleTest(unittest.TestCase):
    """The module in an empty scene."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()
        slicer.util.selectModule(MODULE)
        self.widget = slicer.util.getModuleWidget(MODULE)
        self.controller = self.widget.logic.controller

    def tearDown(self) -> None:
        self.controller.cancel()
        self.wait(lambda: not self.controller.status().task)

    @property
    def parameters(self) -> Any:
        """The parameter node of the present scene."""
        return self.widget.logic.parameters

    def wait(self, what: Any) -> None:
        """Process events until something is true."""
        end = time.monotonic() + LONG_S
        while not what():
            self.assertLess(time.monotonic(), end, "it takes too long")
            self.controller.tick()
            slicer.app.processEvents()
            time.sleep(0.01)

    def settle(self) -> None:
        """Wait until no task is running."""
        self.controller.tick()
        self.wait(lambda: self.controller.status().phase is Phase.IDLE and not self.controller.status().task)

    def finish(self, steps: Steps) -> Any:
        """Run steps to their end; returns their result."""
        returned: list[Any] = []
        errors: list[MaskSAMError] = []

        def all_of_them() -> Steps:
            returned.append((yield from steps))

        task = Task("test", all_of_them(), on_error=errors.append)
        self.wait(lambda: (task.tick(), task.ended)[1])
        if errors:
            raise errors[0]
        return returned[0]

    def voxels(self, segment_id: str) -> np.ndarray:
        """Voxels of a segment on the grid of the volume."""
        grid = bridge.geometry(self.parameters.inputVolume)
        return bridge.read_segment(self.parameters.segmentation, segment_id, grid)

    def test_the_panel_offers_the_bundled_model(self) -> None:
        self.assertIn("hippocampus-mr", [row.name for row in self.controller.status().models])
        self.assertGreaterEqual(self.widget.panel.ui.modelCombo.count, 1)

    def test_the_scene_keeps_the_settings(self) -> None:
        self.parameters.scope, self.parameters.speed = Scope.VOLUME, Speed.FAST
        self.parameters.skippedStructures = ["Anterior hippocampus"]
        path = Path(slicer.app.temporaryPath) / "masksam-settings.mrb"
        self.addCleanup(path.unlink, missing_ok=True)
        self.assertTrue(slicer.util.saveScene(str(path)))
        slicer.mrmlScene.Clear()
        self.assertIs(self.parameters.scope, Scope.SLAB)
        slicer.util.loadScene(str(path))
        self.assertEqual((self.parameters.scope, self.parameters.speed), (Scope.VOLUME, Speed.FAST))
        self.assertEqual(list(self.parameters.skippedStructures), ["Anterior hippocampus"])

    def test_the_sample_data_has_its_name(self) -> None:
        import SampleData

        source = SampleData.SampleDataLogic().sourceForSampleName(sample_data.NAME)
        self.assertIsNotNone(source)
        self.assertEqual(source.uris, [sample_data.URL])

    def test_a_hippocampus_is_found_clicked_and_restored(self) -> None:
        if missing := Setup().missing():
            self.skipTest(f"press Set up first: {', '.join(need.name for need in missing)} missing")
        try:
            volume = self.finish(sample_data.steps(slicer.mrmlScene, self.parameters))
        except MaskSAMError as error:
            self.skipTest(str(error))
        self.controller.choose_volume(volume)
        self.controller.segment()
        self.settle()
        segments = self.parameters.segmentation.GetSegmentation()
        found = {segments.GetSegment(name).GetName(): name for name in segments.GetSegmentIDs()}
        self.assertEqual(set(found), {"Anterior hippocampus", "Posterior hippocampus"})
        before = {name: self.voxels(name) for name in found.values()}
        millilitres = sum(int(mask.sum()) for mask in before.values()) / 1000  # voxels of 1 mm
        self.assertTrue(PLAUSIBLE_ML[0] < millilitres < PLAUSIBLE_ML[1], f"{millilitres} mL")

        clicked = found["Anterior hippocampus"]
        k, j, i = np.argwhere(before[clicked])[0]
        self.controller.choose_segment(clicked)
        red = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode()
        self.controller.click(bridge.ijk_to_world(volume, [(i, j, k)])[0], False, red)
        self.settle()
        self.assertEqual(self.voxels(clicked)[k, j, i], 0)
        self.controller.undo()
        self.settle()
        for name, mask in before.items():
            np.testing.assert_array_equal(self.voxels(name), mask)
