"""Prompts as markups in the scene.

They are saved with it, and dragged and deleted like any other markup. The including clicks of a segment are in one
node, the excluding ones in another; every box is a node of its own; the start is in a scripted module node, which is
not visible. Each node has references to its segmentation and its volume and the segment's ID as an attribute, and every
prompt has its number in the order given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import slicer
import vtk

from SlicerMaskSAMLib.mrml import markups, prompt_values
from SlicerMaskSAMLib.mrml.prompt_values import BoxPrompt, PointPrompt, Prompt, PromptRef, Snapshot, StartMask
from SlicerMaskSAMLib.mrml.volumes import WorldPoint, geometry, world_to_ijk
from SlicerMaskSAMLib.values.choices import Scope
from SlicerMaskSAMLib.values.sparse import VoxelBox
from SlicerMaskSAMLib.values.status import PromptRow

SEGMENTATION = "MaskSAM.segmentation"
"""Role of the node reference to the segmentation."""
SEGMENT = "MaskSAM.segment"
"""Attribute: the segment's ID."""
INCLUDE, EXCLUDE, BOX, START = "include", "exclude", "box", "start"
STYLES = {INCLUDE: markups.INCLUDE_STYLE, EXCLUDE: markups.EXCLUDE_STYLE, BOX: markups.BOX_STYLE}
SCRIPTED = "vtkMRMLScriptedModuleNode"

Key = tuple[str, str, str]
"""IDs of the segmentation node, the segment and the volume node."""


