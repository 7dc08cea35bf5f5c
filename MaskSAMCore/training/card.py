"""The card of a trained model: model.json's content and the README that people read."""

from __future__ import annotations

import datetime
import platform
import re

import torch

from MaskSAMCore import __version__
from MaskSAMCore.config import Config, to_dict
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.data.splits import Split
from MaskSAMCore.zoo import BaseRef, ModelCard


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
) -> ModelCard:
    """The card of a model after `step` steps; `figures` are those of the run's own validation."""
    plan = to_dict(dataset.plan) | {"patch": list(config.model.patch)}
    provenance = {
        "dataset": dataset.name,
        "licence_of_data": dataset.licence,
        "fold": fold,
        "folds": dataset.manifest["splits_from"],
        "training_cases": list(split.train),
        "validation_cases": list(split.val),
        "steps": step,
        "seed": config.train.seed,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "masksam": __version__,
    }
    metrics = {"validation during training (prepared grid)": figures} if figures else {}
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
    )


def model_name(dataset: str) -> str:
    """A model's name from its data set's: letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", dataset).strip("-").lower() or "model"


def model_readme(card: ModelCard) -> str:
    """README.md of a model folder, written from its card alone."""
    labels = "\n".join(f"| {label.id} | {label.name} |" for label in card.labels.labels)
    figures = "\n".join(
        f"* {what}: " + ", ".join(f"{name} {value}" for name, value in values.items())
        for what, values in card.metrics.items()
        if isinstance(values, dict)
    )
    done = card.provenance
    base = f"{card.base.name} (sha256 {card.base.sha256})" if card.base else "none: random weights, for tests only"
    return f"""# {card.name}

A MaskSAM model (`{card.config.preset}`) for {card.modality or "images of unknown modality"}.

| label | structure |
|---|---|
{labels}

**Data.** {done["dataset"]}, fold {done["fold"]}: {len(done["training_cases"])} training cases,
{len(done["validation_cases"])} validation cases, all named in `model.json`. {done["steps"]} steps, seed {done["seed"]}.

**Base weights.** {base}. This folder holds adapters and heads only.

**Measured.**
{figures or "* nothing: there were no validation cases"}

**Licence.** {card.licence or "not stated by the data set"}, which the training data ask for.

**Use and limits.** For research on images like the training data; not a medical device. Look at every result.
"""
