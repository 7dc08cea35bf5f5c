"""The runs of a recipe, one after the other: each starts from the model of the one before."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from MaskSAMCore.config.recipe import Recipe
from MaskSAMCore.training.card import model_readme
from MaskSAMCore.training.loop import CHECKPOINTS
from MaskSAMCore.training.run import RunOptions
from MaskSAMCore.zoo import installed, model_folder
from MaskSAMCore.zoo.model_folder import MEAN, average_models

CACHE = "cache"


def run_recipe(
    recipe: Recipe, options: RunOptions, start: Callable[[RunOptions], Path], note: Callable[[str], None]
) -> Path:
    """Run all stages and return the last one's model folder.

    The last stage lies in `options.folder`, those before it in `stage-1`, `stage-2`, ... inside; all share one cache.

    Args:
        recipe: What to do.
        options: Of the command. Its settings come last; a stage that was interrupted goes on with `resume`, one that
            was not begun yet begins. In a dry run no stage starts from another.
        start: Runs one stage.
        note: Receives lines for the user.
    """
    init, models = options.init, list[Path]()
    count = len(recipe.stages)
    for number, stage in enumerate(recipe.stages, 1):
        folder = options.folder if number == count else options.folder / f"stage-{number}"
        note(f"stage {number} of {count}: {stage.about}")
        begun = any((folder / CHECKPOINTS).glob("*.safetensors"))
        model = start(
            replace(
                options,
                folder=folder,
                preset=recipe.preset,
                fold=recipe.fold,
                overrides=(*recipe.settings, *stage.settings, *options.overrides),
                init=init,
                name=options.name or recipe.name,
                resume=options.resume and begun,
                cache=options.cache or options.folder / CACHE,
                words=recipe.card,
            )
        )
        models.append(model)
        if options.dry_run:
            continue
        # Of several processes the first alone writes; the others meet it again when the next stage begins.
        if os.environ.get("RANK", "0") == "0":
            if stage.average and init is not None and MEAN not in model_folder.load_card(model).provenance:
                average_models(model, installed.find_model(init))
            tell(recipe, models)
        init = str(model)
    return models[-1]


def tell(recipe: Recipe, models: Sequence[Path]) -> None:
    """Write into the card of the last of these models, of a recipe's stages so far, how it was made."""
    card = model_folder.load_card(models[-1])
    stages = [
        {"about": stage.about, "steps": model_folder.load_card(model).provenance["steps"], MEAN: stage.average}
        for stage, model in zip(recipe.stages, models, strict=False)
    ]
    card = replace(card, provenance=card.provenance | {"recipe": recipe.name, "stages": stages})
    model_folder.save_card(models[-1], card, model_readme(card))