class PromptNodes:
    """The prompts of all segments in the scene.

    Attributes:
        on_user_change: Called with a list and its previous snapshot when prompts were dragged, added or removed in the
            scene; not for changes made through the list itself.
    """

    def __init__(self, scene: Any) -> None:
        self.scene = scene
        self.on_user_change: Callable[[PromptList, Snapshot], None] | None = None
        self._known: dict[Key, Snapshot] = {}
        self._watched: dict[Any, dict[int, int]] = {}
        self._dragged: set[Any] = set()
        self._muted = 0
        self._tag = scene.AddObserver(scene.NodeRemovedEvent, self._on_removed)

    def of(self, segmentation: Any, segment_id: str, volume: Any) -> PromptList:
        """The prompts of one segment on one volume; possibly none."""
        found = PromptList(self, segmentation, segment_id, volume)
        self._watch(segmentation, self._on_segmentation, slicer.vtkSegmentation.SegmentRemoved)
        self._watch(volume, self._on_volume, slicer.vtkMRMLTransformableNode.TransformModifiedEvent)
        if found.key not in self._known:
            self._known[found.key] = found.snapshot()
        return found

    def show_only(self, prompts: PromptList | None) -> None:
        """Show the prompts of one list in the views and hide all others."""
        with self.muted():
            for node in self.all():
                if node.GetAttribute(markups.KIND) != START:
                    node.SetDisplayVisibility(prompts is not None and _key(node) == prompts.key)

    def close(self) -> None:
        """Remove all observers. The markups stay."""
        for node in list(self._watched):
            self._forget(node)
        self.scene.RemoveObserver(self._tag)

    # -- used by the lists -------------------------------------------------------------------------------------------

    def all(self) -> list[Any]:
        """The nodes of all lists."""
        found = markups.nodes(self.scene, "vtkMRMLMarkupsNode") + markups.nodes(self.scene, SCRIPTED)
        return [node for node in found if node.GetAttribute(SEGMENT)]

    def nodes(self, prompts: PromptList, *kinds: str) -> list[Any]:
        """The nodes of a list with these kinds of prompts.

        They are put under the volume's transform and observed.
        """
        found = [node for node in self.all() if _key(node) == prompts.key and node.GetAttribute(markups.KIND) in kinds]
        events = slicer.vtkMRMLMarkupsNode
        for node in found:
            if node.IsA("vtkMRMLMarkupsNode"):
                with self.muted():
                    markups.follow_transform(node, prompts.volume)
                self._watch(node, self._on_drag_start, events.PointStartInteractionEvent)
                self._watch(node, self._on_drag_end, events.PointEndInteractionEvent)
                changes = events.PointModifiedEvent, events.PointPositionDefinedEvent, events.PointRemovedEvent
                self._watch(node, self._on_changed, *changes)
        return found

    def before_drag(self, prompts: PromptList) -> Snapshot | None:
        """The list before the current drag; None if no prompt of it is being dragged."""
        dragged = any(_key(node) == prompts.key for node in self._dragged)
        return self._known.get(prompts.key) if dragged else None

    @contextlib.contextmanager
    def own_change(self, prompts: PromptList) -> Iterator[None]:
        """Context for changes that a list makes itself, which are not reported."""
        with self.muted():
            yield
        self._known[prompts.key] = prompts.snapshot()

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """Context in which changes are not reported."""
        self._muted += 1
        try:
            yield
        finally:
            self._muted -= 1

    # -- events of the scene -----------------------------------------------------------------------------------------

    def _watch(self, node: Any, callback: Callable[..., None], *events: int) -> None:
        tags = self._watched.setdefault(node, {})
        for event in events:
            if event not in tags:
                tags[event] = node.AddObserver(event, callback)

    def _forget(self, node: Any) -> None:
        self._dragged.discard(node)
        for tag in self._watched.pop(node, {}).values():
            node.RemoveObserver(tag)

    def _on_drag_start(self, node: Any, _event: str) -> None:
        self._dragged.add(node)

    def _on_drag_end(self, node: Any, event: str) -> None:
        self._dragged.discard(node)
        self._on_changed(node, event)

    def _on_changed(self, node: Any, _event: str) -> None:
        if not self._muted and node not in self._dragged:
            self._notify_if_changed(_key(node))

    def _on_segmentation(self, _segmentation: Any, _event: str) -> None:
        self._drop_orphans()

    def _on_volume(self, volume: Any, _event: str) -> None:
        """Update the known snapshots, since prompts move with their volume."""
        for key in self._known:
            segmentation = self.scene.GetNodeByID(key[0])
            if key[2] == volume.GetID() and segmentation is not None:
                self._known[key] = PromptList(self, segmentation, key[1], volume).snapshot()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_removed(self, scene: Any, _event: str, node: Any) -> None:
        self._forget(node)
        if scene.IsClosing():
            self._known.clear()
        elif node.IsA("vtkMRMLSegmentationNode") or node.IsA("vtkMRMLVolumeNode"):
            self._drop_orphans()
        elif node.GetAttribute(SEGMENT) and not self._muted:
            self._notify_if_changed(_key(node))

    def _notify_if_changed(self, key: Key) -> None:
        """Report a list that differs from its known snapshot."""
        segmentation, volume = self.scene.GetNodeByID(key[0]), self.scene.GetNodeByID(key[2])
        if segmentation is None or volume is None:
            return
        prompts = PromptList(self, segmentation, key[1], volume)
        before, now = self._known.get(key, ()), prompts.snapshot()
        self._known[key] = now
        if before != now and self.on_user_change is not None:
            self.on_user_change(prompts, before)

    def _drop_orphans(self) -> None:
        """Remove prompts whose segment, segmentation or volume is gone."""
        if self.scene.IsImporting() or self.scene.IsClosing() or self.scene.IsRestoring():
            return  # references are not complete yet
        with self.muted():
            for node in self.all():
                owner, segment_id = node.GetNodeReference(SEGMENTATION), node.GetAttribute(SEGMENT)
                there = owner is not None and owner.GetSegmentation().GetSegmentIndex(segment_id) >= 0
                if not there or node.GetNodeReference(markups.VOLUME) is None:
                    self._known.pop(_key(node), None)
                    self.scene.RemoveNode(node)


