"""Accuracy of quick training: ten hippocampus cases, saved and taught through the module, tested on twenty others.

    python Testing/bench/bench_teach.py [--threads 2] [--interactive] [--keep FOLDER]

Uses real scans from the folder of shared data (MASKSAM_SHARED), Slicer's scene (slicer-core), the module's controller
and the commands that it starts. The cases are drawn with a fixed seed; three of the twenty are among the cases with
which patch sizes were compared (docs/EXPERIMENTS.md). Seconds are wall-clock time: on a busy machine fewer steps fit
into the same time.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "SlicerMaskSAM")]
SHARED = Path(os.environ.get("MASKSAM_SHARED", REPO.parent / "shared"))
SEED, TAUGHT, JUDGED = 7, 10, 20
NAME = "ten-hippocampi"


def main() -> None:
    """Print the results of the training itself, and those of the twenty cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of the lesson (default: 2)")
    parser.add_argument("--interactive", action="store_true", help="simulated users of the twenty as well (slow)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep cases, model and tables here")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("MASKSAM_WEIGHTS", str(SHARED / "weights"))
    with tempfile.TemporaryDirectory(prefix="masksam-bench-") as scratch:
        home = (options.keep or Path(scratch)).absolute()
        os.environ["MASKSAM_HOME"] = str(home)
        data = SHARED / "data/hippocampus"
        ids = sorted(path.name.removesuffix(".nii.gz") for path in (data / "labelsTr").glob("*.nii.gz"))
        random.Random(SEED).shuffle(ids)
        teach(data, ids[:TAUGHT])
        judged = ids[TAUGHT : TAUGHT + JUDGED]
        words = ["--model", NAME, str(data), "--cases", *judged]
        run("evaluate", *words, "-o", str(home / "automatic.csv"), "--overwrite")
        if options.interactive:
            run("evaluate", "--interactive", *words, "-o", str(home / "interactive.csv"), "--overwrite")


def teach(data: Path, cases: list[str]) -> None:
    """Save the cases one by one and teach them, as a user does with the panel's buttons."""
    from MaskSAMCore.data.raw import read_case, read_dataset
    from SlicerMaskSAMLib.mrml import bridge
    from Testing.slicer import environment, parameter_node_wrapper

    parameter_node_wrapper.install()
    from Testing.slicer.seat import Seat

    raw = read_dataset(data)
    known = {case.id: case for case in raw.cases}
    with Seat() as seat:
        for name in cases:
            volume, labels = read_case(raw, known[name])
            node = environment.add_volume(volume.array, volume.grid.affine, name)
            seat.choose(node)
            segmentation = bridge.new_segmentation(seat.scene, name, volume=node)
            geometry = bridge.geometry(node)
            whole = tuple(edge for length in geometry.shape for edge in (0, length))
            for label in raw.labels.labels:
                segment_id = bridge.add_segment(segmentation, label)
                mask = (labels.array == label.id).astype("uint8")
                bridge.write_segment(segmentation, segment_id, geometry, whole, mask)  # type: ignore[arg-type]
            seat.parameters.segmentation = segmentation
            seat.controller.save_case(name)
            seat.settle()
        print(f"saved: {', '.join(row.name for row in seat.controller.cases())}", flush=True)
        began = time.monotonic()
        seat.controller.teach(NAME)
        seat.controller.tick()
        while seat.status.task:
            seat.controller.tick()
            time.sleep(0.05)
        seconds = time.monotonic() - began
        for line in seat.status.messages:
            print(line)
        if seat.status.training_result is None:
            sys.exit("the training failed")
        print(f"from the button to the model in the list: {seconds:.0f} s; chosen: {seat.parameters.model}", flush=True)


def run(name: str, *words: str) -> None:
    """One of the project's commands, which prints its table."""
    print(f"python -m MaskSAMCore.{name} {' '.join(words)}", flush=True)
    subprocess.run(
        [sys.executable, "-m", f"MaskSAMCore.{name}", *words], cwd=REPO, stderr=subprocess.DEVNULL, check=True
    )


if __name__ == "__main__":
    main()
