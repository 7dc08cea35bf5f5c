"""The runs of a recipe, one after the other: each starts from the model of the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from MaskSAMCore.recipe import Recipe
from MaskSAMCore.training.loop import CHECKPOINTS
from MaskSAMCore.training.run import MODEL, RunOptions

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
    init, model = options.init, options.folder / MODEL
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
        init = None if options.dry_run else str(model)
    return model
