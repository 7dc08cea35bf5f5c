"""Segmentations with names, codes and colours, for Slicer and for PACS."""

from __future__ import annotations

import itertools

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.io.dicom import read_series
from MaskSAMCore.io.dicomseg import write_dicom_seg
from MaskSAMCore.io.formats import grid_of
from MaskSAMCore.io.images import read_labels
from MaskSAMCore.io.segmentations import read_seg_nrrd, write_seg_nrrd
from MaskSAMCore.labels import Code, Label, LabelTable
from MaskSAMCore.terminology import describe, lookup, parse_terminology
from MaskSAMCore.volume import Grid, LabelMap
from Testing.dicom_phantom import dicom_series, ramp

GRID = Grid(shape=(5, 6, 7), affine=np.array([[0, -2.0, 0, 5], [0.8, 0, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]]))


def table() -> LabelTable:
    odd = Label(id=7, name="Thing: weird|name~\n", color=(1, 2, 3))
    return LabelTable(labels=(lookup("left kidney").label(2), odd, lookup("hippocampus anterior").label(3)))


def labelmap() -> LabelMap:
    array = np.zeros(GRID.shape, np.uint8)
    array[1:3, 2:5, 3] = 2
    array[4, 0, 6] = 7
    return LabelMap(array=array, grid=GRID, labels=table())


def test_seg_nrrd_comes_back_whole(tmp_path):
    write_seg_nrrd(labelmap(), tmp_path / "a.seg.nrrd")
    back = read_labels(tmp_path / "a.seg.nrrd")
    assert np.array_equal(back.array, labelmap().array)
    assert back.grid.same_as(GRID)
    first, odd, third = back.labels.labels
    assert first == table().labels[0]
    assert third.modifier == Code(scheme="SCT", value="255549009", meaning="Anterior")
    assert (odd.id, odd.name, odd.color) == (7, "Thing: weird|name~\n", (1, 2, 3))


