"""Colour pictures: read right or refused by name, prepared as SAM learned them (model.md §12.3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from MaskSAMCore import outputs
from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.config.schema import Config, DataConfig
from MaskSAMCore.config.serialize import override
from MaskSAMCore.data.build import prepare
from MaskSAMCore.data.raw import read_case, read_dataset
from MaskSAMCore.data.verify import verify_dataset
from MaskSAMCore.errors import DatasetError, InputError
from MaskSAMCore.inference.frame import Frame
from MaskSAMCore.io.images import read_labels, read_volume
from MaskSAMCore.preprocessing.plan import fingerprint, make_plan
from MaskSAMCore.preprocessing.preprocess import SAM_MEAN, SAM_STD, preprocess, preprocess_labels
from MaskSAMCore.volume import Grid, LabelMap, Volume
from Testing.picture_phantom import picture_case, write_pictures

PICTURE, LABELS = picture_case(0)


def saved(folder: Path, image: Image.Image, name: str = "x.png", **how: object) -> Path:
    image.save(folder / name, **how)
    return folder / name


def colours(path: Path) -> np.ndarray:
    """(H, W, 3) as it was read."""
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    return np.moveaxis(volume.array[:, 0], 0, -1)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.tiff"])
def test_a_colour_picture_is_one_slice_of_three_channels(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(PICTURE), name)
    volume = read_volume(path)
    assert volume.array.shape == (3, 1, 40, 48)
    assert np.array_equal(colours(path), PICTURE)
    assert volume.grid.spacing == (1.0, 1.0, 1.0)
    assert any("pixel counts as 1 mm" in note for note in volume.warnings)
    assert np.array_equal(read_volume(path, channel=1).array[0], PICTURE[..., 1])


def test_a_jpeg_is_read_and_no_print_resolution_is_believed(tmp_path):
    path = saved(tmp_path, Image.fromarray(PICTURE), "x.JPG", format="JPEG", quality=95, dpi=(72, 72))
    assert np.abs(colours(path) - PICTURE).mean() < 10
    assert read_volume(path).grid.spacing == (1.0, 1.0, 1.0)


def test_grey_has_three_equal_colours(tmp_path):
    grey = PICTURE[..., 0]
    assert np.array_equal(colours(saved(tmp_path, Image.fromarray(grey))), np.stack([grey] * 3, -1))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, name):
    deep = np.linspace(0, 65535, 40 * 48).reshape(40, 48).astype(np.uint16)
    found = colours(saved(tmp_path, Image.fromarray(deep), name))
    assert found[..., 2] == pytest.approx(deep / 257, abs=1e-3)
    assert found.max() == pytest.approx(255)


def test_a_palette_is_looked_up(tmp_path):
    indexed = Image.fromarray(PICTURE).quantize(200)
    assert np.array_equal(colours(saved(tmp_path, indexed)), np.asarray(indexed.convert("RGB")))


def test_an_opaque_alpha_channel_is_dropped_and_a_transparent_one_refused(tmp_path):
    rgba = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    assert np.array_equal(colours(saved(tmp_path, Image.fromarray(rgba))), PICTURE)
    rgba[3, 4, 3] = 0
    with pytest.raises(InputError, match=r"x\.png.*transparent"):
        read_volume(saved(tmp_path, Image.fromarray(rgba)))
    see_through = Image.fromarray(PICTURE).quantize(50)
    with pytest.raises(InputError, match="transparent"):
        read_volume(saved(tmp_path, see_through, transparency=int(np.asarray(see_through)[0, 0])))


@pytest.mark.parametrize("turn", range(1, 9))
def test_exifs_rotation_is_done(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = saved(tmp_path, Image.fromarray(PICTURE), exif=exif)
    upright = {
        1: PICTURE, 2: PICTURE[:, ::-1], 3: PICTURE[::-1, ::-1], 4: PICTURE[::-1], 5: PICTURE.swapaxes(0, 1),
        6: np.rot90(PICTURE, -1), 7: np.rot90(PICTURE, 2).swapaxes(0, 1), 8: np.rot90(PICTURE),
    }[turn]  # fmt: skip
    assert np.array_equal(colours(path), upright)
    assert any("EXIF" in note for note in read_volume(path).warnings) == (turn != 1)


def test_other_colours_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="CMYK"):
        read_volume(saved(tmp_path, Image.fromarray(PICTURE).convert("CMYK"), "x.tif"))
    with pytest.raises(InputError, match="CMYK"):
        read_volume(saved(tmp_path, Image.fromarray(PICTURE).convert("CMYK"), "y.jpg"))
    with pytest.raises(InputError, match="kind F"):
        read_volume(saved(tmp_path, Image.fromarray(PICTURE[..., 0].astype(np.float32)), "z.tif"))


def test_several_pages_and_damage_are_refused(tmp_path):
    image = Image.fromarray(PICTURE)
    with pytest.raises(InputError, match="several pages"):
        read_volume(saved(tmp_path, image, "x.tif", save_all=True, append_images=[image]))
    whole = saved(tmp_path, image)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cut\.png.*cannot be read"):
        read_volume(tmp_path / "cut.png")
    with pytest.raises(InputError, match="Give it alone"):
        read_volume([whole, whole])


def test_labels_are_whole_numbers_or_places_in_a_palette(tmp_path):
    indexed = Image.fromarray(LABELS).convert("P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    deep = Image.fromarray(LABELS.astype(np.uint16) * 300)
    assert np.array_equal(read_labels(saved(tmp_path, Image.fromarray(LABELS))).array[0], LABELS)
    assert np.array_equal(read_labels(saved(tmp_path, indexed, "p.png")).array[0], LABELS)
    assert np.array_equal(read_labels(saved(tmp_path, deep, "d.png")).array[0], LABELS.astype(int) * 300)
    binary = Image.fromarray(LABELS > 0)
    assert np.array_equal(read_labels(saved(tmp_path, binary, "b.png")).array[0], LABELS > 0)
    with pytest.raises(InputError, match="kind RGB"):
        read_labels(saved(tmp_path, Image.fromarray(PICTURE), "c.png"))
    with pytest.raises(InputError, match="compression changes"):
        read_labels(saved(tmp_path, Image.fromarray(LABELS), "j.jpg"))


@pytest.mark.parametrize(("ending", "grey"), [(".png", False), (".jpg", False), (".tif", False), (".png", True)])
def test_a_data_set_of_pictures(tmp_path, ending, grey):
    dataset = verify_dataset(write_pictures(tmp_path, ending=ending, grey=grey))
    assert dataset.pictures
    assert dataset.channels == ("red", "green", "blue")
    assert dataset.files == 1
    volume, labels = read_case(dataset, dataset.cases[1])
    assert volume.array.shape == (3, 1, 40, 48)
    assert labels.array.shape == (1, 40, 48)
    assert set(np.unique(labels.array)) == {0, 1, 2}


def test_a_data_sets_faults_are_named(tmp_path):
    folder = write_pictures(tmp_path)
    Image.fromarray(PICTURE).save(folder / "imagesTr/eye_000_0001.png")
    Image.fromarray(LABELS * 127).save(folder / "labelsTr/eye_001.png")
    Image.fromarray(LABELS[:-2]).save(folder / "labelsTr/eye_003.png")
    with pytest.raises(DatasetError) as caught:
        verify_dataset(folder)
    text = str(caught.value)
    assert "eye_000_0001.png is a channel" in text
    assert "label value 127" in text
    assert "eye_003" in text


def test_a_picture_may_lack_a_colour_but_not_all(tmp_path):
    folder = write_pictures(tmp_path)
    green = PICTURE * np.array([0, 1, 0], np.uint8)
    Image.fromarray(np.ascontiguousarray(green[:48, :40])).save(folder / "imagesTr/eye_002_0000.png")
    Image.fromarray(np.ascontiguousarray(LABELS[:48, :40])).save(folder / "labelsTr/eye_002.png")
    verify_dataset(folder)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "imagesTr/eye_002_0000.png")
    with pytest.raises(DatasetError, match="constant"):
        verify_dataset(folder)


def plan_for(folder: Path, longest: int):
    dataset = read_dataset(folder)
    config = Config(model=ModelConfig(channels=3), data=DataConfig(longest=longest))
    finger = fingerprint((read_case(dataset, case) for case in dataset.cases), channels=dataset.channels)
    return dataset, make_plan(finger, config)


def test_pictures_are_upright_whole_resized_and_normalised_as_sam_does(tmp_path):
    dataset, plan = plan_for(write_pictures(tmp_path), 96)
    assert plan.normalisation == ("rgb",) * 3
    assert plan.view == "picture"
    assert plan.anisotropic
    assert plan.median_shape == (1, 88, 88)
    volume, labels = read_case(dataset, dataset.cases[1])
    prepared = preprocess(volume, plan)
    assert prepared.image.shape == (3, 1, 80, 96)
    small = preprocess(volume, plan_for(tmp_path, 48)[1]).image
    expected = (volume.array - np.reshape(SAM_MEAN, (3, 1, 1, 1))) / np.reshape(SAM_STD, (3, 1, 1, 1))
    np.testing.assert_allclose(small, expected, atol=1e-5)
    classes = preprocess_labels(labels, prepared.record, plan)
    assert classes.shape == (1, 80, 96)
    assert (classes > 0).mean() == pytest.approx((labels.array > 0).mean(), abs=0.01)
    assert Frame(prepared.record).prepared((0, 10, 20)) == pytest.approx((0, 20.5, 40.5))


def test_a_black_margin_is_kept_and_another_size_is_resized_alike(tmp_path):
    _, plan = plan_for(write_pictures(tmp_path), 64)
    array = np.zeros((3, 1, 100, 200), np.float32)
    array[:, :, 40:60, 90:110] = 200
    volume = Volume(array=array, grid=Grid(shape=(1, 100, 200), affine=np.diag([-1.0, -1.0, 1.0, 1.0])))
    prepared = preprocess(volume, plan)
    assert prepared.image.shape == (3, 1, 32, 64)
    assert prepared.image[0, 0, 0, 0] == pytest.approx(-SAM_MEAN[0] / SAM_STD[0], abs=1e-4)
    labels = LabelMap(array=(array[0] > 0).astype(np.uint8), grid=volume.grid)
    assert np.argwhere(preprocess_labels(labels, prepared.record, plan)[0])[0] == pytest.approx((13, 29), abs=1)


def test_settings_of_pictures_are_checked(tmp_path):
    source = write_pictures(tmp_path / "raw")
    config = override(presets.get("medsa-2d"), ["data.longest=64", "model.patch=[1,64,64]"])
    ready, report = prepare(source, tmp_path / "cache", config, workers=1)
    assert len(report.built) == 4
    assert ready.plan.longest == 64
    assert any("a pixel counts as" in note for note, _ in report.warnings)
    assert prepare(source, tmp_path / "cache", config, workers=1)[1].kept == ready.ids
    with pytest.raises(DatasetError, match=r"data\.longest"):
        ready.check_config(override(config, ["data.longest=128"]))


def test_a_scan_of_one_channel_is_no_colour_picture():
    grid = Grid(shape=(4, 4, 4), affine=np.eye(4))
    volume = Volume(array=np.arange(64, dtype=np.float32).reshape(grid.shape), grid=grid)
    labels = LabelMap(array=(volume.array > 30).astype(np.uint8), grid=grid)
    finger = fingerprint([(volume, labels)], channels=("CT",), normalisation="rgb")
    with pytest.raises(InputError, match="three channels"):
        make_plan(finger, override(Config(), ["data.normalisation=rgb"]))


def test_pictures_are_cases_of_their_own_on_the_command_line(tmp_path):
    folder = write_pictures(tmp_path)
    cases = outputs.group(sorted((folder / "imagesTr").iterdir()), 3)
    assert [case.name for case in cases] == ["eye_000", "eye_001", "eye_002", "eye_003"]
