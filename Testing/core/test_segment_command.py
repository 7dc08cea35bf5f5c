"""`python -m MaskSAMCore.segment`: what it writes, skips, refuses and says."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from MaskSAMCore import outputs, segment
from MaskSAMCore.errors import InputError
from MaskSAMCore.inference import predictor
from MaskSAMCore.io.images import read_labels, read_volume, write_volume
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.preprocessing.plan import ChannelStats
from MaskSAMCore.terminology import lookup
from MaskSAMCore.volume import Volume
from Testing.toy_model import Threshold, bright_scan, make_card, make_plan, save_tiny


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose card is real and whose network is the threshold."""
    folder = tmp_path / "models" / "toy"
    folder.mkdir(parents=True)
    card = make_card()
    monkeypatch.setattr(
        "MaskSAMCore.zoo.installed.load_model", lambda name, device, **_: (Threshold().to(device), card)
    )
    monkeypatch.setattr("MaskSAMCore.zoo.installed.find_model", lambda name: folder)
    monkeypatch.setattr("MaskSAMCore.zoo.model_folder.load_card", lambda path: card)
    return folder


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    volume, _ = bright_scan(affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    write_volume(volume, tmp_path / "case 1_0000.nii.gz")
    return tmp_path / "case 1_0000.nii.gz"


def run(*arguments: object) -> int:
    return segment.main([str(a) for a in arguments])


def test_a_folder_receives_the_four_files(model, scan, tmp_path, capsys):
    assert run(scan, "-m", "toy", "-o", tmp_path / "out", "--device", "cpu") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "case 1.csv", "case 1.nii.gz", "case 1.png", "case 1.seg.nrrd",
    ]  # fmt: skip
    found = read_labels(tmp_path / "out" / "case 1.nii.gz")
    voxels = int((found.array == 3).sum())
    assert voxels > 300
    assert np.array_equal(read_labels(tmp_path / "out" / "case 1.seg.nrrd").array > 0, found.array > 0)
    rows = list(csv.DictReader((tmp_path / "out" / "case 1.csv").open(encoding="utf-8")))
    assert rows == [{"label": "3", "structure": "bright", "voxels": str(voxels), "volume_ml": f"{voxels * 0.002:.4f}"}]
    said = capsys.readouterr().out
    assert "Device: CPU" in said
    assert "bright" in said
    assert f"{voxels * 0.002:.3f}" in said
    assert "CC0" in said


@pytest.mark.slow
def test_complete_cases_are_skipped_and_done_again_on_request(model, scan, tmp_path, capsys):
    assert run(scan, "-m", "toy", "-o", tmp_path / "out") == 0
    picture = tmp_path / "out" / "case 1.png"
    picture.write_bytes(b"mine")
    assert run(scan, "-m", "toy", "-o", tmp_path / "out") == 0
    assert picture.read_bytes() == b"mine"
    assert "skipped" in capsys.readouterr().out
    assert run(scan, "-m", "toy", "-o", tmp_path / "out", "--overwrite") == 0
    assert picture.read_bytes() != b"mine"


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".seg.nrrd"])
def test_a_single_file_by_its_suffix(model, scan, tmp_path, ending):
    target = tmp_path / f"result{ending}"
    before = set(tmp_path.iterdir())
    assert run(scan, "-m", "toy", "-o", target) == 0
    assert set(tmp_path.iterdir()) - before == {target}
    assert read_labels(target).array.any()


@pytest.mark.slow
def test_preview_takes_fewer_windows_and_adds_a_picture(model, scan, tmp_path, monkeypatch):
    steps = []
    original = predictor.Predictor.segment
    monkeypatch.setattr(
        predictor.Predictor,
        "segment",
        lambda self, v, **o: steps.append((o["step"], o["tta"])) or original(self, v, **o),
    )
    assert run(scan, "-m", "toy", "-o", tmp_path / "r.nii.gz", "--preview") == 0
    assert run(scan, "-m", "toy", "-o", tmp_path / "s.nii.gz", "--tta") == 0
    assert run(scan, "-m", "toy", "-o", tmp_path / "t.nii.gz", "--step", "0.75") == 0
    assert steps == [(1.0, False), (0.5, True), (0.75, False)]
    assert (tmp_path / "r.png").exists()
    assert not (tmp_path / "s.png").exists()


