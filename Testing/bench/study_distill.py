"""Distillation study: a small student with and without its teacher, on real hippocampus cases.

    python Testing/bench/study_distill.py [--steps 600] [--cases 40] [--judged 20] [--seeds 0 1 2] [--device cuda]

The teacher is the bundled hippocampus-mr; it segments every case once, before the training. The student is a SwinUNETR.
Its two trainings have the same cases, steps, seeds, augmentation and patches, and differ in the loss alone. Neither
teacher nor student has seen the test cases. Dice is that of whole scans on their own grid, the mean of anterior and
posterior, with the standard deviation over the seeds. Seconds per scan are wall-clock time on the CPU with --threads
threads, with the model in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
SHARED = Path(os.environ.get("MASKSAM_SHARED", REPO.parent / "shared"))
DATA = SHARED / "data/hippocampus"
TEACHER = "hippocampus-mr"
SHUFFLE = 11
PATCH = [32, 56, 32]
"""(D, H, W) of the student, little less than the smallest volume that a SwinUNETR takes; a scan has two to four."""
ITERATIONS = 50
"""Steps of an epoch; an interrupted training resumes after its last epoch."""


def main() -> None:
    """Train, evaluate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="of each training (default: 600)")
    parser.add_argument("--cases", type=int, default=40, help="to train on, all of them the teacher's (default: 40)")
    parser.add_argument(
        "--judged", type=int, default=20, help="test cases, which the teacher has not seen (default: 20)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="swin-tiny", choices=["swin-tiny", "swin-small"])
    parser.add_argument("--share", type=float, default=0.5, help="λ of the student with a teacher (default: 0.5)")
    parser.add_argument("--device", default="auto", help="of the trainings (default: auto)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep cache and runs here, and use those that are there already"
    )
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("MASKSAM_WEIGHTS", str(SHARED / "weights"))
    with tempfile.TemporaryDirectory(prefix="masksam-bench-") as scratch:
        home = (options.keep or Path(scratch)).absolute()
        os.environ.setdefault("MASKSAM_HOME", str(home / "home"))
        taught, judged = choose(options.cases, options.judged)
        cache = prepare(home / "cache", subset(home / "data", taught))
        runs = {
            (kind, seed): train(
                home / f"{kind}-{options.preset}-{options.share:g}-{options.steps}-{seed}",
                cache,
                options,
                seed,
                kind == "teacher",
            )
            for seed in options.seeds
            for kind in ("alone", "teacher")
        }
        report(options, runs, judged)


def choose(count: int, judged: int) -> tuple[list[str], list[str]]:
    """Training cases, of those that the teacher was trained on, and test cases, which it has never seen."""
    from MaskSAMCore.zoo import installed, model_folder

    known = set(model_folder.load_card(installed.find_model(TEACHER)).provenance["training_cases"])
    ids = sorted(path.name.removesuffix(".nii.gz") for path in (DATA / "labelsTr").glob("*.nii.gz"))
    random.Random(SHUFFLE).shuffle(ids)
    taught = [case for case in ids if case in known][:count]
    unseen = [case for case in ids if case not in known][:judged]
    if not taught or not unseen:
        sys.exit(f"{DATA} holds no cases that fit")
    return taught, unseen


def subset(folder: Path, cases: list[str]) -> Path:
    """A data set of links to some cases."""
    for name, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for case in cases:
            link = folder / name / f"{case}{ending}"
            if not link.exists():
                link.symlink_to(DATA / name / f"{case}{ending}")
    description = json.loads((DATA / "dataset.json").read_text(encoding="utf-8"))
    description["numTraining"] = len(cases)
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def prepare(folder: Path, data: Path) -> Path:
    """The cache that all trainings share."""
    command("prepare", str(data), "-o", str(folder), "--preset", "swin-tiny")
    return folder


def train(run: Path, cache: Path, options: argparse.Namespace, seed: int, teacher: bool) -> Path:
    """The model folder of one training; a complete one is kept."""
    settings = [
        f"train.seed={seed}",
        f"train.seg_share={options.share}",
        f"train.iterations={ITERATIONS}",
        f"train.epochs={-(-options.steps // ITERATIONS)}",
        "train.schedule=cosine",
        "train.warmup_steps=20",
        "train.lr=1e-3",
        "data.left_right=always",
        "data.fit_patch=false",
        f"model.patch={json.dumps(PATCH)}",
    ]
    words = [str(cache), "-o", str(run), "--preset", options.preset, "--fold", "all", "--device", options.device]
    if teacher:
        words += ["--mode", "distill", "--teacher", TEACHER, "--set", "train.answers=stored"]
    else:
        words += ["--mode", "auto"]
    words += [word for setting in settings for word in ("--set", setting)]
    if not (run / "done").is_file():
        command("train", *words, *(["--resume"] if any((run / "checkpoints").glob("*.safetensors")) else []))
        (run / "done").touch()
    return run / "model"


def command(name: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", f"MaskSAMCore.{name}", *words], check=True, cwd=REPO)


def judge(model: str, cases: list[str]) -> tuple[float, float]:
    """Mean Dice over cases and structures, and seconds per scan, on the CPU."""
    import numpy as np

    from MaskSAMCore.data.raw import read_case, read_dataset
    from MaskSAMCore.inference.predictor import Predictor
    from MaskSAMCore.training.validate import dice_per_class

    predictor, dataset = Predictor(model, device="cpu"), read_dataset(DATA)
    wanted, dices, seconds = {case.id: case for case in dataset.cases}, [], []
    for case in cases:
        volume, reference = read_case(dataset, wanted[case])
        began = time.monotonic()
        found = predictor.segment(volume)
        seconds.append(time.monotonic() - began)
        dices.append(dice_per_class(found.labels.array, reference.array, 3))
    return float(np.nanmean(dices)), statistics.median(seconds)


def report(options: argparse.Namespace, runs: dict[tuple[str, int], Path], judged: list[str]) -> None:
    """One table: the teacher, the student without it, the student with it."""
    print(f"\n{options.preset}, {options.steps} steps on {options.cases} cases, judged by {len(judged)} unseen ones,")
    print(f"seeds {options.seeds}, seconds on the CPU with {options.threads} threads\n")
    print(f"| {'':<26} | Dice mean | spread | seconds per scan |\n|{'-' * 28}|-----------|--------|------------------|")
    dice, seconds = judge(TEACHER, judged)
    print(f"| {'teacher ' + TEACHER:<26} | {dice:9.4f} | {'':>6} | {seconds:16.2f} |")
    for kind, title in (("alone", "student without teacher"), ("teacher", f"student, λ = {options.share:g}")):
        found = [judge(str(runs[kind, seed]), judged) for seed in options.seeds]
        scores = [dice for dice, _ in found]
        spread = f"{statistics.stdev(scores):.4f}" if len(scores) > 1 else "-"
        middle = statistics.median(seconds for _, seconds in found)
        print(f"| {title:<26} | {statistics.mean(scores):9.4f} | {spread:>6} | {middle:16.2f} |")


if __name__ == "__main__":
    main()
