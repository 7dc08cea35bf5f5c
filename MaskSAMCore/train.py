"""The command `train`: train a model from labelled scans or from a prepared cache."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from MaskSAMCore.commandline import add_device_option, cancel_on_signals, command_parser, run
from MaskSAMCore.config import presets

if TYPE_CHECKING:
    from MaskSAMCore.config.recipe import Recipe
    from MaskSAMCore.training.run_record import RunOptions

EPILOG = """examples:
  %(prog)s DATASET -o RUN                            preset core-mobile, fold 0
  %(prog)s -o RUN --resume                           go on after an interruption
  %(prog)s DATASET -o RUN --recipe hippocampus-mr    as that model was trained
  %(prog)s DATASET -o RUN --mode distill --teacher MODEL    a small student of a trained model
  %(prog)s DATASET -o RUN --set train.epochs=20 --set train.batch=2
  %(prog)s --list-settings --preset core-mobile      all that --set can change
  torchrun --nproc-per-node 2 -m MaskSAMCore.train DATASET -o RUN

DATASET is a folder in nnU-Net's raw format, or a cache made by the command prepare.
RUN receives checkpoints, metrics.csv, curves.png, overlays/ and the model folder model/."""

MODES = {
    "auto": ("train.mode=auto", "train.keep_generator=false"),
    "prompt": ("train.mode=prompt", "train.generator_epochs=0"),
    "mixed": ("train.mode=mixed",),
    "distill": ("train.mode=distill",),
}
"""Settings of `--mode`: what a preset says about the other modes does not count."""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = command_parser("train", "Train MaskSAM on labelled scans.", epilog=EPILOG)
    p.add_argument("dataset", type=Path, nargs="?", metavar="DATASET|CACHE", help="with --resume: that of the run")
    p.add_argument("-o", "--output", type=Path, metavar="RUN", help="folder of the run")
    p.add_argument(
        "--preset",
        help=f"configuration to start from (default: {presets.DEFAULT}; with --mode distill {presets.DEFAULT_STUDENT})",
    )
    p.add_argument("--recipe", metavar="NAME", help="all stages of a released model's training, or of a recipe's file")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value of the preset")
    p.add_argument("--list-settings", action="store_true", help="print all keys of --set, and exit")
    p.add_argument("--base", type=Path, metavar="FILE", help="base SAM weights (default: the one in the cache)")
    p.add_argument("--init", metavar="MODEL", help="start from this trained model's weights")
    p.add_argument(
        "--mode",
        choices=list(MODES),
        help="what is trained: automatic mode, simulated clicks and boxes, or both, or a student that learns "
        "from --teacher (default: the preset's)",
    )
    p.add_argument("--teacher", metavar="MODEL", help="with --mode distill: the trained model to learn from")
    p.add_argument("--fold", metavar="N", help="validation fold (default: 0), or 'all' to train on every case")
    p.add_argument("--name", help="name of the model (default: the data set's)")
    p.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint of RUN, with the options that the run was started with",
    )
    p.add_argument("--dry-run", action="store_true", help="do a few steps, print time and memory, save nothing")
    p.add_argument("--cache", type=Path, help="where the prepared cache goes (default: RUN/cache)")
    add_device_option(p)
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    p = parser()
    options = p.parse_args(argv)
    if options.list_settings:
        return run(lambda: _list_settings(options))
    if options.output is None:
        p.error("the following arguments are required: -o/--output")
    if options.dataset is None and not options.resume:
        p.error("the following arguments are required: DATASET|CACHE")
    if options.recipe and (options.preset or options.mode or options.fold or options.teacher):
        p.error("--recipe decides preset, mode and fold; change single values with --set")
    return run(lambda: _train(options))


def _list_settings(options: argparse.Namespace) -> int:
    from MaskSAMCore.config.serialize import override
    from MaskSAMCore.config.settings import settings

    preset = _preset(options) or presets.DEFAULT
    config = override(presets.get(preset), [*MODES.get(options.mode, ()), *options.set])
    print(f"Keys of --set; the defaults are those of preset {preset}.")
    for each in settings(config):
        print(f"\n{each.key}={each.default}\n    {each.values}\n    {each.about}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from MaskSAMCore.inference.sliding_window import slide_model
    from MaskSAMCore.progress import CancelToken, terminal_progress
    from MaskSAMCore.training.click_run import ClickRun, trains_clicks
    from MaskSAMCore.training.run import Run
    from MaskSAMCore.training.stages import run_recipe

    run_options, recipe = _resumed(options) if options.resume else _started(options)
    with terminal_progress() as progress, cancel_on_signals(CancelToken()) as cancel:

        def start(stage: RunOptions) -> Path:
            if trains_clicks(stage):
                return ClickRun(stage, log=print, progress=progress, cancel=cancel).start()
            return Run(stage, predict=slide_model, log=print, progress=progress, cancel=cancel).start()

        folder = start(run_options) if recipe is None else run_recipe(recipe, run_options, start, print)
    print(f"done: {folder}")
    return 0


def _started(options: argparse.Namespace) -> tuple[RunOptions, Recipe | None]:
    """Options of a new run, and its recipe."""
    from MaskSAMCore.config.recipe import read_recipe

    return run_options(options), read_recipe(options.recipe) if options.recipe else None


def _resumed(options: argparse.Namespace) -> tuple[RunOptions, Recipe | None]:
    """Options of a run that goes on, and the recipe that it records."""
    from MaskSAMCore.config.recipe import read_recipe
    from MaskSAMCore.errors import InputError
    from MaskSAMCore.training.run_record import RUN, RunRecord, recorded_recipe, resumed_recipe, state_of

    given, folder = run_options(options), options.output
    asked, recorded = read_recipe(options.recipe) if options.recipe else None, recorded_recipe(folder)
    state = state_of(folder)
    if recorded is None and asked is not None and state == "run" and (len(asked.stages) > 1 or (folder / RUN).exists()):
        where = f"--recipe {options.recipe}"
        raise InputError("the run was started without a recipe", where=where, remedy="Leave it out.")
    if recorded is None and asked is not None:
        return resumed_recipe(given, RunRecord()), asked
    if recorded is None and state == "recipe":
        remedy = "Name it: --recipe NAME, or the recipe's file."
        raise InputError("the run does not record its recipe", where=folder, remedy=remedy)
    if recorded is None:
        return given, None
    recipe, record = recorded
    if asked is not None and record.recipe is not None and asked != record.recipe:
        why = f"the run was started with {record.recipe.name}"
        remedy = "Leave --recipe out, or start a new run in another folder."
        raise InputError("another recipe", where=f"--recipe {options.recipe}", why=why, remedy=remedy)
    for name in ("preset", "mode", "fold", "teacher"):
        if getattr(options, name):
            why = f"the run is one of recipe {recipe.name}"
            raise InputError("a recipe decides this", where=f"--{name}", why=why, remedy="Leave it out.")
    return resumed_recipe(given, record), asked or recipe


def run_options(options: argparse.Namespace) -> RunOptions:
    """The options of a run as the user gave them."""
    from MaskSAMCore.training.run_record import RunOptions

    return RunOptions(
        dataset=options.dataset,
        folder=options.output,
        preset=_preset(options),
        overrides=(*MODES.get(options.mode, ()), *options.set),
        base=options.base,
        init=options.init,
        teacher=options.teacher,
        fold=options.fold,
        name=options.name,
        resume=options.resume,
        dry_run=options.dry_run,
        cache=options.cache,
        device=options.device,
    )


def _preset(options: argparse.Namespace) -> str | None:
    """The preset that was named, or that of a student."""
    if options.preset is None and options.mode == "distill" and not options.resume:
        return presets.DEFAULT_STUDENT
    return str(options.preset) if options.preset else None


if __name__ == "__main__":
    sys.exit(main())
