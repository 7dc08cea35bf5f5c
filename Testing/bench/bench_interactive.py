"""Response times of the interactive engine in its worker process, compared with segment-anything's predictor.

    python Testing/bench/bench_interactive.py [--repeats 5] [--threads 2] [--only hippocampus|acdc|memory|any]

Uses real scans from the folder of shared data (MASKSAM_SHARED). Both sides have MobileSAM's decoder and the same number
of threads, and are timed in turn in one run. Our times are those of the client, from the call to the answer, for a
whole slab of slices; SamPredictor's are for one slice. The adapters of the ACDC model are untrained, which takes the
same time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from scipy import ndimage

from MaskSAMCore.config import presets
from MaskSAMCore.config.serialize import to_dict
from MaskSAMCore.data.raw import RawCase, RawDataset, read_case, read_dataset
from MaskSAMCore.data.simulate import error_click
from MaskSAMCore.inference.zeroshot import ZeroShot, grey_values, picture
from MaskSAMCore.network.build import build_model, is_frozen
from MaskSAMCore.preprocessing.masks import interior_point, tight_box
from MaskSAMCore.preprocessing.plan import fingerprint, make_plan
from MaskSAMCore.training.fit import fit_config
from MaskSAMCore.volume import Volume
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.zoo import base_weights, installed, model_folder

SHARED = Path(os.environ.get("MASKSAM_SHARED", Path(__file__).resolve().parents[3] / "shared"))
PLAN_CASES = 12
MEMORY_SHAPE = (300, 512, 512)
LIMIT_GB, ANY_LIMIT_GB = 4.0, 3.0
LARGE_SET, LARGE_LABEL = "headneck_ct", 4
REST_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scan, one structure of it, and the slice in which it is largest."""

    name: str
    model: str
    volume: Volume
    target: np.ndarray
    axis: int
    index: int

    @property
    def plane(self) -> np.ndarray:
        """The structure in that slice."""
        return self.target.take(self.index, axis=self.axis)

    def ijk(self, y: float, x: float) -> list[float]:
        """A place in that slice as (i, j, k) of the scan."""
        kji = [float(y), float(x)]
        kji.insert(self.axis, float(self.index))
        return kji[::-1]


