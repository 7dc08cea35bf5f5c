"""Recipes: how a released model was trained, as a file that trains it again.

A recipe is `Resources/Recipes/NAME.json`: preset, fold, settings, and one or more stages, each of which starts from the
model of the one before. `python -m MaskSAMCore.train DATASET -o RUN --recipe NAME` runs them all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from MaskSAMCore.config.resources import resource_roots
from MaskSAMCore.config.serialize import from_dict
from MaskSAMCore.errors import InputError

FOLDER = "Recipes"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a recipe.

    Attributes:
        about: What it trains, in one line.
        settings: KEY=VALUE, on top of the recipe's.
        average: Its model gets the mean of the weights that it ended with and those that it started from.
    """

    about: str
    settings: tuple[str, ...] = ()
    average: bool = False


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the model's card says; what is empty is left to the training.

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
        name: Of the model; the file's.
        about: What it is, and how it was chosen.
        data: The data set, and where it may be had.
        preset: Where the configuration starts from.
        fold: Validation fold, or "all".
        settings: KEY=VALUE, for all stages.
        stages: In order.
        card: Of the model.
    """

    name: str = ""
    about: str
    data: str
    preset: str = "core-mobile"
    fold: str = "0"
    settings: tuple[str, ...] = ()
    stages: tuple[Stage, ...]
    card: Words = field(default_factory=Words)


def recipe_names() -> list[str]:
    """The recipes that come with the program."""
    return sorted({path.stem for root in resource_roots() for path in (root / FOLDER).glob("*.json")})


def read_recipe(name_or_path: str) -> Recipe:
    """A recipe by name, or by the path of its file.

    Raises:
        InputError: There is none, or the file is no recipe.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        found = [root / FOLDER / f"{name_or_path}.json" for root in resource_roots()]
        path = next((file for file in found if file.is_file()), path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = ", ".join(recipe_names()) or "none"
        raise InputError("no such recipe", where=name_or_path, remedy=f"Name a file, or one of: {known}.") from None
    except ValueError as error:
        raise InputError("is no recipe", where=path, why=str(error)) from error
    recipe = from_dict(Recipe, data, where=path.name)
    if not recipe.stages:
        raise InputError("a recipe needs a stage", where=path)
    return replace(recipe, name=recipe.name or path.stem)
