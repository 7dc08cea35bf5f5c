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
    from MaskSAMCore.zoo.model_folder import ModelCard

BASE_NAMES = {"mobile": "MobileSAM", "vit_b": "SAM ViT-B", "vit_l": "SAM ViT-L", "vit_h": "SAM ViT-H"}


def trials(
    model: str,
    dataset: RawDataset,
    cases: Callable[[ModelCard], Sequence[RawCase]],
    *,
    device: str = "auto",
    slices: int = 3,
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
    from MaskSAMCore.inference.session import Session
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
    log(f"Model:  {card.name}, {len(chosen)} case(s) of {dataset.name}, compared with {study.sam_name or 'nothing'}")
    log(f"Device: {devices.describe(place)}")
    for number, case in enumerate(chosen):
        progress(number, len(chosen), "simulating users")
        volume, reference = read_case(dataset, case)
        session = Session.open(network, card, volume, device=place, cache=SlabCache())
        yield from study.trials(case.id, volume, reference, session, cancel)
    progress(len(chosen), len(chosen), "simulating users")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the summary: means of one structure, or of all together, with one method."""

    protocol: str
    label: int | str
    name: str
    method: str
    targets: int
    cases: int
    mean: dict[str, float]


def summaries(found: Sequence[Trial]) -> list[Line]:
    """Means for each protocol: the structures by id, then all together, each with every method."""
    lines = []
    names: dict[int | str, str] = dict(sorted({t.label: t.name for t in found}.items()))
    methods = list(dict.fromkeys(t.method for t in found))
    for protocol, (label, name), method in itertools.product((SLICES, VOLUMES), [*names.items(), ("", "all")], methods):
        some = [t for t in found if (t.protocol, t.method) == (protocol, method) and label in ("", t.label)]
        if some:
            values = [t.figures() for t in some]
            mean = {c: float(np.mean([v[c] for v in values])) for c in COLUMNS}
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


def card_figures(found: Sequence[Trial]) -> dict[str, dict[str, dict[str, float]]]:
    """The means for a model's card, by protocol and by "structure, method"; values that do not exist are left out."""
    kept: dict[str, dict[str, dict[str, float]]] = {}
    for line in summaries(found):
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
    for line in summaries(found):
        means = [_cell(value) for value in line.mean.values()]
        writer.writerow(
            [line.protocol, "mean", line.label, line.name, "", line.method, *means, line.targets, line.cases]
        )
    return text.getvalue()


def report(found: Sequence[Trial]) -> list[str]:
    """Lines for the terminal: a table for each protocol."""
    lines: list[str] = []
    rows = summaries(found)
    wide, method = (
        max([len(text) for text in texts] + [9]) for texts in ([r.name for r in rows], [r.method for r in rows])
    )
    heads = [f"{n} click{'s' * (n > 1)}" for n in CLICKS]
    heads += [f"{n} point{'s' * (n > 1)}" for n in POINTS] + [f"box {t}" for t in OVERLAPS]
    goals = [f"NoC@{goal:.2f}" for goal in GOALS]
    for protocol in dict.fromkeys(row.protocol for row in rows):
        some = [row for row in rows if row.protocol == protocol]
        lines += [f"{protocol}: mean Dice, clicks needed (NoC) and how often {MAX_CLICKS} were enough"]
        head = " ".join(f"{text:>8}" for text in heads) + " " + " ".join(f"{text:>15}" for text in goals)
        lines += [f"{'structure':{wide}}  {'method':{method}} {head}  targets cases"]
        for row in some:
            dice = [row.mean[c] for c in COLUMNS[: len(heads)]]
            cells = " ".join(f"{'-' if math.isnan(value) else format(value, '.3f'):>8}" for value in dice)
            for goal in GOALS:
                needed, reached = (row.mean[f"{kind}_{round(100 * goal)}"] for kind in ("noc", "reached"))
                cells += f" {f'{needed:.2f} ({100 * reached:.0f} %)':>15}"
            lines += [f"{row.name:{wide}}  {row.method:{method}} {cells}  {row.targets:7d} {row.cases:5d}"]
        lines += [""]
    return [
        *lines,
        "all methods get the same first click, random points and boxes; further clicks correct the largest error",
    ]


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
