"""The card of a trained model: model.json's content and the README that people read."""

from __future__ import annotations

import datetime
import platform
import re
from typing import Any

import torch

from MaskSAMCore import __version__
from MaskSAMCore.config.describe import network_description
from MaskSAMCore.config.schema import Config, Largest
from MaskSAMCore.config.serialize import to_dict
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.data.splits import Split
from MaskSAMCore.zoo.model_folder import MEAN, BaseRef, ModelCard


def model_card(
    *,
    name: str,
    config: Config,
    dataset: PreparedDataset,
    split: Split,
    fold: str,
    base: dict[str, str],
    step: int,
    figures: dict[str, float],
    origin: dict[str, Any],
    largest: Largest,
) -> ModelCard:
    """The card of a model after `step` steps.

    Args:
        figures: Of the run's own validation.
        origin: Entries of the provenance: the models that it started or learned from, or quick training.
        largest: Which structures are cut down to their largest component.
    """
    plan = to_dict(dataset.plan) | {"patch": list(config.model.patch)}
    provenance = {
        "dataset": dataset.name,
        "licence_of_data": dataset.licence,
        "fold": fold,
        "folds": dataset.manifest["splits_from"]["folds"],
        "seed": dataset.manifest["splits_from"]["seed"],
        "split_with_the_data": bool(dataset.manifest["splits_from"]["file"]),
        "training_cases": list(split.train),
        "validation_cases": list(split.val),
        "steps": step,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "masksam": __version__,
    } | origin
    metrics = {"validation during training, on the prepared grid": {"mean over cases": figures}} if figures else {}
    return ModelCard(
        name=name,
        config=config,
        labels=dataset.labels,
        plan=plan,
        modality=dataset.modality,
        licence=dataset.licence,
        base=BaseRef(**base) if base["name"] else None,
        provenance=provenance,
        metrics=metrics,
        largest_component=largest,
    )


def model_name(dataset: str) -> str:
    """A model's name from its data set's: letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", dataset).strip("-").lower() or "model"


def model_readme(card: ModelCard) -> str:
    """README.md of a model folder, written from its card alone."""
    rows = "\n".join(
        f"| {label.id} | {label.name} | {label.type.meaning + ' (' + label.type.value + ')' if label.type else '-'} |"
        for label in card.labels.labels
    )
    labels = f"| label | structure | DICOM code (SNOMED CT) |\n|---|---|---|\n{rows}"
    if card.takes_any_structure:
        labels = "It has no labels: it answers prompts on structures of any kind."
    measured = "\n\n".join(_figures(command, rows) for command, rows in card.metrics.items())
    limits = card.limits or "Nothing is known beyond these figures."
    return f"""# {card.name}

{card.description or f"A MaskSAM model for {card.modality or 'images of unknown modality'}."}

{labels}

## Network

{network_description(card.config.model)}

## Data

{_origin(card)}

{_weights(card)}

## Measured

{measured or "Nothing: there were no validation cases."}

## Licence

{card.licence or "Not stated by the data set."}

## Intended use and limits