def main() -> None:
    """Run the chosen parts and print their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of either side (default: all cores)")
    parser.add_argument("--only", choices=("hippocampus", "acdc", "memory", "any"))
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--stem", type=int, choices=(1, 2, 4), help="enlargement of the ACDC model (default: as trained)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if (SHARED / "weights").is_dir():
        os.environ.setdefault("MASKSAM_WEIGHTS", str(SHARED / "weights"))
    parts = [options.only] if options.only else ["hippocampus", "acdc", "memory", "any"]
    with tempfile.TemporaryDirectory(prefix="masksam-bench-") as folder:
        for part in parts:
            if part == "memory":
                memory(options)
            elif part == "any":
                any_structure(options)
            else:
                compare(hippocampus() if part == "hippocampus" else acdc(Path(folder), options.stem), options)


def hippocampus() -> Scene:
    """A validation case of the bundled model."""
    model = "hippocampus-mr"
    card = model_folder.load_card(installed.find_model(model))
    dataset = read_dataset(SHARED / "data" / "hippocampus")
    wanted = card.provenance["validation_cases"][0]
    return scene(f"hippocampus {wanted}", model, dataset, wanted, axis=0)


def acdc(folder: Path, stem: int | None) -> Scene:
    """An ACDC scan and a model of the shape that `train --preset core-mobile` would give it, adapters untrained."""
    dataset = read_dataset(SHARED / "data" / "acdc")
    config = presets.get("core-mobile")
    pairs = (read_case(dataset, case) for case in islice(dataset.cases, PLAN_CASES))
    plan = make_plan(fingerprint(pairs, channels=dataset.channels), config)
    config = fit_config(config, SimpleNamespace(plan=plan, labels=dataset.labels))
    if stem:
        config = replace(config, model=replace(config.model, stem=replace(config.model.stem, upsample=stem)))
    torch.manual_seed(0)
    network = build_model(config.model)
    card = model_folder.ModelCard(
        name="acdc-untrained",
        config=config,
        labels=dataset.labels,
        plan=to_dict(plan) | {"patch": list(config.model.patch)},
        modality=plan.modality,
        base=model_folder.BaseRef(name="mobile", sha256=base_weights.BASES["mobile"].sha256),
    )
    own = {name: tensor for name, tensor in network.state_dict().items() if not is_frozen(name)}
    path = model_folder.save_model(folder / card.name, card, own, "# untrained, for timing\n")
    print(f"ACDC: patch {config.model.patch}, stem x{config.model.stem.upsample}; adapters UNTRAINED, for timing only")
    return scene(f"ACDC {dataset.cases[0].id}", str(path), dataset, dataset.cases[0].id, axis=0, label=3)


def scene(name: str, model: str, dataset: RawDataset, case: str, *, axis: int, label: int = 1) -> Scene:
    """One structure of one case."""
    volume, labels = read_case(dataset, next(c for c in dataset.cases if c.id == case))
    target = labels.array == label
    others = tuple(a for a in range(3) if a != axis)
    index = int(np.count_nonzero(target, axis=others).argmax())
    return Scene(name=name, model=model, volume=volume, target=target, axis=axis, index=index)


def compare(place: Scene, options: argparse.Namespace) -> None:
    """Time the steps of a radiologist's work, and SamPredictor on the same prompts, in turn."""
    sam = ZeroShot("mobile", base_weights.find_base("mobile"))
    grid = place.volume.grid
    print(f"\n== {place.name}, {grid.shape} voxels of {tuple(round(s, 2) for s in grid.spacing)} mm ==")
    began = time.perf_counter()
    with EngineClient(device=options.device, threads=options.threads) as engine:
        device = engine.hello.get("device", "")
        print(f"worker: {device}; started in {time.perf_counter() - began:.1f} s, {options.threads} thread(s)")
        steps = [Steps(engine, sam, place, n) for n in range(options.repeats + 1)]
        for each in steps:
            each.run()
        for name in steps[0].times:
            ours, theirs = (statistics.median(each.times[name][side] for each in steps[1:]) for side in (0, 1))
            ratio = f"{ours:8.3f} s / {theirs:8.3f} s = {ours / theirs:5.2f}" if theirs else f"{ours:8.3f} s"
            print(f"{name:58} {ratio}")
        second = sorted({each.encoded_again for each in steps})
        print(f"{'encoder runs of the second to fourth click':58} {', '.join(map(str, second))}")
        if any(second):
            print("FAILED: a further click in a slab must not run the encoder")


