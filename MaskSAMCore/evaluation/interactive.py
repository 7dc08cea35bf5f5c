"""Interactive evaluation of a model: run simulated users on cases, and make tables of the results."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from MaskSAMCore.evaluation.simulated_users import (
    CLICKS,
    COLUMNS,
    GOALS,
    MAX_CLICKS,
    OVERLAPS,
    POINTS,
    SLICES,
    VOLUMES,
    Study,
    Trial,
)
from MaskSAMCore.progress import CancelToken, Progress, no_progress

if TYPE_CHECKING:
    from MaskSAMCore.data.raw import RawCase, RawDataset
    from MaskSAMCore.evaluation.worst_cases import WorstCases
    from MaskSAMCore.zoo.model_folder import ModelCard

BASE_NAMES = {"mobile": "MobileSAM", "vit_b": "SAM ViT-B", "vit_l": "SAM ViT-L", "vit_h": "SAM ViT-H"}
OPEN_SET_SAM = "mobile"
"""Plain SAM that a model without a SAM of its own is compared with."""
OVER_VOLUMES = "mean over volumes"
HEADS = (
    {f"dice_{n}": f"{n} click{'s' * (n > 1)}" for n in CLICKS}
    | {f"points_{n}": f"{n} point{'s' * (n > 1)}" for n in POINTS}
    | {f"box_{round(100 * t)}": f"box {t}" for t in OVERLAPS}
    | {"scribble": "scribble", "lasso": "lasso", "idle": "idle"}
    | {f"noc_{round(100 * goal)}": f"NoC@{goal:.2f}" for goal in GOALS}
)
"""Headings of the terminal's table, by column."""


def trials(
    model: str,
    dataset: RawDataset,
    cases: Callable[[ModelCard], Sequence[RawCase]],
    *,
    device: str = "auto",
    slices: int = 3,
    worst: WorstCases | None = None,
    log: Callable[[str], None],
    progress: Progress = no_progress,
    cancel: CancelToken | None = None,
) -> Iterator[Trial]:
    """Run simulated users of a model on cases of a data set; see `simulated_users` for their rules.

    Args:
        model: Name of an installed model, or its folder.
        dataset: Has the cases.
        cases: Chooses the cases, given the model's card.
        device: "auto", "cpu", "cuda" or "cuda:N".
        slices: Slices of each structure; see `Study`.
        worst: Gets the scans and last answers of a model for structures of any kind.
        log: Gets a line on the model and one on the device.
        progress: Called before every case.
        cancel: Checked before every answer of the model.

    Raises:
        ModelError: The model or its base weights are missing or damaged, or it takes no prompts.
        Cancelled: `cancel` was set.
    """
    from MaskSAMCore import device as devices
    from MaskSAMCore.data.raw import read_case
    from MaskSAMCore.inference.cache import SlabCache
    from MaskSAMCore.inference.checks import require_prompts
    from MaskSAMCore.inference.open_set import OpenSetSession
    from MaskSAMCore.inference.sessions import open_session
    from MaskSAMCore.inference.zeroshot import ZeroShot
    from MaskSAMCore.zoo import base_weights, installed

    place = devices.choose_device(device)
    network, card = installed.load_model(model, place, download=True)
    require_prompts(card)
    chosen = cases(card)
    study = Study(name=card.name, labels=dataset.labels, slices=slices, colour=dataset.pictures)
    if card.base is not None:
        path = base_weights.obtain_base(card.base.name, sha256=card.base.sha256)
        arch = card.config.model.backbone.arch
        title = f"zero-shot {BASE_NAMES.get(card.base.name, card.base.name)}"
        study = replace(study, sam=ZeroShot(arch, path, place), sam_name=title)
    elif not card.labels.labels:
        sam = ZeroShot(OPEN_SET_SAM, base_weights.obtain_base(OPEN_SET_SAM), place)
        study = replace(study, sam=sam, sam_name=f"zero-shot {BASE_NAMES[OPEN_SET_SAM]}, from slice to slice")
    log(f"Model:  {card.name}, {len(chosen)} case(s) of {dataset.name}, compared with {study.sam_name or 'nothing'}")
    log(f"Device: {devices.describe(place)}")
    for number, case in enumerate(chosen):
        progress(number, len(chosen), "simulating users")
        volume, reference = read_case(dataset, case)
        session = open_session(network, card, volume, device=place, cache=SlabCache())
        if isinstance(session, OpenSetSession):
            last = np.zeros_like(reference.array)
            found = list(study.open_set_trials(case.id, volume, reference, session, cancel, last))
            if worst is not None:
                scores = [trial.clicks[-1] for trial in found if trial.method == card.name]
                worst.add(case.id, scores, volume, replace(reference, array=last), reference)
            yield from found
        else:
            yield from study.trials(case.id, volume, reference, session, cancel)
    progress(len(chosen), len(chosen), "simulating users")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the summary: means of one structure, of one case or of all together, with one method."""

    protocol: str
    label: int | str
    name: str
    method: str
    targets: int
    cases: int
    mean: dict[str, float]
    case: str = "mean"

    @property
    def title(self) -> str:
        """What the terminal calls the row."""
        return self.name if self.case == "mean" else self.case


def summaries(found: Sequence[Trial]) -> list[Line]:
    """Means for each protocol: the structures by id, then all together, each with every method."""
    lines = []
    names: dict[int | str, str] = dict(sorted({t.label: t.name for t in found}.items()))
    methods = list(dict.fromkeys(t.method for t in found))
    for protocol, (label, name), method in itertools.product((SLICES, VOLUMES), [*names.items(), ("", "all")], methods):
        some = [t for t in found if (t.protocol, t.method) == (protocol, method) and label in ("", t.label)]
        if some:
            mean = _mean([t.figures() for t in some])
            lines.append(
                Line(
                    protocol=protocol,
                    label=label,
                    name=name,
                    method=method,
                    targets=len(some),
                    cases=len({t.case for t in some}),
                    mean=mean,
                )
            )
    return lines


def volume_means(found: Sequence[Trial]) -> list[Line]:
    """Means over the structures of each whole volume, and the means of those, with every method.

    Empty where no volume has more than one structure.
    """
    lines = []
    whole = [t for t in found if t.protocol == VOLUMES]
    cases = list(dict.fromkeys(t.case for t in whole))
    if len({(t.case, t.label) for t in whole}) == len(cases):
        return []
    for method in dict.fromkeys(t.method for t in whole):
        means = []
        for case in cases:
            some = [t for t in whole if (t.case, t.method) == (case, method)]
            mean = _mean([t.figures() for t in some])
            means.append(mean)
            lines.append(
                Line(
                    protocol=VOLUMES,
                    case=case,
                    label="",
                    name="all",
                    method=method,
                    targets=len(some),
                    cases=1,
                    mean=mean,
                )
            )
        count = sum(t.method == method for t in whole)
        over = _mean(means)
        lines.append(
            Line(
                protocol=VOLUMES,
                label="",
                name=OVER_VOLUMES,
                method=method,
                targets=count,
                cases=len(cases),
                mean=over,
            )
        )
    return sorted(lines, key=lambda line: line.name == OVER_VOLUMES)


def _mean(values: Sequence[dict[str, float]]) -> dict[str, float]:
    return {c: float(np.mean([v[c] for v in values])) for c in COLUMNS}


def card_figures(found: Sequence[Trial]) -> dict[str, dict[str, dict[str, float]]]:
    """The means for a model's card, by protocol and by "structure, method"; values that do not exist are left out."""
    kept: dict[str, dict[str, dict[str, float]]] = {}
    for line in [*summaries(found), *(each for each in volume_means(found) if each.name == OVER_VOLUMES)]:
        known = {c: round(value, 4) for c, value in line.mean.items() if not math.isnan(value)}
        row = f"{line.name}, {line.method}"
        kept.setdefault(line.protocol, {})[row] = known | {"targets": line.targets, "cases": line.cases}
    return kept


