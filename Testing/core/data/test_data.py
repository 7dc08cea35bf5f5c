"""Raw data sets, splits and the prepared cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.config.schema import Config, DataConfig, TrainConfig
from MaskSAMCore.data.build import prepare
from MaskSAMCore.data.dataset import PreparedDataset, is_prepared
from MaskSAMCore.data.raw import patient_of, read_case, read_dataset
from MaskSAMCore.data.splits import folds, load_splits
from MaskSAMCore.errors import DatasetError, InputError
from MaskSAMCore.prepare import main
from MaskSAMCore.preprocessing.preprocess import classes_to_ids, preprocess, restore_labels
from MaskSAMCore.progress import Cancelled, CancelToken
from Testing.phantom import write_dataset

CONFIG = Config(model=ModelConfig(patch=(4, 16, 16)), train=TrainConfig(folds=2))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "raw")


def describe(raw: Path, **changes) -> None:
    path = raw / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_real_data_sets_are_read(shared: Path) -> None:
    hippocampus = read_dataset(shared / "data" / "hippocampus")
    assert len(hippocampus.cases) == 208
    assert hippocampus.channels == ("MRI",)
    assert not hippocampus.problems
    assert [label.name for label in hippocampus.labels.labels] == ["Anterior hippocampus", "Posterior hippocampus"]
    assert hippocampus.licence == "CC-BY-SA 4.0"
    assert not hippocampus.labels.mirrored
    head = read_dataset(shared / "data" / "headneck_ct")
    assert len(head.cases) == 46
    assert head.labels.classes == 6
    assert head.channels == ("CT",)
    volume, labels = read_case(head, head.cases[0])
    assert volume.grid == labels.grid
    assert labels.array.max() == 5


def test_acdc_folders_are_read_as_they_are(shared: Path) -> None:
    folder = shared / "data" / "acdc"
    acdc = read_dataset(folder)
    assert len(acdc.cases) == 160
    assert not acdc.problems
    assert {c.patient for c in acdc.cases if c.id.startswith("patient001_")} == {"patient001"}
    (split,) = load_splits(folder, [c.id for c in acdc.cases], {c.id: c.patient for c in acdc.cases})
    assert (len(split.train), len(split.val)) == (140, 20)
    volume, labels = read_case(acdc, acdc.cases[0])
    assert volume.array.shape == labels.array.shape
    assert set(np.unique(labels.array)) == {0, 1, 2, 3}


def test_labels_in_the_order_of_their_ids_and_pairs_as_declared(raw: Path) -> None:
    describe(raw, labels={"background": 0, "right_ball": 9, "left_ball": 4, "cube": 2},
             left_right_pairs=[["left_ball", "right_ball"]])  # fmt: skip
    table = read_dataset(raw).labels
    assert [(label.id, label.name) for label in table.labels] == [(2, "cube"), (4, "left_ball"), (9, "right_ball")]
    assert table.mirrored
    assert table.mirror_classes() == [0, 1, 3, 2]
    describe(raw, left_right_pairs=[])
    assert read_dataset(raw).labels.mirrored


def test_pairs_declared_by_a_setting(raw: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, left_right_pairs=(("ball", "cube"),)))
    cache, _ = prepare(raw, tmp_path / "cache", config)
    assert cache.labels.mirrored
    assert cache.labels.mirror_classes() == [0, 2, 1]
    cache.check_config(config)
    cache.check_config(CONFIG)
    other = replace(config, data=replace(config.data, left_right_pairs=()))
    with pytest.raises(DatasetError, match="left_right_pairs"):
        cache.check_config(other)
    again, report = prepare(raw, tmp_path / "cache", config)
    assert report.kept == again.ids
    for wrong in ((("ball", "sphere"),), (("ball", "cube"), ("cube", "ball"))):
        with pytest.raises(InputError, match="left-right pairs"):
            prepare(raw, tmp_path / "other", replace(config, data=replace(config.data, left_right_pairs=wrong)))


def test_the_seed_of_a_training_leaves_the_folds_alone(raw: Path, tmp_path: Path) -> None:
    first, _ = prepare(raw, tmp_path / "cache", CONFIG)
    held = first.splits
    seeds = range(1, 5)
    for seed in seeds:
        again, _ = prepare(raw, tmp_path / "cache", replace(CONFIG, train=replace(CONFIG.train, seed=seed)))
        assert again.splits == held
    others = [replace(CONFIG, data=replace(CONFIG.data, split_seed=seed)) for seed in seeds]
    assert any(prepare(raw, tmp_path / "cache", other)[0].splits != held for other in others)


def test_version_one_of_the_format(raw: Path) -> None:
    path = raw / "dataset.json"
    data = json.loads(path.read_text())
    del data["channel_names"]
    data |= {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "ball", "2": "cube"}}
    path.write_text(json.dumps(data))
    dataset = read_dataset(raw)
    assert dataset.channels == ("CT",)
    assert [label.id for label in dataset.labels.labels] == [1, 2]


def test_frames_and_visits_belong_to_one_patient() -> None:
    cases = {"patient001_frame01": "patient001", "a_ED": "a", "sub-3_ses-2": "sub-3", "case_001": "case_001"}
    assert {case: patient_of(case) for case in cases} == cases
    assert patient_of("x", {"x": "y"}) == "y"


def test_folds_split_patients_and_ignore_the_order() -> None:
    ids = [f"p{i:02}_frame{f}" for i in range(13) for f in (1, 2)]
    result = folds(ids, 5, 3, patient=patient_of)
    assert result == folds(ids[::-1], 5, 3, patient=patient_of) != folds(ids, 5, 4, patient=patient_of)
    assert sorted(c for split in result for c in split.val) == sorted(ids), "everyone is validated on once"
    for split in result:
        assert sorted(split.train + split.val) == sorted(ids)
        assert not {patient_of(c) for c in split.train} & {patient_of(c) for c in split.val}
    assert len(folds(["a", "b", "c"], 5)) == 3


def test_the_cache_holds_what_was_prepared(raw: Path, tmp_path: Path) -> None:
    cache, report = prepare(raw, tmp_path / "cache", CONFIG)
    assert is_prepared(cache.folder)
    assert not is_prepared(raw)
    assert cache.ids == report.built == tuple(f"case_{i:03}" for i in range(4))
    assert (cache.name, cache.licence, cache.modality) == ("Phantom", "CC0", "MR")
    assert cache.plan.view == "axial"
    assert cache.plan.spacing == (2.0, 1.0, 1.0)
    dataset = read_dataset(raw)
    volume, labels = read_case(dataset, dataset.cases[0])
    case = cache.case("case_000")
    np.testing.assert_allclose(case.image, preprocess(volume, cache.plan).image, atol=2e-3)
    scores = np.stack([case.label == c for c in range(3)]).astype(np.float32)
    np.testing.assert_array_equal(classes_to_ids(restore_labels(scores, case.record), cache.labels), labels.array)
    for value, *place in case.points:
        assert case.label[tuple(place)] == value
    assert set(case.points[:, 0]) == {1, 2}
    assert sorted(cache.fold(0).train + cache.fold(0).val) == list(cache.ids)
    assert not case.image.flags.writeable
    assert not [p for p in cache.folder.rglob("*") if p.name.startswith(".")], "no temporaries, no lock"


def test_a_second_call_changes_nothing(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "cache", CONFIG)
    before = contents(tmp_path / "cache")
    _, report = prepare(raw, tmp_path / "cache", CONFIG)
    assert len(report.kept) == 4
    assert not report.built
    assert not report.rebuilt
    assert contents(tmp_path / "cache") == before


def test_an_interrupted_run_is_continued(raw: Path, tmp_path: Path) -> None:
    reference, _ = prepare(raw, tmp_path / "whole", CONFIG)
    token = CancelToken()

    def stop(done: int, total: int, text: str) -> None:
        if text == "preparing" and done == 2:
            token.cancel()

    with pytest.raises(Cancelled):
        prepare(raw, tmp_path / "cache", CONFIG, workers=1, progress=stop, cancel=token)
    assert not is_prepared(tmp_path / "cache"), "an unfinished cache has no manifest"
    with pytest.raises(DatasetError, match="no finished cache"):
        PreparedDataset(tmp_path / "cache")
    _, report = prepare(raw, tmp_path / "cache", CONFIG)
    assert len(report.kept) >= 2
    assert len(report.kept) + len(report.built) == 4
    assert report.built
    assert contents(tmp_path / "cache") == contents(reference.folder)
    late = CancelToken()
    other = Config(data=DataConfig(view="coronal"), train=CONFIG.train)
    with pytest.raises(Cancelled):
        prepare(
            raw,
            tmp_path / "cache",
            other,
            workers=1,
            progress=lambda *a: late.cancel() if "preparing" in a else None,
            cancel=late,
        )
    assert not is_prepared(tmp_path / "cache"), "half of a cache with other settings is no cache"


def test_other_settings_are_refused_by_name(raw: Path, tmp_path: Path) -> None:
    cache, _ = prepare(raw, tmp_path / "cache", CONFIG)
    cache.check_config(CONFIG)
    other = Config(data=DataConfig(view="coronal", spacing=(1.0, 1.0, 1.0), normalisation="ct"))
    with pytest.raises(DatasetError) as caught:
        cache.check_config(other)
    assert len(caught.value.problems) == 3
    cache.check_config(Config(data=DataConfig(window=(0.0, 1.0, 0.0, 1.0))))  # an MR has no window
    cache.plan = replace(cache.plan, normalisation=("ct",))
    with pytest.raises(DatasetError, match=r"data.window"):
        cache.check_config(Config(data=DataConfig(window=(0.0, 1.0, 0.0, 1.0), normalisation="ct")))
    again, report = prepare(raw, tmp_path / "cache", Config(data=DataConfig(view="coronal"), train=CONFIG.train))
    assert again.plan.view == "coronal"
    assert len(report.rebuilt) == 4
    kept = replace(CONFIG, data=replace(CONFIG.data, slices="keep"))
    with pytest.raises(DatasetError, match=r"data.slices: asked for keep, prepared with slices resampled"):
        cache.check_config(kept)
    again, _ = prepare(raw, tmp_path / "cache", kept)
    assert again.plan.keep_slices


def test_what_lies_in_the_target_is_safe(raw: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="something else"):
            prepare(raw, foreign, CONFIG, overwrite=overwrite)
    assert contents(foreign) == {"thesis.txt": b"years of work"}
    with pytest.raises(InputError, match="own folder"):
        prepare(raw, raw, CONFIG)
    prepare(raw, tmp_path / "cache", CONFIG)
    describe(raw, name="Other")
    with pytest.raises(InputError, match="another data set"):
        prepare(raw, tmp_path / "cache", CONFIG)
    assert prepare(raw, tmp_path / "cache", CONFIG, overwrite=True)[0].name == "Other"


def test_a_removed_case_leaves_the_cache(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "cache", CONFIG)
    (raw / "imagesTr" / "case_003_0000.nii.gz").unlink()
    (raw / "labelsTr" / "case_003.nii.gz").unlink()
    cache, report = prepare(raw, tmp_path / "cache", CONFIG)
    assert cache.ids == ("case_000", "case_001", "case_002")
    assert not list(cache.folder.rglob("case_003*"))
    assert len(report.kept) == 3, "the others are not made again"


def test_the_readers_notes_are_told_once(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = tmp_path / "raw"
    source = shared / "data" / "headneck_ct"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
        for path in sorted((source / part).iterdir())[:2]:
            shutil.copy(path, raw / part)
    shutil.copy(source / "dataset.json", raw)
    cache, report = prepare(raw, tmp_path / "cache", CONFIG)
    assert cache.plan.normalisation == ("ct",)
    assert [count for note, count in report.warnings if "sform and qform" in note] == [4]
    assert not caplog.records


@pytest.mark.slow
def test_reading_a_cache_needs_numpy_and_torch_only(raw: Path, tmp_path: Path, repo: Path) -> None:
    prepare(raw, tmp_path / "cache", CONFIG)
    program = f"""
import sys
for name in ("SimpleITK", "pydicom", "monai", "highdicom", "nibabel", "timm"):
    sys.modules[name] = None
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.data.sampling import PatchSampler
cache = PreparedDataset({str(tmp_path / "cache")!r})
print(tuple(PatchSampler(cache, cache.ids, patch=(4, 16, 16), batch=2).batch(0).image.shape))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=repo, capture_output=True, text=True)
    assert done.stdout.strip() == "(2, 1, 4, 16, 16)", done.stderr


def test_the_command(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = str(tmp_path / "cache")
    assert main([str(raw), "-o", target, "--preset", "tiny", "--set", "data.view=sagittal"]) == 0
    assert "4 cases" in capsys.readouterr().out
    assert PreparedDataset(target).plan.view == "sagittal"
    assert main([str(tmp_path / "nowhere"), "-o", target]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main([str(raw), "-o", target, "--set", "data.vieww=axial"]) == 2
