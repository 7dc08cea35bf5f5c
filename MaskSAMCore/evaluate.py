"""`python -m MaskSAMCore.evaluate`: metrics of segmentations, for each case and label."""

from __future__ import annotations

import argparse
import csv
import io
import math
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from MaskSAMCore.commandline import add_device_option, cancel_on_signals, command_parser, run

if TYPE_CHECKING:
    from MaskSAMCore.data.raw import RawCase, RawDataset
    from MaskSAMCore.evaluation.metrics import Scores
    from MaskSAMCore.evaluation.worst_cases import WorstCases
    from MaskSAMCore.labels import LabelTable
    from MaskSAMCore.volume import LabelMap
    from MaskSAMCore.zoo.model_folder import ModelCard

EPILOG = """examples:
  %(prog)s PREDICTIONS REFERENCES -o table.csv        files of the same names in two folders
  %(prog)s --model hippocampus-mr DATASET --fold 0    segment that fold's validation cases first
  %(prog)s --interactive --model hippocampus-mr DATASET --fold 0     simulated clicks and boxes

Dice, IoU, and normalised surface Dice (NSD, share of the borders within the tolerance) are in 0 to 1, HD95 is in mm.
A structure that is absent in both label maps is left out. One that is in only one of them has Dice, IoU and NSD 0 and
no HD95, and is counted in the column "one-sided".

With --interactive a simulated user clicks into slices and whole volumes. The table has the Dice after 1, 3, 5 and 10
clicks, with 1 and 3 random points at once, and with boxes whose IoU with the structure's box is 0.5 and 0.75; the
number of clicks (NoC) to reach Dice 0.80, 0.85 and 0.90; and the share of clicks that changed nothing (idle). In single
slices plain SAM is tested as well. Pictures have slices only. A model for structures of any kind, as "any", takes any
labelled DATASET. It is tested in whole volumes, where plain SAM goes from slice to slice, and with a first scribble and
a first lasso too."""

TOLERANCE_MM = 1.0
STEP = 0.5
SLICES = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """Metrics of one structure of one case."""

    case: str
    label: int
    name: str
    scores: Scores


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = command_parser("evaluate", "Compare segmentations with their references.", epilog=EPILOG)
    p.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="PREDICTIONS REFERENCES, or DATASET")
    p.add_argument("-o", "--output", type=Path, metavar="CSV", help="write the table here as well")
    p.add_argument("--tolerance", type=float, metavar="MM", help=f"tolerance of the NSD (default: {TOLERANCE_MM:g} mm)")
    p.add_argument("--overwrite", action="store_true", help="replace an existing table")
    p.add_argument("--model", metavar="MODEL", help="segment DATASET with this model first")
    p.add_argument("--fold", type=int, metavar="N", help="with --model: only the validation cases of this fold")
    p.add_argument("--cases", nargs="+", metavar="CASE", help="with --model: only these cases")
    p.add_argument("--record", action="store_true", help="with --model: write the results into the model's card")
    p.add_argument("--worst", type=Path, metavar="FOLDER", help="with --model: draw the three worst cases here")
    p.add_argument("--tta", action="store_true", help="with --model: average over mirrored copies")
    p.add_argument(
        "--step",
        type=float,
        metavar="S",
        help=f"with --model: distance of two windows as a share of the patch (default: {STEP})",
    )
    p.add_argument("--interactive", action="store_true", help="with --model: simulate users who click and draw boxes")
    p.add_argument(
        "--slices",
        type=int,
        metavar="N",
        help=f"with --interactive: slices per structure, 0 for all (default: {SLICES})",
    )
    add_device_option(p)
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    p = parser()
    options = p.parse_args(argv)
    wanted = 1 if options.model else 2
    if len(options.folders) != wanted:
        p.error("DATASET is needed with --model" if options.model else "PREDICTIONS and REFERENCES are needed")
    if not options.model and (options.fold is not None or options.cases or options.tta or options.record):
        p.error("--fold, --cases, --tta and --record need --model")
    if options.worst is not None and not options.model:
        p.error("--worst needs --model")
    if options.interactive and not options.model:
        p.error("--interactive needs --model")
    if options.interactive and (options.tta or options.step is not None or options.tolerance is not None):
        p.error("--tta, --step and --tolerance do not go with --interactive")
    if options.slices is not None and (not options.interactive or options.slices < 0):
        p.error("--slices needs --interactive, and a number of at least 0")
    return run(lambda: _evaluate(options, command_line(argv)))


