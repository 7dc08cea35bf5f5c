"""Pictures of the module, drawn offscreen: `python -m Testing.pictures [FOLDER]`.

The panel is drawn by Qt offscreen, the views by Slicer's displayable managers; the scan is that of `make demo`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "SlicerMaskSAM"))

import numpy as np
import pytest

from MaskSAMCore.demo import sample_scan
from MaskSAMCore.preprocessing.masks import interior_voxel
from MaskSAMCore.worker.client import EngineClient
from Testing.panel import slicer_gui
from Testing.panel.pictures import picture
from Testing.slicer import environment, rig
from Testing.slicer.offscreen import SliceView, ThreeDView

FOLDER = Path("pictures-output")
VIEW = (440, 403)
"""Pixels of one view: two rows of them are as high as the panel."""
CLOSER = 2.5
FIELD_MM = 110.0
"""Width of what a slice view shows. The views have names of their own: those of the layout have nodes already."""
GAP = 4


class Room:
    """The panel with its real controller, and the views around it."""

    def __init__(self) -> None:
        from SlicerMaskSAMLib.mrml.views import Views
        from SlicerMaskSAMLib.window.panel import Panel
        from SlicerMaskSAMLib.work import sample_data
        from SlicerMaskSAMLib.work.controller import Controller

        scene = environment.start()
        self.views = [SliceView(name, name, VIEW) for name in ("Axial", "Sagittal", "Coronal")]
        self.solid = ThreeDView("1", VIEW)
        self.parameters = rig.parameters()
        self.panel = Panel()
        self.controller = Controller(
            scene,
            self.parameters,
            start_engine=lambda on_event: EngineClient(on_event=on_event),
            views=Views(scene),
            changed=self.panel.mark_changed,
        )
        self.panel.bind(self.controller, self.parameters)
        self.panel.enter()
        self.volume = sample_data.load(sample_scan())
        self.parameters.roi = sample_data.add_region(scene)

    def aim(self, place: np.ndarray) -> None:
        """Look at a place, mm RAS, in all views."""
        width, height = VIEW
        for view in self.views:
            view.show(self.volume)
            view.node.SetFieldOfView(FIELD_MM, FIELD_MM * height / width, 1.0)
            view.jump(place)
        bounds = [0.0] * 6
        self.parameters.segmentation.CreateClosedSurfaceRepresentation()
        self.parameters.segmentation.GetRASBounds(bounds)
        self.solid.node.SetBoxVisible(False)
        self.solid.node.SetAxisLabelsVisible(False)
        self.solid.renderer.SetBackground(0.55, 0.6, 0.75)
        self.solid.render()
        camera = self.solid.renderer.GetActiveCamera()
        camera.SetFocalPoint(place)
        camera.SetPosition(place + (90, -40, 40))
        camera.SetViewUp(0, 0, 1)
        self.solid.renderer.ResetCamera(*bounds)
        camera.Zoom(CLOSER)

    def settle(self) -> None:
        """Let the timer run until nothing is going on."""
        import time

        for _ in range(60_000):
            self.panel.tick()
            if not self.controller.status().task and self.controller.status().headline == "Ready":
                return
            time.sleep(0.01)
        raise SystemExit(f"it never ended: {self.controller.status()}")

    def close(self) -> None:
        """End the engine and free the views."""
        self.panel.close()
        self.controller.close()
        for view in (*self.views, self.solid):
            view.close()


@contextmanager
def room() -> Iterator[Room]:
    """A room over an empty scene."""
    environment.start()
    slicer_gui.start()
    environment.clear()
    with pytest.MonkeyPatch.context() as patch:
        slicer_gui.open_window(patch)
        made = Room()
        try:
            yield made
        finally:
            made.close()


def clicks(here: Room) -> list[tuple[np.ndarray, bool]]:
    """A click into the middle of the front part, and one that excludes a place on its outer side, mm RAS."""
    from SlicerMaskSAMLib.mrml import bridge

    inside = rig.voxels(here.parameters.segmentation, "Anterior hippocampus", here.volume)
    k, j, i = interior_voxel(inside)
    outer = int(np.flatnonzero(inside[k, j]).max())
    middle, side = bridge.ijk_to_world(here.volume, [(i, j, k), (outer, j, k)])
    return [(middle, True), (side, False)]


def pixels(path: Path) -> np.ndarray:
    """A written picture, (height, width, 3)."""
    from matplotlib.image import imread

    return np.round(imread(path)[..., :3] * 255).astype(np.uint8)


def beside(panel: np.ndarray, views: Sequence[np.ndarray]) -> np.ndarray:
    """The panel, and two by two views to its right."""
    rows = [np.hstack([left, np.zeros((VIEW[1], GAP, 3), np.uint8), right]) for left, right in (views[:2], views[2:])]
    right = np.vstack([rows[0], np.zeros((GAP, rows[0].shape[1], 3), np.uint8), rows[1]])
    height = max(len(panel), len(right))
    padded = [
        np.pad(each, ((0, height - len(each)), (0, 0), (0, 0)), constant_values=shade)
        for each, shade in ((panel, int(panel[-1, 0, 0])), (right, 0))
    ]
    return np.hstack([padded[0], np.zeros((height, GAP, 3), np.uint8), padded[1]])


def draw(folder: Path) -> list[Path]:
    """The section Segment, the section Refine, and the panel beside the views."""
    from matplotlib.image import imsave

    from SlicerMaskSAMLib.values.choices import Region

    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.png" for name in ("panel_segment", "panel_refine", "slicer")]
    with room() as here:
        here.controller.choose_volume(here.volume)
        here.controller.choose_model("hippocampus-mr")
        here.parameters.region = Region.ROI
        here.settle()
        here.controller.segment()
        here.settle()
        picture(here.panel, written[0], ("segmentSection",))

        segmentation = here.parameters.segmentation
        here.controller.choose_segment(rig.segments(segmentation)["Anterior hippocampus"])
        here.panel.ui.pointButton.click()
        prompts = clicks(here)
        for world, positive in prompts:
            here.controller.click(world, positive, here.views[0].node)
            here.settle()
        picture(here.panel, written[1], ("refineSection",))

        here.parameters.roi.SetDisplayVisibility(False)
        here.aim(prompts[-1][0])
        views = [view.picture() for view in (here.views[0], here.solid, here.views[2], here.views[1])]
        imsave(written[2], beside(pixels(written[1]), views))
    return written


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    for drawn in draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
        sys.stdout.write(f"{drawn}\n")
