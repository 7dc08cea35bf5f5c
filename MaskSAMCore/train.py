"""`python -m MaskSAMCore.train`: train a model from labelled scans or from a prepared cache."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from MaskSAMCore.commandline import add_device_option, cancel_on_signals, command_parser, run

EPILOG = """examples:
  python -m MaskSAMCore.train DATASET -o RUN                     product preset, fold 0
  python -m MaskSAMCore.train DATASET -o RUN --resume            go on after an interruption
  python -m MaskSAMCore.train DATASET -o RUN --recipe hippocampus-mr   as that model was trained
  python -m MaskSAMCore.train DATASET -o RUN --mode distill --teacher MODEL    a small student of a trained model
  python -m MaskSAMCore.train DATASET -o RUN --set train.epochs=20 --set train.batch=2
  torchrun --nproc-per-node 2 -m MaskSAMCore.train DATASET -o RUN

DATASET is a folder in nnU-Net's raw format, or a cache made by MaskSAMCore.prepare.
RUN receives checkpoints, metrics.csv, curves.png, overlays/ and the model folder model/."""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = command_parser("train", "Train MaskSAM on labelled scans.", epilog=EPILOG)
    p.add_argument("dataset", type=Path, metavar="DATASET|CACHE")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="RUN", help="folder of the run")
    p.add_argument("--preset", help="configuration to start from (default: core-mobile; with --mode distill swin-tiny)")
    p.add_argument("--recipe", metavar="NAME", help="all stages of a released model's training, or of a recipe's file")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value of the preset")
    p.add_argument("--base", type=Path, metavar="FILE", help="base SAM weights (default: the one in the cache)")
    p.add_argument("--init", metavar="MODEL", help="start from this trained model's weights")
    p.add_argument(
        "--mode",
        choices=["auto", "prompt", "mixed", "distill"],
        help="what is trained: the model's own prompts, simulated clicks and boxes, or both, or a student that learns "
        "from --teacher (default: the preset's)",
    )
    p.add_argument("--teacher", metavar="MODEL", help="with --mode distill: the trained model to learn from")
    p.add_argument("--fold", metavar="N", help="validation fold (default: 0), or 'all' to train on every case")
    p.add_argument("--name", help="name of the model (default: the data set's)")
    p.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of RUN")
    p.add_argument("--dry-run", action="store_true", help="do a few steps, print time and memory, save nothing")
    p.add_argument("--cache", type=Path, help="where the prepared cache goes (default: RUN/cache)")
    add_device_option(p)
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    p = parser()
    options = p.parse_args(argv)
    if options.recipe and (options.preset or options.mode or options.fold or options.teacher):
        p.error("--recipe says which preset, mode and fold; change single values with --set")
    return run(lambda: _train(options))


def _train(options: argparse.Namespace) -> int:
    from MaskSAMCore.config.recipe import read_recipe
    from MaskSAMCore.inference.sliding_window import slide_model
    from MaskSAMCore.progress import CancelToken, terminal_progress
    from MaskSAMCore.training.run import Run, RunOptions
    from MaskSAMCore.training.stages import run_recipe

    with terminal_progress() as progress, cancel_on_signals(CancelToken()) as cancel:
        run_options = RunOptions(
            dataset=options.dataset,
            folder=options.output,
            preset=options.preset or ("swin-tiny" if options.mode == "distill" else "core-mobile"),
            overrides=(*([f"train.mode={options.mode}"] if options.mode else []), *options.set),
            base=options.base,
            init=options.init,
            teacher=options.teacher,
            fold=options.fold or "0",
            name=options.name,
            resume=options.resume,
            dry_run=options.dry_run,
            cache=options.cache,
            device=options.device,
        )

        def start(stage: RunOptions) -> Path:
            return Run(stage, predict=slide_model, note=print, progress=progress, cancel=cancel).start()

        if options.recipe:
            folder = run_recipe(read_recipe(options.recipe), run_options, start, print)
        else:
            folder = start(run_options)
    print(f"done: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