class Steps:
    """One pass; the scan is changed a little each time, so that nothing is cached from the pass before."""

    def __init__(self, engine: EngineClient, sam: ZeroShot, place: Scene, number: int) -> None:
        self.engine, self.sam, self.place = engine, sam, place
        self.array = np.array(place.volume.array, np.float32)
        self.array[..., 0, 0, 0] += 1 + number
        self.times: dict[str, tuple[float, float]] = {}
        self.encoded_again = 0

    def run(self) -> None:
        """All steps."""
        place, engine = self.place, self.engine
        opened, case = timed(
            lambda: engine.open(self.array, place.volume.grid.affine, model=place.model, modality="MR")
        )
        self.times["open"] = (opened, 0.0)
        clicks = self._clicks()
        low, high = grey_values(self.array)
        image = picture(self.array.take(place.index, axis=place.axis - 3), low, high)
        prompts = [{"kind": "point", "position": place.ijk(*p), "positive": s, "scope": "slab"} for p, s in clicks]
        points = np.array([p[::-1] for p, _ in clicks], float) + 0.5
        labels = np.array([int(s) for _, s in clicks])

        ours, _ = timed(lambda: engine.prompt(case, 1, prompts=prompts[:1]))
        encode, _ = timed(lambda: self.sam.set_image(image))
        decode, answer = timed(lambda: self.sam.predict(points[:1], labels[:1], multimask=True))
        self.times["first click, encoding included / set_image + predict"] = (ours, encode + decode)

        mine, theirs = [], []
        low_res = answer.low_res[answer.best]
        for count in range(2, len(clicks) + 1):
            seconds, update = timed(lambda n=count: engine.prompt(case, 1, prompts=prompts[:n]))
            self.encoded_again += update.encoded
            mine.append(seconds)
            decode, answer = timed(lambda n=count, m=low_res: self.sam.predict(points[:n], labels[:n], mask_input=m))
            low_res = answer.low_res[0]
            theirs.append(decode)
        self.times["next click, a whole slab / SamPredictor.predict, one slice"] = (
            statistics.mean(mine),
            statistics.mean(theirs),
        )
        slices = len(update.quality)
        self.times["the same beside predict for as many slices"] = (
            statistics.mean(mine),
            slices * statistics.mean(theirs),
        )
        self._propagate(case, clicks[0][0], encode)
        engine.release(case)

    def _clicks(self) -> list[tuple[tuple[int, int], bool]]:
        """Four clicks in the slice: the middle, then corrections of an answer that misses half and spills."""
        plane = self.place.plane
        box = tight_box(plane)
        assert box is not None
        half = plane.copy()
        half[:, (box[0] + box[2]) // 2 :] = False
        quarter = plane.copy()
        quarter[(box[1] + box[3]) // 2 :] = False
        spilled = plane | np.roll(plane, box[2] - box[0], axis=1)
        found = [(interior_point(plane), True)]
        for predicted in (half, spilled, quarter):
            click = error_click(predicted, plane)
            assert click is not None
            found.append((click.position, click.positive))
        return found

    def _propagate(self, case: object, first: tuple[int, int], encode: float) -> None:
        """A new structure through the whole volume, the encoding of the other slabs included."""
        place = self.place
        prompt = {"kind": "point", "position": place.ijk(*first), "positive": True, "scope": "volume"}
        ours, update = timed(lambda: self.engine.prompt(case, 2, prompts=[prompt]))
        box = tight_box(place.plane)
        decode, _ = timed(lambda: self.sam.predict(box=np.array(box)))
        slices = max(len(update.quality), 1)
        self.times["click to volume / (set_image + predict) of as many slices"] = (ours, slices * (encode + decode))
        warm, _ = timed(lambda: self.engine.prompt(case, 3, prompts=[prompt]))
        self.times["the same, all slabs known / predict of as many slices"] = (warm, slices * decode)


def memory(options: argparse.Namespace) -> None:
    """Resident memory of the worker after a click on a large scan."""
    rng = np.random.default_rng(0)
    array = np.empty(MEMORY_SHAPE, np.float32)
    for k, plane in enumerate(array):
        plane[...] = rng.normal(100, 10, plane.shape)
        if 140 <= k < 160:
            plane[240:270, 240:270] += 100
    print(f"\n== synthetic scan of {MEMORY_SHAPE[::-1]} voxels of 1 mm, float32, {array.nbytes / 2**30:.2f} GB ==")
    with EngineClient(device=options.device, threads=options.threads) as engine:
        worker = engine.hello["pid"]
        print(f"{'worker, started':40} {resident(worker)}")
        opened, case = timed(lambda: engine.open(array, np.eye(4), model="hippocampus-mr", modality="MR"))
        print(f"{'opened':40} {resident(worker)}   {opened:.2f} s")
        for count in (1, 2):
            points = [[255.0, 255.0, 150.0], [245.0, 262.0, 152.0]][:count]
            prompts = [{"kind": "point", "position": p, "positive": True, "scope": "slab"} for p in points]
            seconds, update = timed(lambda p=prompts: engine.prompt(case, 1, prompts=p))
            text = f"click {count}, encoder runs {update.encoded}"
            print(f"{text:40} {resident(worker)}   {seconds:.2f} s")
        peak = status(worker, "VmHWM")
        print(f"worker's highest {peak:.2f} GB, allowed are {LIMIT_GB:g}: {'ok' if peak <= LIMIT_GB else 'FAILED'}")


def any_structure(options: argparse.Namespace) -> None:
    """Clicks of the model for structures of any kind on a large CT, and MobileSAM on one of its slices."""
    volume, reference = read_case(read_dataset(SHARED / "data" / LARGE_SET), _large_case())
    grown = [n / m for n, m in zip(MEMORY_SHAPE, volume.array.shape, strict=True)]
    array = ndimage.zoom(np.asarray(volume.array, np.int16), grown, order=1)
    target = ndimage.zoom((reference.array == LARGE_LABEL).astype(np.uint8), grown, order=0) > 0
    affine = volume.grid.affine @ np.diag([*(1 / np.array(grown[::-1])), 1.0])
    spacing = [s / g for s, g in zip(volume.grid.spacing[::-1], grown, strict=True)]
    print(f"\n== CT of {array.shape[::-1]} voxels, model any, {options.threads} thread(s) ==")
    sam = ZeroShot("mobile", base_weights.obtain_base("mobile"))
    place = interior_point(target[int(target.sum((1, 2)).argmax())])
    assert place is not None
    shown = picture(array[int(target.sum((1, 2)).argmax())], *grey_values(array))

    def slice_of_sam() -> None:
        sam.set_image(shown)
        sam.predict(np.array([place[::-1]], float), np.array([1]))

    slice_of_sam()
    with EngineClient(device=options.device, threads=options.threads) as engine:
        worker = engine.hello["pid"]
        opened, case = timed(lambda: engine.open(array, affine, model="any", modality="CT"))
        encoded, _ = timed(engine.encode(case).wait)
        print(f"opened in {opened:.2f} s, made ready in {encoded:.2f} s, {resident(worker)}")
        firsts, nexts, sams = list[float](), list[float](), list[float]()
        for _ in range(options.repeats):
            found, prompts = np.zeros(array.shape, bool), []
            for number in range(3):
                click = error_click(found, target, spacing=spacing)
                assert click is not None
                prompts.append({"kind": "point", "position": click.position[::-1], "positive": click.positive})
                seconds, update = timed(lambda p=prompts: engine.prompt(case, 1, prompts=p))
                (nexts if number else firsts).append(seconds)
                if update.box is not None:
                    k0, k1, j0, j1, i0, i1 = update.box
                    found[k0:k1, j0:j1, i0:i1] = update.mask
            engine.drop(case, 1)
            sams.append(timed(slice_of_sam)[0])
        slice_s = statistics.median(sams)
        print(f"{'MobileSAM, one slice, encoded and clicked':44} {slice_s:6.2f} s   1.00")
        for text, times in (("first click, the whole scan", firsts), ("a further click", nexts)):
            print(f"{text:44} {statistics.median(times):6.2f} s   {statistics.median(times) / slice_s:.2f}")
        print(f"worker's highest {status(worker, 'VmHWM'):.2f} GB, allowed are {ANY_LIMIT_GB:g}")


def _large_case() -> RawCase:
    dataset = read_dataset(SHARED / "data" / LARGE_SET)
    return next(case for case in dataset.cases if case.label is not None)


def status(process: int, field: str) -> float:
    """A size of a process in GB (2^30 bytes), from Linux's /proc; NaN elsewhere."""
    path = Path(f"/proc/{process}/status")
    for line in path.read_text().splitlines() if path.is_file() else []:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 2**20
    return float("nan")


def resident(process: int) -> str:
    """Current and peak size."""
    return f"{status(process, 'VmRSS'):5.2f} GB now, {status(process, 'VmHWM'):5.2f} GB highest"


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds of one call, and its result; pauses first, until the threads of the other side sleep."""
    time.sleep(REST_S)
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


if __name__ == "__main__":
    main()
