"""What the click model learns from: collections, targets, patches at any zoom, synthetic ones, appearance."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from MaskSAMCore.data.appearance import changed
from MaskSAMCore.data.click_patches import clarity, draw_patch
from MaskSAMCore.data.collection import SMALLEST, Collection, build_collection, is_collection
from MaskSAMCore.data.pseudo_structures import CLEAR, add_pseudo_structures, sam_structures
from MaskSAMCore.data.synthetic import synthetic_patch
from MaskSAMCore.data.targets import Target, flood_target, labelled_target, pseudo_target, supervoxel_target
from MaskSAMCore.errors import DatasetError, InputError
from MaskSAMCore.inference.zeroshot import SamMasks, ZeroShot, picture
from MaskSAMCore.prepare import main as prepare
from MaskSAMCore.preprocessing.zoom_windows import normalised, sampled
from MaskSAMCore.progress import Cancelled, CancelToken


@pytest.fixture(scope="module")
def sources(phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder of three volumes, one of them without labels, and a data set of one anatomy."""
    folder = tmp_path_factory.mktemp("volumes")
    for number in range(3):
        (folder / f"scan {number}").mkdir()
        name = f"case_{number:03}"
        shutil.copyfile(phantom_data / f"imagesTr/{name}_0000.nii.gz", folder / f"scan {number}/image.nii.gz")
        if number:
            shutil.copyfile(phantom_data / f"labelsTr/{name}.nii.gz", folder / f"scan {number}/labels.nii.gz")
    return [folder, phantom_data]


