"""Encodes the visible slice in the background, for a fast first click."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from MaskSAMCore.errors import InputError
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.views import Views
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work.context import Context

INTERVAL_S = 0.25
"""Seconds between two checks; a view that is the same at both has come to rest."""
VisibleSlice = tuple[str, str, tuple[int, int] | None]
"""Fingerprint of the volume, name of the model, and axis and index of the slice."""
SLABS = 2
"""Number of slabs encoded around the slice; others are encoded when they are needed."""


class Prefetch:
    """Watches volume, model and slice views for something new to encode.

    Args:
        context: Shared parts of the module.
        views: The slice views; without them the middle of the volume is used.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, context: Context, views: Views | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._context, self._views, self._clock = context, views, clock
        self._next = 0.0
        self._last: VisibleSlice | None = None
        self._encoded: VisibleSlice | None = None

    def next_steps(self) -> Steps | None:
        """Steps that encode the visible slice; None if encoded or still moving."""
        now = self._clock()
        if now < self._next:
            return None
        self._next = now + INTERVAL_S
        visible = self._visible()
        settled, self._last = visible == self._last, visible
        if visible is None or not settled or visible == self._encoded:
            return None
        self._encoded = visible
        return self._steps()

    def reset(self) -> None:
        """Encode the visible slice again, since the engine was replaced or lost it."""
        self._encoded = None

    def _visible(self) -> VisibleSlice | None:
        """The visible slice as a comparable value; None without volume or model."""
        volume, model = self._context.parameters.inputVolume, self._context.model
        if volume is None or volume.GetImageData() is None or model is None:
            return None
        return bridge.fingerprint(volume), model.name, self._plane(volume)

    def _plane(self, volume: Any) -> tuple[int, int] | None:
        """The visible slice of the volume; None if no view shows it."""
        slice_node = self._views.slice_node() if self._views is not None else None
        try:
            return bridge.view_plane(volume, slice_node) if slice_node is not None else None
        except InputError:
            return None

    def _steps(self) -> Steps:
        volume, model = self._context.require_inputs()
        case = yield from self._context.engine_link.case(volume, model.name)
        place = self._views.position() if self._views is not None else None
        position = None if place is None else bridge.world_to_ijk(volume, [place])[0]
        yield self._context.engine_link.client.submit("encode", case=case, position=position, slabs=SLABS)