def table(found: Sequence[Trial]) -> str:
    """CSV text: all trials, then the means; a value that does not exist is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["protocol", "case", "label", "structure", "slice", "method", *COLUMNS, "targets", "cases"])
    for trial in found:
        place = "" if trial.place is None else trial.place
        values = [_cell(value) for value in trial.figures().values()]
        writer.writerow([trial.protocol, trial.case, trial.label, trial.name, place, trial.method, *values, "", ""])
    for line in [*volume_means(found), *summaries(found)]:
        means = [_cell(value) for value in line.mean.values()]
        writer.writerow(
            [line.protocol, line.case, line.label, line.name, "", line.method, *means, line.targets, line.cases]
        )
    return text.getvalue()


def report(found: Sequence[Trial]) -> list[str]:
    """Lines for the terminal: a table for each protocol."""
    lines: list[str] = []
    rows = [*volume_means(found), *summaries(found)]
    wide, method = (
        max([len(text) for text in texts] + [9]) for texts in ([r.title for r in rows], [r.method for r in rows])
    )
    for protocol in dict.fromkeys(row.protocol for row in rows):
        some = [row for row in rows if row.protocol == protocol]
        columns = [c for c in HEADS if any(not math.isnan(row.mean[c]) for row in some)]
        head = " ".join(f"{HEADS[c]:>{_width(c)}}" for c in columns)
        lines += [f"{protocol}: mean Dice, clicks needed (NoC) and how often {MAX_CLICKS} were enough"]
        lines += [f"{'structure':{wide}}  {'method':{method}} {head}  targets cases"]
        for row in some:
            cells = " ".join(f"{_shown(row, c):>{_width(c)}}" for c in columns)
            lines += [f"{row.title:{wide}}  {row.method:{method}} {cells}  {row.targets:7d} {row.cases:5d}"]
        lines += [""]
    return [
        *lines,
        "all methods get the same first click, random points and boxes; further clicks correct the largest error",
        "idle: clicks that changed no voxel but their own",
    ]


def _width(column: str) -> int:
    return 15 if column.startswith("noc") else 8


def _shown(row: Line, column: str) -> str:
    value = row.mean[column]
    if math.isnan(value):
        return "-"
    if column.startswith("noc"):
        return f"{value:.2f} ({100 * row.mean[column.replace('noc', 'reached')]:.0f} %)"
    return f"{100 * value:.1f} %" if column == "idle" else f"{value:.3f}"


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
