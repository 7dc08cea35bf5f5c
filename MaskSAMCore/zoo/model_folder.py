"""The folder of a trained model: model.json, weights.safetensors and README.md.

It holds trained tensors only; the frozen SAM comes from the base weights that its card names by
sha256. Writing is all or nothing, and loading is strict: what does not fit is listed, never skipped
(faults.md rows 34, 37).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MaskSAMCore import __version__
from MaskSAMCore.config.check import check_model
from MaskSAMCore.config.schema import Config, Largest
from MaskSAMCore.config.serialize import from_dict, to_dict
from MaskSAMCore.errors import InputError, ModelError, ResourceError
from MaskSAMCore.io.atomic import sync_file, sync_folder, write_json, write_text
from MaskSAMCore.io.hashing import file_sha256
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.zoo.base_weights import BASES, cached_sha256, compare_states, find_base, load_base

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from MaskSAMCore.network.segmenter import Segmenter

FORMAT_VERSION = 1
CARD, WEIGHTS, README = "model.json", "weights.safetensors", "README.md"
FILES = (CARD, WEIGHTS, README)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
HALF_MAX = 65504.0
MEAN = "averaged_with_its_start"
"""In a card's provenance: the weights are the mean of those at the end and those at the start of the last stage."""


@dataclass(frozen=True, kw_only=True)
class BaseRef:
    """The base weights that a model was trained on."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What model.json holds.

    Attributes:
        name: Letters, digits, dot, dash and underscore.
        config: The run's configuration.
        labels: Class c of the network is `labels.labels[c - 1]`.
        plan: Preprocessing and intensity statistics of the training data (`Plan` as a dictionary).
        modality: "CT", "MR" or "".
        licence: Of the weights, with what the training data demand.
        base: None for a network without pretrained weights.
        provenance: Data set, cases, fold, seed, date, versions.
        metrics: Measured accuracy: the command that measured it, to figures per structure.
        largest_component: Which connected components a result keeps; see `postprocess`.
        description, limits: For the reader of README.md: what it is for, and what it cannot do.
        weights_sha256: Of weights.safetensors; written by `save_model`.
        code_version, format_version: What wrote it.
    """

    name: str
    config: Config
    labels: LabelTable
    plan: dict[str, Any]
    modality: str = ""
    licence: str = ""
    base: BaseRef | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    largest_component: Largest = "none"
    description: str = ""
    limits: str = ""
    weights_sha256: str = ""
    code_version: str = __version__
    format_version: int = FORMAT_VERSION

    @property
    def takes_any_structure(self) -> bool:
        """Whether the model answers prompts on structures of any kind, and so has no labels."""
        return self.config.model.backbone.arch == "click_unet"

    def require_automatic(self) -> None:
        """Raise InputError for a model that segments nothing by itself."""
        if self.takes_any_structure:
            raise InputError(
                "this model finds nothing by itself",
                where=self.name,
                why="it answers clicks, boxes, scribbles and lassos on structures of any kind",
                remedy="Open the scan with it, in the module or in Python, or segment with another model.",
            )
        if self.config.model.prompts_only:
            raise InputError(
                "the model takes clicks and boxes only",
                where=self.name,
                why="it was trained without prompts of its own",
                remedy="Open the scan with it and give it prompts, or segment with another model.",
            )


def save_model(
    folder: Path, card: ModelCard, tensors: Mapping[str, Tensor], readme: str, *, overwrite: bool = False
) -> Path:
    """Write a model folder: complete or absent, floats as fp16.

    Args:
        folder: Its path; the parent folders are made.
        card: The card; hash and versions are filled in here.
        tensors: Trained tensors by the network's state-dict names.
        readme: Text of README.md.
        overwrite: Replace an existing model; any other existing folder is refused.

    Raises:
        InputError: The folder exists, or the name is unusable.
        ModelError: A tensor is not finite or beyond fp16.
        ResourceError: The disk is full; what was there is intact.
    """
    check_name(card.name, folder)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder, overwrite=overwrite) as partial:
        _write_tensors(partial / WEIGHTS, tensors, folder)
        card = replace(
            card,
            weights_sha256=file_sha256(partial / WEIGHTS),
            code_version=__version__,
            format_version=FORMAT_VERSION,
        )
        write_json(partial / CARD, to_dict(card))
        write_text(partial / README, readme)
    return folder


