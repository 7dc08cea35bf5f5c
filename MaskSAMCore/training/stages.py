"""The runs of a recipe, one after the other: each starts from the model of the one before."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from MaskSAMCore.config.recipe import Recipe
from MaskSAMCore.training.card import model_readme
from MaskSAMCore.training.run_record import CACHE, CHECKPOINTS, RECIPE, STAGE, RunOptions, write_record
from MaskSAMCore.zoo import installed, model_folder
from MaskSAMCore.zoo.model_folder import MEAN, average_models


def run_recipe(
    recipe: Recipe, options: RunOptions, start: Callable[[RunOptions], Path], log: Callable[[str], None]
) -> Path:
    """Run all stages and return the last one's model folder.

    The last stage lies in `options.folder`, those before it in `stage-1`, `stage-2`, ... inside; all share one cache.

    Args:
        recipe: What to train.
        options: Of the command. Its settings come last; with `resume`, a stage that was interrupted goes on and one
            that was not started yet starts. In a dry run no stage starts from another.
        start: Runs one stage.
        log: Called with lines of text for the user.
    """
    # Of several processes the first alone writes; the others meet it again when the next stage starts.
    first = os.environ.get("RANK", "0") == "0"
    init, models = options.init, list[Path]()
    count = len(recipe.stages)
    begun = [any((_folder(options, number, count) / CHECKPOINTS).glob("*")) for number in range(1, count + 1)]
    if first and not options.dry_run and not any(begun):
        options.folder.mkdir(parents=True, exist_ok=True)
        write_record(options.folder / RECIPE, options, dataset=None, recipe=recipe)
    for number, stage in enumerate(recipe.stages, 1):
        log(f"stage {number} of {count}: {stage.about}")
        model = start(
            replace(
                options,
                folder=_folder(options, number, count),
                preset=recipe.preset,
                fold=recipe.fold,
                overrides=(*recipe.settings, *stage.settings, *options.overrides),
                init=init,
                name=options.name or recipe.name,
                resume=options.resume and begun[number - 1],
                cache=options.cache or options.folder / CACHE,
                card=recipe.card,
            )
        )
        models.append(model)
        if options.dry_run:
            continue
        if first:
            if stage.average and init is not None and MEAN not in model_folder.load_card(model).provenance:
                average_models(model, installed.find_model(init))
            record_stages(recipe, models)
        init = str(model)
    return models[-1]


def record_stages(recipe: Recipe, models: Sequence[Path]) -> None:
    """Write into the card of the last of these models by which stages of the recipe it was made."""
    card = model_folder.load_card(models[-1])
    stages = [
        {"about": stage.about, "steps": model_folder.load_card(model).provenance["steps"], MEAN: stage.average}
        for stage, model in zip(recipe.stages, models, strict=False)
    ]
    card = replace(card, provenance=card.provenance | {"recipe": recipe.name, "stages": stages})
    model_folder.save_card(models[-1], card, model_readme(card))


def _folder(options: RunOptions, number: int, count: int) -> Path:
    return options.folder if number == count else options.folder / STAGE.format(number)
