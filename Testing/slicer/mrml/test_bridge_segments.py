"""The bridge: segments made, described, read and written in boxes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util
import vtk

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.labels import Label
from MaskSAMCore.terminology import lookup
from SlicerMaskSAMLib.mrml import bridge
from Testing.slicer import environment
from Testing.slicer.masks import (
    SHAPE,
    add,
    block,
    by_slicer,
    label,
    labelmap,
    layers,
)

# -- reading and writing -------------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_seen_by_slicer(segmentation: Any, grid: Any, volume: Any) -> None:
    kidney = add(segmentation, "Kidney")
    assert not bridge.read_segment(segmentation, kidney, grid).any()
    mask = np.random.default_rng(1).integers(0, 2, (3, 5, 7)).astype(np.uint8)
    bridge.write_segment(segmentation, kidney, grid, (2, 5, 10, 15, 20, 27), mask)
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:5, 10:15, 20:27] = mask
    found = bridge.read_segment(segmentation, kidney, grid)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    assert np.array_equal(by_slicer(segmentation, kidney, volume), expected)
    part = bridge.read_segment(segmentation, kidney, grid, (3, 6, 9, 13, 18, 25))
    assert np.array_equal(part, expected[3:6, 9:13, 18:25])


@pytest.mark.parametrize("seed", range(3))
def test_no_sequence_of_writes_touches_another_voxel(segmentation: Any, grid: Any, volume: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = ["A", "B", "C", "D"]
    ids = {name: add(segmentation, name) for name in names}
    expected = {name: np.zeros(SHAPE, np.uint8) for name in names}
    for turn in range(40):
        name = names[rng.integers(len(names))]
        low = rng.integers(0, np.array(SHAPE) - 1)
        k, j, i = (slice(int(a), int(rng.integers(a + 1, n + 1))) for a, n in zip(low, SHAPE, strict=True))
        mask = (rng.random(expected[name][k, j, i].shape) < rng.choice([0, 0.3, 1])).astype(np.uint8)
        if turn < 25:  # overlaps only later, so that labelmaps are shared for a while
            mask &= ~np.any([expected[other][k, j, i] for other in names if other != name], axis=0)
        bridge.write_segment(segmentation, ids[name], grid, (k.start, k.stop, j.start, j.stop, i.start, i.stop), mask)
        expected[name][k, j, i] = mask
        if turn == 24:
            assert layers(segmentation) == 1
    for name in names:
        assert np.array_equal(bridge.read_segment(segmentation, ids[name], grid), expected[name])
        assert np.array_equal(by_slicer(segmentation, ids[name], volume), expected[name])
        filled = np.argwhere(expected[name])
        low, high = filled.min(axis=0), filled.max(axis=0) + 1
        assert bridge.extent(segmentation, ids[name], grid) == tuple(np.stack([low, high], axis=1).ravel())


def test_segments_share_a_labelmap_until_they_overlap(segmentation: Any, grid: Any) -> None:
    first, second = block(2, 8, 2, 10, 2, 10), block(2, 8, 2, 10, 10, 20)
    a, b = add(segmentation, "A", first), add(segmentation, "B", second)
    assert layers(segmentation) == 1
    bridge.write_segment(segmentation, b, grid, (2, 4, 2, 10, 5, 15), np.ones((2, 8, 10), np.uint8))
    second[2:4, 2:10, 5:15] = 1
    assert layers(segmentation) == 2
    assert np.array_equal(bridge.read_segment(segmentation, a, grid), first)
    assert np.array_equal(bridge.read_segment(segmentation, b, grid), second)


def test_the_others_in_a_box(segmentation: Any, grid: Any) -> None:
    a, b = add(segmentation, "A", block(2, 8, 2, 10, 2, 10)), add(segmentation, "B", block(2, 8, 2, 10, 10, 20))
    over = add(segmentation, "Over", block(3, 4, 0, 24, 0, 30))
    empty = add(segmentation, "Empty")
    found = bridge.other_segments(segmentation, a, grid, (2, 4, 4, 6, 9, 12))
    assert set(found) == {b, over}
    assert np.array_equal(found[b], np.broadcast_to(np.array([0, 1, 1], np.uint8), (2, 2, 3)))
    assert np.array_equal(found[over], np.stack([np.zeros((2, 3)), np.ones((2, 3))]))
    assert set(bridge.other_segments(segmentation, empty, grid, (9, 10, 0, 24, 0, 30))) == set()


def test_extents(segmentation: Any, grid: Any) -> None:
    assert bridge.extent(segmentation, add(segmentation, "Empty"), grid) is None
    assert bridge.extent(segmentation, add(segmentation, "A", block(2, 8, 3, 10, 4, 11)), grid) == (2, 8, 3, 10, 4, 11)
    assert bridge.extent(segmentation, add(segmentation, "None", block(0, 0, 0, 0, 0, 0)), grid) is None


def test_writing_again_goes_into_the_same_memory(segmentation: Any, grid: Any) -> None:
    kidney = add(segmentation, "A", block(2, 8, 3, 10, 4, 11))
    before = labelmap(segmentation, kidney)
    bridge.write_segment(segmentation, kidney, grid, (0, 1, 0, 1, 0, 1), np.ones((1, 1, 1), np.uint8))
    assert labelmap(segmentation, kidney) is before


@pytest.mark.slow
def test_memory_of_a_segment_outlives_everything_else(segmentation: Any, grid: Any) -> None:
    mask = block(2, 8, 3, 10, 4, 11)
    kidney = add(segmentation, "A", mask)
    for _ in range(3):
        gc.collect()
        np.full(4 * mask.size, 255, np.uint8)
    assert np.array_equal(bridge.read_segment(segmentation, kidney, grid), mask)


# -- segments as such ----------------------------------------------------------------------------------------------


def test_a_new_segmentation_has_the_volumes_grid_and_transform(scene: Any, volume: Any) -> None:
    transform = environment.add_transform(environment.affine(origin=(5, 6, 7)), volume)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.CreateItem(study, volume)
    made = bridge.new_segmentation(scene, "Segmentation", volume=volume)
    again = bridge.new_segmentation(scene, "Segmentation", volume=volume)
    assert made.GetName() == "Segmentation" != again.GetName()
    assert made.GetParentTransformNode() is transform
    assert made.GetDisplayNode() is not None
    assert made.GetNodeReference(made.GetReferenceImageGeometryReferenceRole()) is volume
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(made)) == study


def test_a_segmentation_without_its_volume_keeps_the_grid(scene: Any, volume: Any, segmentation: Any) -> None:
    transform = environment.add_transform(environment.affine(origin=(5, 6, 7)))
    alone = bridge.new_segmentation(scene, "Kept", geometry=bridge.geometry(volume), transform=transform)
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    expected = segmentation.GetSegmentation().GetConversionParameter(name)
    found = alone.GetSegmentation().GetConversionParameter(name)
    numbers = [np.array(text.strip(";").split(";"), float) for text in (found, expected)]
    assert np.allclose(*numbers)
    assert alone.GetParentTransformNode() is transform


def test_names_are_made_unique_and_ids_kept(segmentation: Any) -> None:
    first, second, third = (add(segmentation, "Kidney") for _ in range(3))
    names = [bridge.segment_label(segmentation, each).name for each in (first, second, third)]
    assert names == ["Kidney", "Kidney (2)", "Kidney (3)"]
    bridge.remove_segment(segmentation, second)
    assert bridge.add_segment(segmentation, label("Kidney"), segment_id=second) == second
    assert bridge.segment_label(segmentation, second).name == "Kidney (2)"
    with pytest.raises(InputError, match="with this ID already exists"):
        bridge.add_segment(segmentation, label("Kidney"), segment_id=second)


def test_a_segment_is_removed_from_a_shared_labelmap(segmentation: Any, grid: Any) -> None:
    first, second = block(2, 8, 2, 10, 2, 10), block(2, 8, 2, 10, 10, 20)
    a, b = add(segmentation, "A", first), add(segmentation, "B", second)
    before = bridge.stamp(segmentation, b)
    bridge.remove_segment(segmentation, a)
    assert segmentation.GetSegmentation().GetSegmentIDs() == (b,)
    assert bridge.stamp(segmentation, b) == before
    assert np.array_equal(bridge.read_segment(segmentation, b, grid), second)
    new = add(segmentation, "C")
    assert not bridge.read_segment(segmentation, new, grid).any()


def test_a_scene_keeps_segments_and_takes_more(segmentation: Any, grid: Any, tmp_path: Path) -> None:
    first, second, over = block(2, 8, 2, 10, 2, 10), block(2, 8, 2, 10, 10, 20), block(4, 6, 4, 20, 4, 20)
    for name, mask in (("A", first), ("B", second), ("Over", over)):
        add(segmentation, name, mask)
    environment.open_scene(environment.save_scene(tmp_path / "scene.mrb"))
    (again,) = environment.nodes("vtkMRMLSegmentationNode")
    ids = again.GetSegmentation().GetSegmentIDs()
    for each, mask in zip(ids, (first, second, over), strict=True):
        assert np.array_equal(bridge.read_segment(again, each, grid), mask)
    first[9, 20:24, :] = 1
    bridge.write_segment(again, ids[0], grid, (9, 10, 20, 24, 0, 30), np.ones((1, 4, 30), np.uint8))
    for each, mask in zip(ids, (first, second, over), strict=True):
        assert np.array_equal(bridge.read_segment(again, each, grid), mask)


def test_what_is_missing_or_wrong_is_reported(segmentation: Any, grid: Any) -> None:
    kidney = add(segmentation, "A", block(2, 8, 2, 10, 2, 10))
    for ask in (bridge.stamp, bridge.remove_segment, bridge.segment_label):
        with pytest.raises(InputError, match=r"Segmentation: the segment no longer exists.*nothing"):
            ask(segmentation, "nothing")
    with pytest.raises(InputError, match="no segmentation"):
        bridge.read_segment(None, kidney, grid)
    for box in ((0, 11, 0, 24, 0, 30), (0, 0, 0, 24, 0, 30), (-1, 5, 0, 24, 0, 30)):
        with pytest.raises(GeometryError, match="is not inside the volume"):
            bridge.read_segment(segmentation, kidney, grid, box)
        with pytest.raises(GeometryError, match="is not inside the volume"):
            bridge.other_segments(segmentation, kidney, grid, box)
    with pytest.raises(GeometryError, match="differ in size"):
        bridge.write_segment(segmentation, kidney, grid, (0, 2, 0, 2, 0, 2), np.ones((2, 2, 3), np.uint8))


def test_segments_made_of_surfaces_are_refused(segmentation: Any, grid: Any) -> None:
    kidney = add(segmentation, "A", block(2, 8, 2, 10, 2, 10))
    segmentation.CreateClosedSurfaceRepresentation()
    segmentation.SetSourceRepresentationToClosedSurface()
    segmentation.CreateBinaryLabelmapRepresentation()
    with pytest.raises(InputError, match="surfaces, not voxels"):
        bridge.read_segment(segmentation, kidney, grid)


def test_colour_and_codes_come_back(segmentation: Any) -> None:
    for name in ("left kidney", "hippocampus anterior", "liver"):
        term = lookup(name).label(3)
        made = bridge.add_segment(segmentation, term)
        assert bridge.segment_label(segmentation, made, 3) == term
    segment = segmentation.GetSegmentation().GetSegment(made)
    assert not segment.GetNameAutoGenerated()
    assert not segment.GetColorAutoGenerated()
    plain = bridge.segment_label(segmentation, add(segmentation, "Thing: weird|name~"))
    assert plain == Label(id=1, name="Thing: weird|name~", color=(10, 200, 30))


def test_slicer_reads_the_codes_as_they_are_meant(segmentation: Any) -> None:
    made = bridge.add_segment(segmentation, lookup("left kidney").label(1))
    tag = vtk.reference("")
    assert segmentation.GetSegmentation().GetSegment(made).GetTag("TerminologyEntry", tag)
    logic, entry = slicer.vtkSlicerTerminologiesModuleLogic(), slicer.vtkSlicerTerminologyEntry()
    assert logic.DeserializeTerminologyEntry(str(tag), entry)
    codes = [
        (code.GetCodingSchemeDesignator(), code.GetCodeValue(), code.GetCodeMeaning())
        for code in (entry.GetCategoryObject(), entry.GetTypeObject(), entry.GetTypeModifierObject())
    ]
    assert codes == [
        ("SCT", "123037004", "Anatomical Structure"),
        ("SCT", "64033007", "Kidney"),
        ("SCT", "7771000", "Left"),
    ]
    assert logic.SerializeTerminologyEntry(entry) == str(tag)