def load_card(folder: Path) -> ModelCard:
    """Read and check model.json.

    Raises:
        ModelError: It is missing, damaged, or of another format; both versions are named.
    """
    path = Path(folder) / CARD
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError("not a model folder", where=folder, why=f"it has no {CARD}") from error
    except (OSError, ValueError) as error:
        raise ModelError("model card cannot be read", where=path, why=str(error)) from error
    found = data.get("format_version") if isinstance(data, dict) else None
    versions = f"written by MaskSAM {data.get('code_version', '?')}" if isinstance(data, dict) else "not a card"
    if found != FORMAT_VERSION:
        raise ModelError(
            "model has another format",
            where=path,
            why=f"{versions} in format {found}, this is MaskSAM {__version__} with format {FORMAT_VERSION}",
            remedy="Install the MaskSAM version that wrote it, or a newer model.",
        )
    try:
        card = from_dict(ModelCard, data)
        card.labels.check(where=path)
        check_model(card.config.model)
    except InputError as error:
        raise _unfit(path, error, versions) from error
    if card.labels.classes != card.config.model.classes and not card.takes_any_structure:
        raise ModelError(
            "model card contradicts itself",
            where=path,
            why=f"{card.labels.classes} classes in the label table, {card.config.model.classes} in the network",
        )
    return card


def _unfit(path: Path, error: InputError, versions: str) -> ModelError:
    return ModelError(
        "model card does not fit this version",
        where=path,
        why=f"{error}; {versions}, this is MaskSAM {__version__}",
        remedy="Install the MaskSAM version that wrote it.",
    )


def save_card(folder: Path, card: ModelCard, readme: str) -> None:
    """Replace card and README of an existing model; its weights stay.

    Raises:
        ModelError: The folder is no model, or the card belongs to other weights.
    """
    if load_card(folder).weights_sha256 != card.weights_sha256:
        raise ModelError("the card belongs to other weights", where=folder)
    write_text(Path(folder) / README, readme, overwrite=True)
    write_json(Path(folder) / CARD, to_dict(card), overwrite=True)


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[Segmenter, ModelCard]:
    """Build a model's network, with base weights and trained tensors, ready for inference.

    Raises:
        ModelError: Model or base weights are missing or damaged, or the tensors do not fit the
            network that the card describes; every key is listed, with the versions.
    """
    from MaskSAMCore.network.build import build_model, is_frozen

    card = load_card(folder)
    tensors = _read_tensors(folder / WEIGHTS, card)
    base = find_base(card.base.name, sha256=card.base.sha256) if card.base else None
    try:
        model = build_model(card.config.model)
    except InputError as error:
        raise _unfit(folder / CARD, error, f"written by MaskSAM {card.code_version}") from error
    if base is not None:
        load_base(model, base)
    own = model.state_dict()
    expected = {key for key in own if base is None or not is_frozen(key)}
    problems = compare_states(tensors, own, expected)
    if problems:
        raise ModelError(
            "weights do not fit the network",
            where=folder / WEIGHTS,
            why="".join(f"\n  {line}" for line in problems)
            + f"\n  written by MaskSAM {card.code_version}, this is MaskSAM {__version__}",
            remedy="Install the MaskSAM version that wrote the model, or get the model anew.",
        )
    model.load_state_dict(tensors, strict=False)
    return model.to(device).eval(), card