def test_regions_are_boxes_in_mm(model, scan, tmp_path):
    assert run(scan, "-m", "toy", "-o", tmp_path / "r.nii.gz", "--roi=10,17,10,6,100,100", "--roi=-1,0,5,8,8,8") == 0
    found = np.nonzero(read_labels(tmp_path / "r.nii.gz").array)[2]
    assert found.min() == 7
    assert found.max() == 13


TWO = LabelTable(labels=(Label(id=3, name="bright", color=(1, 2, 3)), Label(id=5, name="Rest, of it", color=(4, 5, 6))))


class Halves(Threshold):
    """A second class, beside the first."""

    def segment_patch(self, image):
        scores = super().segment_patch(image)
        right = torch.arange(image.shape[-1], device=image.device) >= image.shape[-1] // 2
        return torch.stack([scores[:, 0], scores[:, 1] * ~right, scores[:, 1] * right], dim=1)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """The model finds two structures."""
    card = make_card(TWO)
    monkeypatch.setattr("MaskSAMCore.zoo.installed.load_model", lambda name, device, **_: (Halves().to(device), card))
    monkeypatch.setattr("MaskSAMCore.zoo.model_folder.load_card", lambda path: card)


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ([], {3, 5}),
        (["--structures", "bright"], {3}),
        (["--structures", "rest, of it"], {5}),
        (["--structures", "Bright", "--structures=Rest, of it"], {3, 5}),
    ],
)
def test_only_the_structures_that_were_named_are_written(two, scan, tmp_path, capsys, options, ids):
    assert run(scan, "-m", "toy", "-o", tmp_path / "out", *options) == 0
    found = read_labels(tmp_path / "out" / "case 1.nii.gz").array
    assert set(np.unique(found)) == {0, *ids}
    segments = read_labels(tmp_path / "out" / "case 1.seg.nrrd").labels.labels
    assert {label.id for label in segments} == ids
    rows = csv.DictReader((tmp_path / "out" / "case 1.csv").open(encoding="utf-8"))
    assert {int(row["label"]) for row in rows} == ids
    assert ("Rest, of it" in capsys.readouterr().out) == (5 in ids)


def test_structures_are_as_they_would_be_among_all(two, scan, tmp_path):
    assert run(scan, "-m", "toy", "-o", tmp_path / "all.nii.gz") == 0
    assert run(scan, "-m", "toy", "-o", tmp_path / "one.nii.gz", "--structures", "bright") == 0
    every, one = (read_labels(tmp_path / name).array for name in ("all.nii.gz", "one.nii.gz"))
    assert np.array_equal(one, np.where(every == 3, 3, 0))
    assert (every == 5).any()


def test_a_dicom_seg_of_some_structures_needs_the_codes_of_those_alone(two, tmp_path, monkeypatch):
    from Testing.dicom_phantom import dicom_series

    coded = LabelTable(labels=(TWO.labels[0], lookup("liver").label(5)))
    monkeypatch.setattr("MaskSAMCore.zoo.model_folder.load_card", lambda path: make_card(coded))
    monkeypatch.setattr(
        "MaskSAMCore.zoo.installed.load_model", lambda name, device, **_: (Halves().to(device), make_card(coded))
    )
    dicom_series(tmp_path / "ct", bright_scan()[0].array.astype(np.int16), modality="MR")
    assert run(tmp_path / "ct", "-m", "toy", "-o", tmp_path / "a.dcm") == 2
    assert run(tmp_path / "ct", "-m", "toy", "-o", tmp_path / "a.dcm", "--structures", "Liver") == 0


@pytest.mark.parametrize("names", ["bright,gizzard", ","])
def test_structures_that_the_model_does_not_know_are_refused_before_it_runs(two, scan, tmp_path, capsys, names):
    assert run(scan, "-m", "toy", "-o", tmp_path / "r.nii.gz", "--structures", names) == 2
    assert "There are bright, Rest, of it" in capsys.readouterr().err
    assert not (tmp_path / "r.nii.gz").exists()