def test_seg_nrrd_says_what_slicer_expects(tmp_path):
    write_seg_nrrd(labelmap(), tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    assert grid_of(image).same_as(GRID)
    assert np.array_equal(sitk.GetArrayFromImage(image), labelmap().array)
    value = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert value["Segment0_ID"] == "Segment_2"
    assert value["Segment0_LabelValue"] == "2"
    assert value["Segment0_Layer"] == "0"
    assert value["Segment0_Name"] == "Left kidney"
    assert value["Segment0_Extent"] == "3 3 2 4 1 2"
    assert value["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    assert [round(float(v) * 255) for v in value["Segment0_Color"].split()] == [185, 102, 83]
    entry = (
        "Segmentation category and type - DICOM master list~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney"
        "~SCT^7771000^Left~Anatomic codes - DICOM master list~^^~^^"
    )
    assert f"TerminologyEntry:{entry}|" in value["Segment0_Tags"]
    assert value["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert (tmp_path / "a.seg.nrrd").read_bytes().startswith(b"NRRD0004\ntype: uint8\n")


def test_ids_without_a_name_get_one(tmp_path):
    plain = labelmap()
    plain.labels = None
    write_seg_nrrd(plain, tmp_path / "a.seg.nrrd")
    assert [(s.id, s.name) for s in read_seg_nrrd(tmp_path / "a.seg.nrrd").labels.labels] == [
        (2, "Segment 2"),
        (7, "Segment 7"),
    ]


def layered(path, first, second):
    image = sitk.GetImageFromArray(np.stack([first, second], axis=-1).astype(np.uint8), isVector=True)
    for n, layer in enumerate((0, 1)):
        for key, value in {
            "ID": f"s{n}",
            "Name": f"S{n}",
            "LabelValue": "1",
            "Layer": str(layer),
            "Color": "1 0 0",
        }.items():
            image.SetMetaData(f"Segment{n}_{key}", value)
    sitk.WriteImage(image, str(path), useCompression=True)


def test_layers_are_joined_where_they_do_not_overlap(tmp_path):
    first, second = np.zeros((3, 4, 5)), np.zeros((3, 4, 5))
    first[0, 1, 2] = second[2, 3, 4] = 1
    layered(tmp_path / "a.seg.nrrd", first, second)
    back = read_labels(tmp_path / "a.seg.nrrd")
    assert back.array[0, 1, 2] == 1
    assert back.array[2, 3, 4] == 2
    assert back.array.sum() == 3
    second[0, 1, 2] = 1
    layered(tmp_path / "b.seg.nrrd", first, second)
    with pytest.raises(InputError, match="overlap"):
        read_labels(tmp_path / "b.seg.nrrd")


def test_a_malformed_terminology_is_none():
    assert parse_terminology("nonsense") == (None, None, None)
    assert parse_terminology("x~SCT^1^A~SCT^^B~^^") == (Code(scheme="SCT", value="1", meaning="A"), None, None)


def test_names_are_found_in_many_spellings_and_unknown_ones_are_not():
    for name in ("left kidney", "Kidney_L", "KIDNEY left", "kidney-left"):
        assert lookup(name).name == "Left kidney"
        assert lookup(name).modifier.value == "7771000"
    assert lookup("Left ventricle").type.value == "87878005"
    assert lookup("Left ventricle").modifier is None
    assert lookup("gizzard") is None
    assert lookup("left liver") is None
    assert lookup("") is None
    named = LabelTable(labels=(Label(id=1, name="liver", color=(0, 0, 0)), Label(id=2, name="x", color=(9, 9, 9))))
    liver, other = describe(named).labels
    assert liver.type.value == "10200004"
    assert liver.name == "liver"
    assert other == named.labels[1]


def test_a_name_that_means_something_only_in_its_data_set_is_completed():
    table = LabelTable(labels=(Label(id=1, name="anterior", color=(0, 0, 0)), Label(id=2, name="x", color=(9, 9, 9))))
    assert [label.type for label in describe(table).labels] == [None, None]
    front, other = describe(table, about="Hippocampus").labels
    assert front.name == "Anterior hippocampus"
    assert front.type.value == "5366008"
    assert front.modifier.meaning == "Anterior"
    assert other == table.labels[1]


def test_structures_of_one_organ_are_told_apart_and_sides_may_look_alike():
    def described(*names, pairs=()):
        mirror = {**dict(pairs), **{right: left for left, right in pairs}}
        labels = [Label(id=i, name=n, color=(0, 0, 0), mirror=mirror.get(n, "")) for i, n in enumerate(names, 1)]
        return [label.color for label in describe(LabelTable(labels=tuple(labels))).labels]

    heart = described("right ventricle", "myocardium", "left ventricle")
    assert min(np.linalg.norm(np.subtract(a, b)) for a, b in itertools.combinations(heart, 2)) > 75
    assert heart[0] == lookup("right ventricle").color
    sides = described("left kidney", "right kidney", pairs=[("left kidney", "right kidney")])
    assert sides[0] == sides[1] == lookup("left kidney").color


def test_every_code_of_the_table_is_one_that_dicom_knows():
    from pydicom.sr import _concepts_dict

    from MaskSAMCore.terminology import _table

    known = {value for codes in _concepts_dict.concepts["SCT"].values() for value in codes}
    entries, categories, sides = _table()
    codes = {e["type"]["value"] for e in entries.values()} | {c.value for c in (*categories.values(), *sides.values())}
    assert codes - known <= {"74281007"}, "Myocardium is the only one beyond pydicom's dictionary"


def test_dicom_seg_refers_to_its_series_and_holds_the_voxels(tmp_path):
    dicom_series(tmp_path / "ct", ramp(), origin=(10.0, -20.0, 30.0))
    volume = read_series(tmp_path / "ct")
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[1:3, 2:5, 3] = 2
    labels[4, 0, 6] = 7
    named = LabelTable(labels=(lookup("left kidney").label(2), Label(id=7, name="spleen", color=(157, 108, 162))))
    path = tmp_path / "seg.dcm"
    write_dicom_seg(LabelMap(array=labels, grid=volume.grid, labels=named), tmp_path / "ct", path)
    made = pydicom.dcmread(path)
    assert made.Modality == "SEG"
    assert [s.SegmentLabel for s in made.SegmentSequence] == ["Left kidney", "spleen"]
    kind = made.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodeValue == "64033007"
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
    assert made.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeValue == "78961009"
    for frame, pixels in zip(made.PerFrameFunctionalGroupsSequence, made.pixel_array, strict=True):
        z = float(frame.PlanePositionSequence[0].ImagePositionPatient[2]) - 30.0
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert np.array_equal(pixels, labels[int(z)] == {1: 2, 2: 7}[number])
    assert len(made.pixel_array) == 3


def test_dicom_seg_on_an_enhanced_file(shared, tmp_path):
    from MaskSAMCore.io.dicom import list_series

    source = list_series(shared / "data" / "dicom" / "enhanced_multiframe")[0]
    data = pydicom.dcmread(source.files[0])
    data.FrameOfReferenceUID = "1.2.3.4"
    data.save_as(tmp_path / "e.dcm")
    one = list_series(tmp_path / "e.dcm")[0]
    grid = read_series(one.files[0]).grid
    labels = np.zeros(grid.shape, np.uint8)
    labels[2, 100:110, 50:90] = 1
    named = LabelTable(labels=(lookup("brain").label(1),))
    write_dicom_seg(LabelMap(array=labels, grid=grid, labels=named), one.files[0], tmp_path / "s.dcm")
    made = pydicom.dcmread(tmp_path / "s.dcm")
    place = made.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert np.allclose([float(v) for v in place], grid.to_ras([0, 0, 2]) * (-1, -1, 1), atol=1e-3)
    assert np.array_equal(made.pixel_array.reshape(256, 256), labels[2])


def test_dicom_seg_says_what_is_missing(tmp_path):
    dicom_series(tmp_path / "ct", ramp())
    grid = read_series(tmp_path / "ct").grid
    labels = LabelMap(
        array=np.ones(grid.shape, np.uint8),
        grid=grid,
        labels=LabelTable(labels=(Label(id=1, name="gizzard", color=(1, 1, 1)),)),
    )
    with pytest.raises(InputError, match="none for gizzard"):
        write_dicom_seg(labels, tmp_path / "ct", tmp_path / "s.dcm")
    write_dicom_seg(labels, tmp_path / "ct", tmp_path / "s.dcm", allow_uncoded=True)
    moved = grid.affine.copy()
    moved[2, 3] += 1
    labels.grid = Grid(shape=grid.shape, affine=moved)
    with pytest.raises(GeometryError, match="apart"):
        write_dicom_seg(labels, tmp_path / "ct", tmp_path / "t.dcm", allow_uncoded=True)
    labels.array[:] = 0
    labels.grid = grid
    with pytest.raises(InputError, match="nothing is segmented"):
        write_dicom_seg(labels, tmp_path / "ct", tmp_path / "t.dcm")
    assert not (tmp_path / "t.dcm").exists()
