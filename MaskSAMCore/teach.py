"""`python -m MaskSAMCore.teach`: a model from a few saved cases, in minutes, on the machine at hand."""

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
from MaskSAMCore.evaluation import hold_out

if TYPE_CHECKING:
    import torch

    from MaskSAMCore.config.schema import Config
    from MaskSAMCore.data.dataset import PreparedDataset
    from MaskSAMCore.data.raw import RawDataset
    from MaskSAMCore.data.splits import Split
    from MaskSAMCore.evaluation.hold_out import HoldOutResult
    from MaskSAMCore.progress import CancelToken, Progress
    from MaskSAMCore.training.quick_training import Clock, Lesson, Rules

EPILOG = """examples:
  python -m MaskSAMCore.teach CASES --name liver                    installed as "liver", in nine minutes at most
  python -m MaskSAMCore.teach CASES --name liver --minutes 30 --overwrite
  python -m MaskSAMCore.teach CASES -o FOLDER --left-out 0          a model folder; every case is learned from

CASES is a folder in nnU-Net's raw format, such as the one where Slicer saves training cases. SAM's encoder stays as it
is; its features of the cases are computed once, and what stands behind them is trained until the time is over, for use
without prompts and with clicks and boxes. Cases that are left out judge the model: Dice on their own grids.
"""

PRESET = "core-mobile"
TAUGHT = ("query", "class")
"""Sources of prompts that a lesson can train."""
MINUTES = 9.0
LEFT_OUT_SHARE = 5
MOST_LEFT_OUT = 8
SCRATCH = ".lesson-"
EXAM_SHARE = 0.15
"""Of the whole time, for judging."""
SLACK = 1.3
"""Times the estimate that is kept free for it."""
ENDING_S = 6.0
"""For saving, loading and installing the model."""
NOT_YET = "Not good enough to rely on for {names}: Dice below {poor:g}. More cases or more minutes help."
LIMITS = "It has seen {cases} case(s) only: scans from elsewhere, unusual anatomy and disease may be beyond it."


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = command_parser("teach", "Teach a model from a few labelled scans, in minutes.", epilog=EPILOG)
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
        help=f"cases to judge the model by (default: one in {LEFT_OUT_SHARE}, at least 1 and at most {MOST_LEFT_OUT})",
    )
    p.add_argument("--picture", type=Path, metavar="PNG", help="draw the worst of the left-out cases")
    p.add_argument("--preset", default=PRESET, help=f"configuration to start from (default: {PRESET})")
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
    from MaskSAMCore.training.quick_training import Clock

    with terminal_progress() as progress, cancel_on_signals(CancelToken()) as cancel:
        result = Teacher(options, Clock(60 * options.minutes, began=began), progress, cancel).teach()
    text = "\n".join(told(result)) if sys.stdout.isatty() else json.dumps(result, ensure_ascii=False)
    print(text)
    return 0


