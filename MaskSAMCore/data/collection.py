"""A collection of scans of all kinds, without a common table of labels: what the click model `any` learns from.

A source is a folder of folders with `image.nii.gz` and, where somebody labelled it, `labels.nii.gz`, or a labelled data
set in nnU-Net's raw format. The cache holds, for each volume, the image as float16 (0 at its 0.5th percentile, 1 at its
99.5th), the labels, supervoxels (SLIC), and the pseudo-structures that `pseudo_structures` finds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from MaskSAMCore.errors import DatasetError, InputError
from MaskSAMCore.io.atomic import FolderLock, atomic_path, write_json
from MaskSAMCore.progress import CancelToken, Progress, no_progress
from MaskSAMCore.volume import Triple, triple

MANIFEST = "collection.json"
PSEUDO = "pseudo"
FORMAT = 1
MOST = 60
"""Volumes that are taken of a data set of one anatomy."""
LIMIT = 4.0
"""Intensities are clipped to this, in units of the range between the percentiles."""
LOW, HIGH = 0.5, 99.5
SMALLEST = 30
"""Voxels of the smallest structure that is a target."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A volume of the collection.

    Attributes:
        name: Of its files in the cache.
        group: Name of its source.
        spacing: Along (k, j, i), mm.
        labelled: Whether it has labels.
        single: Whether the source is a data set of a single anatomy.
    """

    name: str
    group: str
    spacing: Triple
    labelled: bool
    single: bool


class CollectedVolume:
    """A volume of the cache; arrays are memory-mapped."""

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.folder, self.entry = folder, entry
        self.image: np.ndarray = np.load(folder / f"{entry.name}.image.npy", mmap_mode="r")
        self.supervoxels: np.ndarray = np.load(folder / f"{entry.name}.supervoxels.npy", mmap_mode="r")
        self.labels: np.ndarray | None = None
        if entry.labelled:
            self.labels = np.load(folder / f"{entry.name}.labels.npy", mmap_mode="r")

    @cached_property
    def lowest(self) -> float:
        """The lowest value of the image, which lies outside of the scan too."""
        return float(self.image.min())

    @cached_property
    def structures(self) -> dict[int, tuple[slice, slice, slice]]:
        """Bounding boxes of the labelled structures that are large enough, by label."""
        from scipy.ndimage import find_objects

        if self.labels is None:
            return {}
        labels = np.asarray(self.labels)
        counts = np.bincount(labels.ravel())
        boxes = enumerate(find_objects(labels), start=1)
        return {n: box for n, box in boxes if box is not None and counts[n] >= SMALLEST}

    @cached_property
    def pseudo(self) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """Corner and mask, bool on its box, of every pseudo-structure; empty before they were made."""
        path = self.folder / f"{self.entry.name}.{PSEUDO}.npz"
        if not path.is_file():
            return []
        with np.load(path) as file:
            bits = np.split(file["bits"], file["ends"][:-1]) if len(file["ends"]) else []
            shapes, corners = file["shapes"].tolist(), file["corners"].tolist()
        return [
            (tuple(corner), np.unpackbits(each, count=int(np.prod(shape))).reshape(shape).astype(bool))
            for each, shape, corner in zip(bits, shapes, corners, strict=True)
        ]


class Collection:
    """The cache that `build_collection` makes.

    Raises:
        InputError: The folder holds none.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            found = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            entries = [Entry(**{**each, "spacing": tuple(each["spacing"])}) for each in found["volumes"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError("no collection that was prepared", where=folder, why=str(error)) from error
        self.volumes = {entry.name: CollectedVolume(self.folder, entry) for entry in entries}


def is_collection(source: str | Path) -> bool:
    """Whether a folder is a prepared collection."""
    return (Path(source) / MANIFEST).is_file()


def build_collection(
    sources: Sequence[str | Path],
    target: str | Path,
    *,
    most: int = MOST,
    overwrite: bool = False,
    progress: Progress = no_progress,
    cancel: CancelToken | None = None,
) -> Collection:
    """Make the cache of a collection; an interrupted build goes on.

    Args:
        sources: Folders of volumes, or data sets in nnU-Net's raw format.
        target: Folder of the cache.
        most: Volumes that are taken of a data set, at even distances.
        overwrite: Make every volume again.
        progress: Called after every volume.
        cancel: Checked before every volume.

    Raises:
        DatasetError: A source holds no volume, or one cannot be read.
    """
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    found = [item for source in sources for item in _volumes_of(Path(source), most)]
    entries = []
    with FolderLock(target):
        for number, (name, group, image, labels) in enumerate(found):
            if cancel is not None:
                cancel.check()
            entries.append(_prepared(target, name, group, image, labels, overwrite))
            progress(number + 1, len(found), name)
        volumes = [asdict(entry) for entry in entries]
        write_json(target / MANIFEST, {"format": FORMAT, "volumes": volumes}, overwrite=True)
    return Collection(target)


def _volumes_of(source: Path, most: int) -> Iterator[tuple[str, str, Path, Path | None]]:
    """Name, group, image and labels of every volume of a source."""
    if (source / "dataset.json").is_file():
        images = sorted((source / "imagesTr").glob("*_0000.nii.gz"))
        if not images:
            raise DatasetError("the data set has no images", where=source)
        chosen = images if len(images) <= most else [images[n * len(images) // most] for n in range(most)]
        for image in chosen:
            name = image.name.removesuffix("_0000.nii.gz")
            yield name, source.name, image, source / "labelsTr" / f"{name}.nii.gz"
        return
    folders = sorted(path.parent for path in source.glob("*/image.nii.gz"))
    if not folders:
        raise DatasetError("the folder holds no volumes NAME/image.nii.gz", where=source)
    for folder in folders:
        labels = folder / "labels.nii.gz"
        yield folder.name, source.name, folder / "image.nii.gz", labels if labels.is_file() else None


def _prepared(target: Path, name: str, group: str, image: Path, labels: Path | None, overwrite: bool) -> Entry:
    from MaskSAMCore.io.images import read_labels, read_volume
    from MaskSAMCore.io.supervoxels import supervoxels

    volume = read_volume(image)
    spacing = triple(volume.grid.spacing[::-1])
    single = image.parent.name == "imagesTr"
    entry = Entry(name=name, group=group, spacing=spacing, labelled=labels is not None, single=single)
    if (target / f"{name}.supervoxels.npy").is_file() and not overwrite:
        return entry
    array = volume.as_channels()[0]
    low, high = np.percentile(array, [LOW, HIGH])
    scaled = np.clip((array - low) / max(float(high - low), 1e-6), -LIMIT, LIMIT)
    arrays = {"image": scaled.astype(np.float16)}
    if labels is not None:
        arrays["labels"] = read_labels(labels).array.astype(np.int32)
    arrays["supervoxels"] = supervoxels(scaled.clip(0, 1), spacing)
    for kind, each in arrays.items():  # the supervoxels last: they say that the volume is whole
        with atomic_path(target / f"{name}.{kind}.npy", overwrite=True) as partial, open(partial, "wb") as file:
            np.save(file, each)
    return entry
