"""The command `teach`: a model from a few labelled cases, in minutes, on the machine at hand."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MaskSAMCore.commandline import add_device_option, cancel_on_signals, command_parser, run
from MaskSAMCore.config.presets import DEFAULT
from MaskSAMCore.evaluation import hold_out

if TYPE_CHECKING:
    import torch

    from MaskSAMCore.config.schema import Config
    from MaskSAMCore.data.dataset import PreparedDataset
    from MaskSAMCore.data.raw import RawDataset
    from MaskSAMCore.data.splits import Split
    from MaskSAMCore.evaluation.hold_out import HoldOutResult
    from MaskSAMCore.progress import CancelToken, Progress
    from MaskSAMCore.training.quick_training import QuickTraining, TimeBudget, TimeShares

EPILOG = """examples:
  %(prog)s CASES --name liver                    installed as "liver", in nine minutes at most
  %(prog)s CASES --name liver --minutes 30 --overwrite
  %(prog)s CASES -o FOLDER --left-out 0          a model folder; all cases are trained on

CASES is a folder in nnU-Net's raw format, such as the one where Slicer saves training cases. SAM's encoder is not
trained; its features of the cases are computed once, and the network that reads them is trained until the time is over,
for use without prompts and with clicks and boxes. The model is evaluated on cases that were left out: Dice on their own
grids.
"""

TRAINABLE = ("query", "class")
"""Sources of prompts that quick training can train."""
MINUTES = 9.0
LEFT_OUT_SHARE = 5
MOST_LEFT_OUT = 8
SCRATCH = ".lesson-"
"""Prefix of the folder for temporary patient data; the same in all versions, since each removes what others left."""
EVALUATION_SHARE = 0.15
"""Share of the whole time for the evaluation."""
SLACK = 1.3
"""Time kept free for the evaluation, as a multiple of its estimate."""
ENDING_S = 6.0
"""Seconds kept free for saving, loading and installing the model."""
POOR_MODEL = "Not good enough to rely on for {names}: Dice below {poor:g}. More cases or more minutes help."
LIMITS = "It has seen {cases} case(s) only: scans from elsewhere, unusual anatomy and disease may be beyond it."


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = command_parser("teach", "Train a model on a few labelled scans, in minutes.", epilog=EPILOG)
    p.add_argument("cases", type=Path, metavar="CASES", help="folder of the training cases")
    p.add_argument("--name", help="name of the model (default: the data set's)")
    p.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write the model here instead of installing it")
    p.add_argument("--overwrite", action="store_true", help="replace a model of that name, once the new one is made")
    p.add_argument(
        "--minutes", type=_minutes, default=MINUTES, metavar="M", help=f"for everything together (default: {MINUTES:g})"
    )
    p.add_argument("--steps", type=_count, metavar="N", help="end after N steps, however much time is left")
    p.add_argument(
        "--left-out",
        type=_count,
        metavar="N",
        help=f"cases to evaluate on (default: one in {LEFT_OUT_SHARE}, at least 1 and at most {MOST_LEFT_OUT})",
    )
    p.add_argument("--picture", type=Path, metavar="PNG", help="draw the worst of the left-out cases")
    p.add_argument("--preset", default=DEFAULT, help=f"configuration to start from (default: {DEFAULT})")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value of the preset")
    add_device_option(p)
    return p


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a number of minutes above 0 is needed, found {text!r}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number of cases is needed, found {text!r}")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    began = time.monotonic()
    options = parser().parse_args(argv)
    return run(lambda: _teach(options, began))


def _teach(options: argparse.Namespace, began: float) -> int:
    from MaskSAMCore.progress import CancelToken, terminal_progress
    from MaskSAMCore.training.quick_training import TimeBudget

    with terminal_progress() as progress, cancel_on_signals(CancelToken()) as cancel:
        result = TeachCommand(options, TimeBudget(60 * options.minutes, began=began), progress, cancel).teach()
    text = "\n".join(summary(result)) if sys.stdout.isatty() else json.dumps(result, ensure_ascii=False)
    print(text)
    return 0


class TeachCommand:
    """One quick training, from a folder of cases to an installed model; nothing else is left behind.

    Args:
        options: Of the command.
        clock: The time for everything.
        progress: Called after every patch, step and case.
        cancel: Checked before every patch, step and case.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        clock: TimeBudget,
        progress: Progress,
        cancel: CancelToken,
    ) -> None:
        self.options, self.clock, self.cancel, self.shares = options, clock, cancel, time_shares(options)
        self.plain_progress, self.progress = progress, clock.progress_of_time(progress)

    def teach(self) -> dict[str, Any]:
        """Train, evaluate and install the model; returns what the command prints.

        Raises:
            InputError: A model of that name exists, a setting cannot be used, or the cases have problems; all of them
                are listed.
            ResourceError: The time is too short for a model, or the disk is too small.
            Cancelled: Asked to stop.
        """
        from MaskSAMCore import device as devices
        from MaskSAMCore.data.raw import read_dataset
        from MaskSAMCore.inference.predictor import Predictor
        from MaskSAMCore.zoo.base_weights import home

        raw = read_dataset(self.options.cases)
        name = self._name(raw)
        device = devices.choose_device(self.options.device)
        log(devices.describe(device))
        with workplace(home("data")) as folder:
            prepared, config, split = self._prepare(folder)
            training, base = self._training(folder, prepared, config, split, device)
            training.choose_precision()
            training.encode()
            window_s = training.seconds_per_window()
            held_out = hold_out.plan_hold_out(
                prepared, config, split.val, window_s=window_s, most_s=EVALUATION_SHARE * self.clock.seconds
            )
            training.learn(reserve=SLACK * held_out.seconds + ENDING_S)
            self.progress(0, 0, "evaluating")
            model = self._save(folder / name, training, prepared, config, split, base)
            verdict = hold_out.evaluate_hold_out(
                Predictor(model, device=self.options.device),
                raw,
                prepared,
                held_out,
                enough=lambda: self.clock.left < ENDING_S + held_out.seconds / len(held_out.cases),
                progress=self.progress,
                cancel=self.cancel,
            )
            self._record(model, verdict)
            self._draw(prepared, verdict)
            self.cancel.check()
            target = self._place(model)
        return self._result(name, target, training, verdict)

    def _name(self, raw: RawDataset) -> str:
        """The model's name; refused where it would replace a model without --overwrite."""
        from MaskSAMCore.errors import InputError
        from MaskSAMCore.training.card import model_name
        from MaskSAMCore.zoo.installed import installed_models
        from MaskSAMCore.zoo.model_folder import check_name

        name = self.options.name or model_name(raw.name)
        check_name(name, "--name")
        if self.options.output is not None:
            there = self.options.output.exists()
        else:
            origin = next((model.origin for model in installed_models() if model.name == name), None)
            if origin == "bundled":
                raise InputError("a model of this name is built in", where=name, remedy="Choose another name.")
            there = origin is not None
        if there and not self.options.overwrite:
            where = self.options.output or name
            raise InputError("exists already", where=where, remedy="Choose another name, or use --overwrite.")
        return name

    def _prepare(self, folder: Path) -> tuple[PreparedDataset, Config, Split]:
        """The prepared cases, the preset fitted to them, and the split into training and left-out cases."""
        import numpy as np

        from MaskSAMCore.config import presets
        from MaskSAMCore.config.check import check_config
        from MaskSAMCore.config.serialize import override
        from MaskSAMCore.data.build import prepare
        from MaskSAMCore.data.splits import leave_out
        from MaskSAMCore.errors import InputError
        from MaskSAMCore.training.quick_training import check_quick_settings, for_quick_training
        from MaskSAMCore.zoo import base_weights

        asked = override(presets.get(self.options.preset), self.options.set)
        if asked.model.source.kind not in TRAINABLE:
            raise InputError(
                "this network cannot be taught",
                where=self.options.preset,
                why="quick training needs a generator of prompts behind SAM's encoder",
                remedy="Use the train command, or another preset.",
            )
        check_quick_settings(self.options.set, asked, asked)
        check_config(asked)
        if asked.model.backbone.arch != "tiny":
            # Before the cases are read, which takes longer.
            base_weights.obtain_base(asked.model.backbone.arch)
        prepared, _ = prepare(self.options.cases, folder / "cache", asked, progress=self.progress, cancel=self.cancel)
        config = for_quick_training(asked, prepared)
        check_quick_settings(self.options.set, asked, config)
        check_config(config)
        prepared.check_config(config)
        count = self.options.left_out
        if count is None:
            count = min(max(1, len(prepared) // LEFT_OUT_SHARE), MOST_LEFT_OUT)
        held = {case: np.unique(prepared.case(case).points[:, 0]).tolist() for case in prepared.ids}
        split = leave_out(held, count, config.train.seed, patient=prepared.patients)
        log(f"{len(split.train)} training case(s); left out: {', '.join(split.val) or 'none'}")
        return prepared, config, split

    def _training(
        self, folder: Path, prepared: PreparedDataset, config: Config, split: Split, device: torch.device
    ) -> tuple[QuickTraining, dict[str, str]]:
        """The training before its first step, and name and hash of the base weights."""
        from MaskSAMCore.network.masksam import MaskSAM
        from MaskSAMCore.training.quick_training import QuickTraining
        from MaskSAMCore.training.run import new_model

        model, base = new_model(config, None, log)
        if not isinstance(model, MaskSAM):
            raise TypeError(f"a generator of prompts belongs to MaskSAM, not to {type(model).__name__}")
        training = QuickTraining(
            model,
            config,
            dataset=prepared,
            split=split,
            folder=folder / "patches",
            device=device,
            clock=self.clock,
            shares=self.shares,
            log=log,
            progress=self.plain_progress,
            cancel=self.cancel,
        )
        return training, base

    def _save(
        self,
        folder: Path,
        training: QuickTraining,
        prepared: PreparedDataset,
        config: Config,
        split: Split,
        base: dict[str, str],
    ) -> Path:
        """Write the model's folder; its card has no figures yet."""
        import numpy as np

        from MaskSAMCore import device as devices
        from MaskSAMCore.preprocessing.postprocess import suggest_largest
        from MaskSAMCore.training.card import model_card, model_readme
        from MaskSAMCore.training.loop import trained_tensors
        from MaskSAMCore.training.quick_training import as_trained
        from MaskSAMCore.zoo import model_folder

        done = {
            "minutes": self.options.minutes,
            "device": devices.describe(training.device).split(",")[0],
            "patches": training.pool.count,
            "precision": training.precision,
        }
        card = model_card(
            name=folder.name,
            config=as_trained(config, training.steps),
            dataset=prepared,
            split=split,
            fold="",
            base=base,
            step=training.steps,
            figures={},
            origin={"lesson": done},
            largest=suggest_largest(np.asarray(prepared.case(case).label) for case in split.train),
        )
        card = replace(card, limits=LIMITS.format(cases=len(split.train)))
        with training.averaged():
            tensors = trained_tensors(training.model, base=bool(base["name"]))
            return model_folder.save_model(folder, card, tensors, model_readme(card))

    def _record(self, model: Path, verdict: HoldOutResult) -> None:
        """Write the figures of the evaluation into the card."""
        from MaskSAMCore.training.card import model_readme
        from MaskSAMCore.zoo import model_folder

        command = command_line(self.options)
        card = model_folder.load_card(model)
        metrics = dict(card.metrics)
        if verdict.dice:
            how = f"{command}, cases {' '.join(verdict.dice)}, windows {verdict.step:g} of a patch apart"
            metrics[how] = verdict.structures()
        if verdict.users:
            how = f"{command}, simulated users in one patch around each structure of the same cases, Dice"
            metrics[how] = {"mean": verdict.prompts()}
        limits = f"{warning_of(verdict.poor_structures())} {card.limits}".strip()
        card = replace(card, metrics=metrics, limits=limits)
        model_folder.save_card(model, card, model_readme(card))

    def _draw(self, prepared: PreparedDataset, verdict: HoldOutResult) -> None:
        """Draw the worst of the left-out cases beside its reference, on the prepared grid."""
        if self.options.picture is None or verdict.found is None:
            return
        from MaskSAMCore.preprocessing.preprocess import preprocess_labels
        from MaskSAMCore.training.report import save_overlay

        case = prepared.case(verdict.worst)
        predicted = preprocess_labels(verdict.found, case.record, prepared.plan, prepared.labels)
        save_overlay(case.image[0], case.label, predicted, prepared.labels, self.options.picture)

    def _place(self, model: Path) -> Path:
        """Move the finished model to its place; one that was there is replaced as a whole."""
        from MaskSAMCore.zoo.installed import find_model, import_model
        from MaskSAMCore.zoo.model_folder import FILES, whole_folder

        if self.options.output is None:
            return find_model(import_model(model, overwrite=self.options.overwrite))
        self.options.output.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(self.options.output, overwrite=self.options.overwrite) as partial:
            for name in FILES:
                shutil.copyfile(model / name, partial / name)
        return self.options.output

    def _result(self, name: str, target: Path, training: QuickTraining, verdict: HoldOutResult) -> dict[str, Any]:
        """The result of the command, as plain JSON values."""
        drawn = self.options.picture is not None and verdict.found is not None
        return {
            "model": name,
            "folder": str(target),
            "dice": {structure: row["dice"] for structure, row in verdict.structures().items()},
            "poor": verdict.poor_structures(),
            "prompts": verdict.prompts(),
            "left_out": list(verdict.dice),
            "worst_case": verdict.worst,
            "overlay": str(self.options.picture.absolute()) if drawn else "",
            "steps": training.steps,
            "seconds": round(self.clock.passed, 1),
        }


@contextlib.contextmanager
def workplace(parent: Path) -> Iterator[Path]:
    """A folder for temporary patient data, removed at the end, as are those that killed commands left."""
    from MaskSAMCore.errors import ResourceError
    from MaskSAMCore.io.atomic import FolderLock

    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f"{SCRATCH}*"):
        with contextlib.suppress(ResourceError, OSError), FolderLock(old):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
    try:
        with FolderLock(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def command_line(options: argparse.Namespace) -> str:
    """The command as a reader would type it, without options that concern this computer alone."""
    words = ["masksam", "teach", options.cases.resolve().name]
    words += ["--name", options.name] if options.name else []
    words += ["--minutes", f"{options.minutes:g}"]
    words += ["--steps", str(options.steps)] if options.steps is not None else []
    words += ["--left-out", str(options.left_out)] if options.left_out is not None else []
    words += ["--preset", options.preset] if options.preset != DEFAULT else []
    words += [word for text in options.set for word in ("--set", text)]
    return shlex.join(words)


def time_shares(options: argparse.Namespace) -> TimeShares:
    """How the training uses its time."""
    from MaskSAMCore.training.quick_training import TimeShares

    shares = TimeShares()
    if options.steps is None:
        return shares
    return replace(shares, steps=(min(shares.steps[0], options.steps), options.steps))


def summary(result: dict[str, Any]) -> list[str]:
    """The result of the command, in lines for people."""
    lines = [f"{result['model']}: taught in {result['seconds'] / 60:.1f} minutes, {result['steps']} steps"]
    if result["left_out"]:
        lines.append(f"Dice on the cases left out ({', '.join(result['left_out'])}):")
        lines += [f"  {name}: {dice:.3f}" for name, dice in result["dice"].items()]
    if result["poor"]:
        lines.append(warning_of(result["poor"]))
    if result["prompts"]:
        figures = ", ".join(f"{name} {dice:.3f}" for name, dice in result["prompts"].items())
        lines.append(f"Simulated users in one patch: {figures}")
    if result["overlay"]:
        lines.append(f"The worst of them, {result['worst_case']}: {result['overlay']}")
    return [*lines, f"done: {result['folder']}"]


def warning_of(names: Sequence[str]) -> str:
    """A warning that names the structures a model is of no use for; "" where there is none."""
    return POOR_MODEL.format(names=", ".join(names), poor=hold_out.POOR_DICE) if names else ""


def log(text: str) -> None:
    """Print a line for people on stderr; the result goes to stdout."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