@pytest.mark.slow
def test_several_scans_are_several_cases(model, scan, tmp_path):
    second = tmp_path / "other.nrrd"
    write_volume(bright_scan()[0], second)
    assert run(scan, second, "-m", "toy", "-o", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").iterdir())) == 8


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan", "-m", "toy"],
        ["scan", "-o", "out"],
        ["scan", "-m", "toy", "-o", "out", "--roi", "1,2,3"],
        ["scan", "-m", "toy", "-o", "out", "--step", "0"],
        ["scan", "-m", "toy", "-o", "out", "--preview", "--tta"],
    ],
)
def test_wrong_options_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        segment.main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("output", "words"),
    [("x.stl", "no output format"), ("x.dcm", "DICOM"), ("missing/x.nii.gz", "does not exist")],
)
def test_impossible_outputs_are_refused(model, scan, tmp_path, capsys, output, words):
    assert run(scan, "-m", "toy", "-o", tmp_path / output) == 2
    assert words in capsys.readouterr().err


def test_scans_that_would_share_a_name_or_a_file_are_refused(model, scan, tmp_path, capsys):
    again = tmp_path / "b"
    again.mkdir()
    (again / scan.name).write_bytes(scan.read_bytes())
    assert run(scan, again / scan.name, "-m", "toy", "-o", tmp_path / "out") == 2
    assert "both be called case 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    other = tmp_path / "other.nrrd"
    write_volume(bright_scan()[0], other)
    assert run(scan, other, "-m", "toy", "-o", tmp_path / "r.nii.gz") == 2


def test_channels_are_put_together(tmp_path):
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "t1.nii.gz", "t2.nii.gz"):
        (tmp_path / name).touch()
    a0, a1, b0, b1, t1, t2 = sorted(tmp_path.iterdir())
    cases = outputs.group([b1, a0, a1, b0], 2)
    assert [(c.name, c.scans) for c in cases] == [("a", (a0, a1)), ("b", (b0, b1))]
    assert outputs.group([t2, t1], 2) == [outputs.Case(name="t2", scans=(t2, t1))]
    for wrong in ([a0], [a0, a1, b0], [t1]):
        with pytest.raises(InputError, match="2 channels"):
            outputs.group(wrong, 2)


def test_two_channels_reach_the_network_in_order(tmp_path, monkeypatch):
    stats = ChannelStats(p005=80, p995=200, mean=120, std=30, low=0, high=200)
    plan = make_plan(normalisation=("zscore",) * 2, stats=(stats,) * 2, channels=("T1", "T2"))
    card = make_card(plan=plan)
    monkeypatch.setattr("MaskSAMCore.zoo.installed.load_model", lambda name, device, **_: (Threshold(), card))
    monkeypatch.setattr("MaskSAMCore.zoo.installed.find_model", lambda name: tmp_path)
    monkeypatch.setattr("MaskSAMCore.zoo.model_folder.load_card", lambda path: card)
    volume, block = bright_scan()
    flat = np.random.default_rng(1).normal(0, 1, block.shape).astype(np.float32)
    write_volume(Volume(array=flat, grid=volume.grid), tmp_path / "a_0001.nii.gz")
    write_volume(volume, tmp_path / "a_0000.nii.gz")
    assert run(tmp_path / "a_0001.nii.gz", tmp_path / "a_0000.nii.gz", "-m", "x", "-o", tmp_path / "r.nii.gz") == 0
    assert np.array_equal(read_labels(tmp_path / "r.nii.gz").array > 0, block)


@pytest.mark.slow
def test_a_real_network_runs_through(scan, tmp_path, capsys):
    folder = save_tiny(tmp_path / "toy")
    assert run(scan, "-m", folder, "-o", tmp_path / "r.nii.gz", "--roi=10,17,10,10,10,8", "--device", "cpu") == 0
    assert read_labels(tmp_path / "r.nii.gz").array.shape == (12, 40, 40)


