"""nnU-Net with a time limit: prepare, train, segment; called by study_accuracy.py.

    python Testing/bench/peer_nnunet.py CASES IMAGES OUT MINUTES CONFIGURATION DEVICE GIB

CASES is a folder in nnU-Net's raw format; IMAGES has the files CASE.nii.gz to segment. OUT gets `found/CASE.nii.gz` and
`trained.json` (minutes, steps). Planner, trainer, losses and augmentation are nnU-Net's own. Changed are: the memory
that it plans for; the end of training; the learning rate, which follows the share of the time instead of the share of
epochs; one validation batch per epoch instead of 50; and on a CPU no mirroring when it segments, which would take eight
times as long.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

DATASET = "Dataset001_Cases"
EXPONENT = 0.9
"""In nnU-Net's learning rate, initial_lr * (1 - share of the time) ** EXPONENT."""


class TimeIsOver(Exception):
    """Raised to end nnU-Net's training loop."""


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
    trained = trainer(configuration, device)
    steps = train(trained, began + minutes * 60)
    told = {"minutes": (time.monotonic() - began) / 60, "steps": steps}
    segment(trained.output_folder_base, images, out / "found", device)
    (out / "trained.json").write_text(json.dumps(told), encoding="utf-8")


def trainer(configuration: str, device: Any) -> Any:
    """nnU-Net's default trainer, on all cases."""
    from nnunetv2.run.run_training import get_trainer_from_args

    return get_trainer_from_args("1", configuration, "all", device=device)  # type: ignore[arg-type]


def train(trained: Any, end: float) -> int:
    """Train until time.monotonic() is `end`; returns the number of steps."""
    began, steps, last = time.monotonic(), 0, 0.0
    trained.num_epochs, trained.num_val_iterations_per_epoch = sys.maxsize, 1
    trained.initialize()
    one_step = trained.train_step

    def step(batch: dict[str, Any]) -> dict[str, Any]:
        nonlocal steps, last
        now = time.monotonic()
        if now + last > end:
            raise TimeIsOver
        for group in trained.optimizer.param_groups:
            group["lr"] = trained.initial_lr * (1 - (now - began) / (end - began)) ** EXPONENT
        told = one_step(batch)
        steps, last = steps + 1, time.monotonic() - now
        return told

    trained.train_step = step
    try:
        trained.run_training()
    except TimeIsOver:
        trained.on_train_end()
    return steps


def segment(model: str, images: Path, out: Path, device: Any) -> None:
    """Segment all images with nnU-Net's defaults, on a CPU without mirroring."""
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
