"""MaskSAM and nnU-Net with the same training cases, the same training time and the same validation cases.

    python Testing/bench/study_accuracy.py OUT [--data hippocampus acdc headneck_ct] [--minutes 10] [--device cpu]

Uses real scans from the folder of shared data (MASKSAM_SHARED), fold 0 of each set (of ACDC the papers' split). Each
side gets the raw training cases of the fold and chooses its own spacing. The minutes include its preprocessing and its
training, one side after the other on the whole machine. Ours is `python -m MaskSAMCore.teach`, which trains for a given
time. nnU-Net is nnunetv2 from the package index with its own planner, trainer and augmentation; its learning rate and
its end follow the time as well. On a CPU it plans for a GPU of 0.25 GiB instead of 8, which is better for it: with such
small patches and batches, several times as many steps fit into the time as with 1 GiB (docs/RESULTS.md). It also
segments without test-time mirroring there, as ours does everywhere. Both segment the fold's validation cases, and
`python -m MaskSAMCore.evaluate` compares them with the references on the scans' own grids. Results that exist for the
same minutes are kept. OUT/table.md is the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
SHARED = Path(os.environ.get("MASKSAM_SHARED", REPO.parent / "shared"))
PEER = Path(__file__).with_name("peer_nnunet.py")
SIDES: dict[str, list[list[str]]] = {"headneck_ct": [["left_parotid", "right_parotid"]]}
"""Pairs of left and right labels; the other sets have none."""
FOLD = 0
SMALL_GIB, USUAL_GIB = 0.25, 8.0


def main() -> None:
    """Train and evaluate what is missing, and write the table."""
    options = _options()
    os.environ.setdefault("MASKSAM_WEIGHTS", str(SHARED / "weights"))
    rows: list[str] = []
    for name in options.data:
        folder = options.out.absolute() / f"{name}-{options.device}-{options.minutes:g}min-{options.configuration}"
        lay_out(SHARED / "data" / name, folder, SIDES.get(name, []))
        for title, made in (("MaskSAM", ours), ("nnU-Net", peer)):
            result = folder / made.__name__
            if not (result / "dice.csv").is_file():
                result.mkdir(parents=True, exist_ok=True)
                told = made(folder, result, options)
                (result / "told.json").write_text(json.dumps(told))
                core("evaluate", str(result / "found"), str(folder / "judged/labels"), "-o", str(result / "dice.csv"))
            rows.append(line(name, title, result))
            text = "\n".join([*head(options), *rows])
            (options.out / "table.md").write_text(f"{text}\n")
            print(text, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the runs and the table")
    sets = ("hippocampus", "acdc", "headneck_ct")
    parser.add_argument("--data", nargs="+", choices=sets, default=list(sets), metavar="SET")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each side on each set (default: 10)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    memory = f"GiB that nnU-Net plans for (default: {SMALL_GIB:g} on a CPU, {USUAL_GIB:g} on a GPU)"
    parser.add_argument("--memory", type=float, metavar="GIB", help=memory)
    parser.add_argument("--configuration", default="3d_fullres", help="of nnU-Net (default: 3d_fullres)")
    options = parser.parse_args()
    if options.memory is None:
        options.memory = SMALL_GIB if options.device == "cpu" else USUAL_GIB
    return options


def lay_out(source: Path, folder: Path, sides: list[list[str]]) -> None:
    """The fold's training cases in nnU-Net's raw format, and its validation cases beside them; links, no copies."""
    from MaskSAMCore.data.raw import read_dataset
    from MaskSAMCore.data.splits import folds, load_splits

    dataset = read_dataset(source)
    ids, patients = [case.id for case in dataset.cases], {case.id: case.patient for case in dataset.cases}
    split = (load_splits(source, ids, patients) or folds(ids, patient=patients))[FOLD]
    for case in dataset.cases:
        if case.label is None or case.id not in (*split.train, *split.val):
            continue
        taught = case.id in split.train
        images, labels = ("cases/imagesTr", "cases/labelsTr") if taught else ("judged/images", "judged/labels")
        channel = "_0000" if taught else ""
        _link(case.images[0], folder / images / f"{case.id}{channel}.nii.gz")
        _link(case.label, folder / labels / f"{case.id}.nii.gz")
    description = {
        "name": dataset.name,
        "channel_names": dict(enumerate(dataset.channels)),
        "labels": {"background": 0, **{label.name: label.id for label in dataset.labels.labels}},
        "numTraining": len(split.train),
        "file_ending": ".nii.gz",
        "left_right_pairs": sides,
    }
    (folder / "cases/dataset.json").write_text(json.dumps(description), encoding="utf-8")


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(target.resolve())


def ours(folder: Path, result: Path, options: argparse.Namespace) -> dict[str, float]:
    """Train and segment with MaskSAM."""
    words = ["--minutes", f"{options.minutes:g}", "--left-out", "0", "--overwrite", "--device", options.device]
    began = time.monotonic()
    core("teach", str(folder / "cases"), "-o", str(result / "model"), *words)
    minutes = (time.monotonic() - began) / 60
    card = json.loads((result / "model/model.json").read_text(encoding="utf-8"))
    images = [str(path) for path in sorted((folder / "judged/images").iterdir())]
    core("segment", *images, "-o", str(result / "segmented"), "--model", str(result / "model"), "--overwrite")
    for found in (result / "segmented").glob("*.nii.gz"):
        _link(found, result / "found" / found.name)
    return {"minutes": minutes, "steps": card["provenance"]["steps"]}


def peer(folder: Path, result: Path, options: argparse.Namespace) -> dict[str, float]:
    """Train and segment with nnU-Net; tried twice, as the processes that load its data sometimes die."""
    words = [str(folder / "cases"), str(folder / "judged/images"), str(result), f"{options.minutes:g}"]
    words += [options.configuration, options.device, f"{options.memory:g}"]
    for again in (True, False):
        # What an interrupted run has prepared would be time that is not counted.
        shutil.rmtree(result)
        result.mkdir()
        if subprocess.run([sys.executable, str(PEER), *words], check=not again, cwd=REPO).returncode == 0:
            break
    return json.loads((result / "trained.json").read_text(encoding="utf-8"))


def core(name: str, *words: str) -> None:
    """One of the project's commands."""
    subprocess.run([sys.executable, "-m", f"MaskSAMCore.{name}", *words], check=True, cwd=REPO)


