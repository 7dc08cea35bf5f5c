"""Recipes: how a released model was trained, as a file that trains it again.

A recipe is `Resources/Recipes/NAME.json`: preset, fold, settings, and one or more stages, each of which starts from the
model of the one before. `train DATASET -o RUN --recipe NAME` runs them all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from MaskSAMCore.config.presets import DEFAULT
from MaskSAMCore.config.resources import resource_roots
from MaskSAMCore.config.serialize import from_dict
from MaskSAMCore.errors import InputError, did_you_mean

FOLDER = "Recipes"
FORMAT = 2
PRESETS_OF_FORMAT_1 = {"core-mobile": "core-mobile-whole"}
"""What presets are called now that recipes without a `format` start from; they mean the same networks as before."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a recipe.

    Attributes:
        about: What it trains, in one line.
        settings: KEY=VALUE, on top of the recipe's.
        average: The model gets the mean of the weights at the end and at the start of the stage.
    """

    about: str
    settings: tuple[str, ...] = ()
    average: bool = False


@dataclass(frozen=True, kw_only=True)
class CardText:
    """Texts of the model's card; empty ones are left to the training.

    Attributes:
        description: What the model is for.
        limits: What it cannot do.
        licence: Of the weights; empty for that of the data.
    """

    description: str = ""
    limits: str = ""
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Attributes:
        format: Version of the file. In version 1, which has no such key, `core-mobile` is what is called
            `core-mobile-whole` now.
        name: Name of the model; empty for the file's.
        about: What is trained, and how it was chosen.
        data: The data set, and where to get it.
        preset: Configuration to start from.
        fold: Validation fold, or "all".
        settings: KEY=VALUE, for all stages.
        stages: In order.
        card: Texts of the model's card.
    """

    format: int = 1
    name: str = ""
    about: str
    data: str
    preset: str = DEFAULT
    fold: str = "0"
    settings: tuple[str, ...] = ()
    stages: tuple[Stage, ...]
    card: CardText = field(default_factory=CardText)


def recipe_names() -> list[str]:
    """The recipes that come with the program."""
    return sorted({path.stem for root in resource_roots() for path in (root / FOLDER).glob("*.json")})


def read_recipe(name_or_path: str) -> Recipe:
    """A recipe by name, or by the path of its file.

    Raises:
        InputError: It does not exist, or the file is not a recipe.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        found = [root / FOLDER / f"{name_or_path}.json" for root in resource_roots()]
        path = next((file for file in found if file.is_file()), path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = recipe_names()
        remedy = f"{did_you_mean(name_or_path, known)} Name a file, or one of: {', '.join(known) or 'none'}.".strip()
        raise InputError("no such recipe", where=name_or_path, remedy=remedy) from None
    except ValueError as error:
        raise InputError("not a recipe", where=path, why=str(error)) from error
    recipe = from_dict(Recipe, data, where=path.name)
    if not recipe.stages:
        raise InputError("a recipe needs a stage", where=path)
    if recipe.format > FORMAT:
        why = f"its format is {recipe.format}, this version reads up to {FORMAT}"
        raise InputError("the recipe is too new", where=path, why=why, remedy="Update MaskSAM.")
    preset = PRESETS_OF_FORMAT_1.get(recipe.preset, recipe.preset) if recipe.format == 1 else recipe.preset
    return replace(recipe, format=FORMAT, name=recipe.name or path.stem, preset=preset)