class Teacher:
    """One lesson, from a folder of cases to a model that is installed; nothing else is left behind.

    Args:
        options: Of the command.
        clock: The time for everything.
        progress: Told after every patch, step and case.
        cancel: Asked before them.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        clock: Clock,
        progress: Progress,
        cancel: CancelToken,
    ) -> None:
        self.options, self.clock, self.cancel, self.rules = options, clock, cancel, rules_of(options)
        self.told, self.progress = progress, clock.told_to(progress)

    def teach(self) -> dict[str, Any]:
        """Do it all; returns what the command prints.

        Raises:
            InputError: A model of that name exists, or the cases have problems; all of them are listed.
            ResourceError: The time is too short for a model, or the disk too small.
            Cancelled: Asked to stop.
        """
        from MaskSAMCore import device as devices
        from MaskSAMCore.data.raw import read_dataset
        from MaskSAMCore.inference.predictor import Predictor
        from MaskSAMCore.zoo.base_weights import home

        raw = read_dataset(self.options.cases)
        name = self._name(raw)
        device = devices.choose_device(self.options.device)
        note(devices.describe(device))
        with workplace(home("data")) as folder:
            prepared, config, split = self._prepare(folder)
            lesson, base = self._lesson(folder, prepared, config, split, device)
            lesson.choose_precision()
            lesson.encode()
            window_s = lesson.seconds_per_window()
            exam = hold_out.plan_hold_out(
                prepared, config, split.val, window_s=window_s, most_s=EXAM_SHARE * self.clock.seconds
            )
            lesson.learn(reserve=SLACK * exam.seconds + ENDING_S)
            self.progress(0, 0, "judging")
            model = self._save(folder / name, lesson, prepared, config, split, base)
            verdict = hold_out.evaluate_hold_out(
                Predictor(model, device=self.options.device),
                raw,
                prepared,
                exam,
                enough=lambda: self.clock.left < ENDING_S + exam.seconds / len(exam.cases),
                progress=self.progress,
                cancel=self.cancel,
            )
            self._record(model, verdict)
            self._draw(prepared, verdict)
            self.cancel.check()
            target = self._place(model)
        return self._result(name, target, lesson, verdict)

    def _name(self, raw: RawDataset) -> str:
        """The model's name, which nothing may have yet that must not be replaced."""
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
        """The cases as the network sees them, the preset fitted to them, and who is left out."""
        import numpy as np

        from MaskSAMCore.config import presets
        from MaskSAMCore.config.serialize import override
        from MaskSAMCore.data.build import prepare
        from MaskSAMCore.data.splits import leave_out
        from MaskSAMCore.errors import InputError
        from MaskSAMCore.training.fit import fit_config
        from MaskSAMCore.training.quick_training import for_lesson
        from MaskSAMCore.zoo import base_weights

        config = override(presets.get(self.options.preset), self.options.set)
        if config.model.source.kind not in TAUGHT:
            raise InputError(
                "this network cannot be taught in a lesson",
                where=self.options.preset,
                why="a lesson trains what makes its own prompts behind SAM's encoder",
                remedy="Use the train command, or another preset.",
            )
        if config.model.backbone.arch != "tiny":
            base_weights.obtain_base(
                config.model.backbone.arch
            )  # before the cases are read: without it there is no lesson
        prepared, _ = prepare(self.options.cases, folder / "cache", config, progress=self.progress, cancel=self.cancel)
        config = for_lesson(fit_config(config, prepared), prepared.plan.median_shape)
        prepared.check_config(config)
        count = self.options.left_out
        if count is None:
            count = min(max(1, len(prepared) // LEFT_OUT_SHARE), MOST_LEFT_OUT)
        held = {case: np.unique(prepared.case(case).points[:, 0]).tolist() for case in prepared.ids}
        split = leave_out(held, count, config.train.seed, patient=prepared.patients)
        note(f"{len(split.train)} case(s) to learn from; left out: {', '.join(split.val) or 'none'}")
        return prepared, config, split

    def _lesson(
        self, folder: Path, prepared: PreparedDataset, config: Config, split: Split, device: torch.device
    ) -> tuple[Lesson, dict[str, str]]:
        """The network before its first step, and the base weights that it stands on."""
        from MaskSAMCore.training.quick_training import Lesson
        from MaskSAMCore.training.run import new_model

        model, base = new_model(config, None, note)
        lesson = Lesson(
            model,
            config,
            dataset=prepared,
            split=split,
            folder=folder / "patches",
            device=device,
            clock=self.clock,
            rules=self.rules,
            note=note,
            progress=self.told,
            cancel=self.cancel,
        )
        return lesson, base

    def _save(
        self,
        folder: Path,
        lesson: Lesson,
        prepared: PreparedDataset,
        config: Config,
        split: Split,
        base: dict[str, str],
    ) -> Path:
        """The model's folder, with all on its card but how good it is."""
        import numpy as np

        from MaskSAMCore import device as devices
        from MaskSAMCore.preprocessing.postprocess import suggest_largest
        from MaskSAMCore.training.card import model_card, model_readme
        from MaskSAMCore.training.loop import trained_tensors
        from MaskSAMCore.training.quick_training import as_done
        from MaskSAMCore.zoo import model_folder

        told = {
            "minutes": self.options.minutes,
            "device": devices.describe(lesson.device).split(",")[0],
            "patches": lesson.pool.count,
            "precision": lesson.precision,
        }
        card = model_card(
            name=folder.name,
            config=as_done(config, lesson.steps),
            dataset=prepared,
            split=split,
            fold="",
            base=base,
            step=lesson.steps,
            figures={},
            origin={"lesson": told},
            largest=suggest_largest(np.asarray(prepared.case(case).label) for case in split.train),
        )
        card = replace(card, limits=LIMITS.format(cases=len(split.train)))
        with lesson.averaged():
            tensors = trained_tensors(lesson.model, base=bool(base["name"]))
            return model_folder.save_model(folder, card, tensors, model_readme(card))

    def _record(self, model: Path, verdict: HoldOutResult) -> None:
        """Write what was measured into the card."""
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
        limits = f"{not_yet(verdict.poor_structures())} {card.limits}".strip()
        card = replace(card, metrics=metrics, limits=limits)
        model_folder.save_card(model, card, model_readme(card))

    def _draw(self, prepared: PreparedDataset, verdict: HoldOutResult) -> None:
        """The worst of the left-out cases beside its reference, as the network sees them."""
        if self.options.picture is None or verdict.found is None:
            return
        from MaskSAMCore.preprocessing.preprocess import preprocess_labels
        from MaskSAMCore.training.report import save_overlay

        case = prepared.case(verdict.worst)
        predicted = preprocess_labels(verdict.found, case.record, prepared.plan, prepared.labels)
        save_overlay(case.image[0], case.label, predicted, prepared.labels, self.options.picture)

    def _place(self, model: Path) -> Path:
        """Put the finished model where it belongs, whole, in the place of one that was there."""
        from MaskSAMCore.zoo.installed import find_model, import_model
        from MaskSAMCore.zoo.model_folder import FILES, whole_folder

        if self.options.output is None:
            return find_model(import_model(model, overwrite=self.options.overwrite))
        self.options.output.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(self.options.output, overwrite=self.options.overwrite) as partial:
            for name in FILES:
                shutil.copyfile(model / name, partial / name)
        return self.options.output

    def _result(self, name: str, target: Path, lesson: Lesson, verdict: HoldOutResult) -> dict[str, Any]:
        """What the command prints, as plain JSON values."""
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
            "steps": lesson.steps,
            "seconds": round(self.clock.passed, 1),
        }


@contextlib.contextmanager
def workplace(parent: Path) -> Iterator[Path]:
    """A folder for a lesson's patient data, gone at the end; what a lesson left that was killed goes as well."""
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
    """The command as a reader would type it, without what concerns this computer alone."""
    words = ["python", "-m", "MaskSAMCore.teach", options.cases.resolve().name]
    words += ["--name", options.name] if options.name else []
    words += ["--minutes", f"{options.minutes:g}"]
    words += ["--steps", str(options.steps)] if options.steps is not None else []
    words += ["--left-out", str(options.left_out)] if options.left_out is not None else []
    words += ["--preset", options.preset] if options.preset != PRESET else []
    words += [word for text in options.set for word in ("--set", text)]
    return shlex.join(words)


def rules_of(options: argparse.Namespace) -> Rules:
    """How the lesson uses its time."""
    from MaskSAMCore.training.quick_training import Rules

    rules = Rules()
    if options.steps is None:
        return rules
    return replace(rules, steps=(min(rules.steps[0], options.steps), options.steps))


def told(result: dict[str, Any]) -> list[str]:
    """What a lesson brought, in lines for people."""
    lines = [f"{result['model']}: taught in {result['seconds'] / 60:.1f} minutes, {result['steps']} steps"]
    if result["left_out"]:
        lines.append(f"Dice on the cases left out ({', '.join(result['left_out'])}):")
        lines += [f"  {name}: {dice:.3f}" for name, dice in result["dice"].items()]
    if result["poor"]:
        lines.append(not_yet(result["poor"]))
    if result["prompts"]:
        figures = ", ".join(f"{name} {dice:.3f}" for name, dice in result["prompts"].items())
        lines.append(f"Simulated users in one patch: {figures}")
    if result["overlay"]:
        lines.append(f"The worst of them, {result['worst_case']}: {result['overlay']}")
    return [*lines, f"done: {result['folder']}"]


def not_yet(names: Sequence[str]) -> str:
    """A warning that names the structures a model is of no use for; "" where there is none."""
    return NOT_YET.format(names=", ".join(names), poor=hold_out.POOR_DICE) if names else ""


def note(text: str) -> None:
    """A line for people, beside the result on stdout."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