def command_line(argv: list[str] | None) -> str:
    """The command for the model's card: paths by their last part, without the options that only write files."""
    words = list(sys.argv[1:] if argv is None else argv)
    kept = [word for word in words if word not in ("--record", "--overwrite")]
    shown = [Path(word).name if "/" in word or "\\" in word else word for word in kept]
    return shlex.join(["python", "-m", "MaskSAMCore.evaluate", *shown])


def _evaluate(options: argparse.Namespace, command: str) -> int:
    from MaskSAMCore.io.atomic import check_target, write_text

    if options.output is not None:
        check_target(options.output, overwrite=options.overwrite)
    lines, text, kept = _interactive(options) if options.interactive else _automatic(options)
    print("\n".join(lines))
    if options.output is not None:
        write_text(options.output, text, overwrite=options.overwrite)
        print(f"wrote {options.output}")
    if options.record:
        print(f"wrote {record_metrics(options.model, kept, command)}")
    return 0


def _automatic(options: argparse.Namespace) -> tuple[list[str], str, dict]:
    """Lines for the terminal, the table as CSV, and what a card keeps."""
    tolerance = TOLERANCE_MM if options.tolerance is None else options.tolerance
    found = (
        _model_rows(options, tolerance) if options.model else compare_folders(*options.folders, tolerance_mm=tolerance)
    )
    rows = list(found)
    return report(rows, tolerance), table(rows), figures(rows)


def _interactive(options: argparse.Namespace) -> tuple[list[str], str, dict]:
    """The same for simulated users."""
    from functools import partial

    from MaskSAMCore.data.raw import read_dataset
    from MaskSAMCore.errors import InputError
    from MaskSAMCore.evaluation import interactive
    from MaskSAMCore.evaluation.worst_cases import WorstCases
    from MaskSAMCore.progress import CancelToken, terminal_progress

    dataset = read_dataset(options.folders[0])
    worst = None if options.worst is None else WorstCases()

    def cases(card: ModelCard) -> list[RawCase]:
        _check_labels(card, dataset)
        if worst is not None and card.labels.labels:
            why = "the last answers are drawn for a model for structures of any kind"
            raise InputError("cannot draw the worst cases with --interactive", where=card.name, why=why)
        return choose_cases(dataset, card, fold=options.fold, names=options.cases)

    with cancel_on_signals(CancelToken()) as cancel, terminal_progress() as progress:
        found = list(
            interactive.trials(
                options.model,
                dataset,
                cases,
                device=options.device,
                slices=SLICES if options.slices is None else options.slices,
                worst=worst,
                log=partial(print, flush=True),
                progress=progress,
                cancel=cancel,
            )
        )
    if worst is not None:
        _draw(worst, options.worst, dataset)
    return interactive.report(found), interactive.table(found), interactive.card_figures(found)


def figures(rows: list[Row]) -> dict[str, dict[str, float]]:
    """The means for a model's card, by structure; values that do not exist are left out."""
    kept = {}
    for _, name, summary in summaries(rows):
        values = {c: summary.mean[c] for c in ("dice", "iou", "nsd", "hd95")}
        known = {c: round(value, 4) for c, value in values.items() if not math.isnan(value)}
        kept[name] = known | {"cases": summary.cases, "one_sided": summary.one_sided}
    return kept


def record_metrics(model: str, kept: dict, command: str) -> Path:
    """Write results into a model's card and README, under the command that measured them; returns the folder."""
    from dataclasses import replace

    from MaskSAMCore.training.card import model_readme
    from MaskSAMCore.zoo import installed, model_folder

    folder = installed.find_model(model)
    card = model_folder.load_card(folder)
    card = replace(card, metrics={**card.metrics, command: kept})
    model_folder.save_card(folder, card, model_readme(card))
    return folder


def compare_folders(predictions: Path, references: Path, *, tolerance_mm: float = TOLERANCE_MM) -> Iterator[Row]:
    """Compare every reference with the prediction of the same name.

    The structures are named by a `dataset.json` beside the folder of references, or else by the files' label tables.

    Raises:
        InputError: A folder is missing or has no label maps, or a file cannot be read.
        DatasetError: References have no prediction; all of them are listed, and nothing is measured.
        GeometryError: The grids of a pair differ.
    """
    from MaskSAMCore.errors import DatasetError
    from MaskSAMCore.io.images import read_labels

    wanted, found = _label_files(references), _label_files(predictions)
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise DatasetError(
            "references without a prediction",
            where=predictions,
            problems=[f"{name}: there is no file of this name" for name in missing],
            remedy="Segment these cases as well, or remove their references.",
        )
    names = _declared(references)
    for case in sorted(wanted):
        predicted, reference = read_labels(found[case]), read_labels(wanted[case])
        yield from compare(case, predicted, reference, names or reference.labels or predicted.labels, tolerance_mm)