def test_series_that_cannot_carry_a_seg_is_refused_before_the_network_runs(
    model, shared, tmp_path, capsys, monkeypatch
):
    """siemens_mr has no frame of reference."""
    monkeypatch.setattr(predictor.Predictor, "segment", lambda *_, **__: pytest.fail("the network ran"))
    folder = shared / "data" / "dicom" / "siemens_mr"
    before = sorted(tmp_path.iterdir())
    assert run(folder, "-m", "toy", "-o", tmp_path / "r.dcm") == 2
    assert "--allow-uncoded" in capsys.readouterr().err
    assert run(folder, "-m", "toy", "-o", tmp_path / "r.dcm", "--allow-uncoded") == 2
    assert "Frame" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.filterwarnings("ignore::UserWarning:highdicom.*")
def test_real_dicom_to_seg(model, shared, tmp_path, capsys):
    from pydicom import dcmread

    folder = tmp_path / "series"
    folder.mkdir()
    for path in (shared / "data" / "dicom" / "ge_mr").rglob("*.dcm"):
        scan = dcmread(path)
        scan.FrameOfReferenceUID = "2.25.1"  # anonymised away
        scan.save_as(folder / path.name)
    assert run(folder, "--list-series") == 0
    assert "MR" in capsys.readouterr().out
    roi = "--roi=" + ",".join(f"{v:.0f}" for v in (*read_volume(folder).grid.center, 40, 40, 40))
    assert run(folder, "-m", "toy", "-o", tmp_path / "r.dcm", "--allow-uncoded", "--step", "1", roi) == 0
    found = dcmread(tmp_path / "r.dcm")
    assert found.Modality == "SEG"
    assert found.SegmentSequence[0].SegmentLabel == "bright"


# -- formats, statistics, probabilities ------------------------------------------------------------------------------


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    """A DICOM series with a bright block."""
    from Testing.dicom_phantom import dicom_series

    dicom_series(tmp_path / "ct", bright_scan()[0].array.astype(np.int16), modality="MR")
    return tmp_path / "ct"


@pytest.fixture
def liver(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """The model's structure has a DICOM code."""
    card = make_card(LabelTable(labels=(lookup("liver").label(3),)))
    monkeypatch.setattr("MaskSAMCore.zoo.installed.load_model", lambda name, device, **_: (Threshold(), card))
    monkeypatch.setattr("MaskSAMCore.zoo.model_folder.load_card", lambda path: card)


def test_every_format_is_written_in_one_run_and_all_hold_the_same(liver, ct, tmp_path):
    pytest.importorskip("rt_utils", reason="NOT TESTED HERE: rt-utils is not installed")
    import pydicom

    formats = ("--formats", "nii,seg.nrrd,nrrd,mha,dcm,rtstruct")
    assert run(ct, "-m", "toy", "-o", tmp_path / "out", "--device", "cpu", *formats) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "ct.csv", "ct.dcm", "ct.mha", "ct.nii.gz", "ct.nrrd", "ct.png", "ct.rtstruct.dcm", "ct.seg.nrrd",
    ]  # fmt: skip
    expected = read_labels(out / "ct.nii.gz").array > 0
    assert expected.sum() > 300
    for name in ("ct.mha", "ct.nrrd", "ct.seg.nrrd"):
        assert ((read_labels(out / name).array > 0) == expected).all(), name
    assert pydicom.dcmread(out / "ct.dcm").Modality == "SEG"
    contours = pydicom.dcmread(out / "ct.rtstruct.dcm")
    assert contours.Modality == "RTSTRUCT"
    assert [str(each.ROIName) for each in contours.StructureSetROISequence] == ["Liver"]
    assert run(ct, "-m", "toy", "-o", out, "--device", "cpu", *formats) == 0, "complete already"


def test_one_format_of_a_folder(model, scan, tmp_path):
    assert run(scan, "-m", "toy", "-o", tmp_path / "out", "--formats", "MHA") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["case 1.csv", "case 1.mha", "case 1.png"]


