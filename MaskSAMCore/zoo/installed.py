"""Models installed on this computer: list, find, load, import and remove them."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from MaskSAMCore.config.resources import resource_roots
from MaskSAMCore.errors import InputError, MaskSAMError, ModelError, did_you_mean
from MaskSAMCore.progress import Progress, no_progress
from MaskSAMCore.zoo import model_folder
from MaskSAMCore.zoo.base_weights import home, obtain_base
from MaskSAMCore.zoo.download import check_member_name, extract_member
from MaskSAMCore.zoo.model_folder import CARD, FILES, NAME, ModelCard, check_name, load_card, verify_model, whole_folder

if TYPE_CHECKING:
    import torch

    from MaskSAMCore.network.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True)
class InstalledModel:
    """One model on this computer; `card` is None where it is damaged, and `problem` says how."""

    name: str
    path: Path
    origin: Literal["bundled", "user"]
    card: ModelCard | None
    problem: str = ""


def load_model(
    name_or_path: str | Path,
    device: torch.device | str = "cpu",
    *,
    download: bool = False,
    progress: Progress = no_progress,
) -> tuple[Segmenter, ModelCard]:
    """The network and card of an installed model, or of a model's folder; see `model_folder.load_model`.

    Args:
        name_or_path: As for `find_model`.
        device: Where the network goes.
        download: Whether base weights that are missing may be downloaded; see `base_weights.obtain_base`.
        progress: Called during such a download.
    """
    folder = find_model(name_or_path)
    if download and (base := load_card(folder).base) is not None:
        obtain_base(base.name, sha256=base.sha256, progress=progress)
    return model_folder.load_model(folder, device)


def load_trained(model: Segmenter, name_or_path: str | Path) -> ModelCard:
    """Fill a network's trained tensors from such a model; see `model_folder.load_trained`."""
    return model_folder.load_trained(model, find_model(name_or_path))


def installed_models() -> list[InstalledModel]:
    """Models of this computer: bundled ones, then the user's; damaged ones are listed as such."""
    found: dict[str, InstalledModel] = {}
    for origin, parent in _roots():
        for path in sorted(parent.iterdir()) if parent.is_dir() else []:
            if not path.is_dir() or path.name.startswith(".") or path.name in found:
                continue
            try:
                found[path.name] = InstalledModel(name=path.name, path=path, origin=origin, card=load_card(path))
            except MaskSAMError as error:
                found[path.name] = InstalledModel(
                    name=path.name, path=path, origin=origin, card=None, problem=str(error)
                )
    return list(found.values())


def find_model(name_or_path: str | Path) -> Path:
    """Folder of a model, by the path of its folder or the name of an installed one.

    Raises:
        ModelError: There is none; the message lists the installed ones.
    """
    path = Path(name_or_path).expanduser()
    if (path / CARD).is_file():
        return path
    for _, parent in _roots():
        if NAME.fullmatch(str(name_or_path)) and (parent / str(name_or_path) / CARD).is_file():
            return parent / str(name_or_path)
    names = [model.name for model in installed_models()]
    remedy = f"Name a model folder, or one installed here: {', '.join(names) or 'none'}."
    raise ModelError(
        "no such model", where=name_or_path, remedy=f"{did_you_mean(str(name_or_path), names)} {remedy}".strip()
    )


def import_model(source: Path, *, overwrite: bool = False) -> str:
    """Copy a model folder, or a .zip of one, into the user's folder after checking it. Returns its name.

    Raises:
        InputError: The source is missing, or a model of that name exists.
        ModelError: It is no model, is damaged, or the archive reaches outside its folder.
    """
    source = Path(source)
    if not source.exists():
        raise InputError("no such file or folder", where=source)
    models = home("data") / "models"
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=models) as scratch:
        folder = Path(scratch)
        if source.is_dir():
            for name in FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
        else:
            _unpack(source, folder)
        card = verify_model(folder)
        check_name(card.name, source)
        with whole_folder(models / card.name, overwrite=overwrite) as partial:
            for name in FILES:
                shutil.copyfile(folder / name, partial / name)
    return card.name


def remove_model(name: str) -> Path:
    """Delete one of the user's models; bundled ones stay.

    Raises:
        ModelError: The user has no such model.
    """
    path = home("data") / "models" / name
    if not NAME.fullmatch(name) or not (path / CARD).is_file():
        raise ModelError("nothing to remove", where=name, why=f"no such model in {path.parent}")
    shutil.rmtree(path)
    return path


def _roots() -> list[tuple[Literal["bundled", "user"], Path]]:
    return [*(("bundled", root / "Models") for root in resource_roots()), ("user", home("data") / "models")]


def _unpack(archive: Path, folder: Path) -> None:
    """The model's files out of a .zip, wherever in it they lie together; nothing else is written."""
    if not zipfile.is_zipfile(archive):
        raise ModelError("neither a model folder, a .zip of one, nor base weights", where=archive)
    with zipfile.ZipFile(archive) as bundle:
        names = bundle.namelist()
    for name in names:
        check_member_name(name, archive)
    cards = [PurePosixPath(name) for name in names if PurePosixPath(name).name == CARD]
    if len(cards) != 1:
        raise ModelError("archive holds no single model", where=archive, why=f"{len(cards)} files called {CARD}")
    for file in FILES:
        extract_member(archive, str(cards[0].with_name(file)), folder / file)