class PromptList:
    """The prompts of one segment on one volume. The nodes of the scene are the list."""

    def __init__(self, nodes: PromptNodes, segmentation: Any, segment_id: str, volume: Any) -> None:
        self._nodes, self._scene = nodes, nodes.scene
        self.segmentation, self.segment_id, self.volume = segmentation, segment_id, volume
        self.key: Key = (segmentation.GetID(), segment_id, volume.GetID())

    def add_point(self, world: WorldPoint, *, positive: bool, scope: Scope) -> None:
        """Add a click at a world position, (3,) mm RAS."""
        place = geometry(self.volume).to_ras(world_to_ijk(self.volume, np.reshape(world, (1, 3))))
        self.add([PointPrompt(order=0, position=markups.triple(place[0]), positive=positive, scope=scope)])

    def add_box(self, corner_a: WorldPoint, corner_b: WorldPoint, *, scope: Scope, axis: int | None = None) -> None:
        """Add a box by two opposite corners in the world, (3,) mm RAS each.

        Args:
            axis: Axis of (K, J, I) across which it was drawn: the box lies in one slice. None for a box with depth.
        """
        ends = world_to_ijk(self.volume, np.array([corner_a, corner_b], np.float64))
        low, high = markups.inner(ends.min(axis=0), ends.max(axis=0))
        if axis is not None:
            low[2 - axis] = high[2 - axis] = ends[:, 2 - axis].mean()
        matrix, size = markups.box_along(self.volume, low, high)
        self.add([BoxPrompt(order=0, matrix=matrix, size=size, scope=scope)])

    def add(self, prompts: Sequence[PointPrompt | BoxPrompt]) -> None:
        """Append prompts; they are numbered anew."""
        with self._nodes.own_change(self):
            last = max((prompt.order for prompt in self.snapshot()), default=0)
            for order, prompt in enumerate(prompts, start=last + 1):
                self._put(replace(prompt, order=order))

    def set_start(self, mask: np.ndarray, box: VoxelBox) -> None:
        """Start from a segment: array (k, j, i) on `box`, nonzero inside.

        An empty array removes the start.
        """
        with self._nodes.own_change(self):
            self._put_start(prompt_values.pack_start(mask, box) if mask.any() else None)

    def set_last(self, *, scope: Scope | None = None, candidate: int | None = None) -> None:
        """Change scope or candidate of the last prompt."""
        for (node_id, point_id), prompt in self._entries()[-1:]:
            if isinstance(prompt, StartMask):
                continue
            changed = replace(prompt, scope=scope or prompt.scope)
            if isinstance(changed, PointPrompt) and candidate is not None:
                changed = replace(changed, candidate=candidate)
            with self._nodes.own_change(self):
                prompt_values.write_properties(self._scene.GetNodeByID(node_id), point_id, changed)

    def remove(self, key: str) -> None:
        """Remove a prompt by the key of its row. No error if it is already gone."""
        node_id, _, point_id = key.partition(":")
        node = self._scene.GetNodeByID(node_id)
        if node is None or _key(node) != self.key:
            return
        with self._nodes.own_change(self):
            index = node.GetNthControlPointIndexByID(point_id) if point_id else -1
            if index >= 0:
                node.RemoveNthControlPoint(index)
            if not point_id or not node.GetNumberOfControlPoints():
                self._scene.RemoveNode(node)

    def clear(self) -> None:
        """Remove all prompts."""
        self.restore(())

    def snapshot(self) -> Snapshot:
        """All prompts; during a drag, as they were before it."""
        before_drag = self._nodes.before_drag(self)
        return tuple(prompt for _, prompt in self._entries()) if before_drag is None else before_drag

    def restore(self, snapshot: Snapshot) -> None:
        """Make the list equal to a snapshot. Nodes that still have a prompt are kept."""
        points = [prompt for prompt in snapshot if isinstance(prompt, PointPrompt)]
        boxes = {prompt.order: prompt for prompt in snapshot if isinstance(prompt, BoxPrompt)}
        with self._nodes.own_change(self):
            for kind in (INCLUDE, EXCLUDE):
                self._put_points(kind, [prompt for prompt in points if prompt.positive == (kind == INCLUDE)])
            for (node_id, _), prompt in self._entries():
                if isinstance(prompt, BoxPrompt) and boxes.get(prompt.order) != prompt:
                    self._scene.RemoveNode(self._scene.GetNodeByID(node_id))
                elif isinstance(prompt, BoxPrompt):
                    del boxes[prompt.order]
            for box in boxes.values():
                self._put(box)
            self._put_start(next((prompt for prompt in snapshot if isinstance(prompt, StartMask)), None))

    def rows(self) -> tuple[PromptRow, ...]:
        """The prompts as rows of the panel, in the order given, with keys for `remove`."""
        return tuple(
            PromptRow(
                key=":".join(filter(None, ref)),
                text=prompt_values.describe(self.volume, prompt),
                kind=prompt_values.KINDS[type(prompt)],
                positive=not isinstance(prompt, PointPrompt) or prompt.positive,
            )
            for ref, prompt in self._entries()
        )

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _entries(self) -> list[tuple[PromptRef, Prompt]]:
        """All prompts with their references, in the order given."""
        found: list[tuple[PromptRef, Prompt]] = []
        for node in self._nodes.nodes(self, INCLUDE, EXCLUDE, BOX, START):
            kind = node.GetAttribute(markups.KIND)
            if kind == START:
                found.append(((node.GetID(), ""), prompt_values.read_start(node, self.volume)))
            elif kind == BOX:
                found.append(((node.GetID(), ""), prompt_values.read_box(node)))
            else:
                found += prompt_values.read_points(node, positive=kind == INCLUDE)
        last = max((prompt.order for _, prompt in found), default=0)
        for index, (ref, prompt) in enumerate(found):
            if isinstance(prompt, PointPrompt) and prompt.order == prompt_values.FOREIGN_PROPERTIES[0]:
                last += 1
                found[index] = ref, replace(prompt, order=last)
                with self._nodes.muted():
                    prompt_values.write_properties(self._scene.GetNodeByID(ref[0]), ref[1], replace(prompt, order=last))
        return sorted(found, key=lambda entry: entry[1].order)

    def _new(self, kind: str, name: str) -> Any:
        segment = self.segmentation.GetSegmentation().GetSegment(self.segment_id)
        node = markups.add(
            self._scene,
            {BOX: markups.BOX, START: SCRIPTED}.get(kind, markups.POINTS),
            name=f"{segment.GetName() if segment else self.segment_id} {name}",
            volume=self.volume,
            attributes={markups.KIND: kind, SEGMENT: self.segment_id},
            references={SEGMENTATION: self.segmentation.GetID()},
        )
        if kind in STYLES:
            markups.apply_style(node, STYLES[kind])
            markups.follow_transform(node, self.volume)
        return node

    def _put(self, prompt: PointPrompt | BoxPrompt) -> None:
        point_id = ""
        if isinstance(prompt, BoxPrompt):
            node = self._new(BOX, f"{BOX} {prompt.order}")
            markups.set_box(node, prompt.matrix, prompt.size)
        else:
            kind = INCLUDE if prompt.positive else EXCLUDE
            node = next(iter(self._nodes.nodes(self, kind)), None) or self._new(kind, kind)
            point_id = node.GetNthControlPointID(node.AddControlPoint(prompt.position, str(prompt.order)))
        prompt_values.write_properties(node, point_id, prompt)

    def _put_points(self, kind: str, points: list[PointPrompt]) -> None:
        for node in self._nodes.nodes(self, kind):
            node.RemoveAllControlPoints()
            if not points:
                self._scene.RemoveNode(node)
        for point in points:
            self._put(point)

    def _put_start(self, start: StartMask | None) -> None:
        nodes = self._nodes.nodes(self, START)
        if [prompt_values.read_start(node, self.volume) for node in nodes] == ([start] if start else []):
            return
        for node in nodes:
            self._scene.RemoveNode(node)
        if start:
            prompt_values.write_start(self._new(START, START), start, self.volume)


def _key(node: Any) -> Key:
    return (
        node.GetNodeReferenceID(SEGMENTATION) or "",
        node.GetAttribute(SEGMENT),
        node.GetNodeReferenceID(markups.VOLUME) or "",
    )