Research on images like the training data. Not a medical device; every result must be looked at. {limits}
"""


def _weights(card: ModelCard) -> str:
    """What the folder holds, and which base weights it needs."""
    if card.base:
        base = f"{card.base.name} (sha256 `{card.base.sha256}`)"
        return f"Base weights: {base}. This folder holds adapters and heads only."
    if card.config.model.backbone.arch in ("swin_unetr", "click_unet"):
        return "Base weights: none. This folder holds the whole network; all of it was trained, from random weights."
    return "Base weights: none: random weights, for tests only. This folder holds adapters and heads only."


def _origin(card: ModelCard) -> str:
    """The training cases, and how the model was trained."""
    done = card.provenance
    learned, kept = len(done["training_cases"]), len(done["validation_cases"])
    if card.takes_any_structure:
        start = done.get("starts_from")
        after = f", starting from {start['name']} after its {start['steps']} steps" if start else ""
        return (
            f"{done['dataset']}: {learned} volumes, all named in `model.json`, and synthetic ones. Trained for "
            f"{done['steps']} steps from preset `{card.config.preset}`{after}, with simulated users."
        )
    quick = done.get("lesson")
    if quick:
        return (
            f"{done['dataset']}: taught from {learned} case(s) in {quick['minutes']:g} minutes ({quick['device']}, "
            f"{quick['precision']}); "
            f"{kept} more were left out for its evaluation. All are named in `model.json`. {done['steps']} steps from "
            f"preset `{card.config.preset}` on {quick['patches']} augmented patches, {HOW[card.config.train.mode]}, "
            "with SAM's encoder as it is."
        )
    rule = f"fold {done['fold']} of {done['folds']} (seed {done['seed']}, by case)"
    if done.get("split_with_the_data"):
        rule = f"fold {done['fold']} of the split that comes with the data"
    stages = done.get("stages")
    length = "" if stages else f" for {done['steps']} steps"
    origin = (
        f"{done['dataset']}, {rule}: {learned} training cases and {kept} validation cases, all named in `model.json`. "
        f"Trained{length} from preset `{card.config.preset}`"
    )
    teacher = done.get("teacher")
    if teacher:
        share = card.config.train.seg_share
        origin += f", distilled from {teacher['name']} (λ = {share:g}: the share of the labels in the loss)"
    if stages:
        steps = "; ".join(
            f"{stage['steps']} steps ({stage['about']}"
            + (", averaged with the weights before)" if stage[MEAN] else ")")
            for stage in stages
        )
        return f"{origin}, by the recipe `{done['recipe']}`: {steps}."
    before = done.get("starts_from")
    return origin + (f", starting from {before['name']} after {before['steps']} steps." if before else ".")


HOW = {
    "auto": "for use without prompts only",
    "prompt": "with simulated clicks and boxes only",
    "mixed": "some without prompts and some with simulated clicks and boxes",
}
HEADINGS = {
    "dice_1": "Dice, 1 click",
    "dice_3": "3 clicks",
    "dice_5": "5 clicks",
    "dice_10": "10 clicks",
    "points_1": "1 random point",
    "points_3": "3 random points",
    "box_50": "box 0.5",
    "box_75": "box 0.75",
    "noc_80": "NoC@0.80",
    "reached_80": "reached",
    "noc_85": "NoC@0.85",
    "reached_85": "reached",
    "noc_90": "NoC@0.90",
    "reached_90": "reached",
    "scribble": "a scribble",
    "lasso": "a lasso",
    "idle": "idle clicks",
}
USERS = """Simulated users: Dice after one and more clicks, the first into the middle of the structure, each further
one into the middle of the largest error; with one box that overlaps the structure's own by an IoU of 0.5 or 0.75; and
the mean number of clicks (NoC) to a Dice, 20 where 20 clicks did not reach it, and the share of targets that reached
it. Every method gets the same first click and the same boxes."""
IDLE = "Idle is the share of clicks that changed no voxel but their own."
POINTS = "Random points lie anywhere in the structure and are given at once, the same ones to every method."


def _figures(command: str, rows: dict[str, dict]) -> str:
    """The figures that a command measured: a table, or one per protocol of simulated users."""
    protocols = [name for name, row in rows.items() if any(isinstance(value, dict) for value in row.values())]
    if not protocols:
        return f"`{command}`\n\n{_table(rows)}"
    drawn, idle = (
        any(column in row for name in protocols for row in rows[name].values()) for column in ("points_1", "idle")
    )
    parts = [f"`{command}`", USERS, *([POINTS] if drawn else []), *([IDLE] if idle else [])]
    for name in protocols:
        parts += [f"{name[:1].upper()}{name[1:]}:", _table(rows[name])]
    return "\n\n".join(parts)


def _table(rows: dict[str, dict[str, float]]) -> str:
    columns = list(dict.fromkeys(key for values in rows.values() for key in values))
    heads = [HEADINGS.get(key, key) for key in columns]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(str(values.get(c, "")) for c in columns) + " |" for name, values in rows.items()
    ]
    return "\n".join(lines)