def load_trained(model: Segmenter, folder: Path) -> ModelCard:
    """Fill a network's trained tensors from another model, to train on from there.

    What serves a user's prompts alone, and the encoder's adapters, start anew where the other model has none.

    Raises:
        ModelError: The model is missing or damaged, or its tensors are not those of this network.
    """
    from MaskSAMCore.network.build import adapts_encoder, is_for_prompts, is_frozen

    card = load_card(folder)
    tensors = {key: tensor for key, tensor in _read_tensors(folder / WEIGHTS, card).items() if not is_frozen(key)}
    own = model.state_dict()
    needed = {
        key
        for key in own
        if not is_frozen(key) and (key in tensors or not (is_for_prompts(key) or adapts_encoder(key)))
    }
    problems = compare_states(tensors, own, needed)
    if problems:
        raise ModelError(
            "the model does not fit the network that is to be trained",
            where=folder,
            why="".join(f"\n  {line}" for line in problems) + "\n",
            remedy="Use the preset, patch and number of labels that it was trained with.",
        )
    model.load_state_dict(tensors, strict=False)
    return card


def average_models(folder: Path, other: Path) -> None:
    """Give the model in `folder` the mean of its weights and those of `other`; its card tells so and loses its figures.

    Raises:
        ModelError: A model is missing or damaged, or they are of different networks.
    """
    card = load_card(folder)
    mine, theirs = _read_tensors(folder / WEIGHTS, card), _read_tensors(other / WEIGHTS, load_card(other))
    problems = compare_states(theirs, mine, set(mine))
    if problems:
        lines = "".join(f"\n  {line}" for line in problems)
        raise ModelError("these models have no mean", where=f"{folder}, {other}", why=lines)
    mean = {name: (tensor.float() + theirs[name].float()) / 2 for name, tensor in mine.items()}
    card = replace(card, provenance=card.provenance | {MEAN: True}, metrics={})
    save_model(folder, card, mean, (folder / README).read_text(encoding="utf-8"), overwrite=True)


def verify_model(folder: Path) -> ModelCard:
    """Check a model folder without building its network: card, README, and the tensors' bytes.

    Raises:
        ModelError: Naming the file and what is wrong with it.
    """
    card = load_card(folder)
    if not (Path(folder) / README).is_file():
        raise ModelError("model folder is incomplete", where=folder, why=f"it has no {README}")
    _read_tensors(Path(folder) / WEIGHTS, card, anew=True)
    return card


def check_name(name: str, where: object) -> None:
    if not NAME.fullmatch(name) or name in BASES:
        why = "it belongs to base weights" if name in BASES else "use letters, digits, dot, dash and underscore"
        raise InputError(f"unusable model name {name!r}", where=where, why=why)


@contextmanager
def whole_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well.

    A replaced model is moved aside first and deleted last: one of the two is always there.
    """
    if folder.exists():
        if not overwrite:
            raise InputError("exists already", where=folder, remedy="Choose another name, or allow overwriting.")
        if not (folder / CARD).is_file():
            raise InputError("is not a model folder and is left alone", where=folder, why=f"it has no {CARD}")
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".part", dir=folder.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        for path in new.iterdir():
            sync_file(path)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], where: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    out = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.is_floating_point():
            bad = int((~torch.isfinite(value)).sum()) + int((value.abs() > HALF_MAX).sum())
            if bad:
                raise ModelError("model is not saved", where=f"{where}: {name}", why=f"{bad} values beyond fp16 or NaN")
            value = value.half()
        out[name] = value
    try:
        save_file(out, str(path), metadata={"format": "pt", "masksam": __version__})
        # safetensors lets nobody but the owner read; a model is there for all users of a computer.
        path.chmod(0o644)
    except (OSError, SafetensorError) as error:
        raise ResourceError("model cannot be written", where=where, why=str(error)) from error


def _read_tensors(path: Path, card: ModelCard, *, anew: bool = False) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError("model folder is incomplete", where=path.parent, why=f"it has no {path.name}")
    found = cached_sha256(path, anew=anew)
    if found != card.weights_sha256:
        raise ModelError(
            "weights are damaged or of another model",
            where=path,
            why=f"expected sha256 {card.weights_sha256}, found {found}",
            remedy="Get the model folder anew.",
        )
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ModelError("weights cannot be read", where=path, why=str(error)) from error