def compare(
    case: str, predicted: LabelMap, reference: LabelMap, labels: LabelTable | None, tolerance_mm: float
) -> Iterator[Row]:
    """One row for each structure of `labels`; without a table, for each id in either label map."""
    from MaskSAMCore.evaluation.metrics import score_labels

    names = {label.id: label.name for label in labels.labels} if labels else {}
    scores = score_labels(predicted, reference, names or None, tolerance_mm=tolerance_mm)
    for number, each in scores.items():
        yield Row(case=case, label=number, name=names.get(number, f"label {number}"), scores=each)


def _label_files(folder: Path) -> dict[str, Path]:
    from MaskSAMCore.errors import InputError
    from MaskSAMCore.outputs import case_name

    if not folder.is_dir():
        raise InputError("is not a folder", where=folder, remedy="Give a folder of label maps.")
    endings = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(endings):
            continue
        name = case_name(path)
        # `segment` writes each case twice, as .nii.gz and as .seg.nrrd; one of them is enough
        if name not in files or path.name.endswith(".nii.gz"):
            files[name] = path
    if not files:
        raise InputError("has no label maps", where=folder, why=f"no file ends in {', '.join(endings)}")
    return files


def _declared(references: Path) -> LabelTable | None:
    from MaskSAMCore.data.raw import read_dataset

    parent = references.resolve().parent
    return read_dataset(parent).labels if (parent / "dataset.json").is_file() else None


def _model_rows(options: argparse.Namespace, tolerance_mm: float) -> Iterator[Row]:
    from MaskSAMCore import device
    from MaskSAMCore.data.raw import read_case, read_dataset
    from MaskSAMCore.evaluation.worst_cases import WorstCases
    from MaskSAMCore.inference.predictor import Predictor
    from MaskSAMCore.progress import CancelToken, terminal_progress

    dataset = read_dataset(options.folders[0])
    predictor = Predictor(options.model, device=options.device)
    _check_labels(predictor.card, dataset)
    cases = choose_cases(dataset, predictor.card, fold=options.fold, names=options.cases)
    step = STEP if options.step is None else options.step
    print(f"Model:  {predictor.card.name}, {len(cases)} case(s) of {dataset.name}")
    print(f"Device: {device.describe(predictor.device)}", flush=True)
    worst = WorstCases()
    with cancel_on_signals(CancelToken()) as cancel, terminal_progress() as progress:
        for number, case in enumerate(cases):
            progress(number, len(cases), "evaluating")
            volume, reference = read_case(dataset, case)
            result = predictor.segment(volume, tta=options.tta, step=step, cancel=cancel)
            rows = list(compare(case.id, result.labels, reference, dataset.labels, tolerance_mm))
            yield from rows
            if options.worst is not None:
                worst.add(case.id, [row.scores.dice for row in rows], volume, result.labels, reference)
        progress(len(cases), len(cases), "evaluating")
    if options.worst is not None:
        _draw(worst, options.worst, dataset, picture="rgb" in predictor.card.plan["normalisation"])


def _draw(worst: WorstCases, folder: Path, dataset: RawDataset, *, picture: bool = False) -> None:
    for name, dice, path in worst.draw(folder, dataset.labels, picture=picture):
        print(f"Worst:  {name}, mean Dice {dice:.3f}: {path}")


def _check_labels(card: ModelCard, dataset: RawDataset) -> None:
    from MaskSAMCore.errors import InputError

    if not card.labels.labels:  # for structures of any kind
        return
    trained, declared = ({label.id: label.name for label in table.labels} for table in (card.labels, dataset.labels))
    if trained.keys() == declared.keys() and trained != declared:
        print(f"Labels: named {trained} by the model and {declared} by the data set; compared by number")
    elif trained != declared:
        raise InputError(
            f"the labels of the model {card.name} and of the data set differ",
            where=dataset.folder,
            why=f"{trained} and {declared}",
        )


