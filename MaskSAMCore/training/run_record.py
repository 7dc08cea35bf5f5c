"""What a run records of itself, so that `--resume` needs no other option: RUN/run.json and RUN/config.json.

A recipe's run has RUN/recipe.json as well. Runs of versions that wrote no run.json are read from their configuration,
their cache and the card of their model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from MaskSAMCore import __version__
from MaskSAMCore.config.recipe import PRESETS_OF_FORMAT_1, CardText, Recipe, read_recipe, recipe_names
from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import from_dict, override, split_assignment, to_dict, value_at
from MaskSAMCore.data.dataset import PreparedDataset, is_prepared
from MaskSAMCore.errors import InputError, MaskSAMError, ModelError
from MaskSAMCore.io.atomic import write_json
from MaskSAMCore.training import checkpoint
from MaskSAMCore.zoo import model_folder

RUN, RECIPE, CONFIG = "run.json", "recipe.json", "config.json"
CACHE, CHECKPOINTS, MODEL = "cache", "checkpoints", "model"
STAGE = "stage-{}"
DEFAULT_FOLD = "0"
_REMEDY = "Leave it out, or start a new run in another folder."


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of one run; see the command `train`.

    Attributes:
        folder: Folder of the run.
        dataset: Data set or cache. None, as of every option: the default, and with `resume` what was recorded.
        preset: Configuration to start from.
        overrides: KEY=VALUE, applied to the preset.
        base: File of the base weights.
        init: Model to start from.
        teacher: Model to learn from.
        fold: Validation fold, or "all".
        name: Name of the model.
        resume: Continue from the newest checkpoint of the folder.
        dry_run: Measure a few steps and save nothing.
        cache: Folder of the prepared cache.
        device: Where to train; not recorded.
        card: Texts of the model's card.
    """

    folder: Path
    dataset: Path | None = None
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    base: Path | None = None
    init: str | None = None
    teacher: str | None = None
    fold: str | None = None
    name: str | None = None
    resume: bool = False
    dry_run: bool = False
    cache: Path | None = None
    device: str = "auto"
    card: CardText = field(default_factory=CardText)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Content of run.json and recipe.json; paths are absolute, and empty where the option was not given.

    Attributes:
        dataset, preset, settings, base, init, teacher, fold, name, cache, card: As in `RunOptions`.
        data_sha256: Fingerprint of the prepared cases.
        recipe: In recipe.json, the whole recipe.
        masksam: Version that started the run.
    """

    dataset: str = ""
    preset: str = ""
    settings: tuple[str, ...] = ()
    base: str = ""
    init: str = ""
    teacher: str = ""
    fold: str = ""
    name: str = ""
    cache: str = ""
    card: CardText = field(default_factory=CardText)
    data_sha256: str = ""
    recipe: Recipe | None = None
    masksam: str = ""


def fingerprint(dataset: PreparedDataset) -> str:
    """SHA-256 over the names and contents of all prepared cases."""
    return hashlib.sha256(json.dumps(dataset.hashes(dataset.ids), sort_keys=True).encode()).hexdigest()


def write_record(file: Path, options: RunOptions, *, dataset: PreparedDataset | None, recipe: Recipe | None) -> None:
    """Write run.json or recipe.json."""
    record = RunRecord(
        dataset=_path(options.dataset),
        preset=options.preset or "",
        settings=options.overrides,
        base=_path(options.base),
        init=_model(options.init),
        teacher=_model(options.teacher),
        fold=options.fold or "",
        name=options.name or "",
        cache=_path(options.cache),
        card=options.card,
        data_sha256=fingerprint(dataset) if dataset is not None else "",
        recipe=recipe,
        masksam=__version__,
    )
    write_json(file, to_dict(record), overwrite=True)


def read_record(file: Path) -> RunRecord | None:
    """A record; None where the run has none.

    Raises:
        ModelError: The file is damaged.
    """
    if not file.is_file():
        return None
    try:
        return from_dict(RunRecord, json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, InputError) as error:
        remedy = "Restore the file, or delete it and name the run's options again."
        raise ModelError("the record of the run is damaged", where=file, why=str(error), remedy=remedy) from error


def record_of(folder: Path) -> RunRecord:
    """The record of a run, made up from what else is in its folder where it has none."""
    record = read_record(folder / RUN)
    if record is not None:
        return record
    cache = folder / CACHE
    record = RunRecord(dataset=str(cache) if is_prepared(cache) else "")
    try:
        card = model_folder.load_card(folder / MODEL)
    except MaskSAMError:
        return record
    return replace(record, fold=str(card.provenance.get("fold", "")), name=card.name)


def recorded_config(folder: Path) -> Config:
    """The complete configuration of a run.

    Raises:
        ModelError: The folder has no checkpoint, or no configuration that can be read.
    """
    stored, _ = checkpoint.newest(folder / CHECKPOINTS)
    return from_dict(Config, stored.meta["config"], where="config")


def recorded_recipe(folder: Path) -> tuple[Recipe, RunRecord] | None:
    """The recipe of a run and the options of its command; None for a run that records none.

    Runs of versions that recorded no recipe name a bundled one in the cards of their stages.
    """
    record = read_record(folder / RECIPE)
    if record is not None and record.recipe is not None:
        return record.recipe, record
    for stage in sorted(folder.glob(STAGE.format("*"))):
        try:
            name = str(model_folder.load_card(stage / MODEL).provenance.get("recipe"))
        except MaskSAMError:
            continue
        if name in recipe_names():
            return read_recipe(name), RunRecord()
    return None


def state_of(folder: Path) -> Literal["new", "run", "recipe"]:
    """Whether a folder holds nothing yet, a run, or a run with the stages of a recipe."""
    if any(folder.glob(STAGE.format("*"))) or (folder / RECIPE).exists():
        return "recipe"
    return "run" if any((folder / CHECKPOINTS).glob("*")) else "new"


def resumed_options(given: RunOptions) -> tuple[RunOptions, Config]:
    """Options and configuration of a run that goes on: what it recorded, for what is not given.

    Data set, cache, base weights, and the models of `init` and `teacher` may lie elsewhere than when the run was
    started; their contents are compared when they are read.

    Raises:
        InputError: A given option contradicts the record.
        ModelError: There is no checkpoint.
    """
    config, record = recorded_config(given.folder), record_of(given.folder)
    preset = record.preset or config.preset
    if given.preset not in (None, preset, PRESETS_OF_FORMAT_1.get(preset)):
        raise _contradiction("--preset", given.preset, preset)
    if record.fold and given.fold not in (None, record.fold):
        raise _contradiction("--fold", given.fold, record.fold)
    if record.name and given.name not in (None, record.name):
        raise _contradiction("--name", given.name, record.name)
    check_settings(given.overrides, config)
    options = replace(
        given,
        dataset=given.dataset or (Path(record.dataset) if record.dataset else None),
        preset=preset,
        base=given.base or (Path(record.base) if record.base else None),
        init=given.init or record.init or None,
        teacher=given.teacher or record.teacher or None,
        fold=given.fold or record.fold or None,
        name=given.name or record.name or None,
        cache=given.cache or (Path(record.cache) if record.cache else None),
        card=record.card if given.card == CardText() else given.card,
    )
    return options, config


def resumed_recipe(given: RunOptions, record: RunRecord) -> RunOptions:
    """Options of a recipe's run that goes on; see `resumed_options`.

    Raises:
        InputError: A given option contradicts the record.
    """
    new = [text for text in given.overrides if text not in record.settings]
    if record.masksam and new:
        raise InputError("the run was started without it", where=f"--set {new[0]}", remedy=_REMEDY)
    if record.name and given.name not in (None, record.name):
        raise _contradiction("--name", given.name, record.name)
    cache = given.folder / CACHE
    recorded = Path(record.dataset) if record.dataset else cache if is_prepared(cache) else None
    return replace(
        given,
        dataset=given.dataset or recorded,
        overrides=record.settings or given.overrides,
        base=given.base or (Path(record.base) if record.base else None),
        init=given.init or record.init or None,
        name=given.name or record.name or None,
        cache=given.cache or (Path(record.cache) if record.cache else None),
    )


def check_settings(settings: Sequence[str], config: Config) -> None:
    """Refuse settings that a resumed run does not have.

    Raises:
        InputError: Names the setting and both values.
    """
    asked = override(config, settings)
    for key in dict.fromkeys(split_assignment(text)[0] for text in settings):
        if value_at(asked, key) != value_at(config, key):
            raise _contradiction(f"--set {key}", value_at(asked, key), value_at(config, key))


def check_data(record: RunRecord, dataset: PreparedDataset, given: Path | None) -> str:
    """Compare the cases of a resumed run with those that it was started with.

    Args:
        record: Of the run.
        dataset: What was prepared now.
        given: The data set, if the user named one.

    Returns:
        A warning; "" where nothing has changed.

    Raises:
        InputError: The user named another data set.
    """
    if not record.data_sha256 or record.data_sha256 == fingerprint(dataset):
        return ""
    if given is not None and _path(given) != record.dataset:
        why = f"other cases than in {record.dataset}, which the run was started with"
        raise InputError("another data set", where=given, why=why, remedy=_REMEDY)
    return "WARNING: the data set has changed since the run was started"


def _contradiction(option: str, given: object, recorded: object) -> InputError:
    why = f"{given} is asked for, but the run was started with {recorded}"
    return InputError("a resumed run keeps its options", where=option, why=why, remedy=_REMEDY)


def _path(path: Path | None) -> str:
    return "" if path is None else str(path.resolve())


def _model(name_or_path: str | None) -> str:
    """A model by its absolute path if it is a folder, else by its name."""
    if name_or_path is None:
        return ""
    return str(Path(name_or_path).resolve()) if Path(name_or_path).is_dir() else name_or_path
