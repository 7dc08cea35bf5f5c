"""The model for structures of any kind beside what a user has without it, on anatomy that it was not trained on.

    python Testing/bench/study_any.py OUT [--data acdc headneck_ct] [--model any] [--cases N] [--device cpu]

Uses real scans from the folder of shared data (MASKSAM_SHARED): of ACDC the papers' validation patients, of headneck_ct
fold 0. Every method gets the same first click, the innermost voxel of the structure, and then clicks into the middle of
its own largest error; see `MaskSAMCore.evaluation.simulated_users`. The methods are the model, plain MobileSAM that
goes from slice to slice, and Slicer's "Grow from seeds" (vtkImageGrowCutSegment of slicer-core), which gets background
seeds around the structure as well. A case that OUT has already is not measured again. OUT/table.md has the means,
OUT/worst pictures of the worst cases.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from scipy import ndimage

from MaskSAMCore import device as devices
from MaskSAMCore.data.raw import read_case, read_dataset
from MaskSAMCore.data.simulate import Click
from MaskSAMCore.evaluate import choose_cases
from MaskSAMCore.evaluation import interactive
from MaskSAMCore.evaluation.simulated_users import Study, Trial, whole_trial
from MaskSAMCore.evaluation.worst_cases import WorstCases
from MaskSAMCore.inference.sessions import open_session
from MaskSAMCore.inference.zeroshot import ZeroShot
from MaskSAMCore.volume import LabelMap, Volume
from MaskSAMCore.zoo import base_weights, installed

SHARED = Path(os.environ.get("MASKSAM_SHARED", Path(__file__).resolve().parents[3] / "shared"))
MARGIN = 0.5
"""Background seeds lie on the faces of the structure's box, moved outwards by this share of its sides."""
SEED_RADIUS = 1


class GrowFromSeeds:
    """Slicer's Grow from seeds: the clicks are balls of seeds, and the faces of a box around the structure background.

    The box is taken from the reference, which no user has: it flatters this method.
    """

    name = "Grow from seeds"

    def __init__(self, volume: Volume, target: np.ndarray) -> None:
        box = ndimage.find_objects(target.astype(np.uint8))[0]
        self.place = tuple(
            slice(max(0, s.start - self._margin(s)), min(n, s.stop + self._margin(s)))
            for s, n in zip(box, target.shape, strict=True)
        )
        self.shape = target.shape
        self.image = np.ascontiguousarray(volume.as_channels()[0][self.place], np.float32)
        self.spacing = volume.grid.spacing

    @staticmethod
    def _margin(side: slice) -> int:
        return max(2, round(MARGIN * (side.stop - side.start)))

    def reset(self) -> None:
        """It remembers nothing."""

    def clicks(self, clicks: Sequence[Click]) -> np.ndarray:
        """The mask after these clicks."""
        seeds = np.zeros(self.image.shape, np.uint8)
        for axis in range(3):
            seeds[tuple(slice(None) if n != axis else [0, -1] for n in range(3))] = 2
        for click in clicks:
            at = [p - s.start for p, s in zip(click.position, self.place, strict=True)]
            near = tuple(slice(max(0, p - SEED_RADIUS), max(0, p + SEED_RADIUS + 1)) for p in at)
            seeds[near] = 1 if click.positive else 2
        found = np.zeros(self.shape, bool)
        found[self.place] = self._grown(seeds) == 1
        return found

    def _grown(self, seeds: np.ndarray) -> np.ndarray:
        import slicer  # noqa: F401  slicer-core loads its libraries
        import vtk
        from slicer_core.vtkSlicerSegmentationsModuleLogic import vtkImageGrowCutSegment
        from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

        def picture(array: np.ndarray, kind: int) -> vtk.vtkImageData:
            image = vtk.vtkImageData()
            image.SetDimensions(*array.shape[::-1])
            image.SetSpacing(*self.spacing)
            image.GetPointData().SetScalars(numpy_to_vtk(array.ravel(), deep=True, array_type=kind))
            return image

        grow = vtkImageGrowCutSegment()
        grow.SetIntensityVolume(picture(self.image, vtk.VTK_FLOAT))
        grow.SetSeedLabelVolume(picture(seeds, vtk.VTK_UNSIGNED_CHAR))
        grow.Update()
        return vtk_to_numpy(grow.GetOutput().GetPointData().GetScalars()).reshape(seeds.shape)


def main() -> None:
    """Measure what is missing, and write the tables."""
    options = _options()
    os.environ.setdefault("MASKSAM_WEIGHTS", str(SHARED / "weights"))
    options.out.mkdir(parents=True, exist_ok=True)
    place = devices.choose_device(options.device)
    network, card = installed.load_model(options.model, place)
    sam = ZeroShot("mobile", base_weights.obtain_base("mobile"), place)
    text = [f"Model {card.name} after {card.provenance['steps']} steps; {devices.describe(place)}", ""]
    for name in options.data:
        dataset = read_dataset(SHARED / "data" / name)
        study = Study(name=card.name, labels=dataset.labels, sam=sam, sam_name="MobileSAM, from slice to slice")
        found, worst = [], WorstCases()
        for case in choose_cases(dataset, card, fold=0)[: options.cases]:
            volume, reference = read_case(dataset, case)
            file = options.out / f"{name}-{case.id}.json"
            if not file.is_file():
                session = open_session(network, card, volume, device=place)
                last = np.zeros_like(reference.array)
                trials = list(study.open_set_trials(case.id, volume, reference, session, last=last))
                trials += _grow_trials(study, case.id, volume, reference)
                file.write_text(json.dumps([asdict(trial) for trial in trials]))
                np.savez_compressed(file.with_suffix(".npz"), last=last)
            some = [Trial(**{**each, "clicks": tuple(each["clicks"])}) for each in json.loads(file.read_text())]
            found += some
            scores = [trial.clicks[-1] for trial in some if trial.method == card.name]
            last = np.load(file.with_suffix(".npz"))["last"]
            worst.add(case.id, scores, volume, LabelMap(array=last, grid=reference.grid), reference)
            print(f"{name} {case.id}: {[round(s, 2) for s in scores]}", flush=True)
        text += [f"## {name}", "", *interactive.report(found), ""]
        for case_id, dice, path in worst.draw(options.out / "worst" / name, dataset.labels):
            text.append(f"worst: {case_id}, mean Dice {dice:.3f}, {path.name}")
        (options.out / "table.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


def _grow_trials(study: Study, case: str, volume: Volume, reference: LabelMap) -> list[Trial]:
    trials = []
    for label in study.labels.labels:
        target = reference.array == label.id
        if target.any():
            trials.append(whole_trial(case, label, target, GrowFromSeeds(volume, target), volume.grid))
    return trials


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    sets = ("acdc", "headneck_ct")
    parser.add_argument("--data", nargs="+", choices=sets, default=list(sets), metavar="SET")
    parser.add_argument("--model", default="any", help="its name or folder (default: any)")
    parser.add_argument("--cases", type=int, metavar="N", help="only the first N of each set")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
