"""nnU-Net against the clock: prepares, trains in the time that is given, segments; a part of study_accuracy.py.

    python Testing/bench/peer_nnunet.py CASES IMAGES OUT MINUTES CONFIGURATION DEVICE GIB

CASES is a folder in nnU-Net's raw format, IMAGES holds CASE.nii.gz to be segmented. OUT gets `found/CASE.nii.gz` and
`trained.json` (minutes, steps). Planner, trainer, losses and augmentation are nnU-Net's own; what is set is the memory
that it plans for, the number of steps, of which its learning rate is a function, one validation batch per epoch instead
of 50, and on a CPU no mirroring when it segments, which takes eight times as long.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

DATASET = "Dataset001_Cases"
EPOCHS, STEPS = 20, 3
"""The most epochs, and the fewest steps in one; the learning rate falls from epoch to epoch."""
VALIDATION = 0.5
"""What an epoch's one validation batch takes, in steps."""
PROBE, PROBE_S = 4, 20.0
"""Steps that tell the pace, or fewer once so much time is over; the first does not count."""
RESERVE = 0.97
"""Of the time that is left, for what comes between the steps."""


def main(
    cases: Path, images: Path, out: Path, minutes: float, configuration: str, device_name: str, memory_gib: float
) -> None:
    """Train and segment."""
    began = time.monotonic()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(out / name)
        (out / name).mkdir(parents=True, exist_ok=True)
    cores = os.cpu_count() or 1
    os.environ.setdefault("nnUNet_n_proc_DA", str(max(1, cores // 2)))
    if not (out / "raw" / DATASET).exists():
        (out / "raw" / DATASET).symlink_to(cases.resolve())

    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    device = torch.device(device_name)
    torch.set_num_threads(cores)
    extract_fingerprints([1], num_processes=cores, check_dataset_integrity=False)
    plans = plan_experiments([1], gpu_memory_target_in_gb=memory_gib)
    preprocess([1], plans, configurations=[configuration], num_processes=[cores])
    left = minutes * 60 - (time.monotonic() - began)
    before = time.monotonic()
    pace = probe(trainer(configuration, device))
    left -= time.monotonic() - before
    epochs, steps = schedule(left * RESERVE / pace)
    trained = trainer(configuration, device)
    trained.num_epochs, trained.num_iterations_per_epoch = epochs, steps
    trained.num_val_iterations_per_epoch = 1
    trained.run_training()
    told = {"minutes": (time.monotonic() - began) / 60, "steps": epochs * steps}
    segment(trained.output_folder_base, images, out / "found", device)
    (out / "trained.json").write_text(json.dumps(told), encoding="utf-8")


def schedule(steps: float) -> tuple[int, int]:
    """Epochs, and steps of each, that take as long as so many steps do."""
    epochs = max(1, min(EPOCHS, int(steps / (STEPS + VALIDATION))))
    return epochs, max(1, int(steps / epochs - VALIDATION))


def trainer(configuration: str, device: Any) -> Any:
    """nnU-Net's default trainer, on all cases."""
    from nnunetv2.run.run_training import get_trainer_from_args

    return get_trainer_from_args("1", configuration, "all", device=device)  # type: ignore[arg-type]


def probe(trained: Any) -> float:
    """Seconds per step, the median of a few."""
    trained.initialize()
    trained.on_train_start()
    trained.on_epoch_start()
    trained.on_train_epoch_start()
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < PROBE and sum(seconds) < PROBE_S):
        began = time.monotonic()
        trained.train_step(next(trained.dataloader_train))
        seconds.append(time.monotonic() - began)
    trained.on_train_end()
    return sorted(seconds[1:])[len(seconds[1:]) // 2]


def segment(model: str, images: Path, out: Path, device: Any) -> None:
    """Every image, as nnU-Net does it by default; on a CPU unmirrored."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out.mkdir(parents=True, exist_ok=True)
    files = sorted(images.glob("*.nii.gz"))
    gpu = device.type == "cuda"
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=gpu, use_mirroring=gpu, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, ("all",))
    targets = [str(out / file.name.removesuffix(".nii.gz")) for file in files]
    predictor.predict_from_files_sequential([[str(file)] for file in files], targets)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(Path(words[0]), Path(words[1]), Path(words[2]), float(words[3]), words[4], words[5], float(words[6]))