@pytest.fixture(scope="module")
def collection(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return build_collection(sources, tmp_path_factory.mktemp("cache"), most=2)


def test_a_collection_holds_all_volumes_and_some_of_a_data_set(collection: Collection) -> None:
    assert is_collection(collection.folder)
    entries = {name: each.entry for name, each in collection.volumes.items()}
    assert list(entries) == ["scan 0", "scan 1", "scan 2", "case_000", "case_002"]
    assert [entry.labelled for entry in entries.values()] == [False, True, True, True, True]
    assert [entry.single for entry in entries.values()] == [False] * 3 + [True] * 2
    volume = collection.volumes["scan 1"]
    assert volume.entry.spacing == (2.0, 1.0, 1.0)
    assert list(volume.structures) == [1, 2]
    assert volume.supervoxels.shape == volume.image.shape


def test_an_interrupted_build_goes_on(sources: list[Path], collection: Collection) -> None:
    file = collection.folder / "scan 1.image.npy"
    before = file.stat().st_mtime_ns
    (collection.folder / "scan 2.supervoxels.npy").unlink()
    again = build_collection(sources, collection.folder, most=2)
    assert list(again.volumes) == list(collection.volumes)
    assert file.stat().st_mtime_ns == before


def test_folders_without_volumes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no volumes"):
        build_collection([tmp_path], tmp_path / "cache")
    with pytest.raises(InputError, match="no collection"):
        Collection(tmp_path)


def test_targets_of_every_kind_are_parts_of_their_volume(collection: Collection) -> None:
    volume, drawn = collection.volumes["scan 1"], 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        for made in (labelled_target(volume, rng), supervoxel_target(volume, rng), flood_target(volume, rng)):
            if made is None:
                continue
            drawn += 1
            assert made.mask.any()
            assert all(made.mask.any(axis=tuple(a for a in range(3) if a != axis))[[0, -1]].all() for axis in range(3))
            ends = np.array(made.corner) + made.mask.shape
            assert (np.array(made.corner) >= 0).all()
            assert (ends <= volume.image.shape).all()
    assert drawn > 120


def test_a_labelled_target_is_made_of_its_structure(collection: Collection) -> None:
    volume = collection.volumes["scan 1"]
    assert volume.labels is not None
    for seed in range(40):
        made = labelled_target(volume, np.random.default_rng(seed))
        place = tuple(slice(c, c + n) for c, n in zip(made.corner, made.mask.shape, strict=True))
        assert np.asarray(volume.labels[place])[made.mask].all(), "background is no part of a structure"
        assert made.mask.sum() >= SMALLEST


def test_patches_show_their_targets_at_many_sizes(collection: Collection) -> None:
    volume, shares = collection.volumes["scan 1"], []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        patch = draw_patch(volume, labelled_target(volume, rng), rng)
        if patch is None:
            continue
        assert patch.image.shape == patch.target.shape
        assert patch.spacing[1] == patch.spacing[2] >= 0.5 * patch.finest
        assert patch.spacing[0] >= patch.spacing[1] - 1e-6
        shares.append(patch.target.mean())
    assert len(shares) > 20
    assert max(shares) > 4 * min(shares)


def test_clarity_tells_a_border_that_is_there_from_one_that_is_not() -> None:
    rng = np.random.default_rng(0)
    target = np.zeros((12, 40, 40), bool)
    target[3:9, 12:28, 12:28] = True
    noise = rng.normal(0, 0.1, target.shape).astype(np.float32)
    assert clarity(noise + target, target) > 2
    assert clarity(noise, target) < CLEAR
    half = noise + (np.arange(40) >= 12).astype(np.float32)
    assert clarity(half, target) < CLEAR, "one side of four is not enough"


class BrightSam:
    """A MobileSAM that finds what is bright and connected; it counts what it encodes."""

    def __init__(self) -> None:
        self.encoded = 0
        self.features = torch.zeros(1)

    def show(self, image: np.ndarray, low: float, high: float) -> None:
        self.encoded += 1
        self.features = torch.from_numpy(picture(image, low, high).astype(np.float32))

    def propose(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts, _ = ndimage.label(self.features.numpy() > 150)
        logits = []
        for x, y in points:
            part = parts == parts[int(y), int(x)] if parts[int(y), int(x)] else np.zeros(parts.shape, bool)
            logits += [np.where(part, 9.0, -9.0)] * 3
        return np.array(logits, np.float32), np.full(len(logits), 0.95, np.float32)

    def predict(self, *, box: np.ndarray) -> SamMasks:
        x0, y0, x1, y1 = (int(v) for v in box)
        found = np.full(self.features.shape, -9.0, np.float32)
        found[y0:y1, x0:x1] = np.where(self.features.numpy()[y0:y1, x0:x1] > 150, 9.0, -9.0)
        return SamMasks(logits=found[None], quality=np.array([0.95]), low_res=np.zeros((1, 256, 256)))


def test_what_sam_finds_in_a_slice_is_followed_through_the_others(collection: Collection) -> None:
    volume, sam = collection.volumes["scan 0"], BrightSam()
    found = list(sam_structures(volume, sam, np.random.default_rng(0)))
    assert found
    assert 0 < sam.encoded <= volume.image.shape[0]
    for each in found:
        assert min(each.mask.shape) >= 3
        place = tuple(slice(c, c + n) for c, n in zip(each.corner, each.mask.shape, strict=True))
        inside = np.asarray(volume.image[place], np.float32)[each.mask]
        assert np.median(inside) > np.median(np.asarray(volume.image, np.float32))


def test_pseudo_structures_are_made_once_and_kept(sources: list[Path], tmp_path: Path) -> None:
    made = build_collection(sources, tmp_path / "cache", most=1)
    assert not made.volumes["scan 0"].pseudo
    sam, cancel = BrightSam(), CancelToken()

    def stop(done: int, total: int, text: str) -> None:
        if done == 1:
            cancel.cancel()

    with pytest.raises(Cancelled):
        add_pseudo_structures(made, sam, progress=stop, cancel=cancel)
    first = tmp_path / "cache/scan 0.pseudo.npz"
    before = first.stat().st_mtime_ns
    add_pseudo_structures(made, sam)
    assert first.stat().st_mtime_ns == before, "the first volume was done"
    assert not (tmp_path / "cache/case_000.pseudo.npz").exists(), "a data set of one anatomy is labelled"
    volume = Collection(tmp_path / "cache").volumes["scan 0"]
    assert volume.pseudo
    target = pseudo_target(volume, np.random.default_rng(0))
    assert target.mask.sum() >= SMALLEST
    assert all(
        corner + n <= size for corner, n, size in zip(target.corner, target.mask.shape, volume.image.shape, strict=True)
    )


def test_several_sources_are_prepared_by_the_command(sources: list[Path], tmp_path: Path, capsys) -> None:
    cache = tmp_path / "cache"
    arguments = [*map(str, sources), "-o", str(cache), "--preset", "any", "--most", "1"]
    assert prepare(arguments) == 0
    assert "4 volume(s)" in capsys.readouterr().out
    assert list(Collection(cache).volumes) == ["scan 0", "scan 1", "scan 2", "case_000"]


@pytest.mark.parametrize(
    ("more", "word"), [(["--most", "2"], "--most"), (["--pseudo-labels"], "--pseudo-labels"), (["again"], "several")]
)
def test_what_only_a_collection_takes_is_refused_elsewhere(more: list[str], word: str, tmp_path: Path, capsys) -> None:
    assert prepare([str(tmp_path), *more, "-o", str(tmp_path / "cache")]) == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--set", "data.view=coronal"], ["--workers", "2"]])
def test_what_a_collection_does_not_use_is_refused(
    more: list[str], sources: list[Path], tmp_path: Path, capsys
) -> None:
    assert prepare([str(sources[0]), "-o", str(tmp_path / "cache"), "--preset", "any", *more]) == 2
    assert more[0] in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_mobilesam_itself_finds_structures(collection: Collection, mobile_sam: Path) -> None:
    sam = ZeroShot("mobile", mobile_sam)
    found = list(sam_structures(collection.volumes["scan 0"], sam, np.random.default_rng(0)))
    assert found
    assert all(each.mask.any() for each in found)


def test_reading_averages_what_lies_between_coarse_points() -> None:
    array = np.random.default_rng(0).normal(size=(8, 16, 16)).astype(np.float32)
    axes = [np.arange(1.5, n, 4.0) for n in array.shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    found = sampled(array, points, np.full(3, 4.0))
    expected = array.reshape(2, 4, 4, 4, 4, 4).mean(axis=(1, 3, 5))
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-5)


def test_a_normalised_patch_has_no_units() -> None:
    image = torch.randn(4, 16, 16)
    assert torch.allclose(normalised(image), normalised(1000 * image - 300), atol=1e-3)


def test_synthetic_patches_never_repeat() -> None:
    made = [synthetic_patch(np.random.default_rng(seed)) for seed in range(12)]
    kept = [patch for patch in made if patch is not None]
    assert len(kept) > 6
    assert len({patch.image.tobytes() for patch in kept}) == len(kept)
    assert all(0 < patch.target.mean() <= 0.6 for patch in kept)
    again = synthetic_patch(np.random.default_rng(0))
    assert (again is None) == (made[0] is None)
    assert again is None or made[0] is None or np.array_equal(again.image, made[0].image)


def test_appearance_changes_grey_values_and_no_places() -> None:
    image = np.zeros((8, 32, 32), np.float32)
    image[2:6, 8:24, 8:24] = 1
    for seed in range(30):
        other = changed(image, np.random.default_rng(seed))
        assert other.shape == image.shape
        assert np.isfinite(other).all()


def test_an_empty_target_has_no_box() -> None:
    with pytest.raises(ValueError, match="empty"):
        Target(mask=np.zeros((2, 2, 2), bool), corner=(0, 0, 0)).trimmed()