def choose_cases(
    dataset: RawDataset, card: ModelCard, *, fold: int | None = None, names: Iterable[str] | None = None
) -> list[RawCase]:
    """Choose cases with a label map, ordered by id: all, a fold's validation cases, or those of `names`.

    The folds are the data set's own; without, they are drawn with the number and seed of the model's training.

    Raises:
        InputError: There is no such fold or case.
    """
    from MaskSAMCore.data.splits import folds, load_splits
    from MaskSAMCore.errors import InputError

    cases = {case.id: case for case in dataset.cases if case.label is not None}
    chosen = list(cases)
    if fold is not None:
        patients = {case.id: case.patient for case in dataset.cases}
        train, record = card.config.train, card.provenance
        count, seed = int(record.get("folds", train.folds)), int(record.get("seed", card.config.data.split_seed))
        splits = load_splits(dataset.folder, chosen, patients) or folds(chosen, count, seed, patient=patients)
        if not 0 <= fold < len(splits):
            raise InputError("there is no such fold", where=f"--fold {fold}", why=f"there are {len(splits)}, from 0")
        chosen = list(splits[fold].val)
    if names is not None:
        wanted = list(dict.fromkeys(names))
        unknown = [name for name in wanted if name not in chosen]
        if unknown:
            raise InputError(
                "there is no such case", where=", ".join(unknown), why=f"{dataset.name}: {len(chosen)} cases"
            )
        chosen = wanted
    return [cases[name] for name in sorted(chosen)]


COLUMNS = ("dice", "iou", "nsd", "hd95", "predicted_ml", "reference_ml")


def table(rows: list[Row]) -> str:
    """CSV text: every case and label, then mean and standard deviation of each label.

    A value that does not exist is an empty cell.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "label", "structure", *COLUMNS, "cases", "one_sided"])
    for row in rows:
        writer.writerow([row.case, row.label, row.name, *(_cell(getattr(row.scores, c)) for c in COLUMNS), "", ""])
    for number, name, summary in summaries(rows):
        for kind, values in (("mean", summary.mean), ("std", summary.std)):
            cells = [_cell(values[c]) for c in COLUMNS]
            writer.writerow([kind, number, name, *cells, summary.cases, summary.one_sided])
    return text.getvalue()


def summaries(rows: list[Row]) -> list:
    """(id, name, Summary) of every label, ordered by id, and ("", "all", Summary) of all together."""
    from MaskSAMCore.evaluation.metrics import summarize

    names = dict(sorted({row.label: row.name for row in rows}.items()))
    found: list = [(n, name, summarize(r.scores for r in rows if r.label == n)) for n, name in names.items()]
    return [*found, ("", "all", summarize(row.scores for row in rows))]


def report(rows: list[Row], tolerance_mm: float) -> list[str]:
    """Lines for the terminal: every case and label, then the summary."""
    wide = max([len(row.case) for row in rows] + [4])
    name = max([len(row.name) for row in rows] + [9])
    head = f"{'Dice':>6} {'IoU':>6} {'NSD':>6} {'HD95':>7} {'mL':>9} {'ref mL':>9}"
    lines = [f"{'case':{wide}}  {'structure':{name}} {head}"]
    lines += [f"{row.case:{wide}}  {row.name:{name}} {_figures(vars(row.scores))}" for row in rows]
    lines += ["", f"{'mean ± deviation':{name + wide + 2}} {'Dice':>13} {'NSD':>13} {'HD95 mm':>13}  cases one-sided"]
    for _, label, s in summaries(rows):
        cells = " ".join(
            f"{_number(s.mean[c], digits):>6} ±{_number(s.std[c], digits):>5}"
            for c, digits in (("dice", 3), ("nsd", 3), ("hd95", 2))
        )
        lines.append(f"{label:{name + wide + 2}} {cells}  {s.cases:5d} {s.one_sided:9d}")
    return [*lines, f"NSD within {tolerance_mm:g} mm; values that do not exist are left out of the means"]


def _figures(values: dict[str, float]) -> str:
    ratios = " ".join(f"{_number(values[c], 3):>6}" for c in ("dice", "iou", "nsd"))
    volumes = " ".join(f"{values[c]:9.3f}" for c in ("predicted_ml", "reference_ml"))
    return f"{ratios} {_number(values['hd95'], 2):>7} {volumes}"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


if __name__ == "__main__":
    sys.exit(main())
