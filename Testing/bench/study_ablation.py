"""Ablation study: rows with the same cases, steps, seeds and backbone, which differ in the row's settings only.

    python Testing/bench/study_ablation.py OUT [--rows B1 B2 ...] [--seeds 0 1] [--steps 200]

Uses real ACDC scans from the folder of shared data (MASKSAM_SHARED), in the papers' split: both frames of 70 training
and 10 validation patients. The scans are resampled to 10 x 2.5 x 2.5 mm and encoded by MobileSAM, so that two CPU cores
can train all rows; the papers train ViT-B at four times the resolution for a thousand times as many steps. When it is
called again, it continues. OUT/table.md is the table, with all that is needed to reproduce it.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from MaskSAMCore.config import presets
from MaskSAMCore.config.schema import TrainConfig

REPO = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("MASKSAM_SHARED", REPO.parent / "shared"))
ROWS = tuple(f"B{number}" for number in range(1, 10))
SPACING = "data.spacing=[10,2.5,2.5]"
ITERATIONS = 50
"""Steps of an epoch."""
ALIKE = (
    SPACING,
    "data.fit_patch=true",
    "model.backbone.arch=mobile",
    "model.source.widths=[128,64,32]",
    "train.optimizer=adamw",
    "train.weight_decay=0.01",
    "train.clip=1.0",
    "train.schedule=cosine",
    "train.warmup_steps=20",
    "train.batch=1",
    "train.ema=0.98",
    f"train.iterations={ITERATIONS}",
    "train.validate_every=0",
    "train.validate_cases=1",
)
"""Settings of all rows, in place of the papers' own."""


def main() -> None:
    """Train and evaluate all missing rows, and write the table."""
    options = _options()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("MASKSAM_WEIGHTS", str(SHARED / "weights"))
    data, cache = SHARED / "data/acdc", options.out / "cache"
    call("prepare", str(data), "-o", str(cache), "--set", SPACING)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in options.seeds:
        for row in options.rows:
            found[row].append(one(row, seed, options, data, cache))
            table = "\n".join([*told(options), "", *lines(found)])
            (options.out / "table.md").write_text(f"{table}\n")
            print(table, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the runs and the table")
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="ROW", help="presets (default: B1 to B9)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--steps", type=int, default=200, help="of every run (default: 200)")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def one(row: str, seed: int, options: argparse.Namespace, data: Path, cache: Path) -> dict[str, float]:
    """Dice of every structure after one run."""
    folder = options.out / f"{row}-{options.steps}steps-seed{seed}"
    table = folder / "dice.csv"
    if not table.is_file():
        own = f"train.epochs={-(-options.steps // ITERATIONS)}", f"train.seed={seed}"
        words = [word for setting in (*ALIKE, *own) for word in ("--set", setting)]
        begun = any((folder / "checkpoints").glob("*.safetensors"))
        again = ["--resume"] if begun else []
        call("train", str(cache), "-o", str(folder), "--preset", row, "--mode", "auto", *words, *again)
        partial = table.with_suffix(".part.csv")
        call("evaluate", "--model", str(folder / "model"), str(data), "--fold", "0", "-o", str(partial), "--overwrite")
        partial.replace(table)
    values: dict[str, list[float]] = defaultdict(list)
    with table.open(newline="") as file:
        for line in csv.DictReader(file):
            if line["case"] and line["label"] and line["dice"]:
                values[line["structure"]].append(float(line["dice"]))
    return {structure: statistics.fmean(each) for structure, each in values.items()}


def call(name: str, *words: str) -> None:
    """One of the project's commands."""
    command = [sys.executable, "-m", f"MaskSAMCore.{name}", *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if done.returncode:
        sys.exit("\n".join([" ".join(command), *done.stderr.splitlines()[-5:]]))


def told(options: argparse.Namespace) -> list[str]:
    """Data, settings and commands of the table."""
    words = f"--rows {' '.join(options.rows)} --seeds {' '.join(map(str, options.seeds))}"
    return [
        f"`python Testing/bench/study_ablation.py OUT {words} --steps {options.steps}`",
        "",
        f"ACDC, the papers' 10 validation patients (20 frames), MobileSAM, lr {TrainConfig().lr:g}, {SPACING}, "
        f"{options.steps} steps of one patch, seeds {options.seeds}, {options.threads} thread(s), "
        f"{platform.processor() or platform.machine()}.",
    ]


def lines(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """The table: mean Dice over cases, then over structures; mean over seeds, and their spread where there are more."""
    structures = list(next(iter(found.values()))[0])
    head = ["row", "switches", *structures, "mean", "spread over seeds", "paper"]
    out = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row, runs in found.items():
        preset = presets.describe(row)
        means = [statistics.fmean(run.values()) for run in runs]
        cells = [f"{statistics.fmean(run[name] for run in runs):.3f}" for name in structures]
        spread = f"{max(means) - min(means):.3f}" if len(means) > 1 else "one seed"
        score = f"{preset.score / 100:.3f}" if preset.score is not None else ""
        out.append(
            f"| {row} | {preset.about} | {' | '.join(cells)} | {statistics.fmean(means):.3f} | {spread} | {score} |"
        )
    return out


if __name__ == "__main__":
    main()