@pytest.mark.parametrize(
    ("formats", "words"),
    [
        ("rtstrct", 'Did you mean "rtstruct"?'),
        ("nii,segnrrd", 'Did you mean "seg.nrrd"?'),
        (",", "no format was named"),
        ("dcm", "DICOM SEG needs the DICOM series"),
        ("nii,rtstruct", "RTSTRUCT needs the DICOM series"),
    ],
)
def test_a_format_that_cannot_be_written_is_refused_before_anything_is(model, scan, tmp_path, capsys, formats, words):
    assert run(scan, "-m", "toy", "-o", tmp_path / "out", "--formats", formats) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_formats_of_a_single_file_are_refused(model, scan, tmp_path, capsys):
    assert run(scan, "-m", "toy", "-o", tmp_path / "a.nii.gz", "--formats", "mha") == 2
    assert "--formats needs a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "given", "extra"), [("rt_utils", "rtstruct", "rtstruct"), ("highdicom", "dcm", "dicom")]
)
def test_without_its_package_a_format_is_refused_with_the_way_to_get_it(
    liver, ct, tmp_path, capsys, monkeypatch, package, given, extra
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("MaskSAMCore.inference.predictor.Predictor.segment", None)  # refused before that
    assert run(ct, "-m", "toy", "-o", tmp_path / "out", "--formats", given) == 2
    assert f'pip install ".[{extra}]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_statistics_of_every_structure_stand_in_the_table(model, scan, tmp_path):
    assert run(scan, "-m", "toy", "-o", tmp_path / "out", "--statistics") == 0
    (row,) = csv.DictReader((tmp_path / "out" / "case 1.csv").open(encoding="utf-8"))
    assert list(row) == [
        "label", "structure", "voxels", "volume_ml", "mean", "sd", "minimum", "maximum",
        "centroid_r_mm", "centroid_a_mm", "centroid_s_mm",
    ]  # fmt: skip
    inside = read_labels(tmp_path / "out" / "case 1.nii.gz").array == 3
    volume = read_volume(scan)
    values = volume.array[inside]
    assert float(row["mean"]) == pytest.approx(values.mean(), rel=1e-5)
    assert float(row["sd"]) == pytest.approx(values.std(ddof=1), rel=1e-4)
    assert (float(row["minimum"]), float(row["maximum"])) == pytest.approx((values.min(), values.max()), rel=1e-6)
    centre = volume.grid.to_ras(np.argwhere(inside)[:, ::-1]).mean(axis=0)
    assert [float(row[f"centroid_{axis}_mm"]) for axis in "ras"] == pytest.approx(list(centre), abs=2e-3)


def test_a_complete_case_without_statistics_is_not_taken_for_one_with_them(model, scan, tmp_path, capsys):
    assert run(scan, "-m", "toy", "-o", tmp_path / "out") == 0
    assert run(scan, "-m", "toy", "-o", tmp_path / "out", "--statistics") == 2
    assert "without statistics" in capsys.readouterr().err


def test_probabilities_add_up_to_1_and_agree_with_the_labels(model, scan, tmp_path):
    assert run(scan, "-m", "toy", "-o", tmp_path / "out", "--save-probabilities") == 0
    saved = np.load(tmp_path / "out" / "case 1.probabilities.npz")
    found = saved["probabilities"]
    assert found.dtype == np.float16
    assert found.shape == (2, *read_volume(scan).array.shape)
    assert np.abs(found.astype(np.float32).sum(axis=0) - 1).max() < 2e-3
    labels = read_labels(tmp_path / "out" / "case 1.nii.gz").array
    certain = np.abs(found[1].astype(np.float32) - 0.5) > 0.01
    assert certain.mean() > 0.98
    assert ((found[1] > 0.5) == (labels == 3))[certain].all()
    assert saved["classes"].tolist() == ["background", "bright"]
    assert saved["labels"].tolist() == [0, 3]
    assert np.allclose(saved["affine"], read_volume(scan).grid.affine)


def test_outside_of_a_region_the_background_is_certain(model, scan, tmp_path):
    region = ("--save-probabilities", "--roi=10,15,10,12,12,12")
    assert run(scan, "-m", "toy", "-o", tmp_path / "out", *region) == 0
    found = np.load(tmp_path / "out" / "case 1.probabilities.npz")["probabilities"]
    assert (found[0, :, 30:, 30:] == 1).all()
    assert not found[1, :, 30:, 30:].any()
