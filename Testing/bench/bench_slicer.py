"""Time for which calls of the Slicer module block the GUI's thread, and the cost of Slicer's scene in a click.

    python Testing/bench/bench_slicer.py [--threads 2] [--shape 300,512,512] [--clicks 8]

Uses real MRML (slicer-core), the module's controller, the real engine in its process, and the bundled model. `tick` is
called every 20 ms, as the panel's timer does, and every call is timed while the engine works. The scans are a real
hippocampus, and a volume of the given size (K, J, I) made by repeating it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "SlicerMaskSAM"))

import numpy as np

from MaskSAMCore.io.images import read_labels, read_volume
from MaskSAMCore.volume import Grid
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.zoo.installed import find_model
from MaskSAMCore.zoo.model_folder import load_card
from Testing.slicer import environment

SHARED = Path(os.environ.get("MASKSAM_SHARED", Path(__file__).resolve().parents[3] / "shared"))
MODEL = "hippocampus-mr"
BUDGET_S = 0.05
TIMER_S = 0.02
PATIENCE_S = 300.0


class Gui:
    """A controller whose every call is timed, driven by a timer of 20 ms."""

    def __init__(self, volume: Any, threads: int) -> None:
        from SlicerMaskSAMLib.mrml.views import Views
        from SlicerMaskSAMLib.work.controller import Controller
        from Testing.slicer import rig

        environment.start()
        self.took: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.view = environment.start().AddNewNodeByClass("vtkMRMLSliceNode")
        self.view.SetOrientationToAxial()
        self.parameters = rig.parameters()
        self.controller = Controller(
            environment.start(),
            self.parameters,
            views=Views(environment.start()),
            start_engine=lambda on_event: EngineClient(threads=threads, on_event=on_event),
        )
        self.volume = volume

    def call(self, name: str, *arguments: Any) -> Any:
        """Press a button, and note how long that held the thread."""
        start, computing = time.perf_counter(), time.thread_time()
        try:
            return getattr(self.controller, name)(*arguments)
        finally:
            self.took[name].append((time.perf_counter() - start, time.thread_time() - computing))

    def until(self, reached: Callable[[Any], bool]) -> float:
        """Let the timer run until the status is so; seconds that it took."""
        start = time.perf_counter()
        while True:
            self.call("tick")
            if reached(self.call("status")):
                return time.perf_counter() - start
            if time.perf_counter() - start > PATIENCE_S:
                raise SystemExit(f"still not there: {self.controller.status().messages}")
            time.sleep(TIMER_S)

    def look_at(self, grid: Grid) -> None:
        """Segment a region as large as a grid only, in a corner of the volume."""
        from SlicerMaskSAMLib.values.choices import Region

        roi = environment.start().AddNewNodeByClass("vtkMRMLMarkupsROINode")
        roi.SetCenter(*grid.center)
        roi.SetSize(*(float(v) for v in np.abs(grid.affine[:3, :3]) @ grid.shape[::-1]))
        self.parameters.roi, self.parameters.region = roi, Region.ROI

    def close(self) -> None:
        """End the engine and close the scene."""
        self.controller.close()
        environment.clear()


def idle(status: Any) -> bool:
    """Nothing is going on that the user waits for."""
    return not status.task


def session(gui: Gui, places: list[np.ndarray]) -> tuple[float, list[float]]:
    """Choose, segment, click: seconds of the segmentation and of every click."""
    from SlicerMaskSAMLib.mrml import bridge

    gui.call("enter")
    gui.call("choose_volume", gui.volume)
    gui.call("choose_model", MODEL)
    gui.call("segment")
    automatic = gui.until(idle)
    gui.call("new_structure", "Benchmark")
    clicks = []
    for place in places:
        before = len(gui.controller.status().prompts)
        gui.call("click", bridge.ijk_to_world(gui.volume, place[None])[0], True, gui.view)
        clicks.append(gui.until(lambda status, before=before: idle(status) and len(status.prompts) > before))
    for name in ("undo", "redo"):
        gui.call(name)
        gui.until(idle)
    return automatic, clicks


def report(name: str, gui: Gui, automatic: float, clicks: list[float]) -> None:
    """Of every kind of call the middle and the longest, in milliseconds and of the budget, and the most computing."""
    print(f"\n{name}: segmented in {automatic:.2f} s; clicks, to the shown voxels: first {clicks[0]:.3f} s,")
    print(f"  later {statistics.median(clicks[1:]):.3f} s (a timer of {1000 * TIMER_S:.0f} ms is part of it)")
    print(f"  {'call':16} {'calls':>6} {'median ms':>10} {'longest ms':>11} {'of 50 ms':>9} {'computing ms':>13}")
    for call, took in sorted(gui.took.items(), key=lambda item: -max(item[1])[0]):
        times = [seconds for seconds, _ in took]
        print(
            f"  {call:16} {len(times):6d} {1000 * statistics.median(times):10.2f} {1000 * max(times):11.2f} "
            f"{max(times) / BUDGET_S:9.2f} {1000 * max(computing for _, computing in took):13.2f}"
        )


def main() -> None:
    """Both scans."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--shape", default="300,512,512", help="K,J,I of the large volume")
    p.add_argument("--clicks", type=int, default=8)
    options = p.parse_args()
    if (SHARED / "weights").is_dir():
        os.environ.setdefault("MASKSAM_WEIGHTS", str(SHARED / "weights"))
    case = load_card(find_model(MODEL)).provenance["validation_cases"][0]
    folder = SHARED / "data" / "hippocampus"
    scan = read_volume(folder / "imagesTr" / f"{case}_0000.nii.gz")
    labels = read_labels(folder / "labelsTr" / f"{case}.nii.gz").array
    inside = np.argwhere(labels == 1)[:, ::-1].astype(float)
    places = list(inside[np.linspace(0, len(inside) - 1, options.clicks + 2).astype(int)[1:-1]])

    large = tuple(int(part) for part in options.shape.split(","))
    tiles = [-(-size // have) for size, have in zip(large, scan.grid.shape, strict=True)]
    sides = {"hippocampus scan": scan.array, f"{options.shape} voxels": np.tile(scan.array, tiles)}
    for name, array in sides.items():
        array = array[: large[0], : large[1], : large[2]].astype(np.int16)
        environment.start()
        gui = Gui(environment.add_volume(array, scan.grid.affine, name), options.threads)
        if array.size > scan.array.size:  # the whole of it would take minutes
            gui.look_at(scan.grid)
        try:
            report(name, gui, *session(gui, places))
        finally:
            gui.close()


if __name__ == "__main__":
    main()