def head(options: argparse.Namespace) -> list[str]:
    """Command of the table, and its first lines."""
    words = f"--data {' '.join(options.data)} --minutes {options.minutes:g} --device {options.device}"
    words += f" --configuration {options.configuration} --memory {options.memory:g}"
    mirrored = "without" if options.device == "cpu" else "with its"
    machine = f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}"
    columns = ["data", "model", "Dice of each structure", "mean Dice", "mean HD95 (mm)", "steps", "minutes"]
    return [
        f"`python Testing/bench/study_accuracy.py OUT {words}`",
        "",
        f"Fold {FOLD}, {options.minutes:g} minutes for preparation and training, {machine}; "
        f"nnU-Net {options.configuration}, planned for {options.memory:g} GiB, {mirrored} test-time mirroring.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]


def line(name: str, title: str, result: Path) -> str:
    """One row: means over the cases, then over the structures."""
    told = json.loads((result / "told.json").read_text(encoding="utf-8"))
    labels = json.loads((result.parent / "cases/dataset.json").read_text(encoding="utf-8"))["labels"]
    names = {str(number): structure for structure, number in labels.items()}
    judged = {path.name.removesuffix(".nii.gz") for path in (result.parent / "judged/labels").iterdir()}
    dice: dict[str, list[float]] = defaultdict(list)
    hd95: dict[str, list[float]] = defaultdict(list)
    with (result / "dice.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["case"] in judged and row["label"]:  # the file ends with means and deviations
                for found, column in ((dice, "dice"), (hd95, "hd95")):
                    found[names[row["label"]]] += [float(row[column])] if row[column] else []
    each = ", ".join(f"{structure} {statistics.fmean(values):.3f}" for structure, values in dice.items() if values)
    cells = [
        name,
        title,
        each,
        _mean(dice, "{:.3f}"),
        _mean(hd95, "{:.1f}"),
        f"{told['steps']:g}",
        f"{told['minutes']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _mean(found: dict[str, list[float]], form: str) -> str:
    """Mean over the structures that have a value; a structure that was never found has no HD95."""
    means = [statistics.fmean(values) for values in found.values() if values]
    return form.format(statistics.fmean(means)) if means else "-"


if __name__ == "__main__":
    main()
