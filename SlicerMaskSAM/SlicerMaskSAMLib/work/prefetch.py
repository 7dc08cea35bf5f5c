"""Encoding of the slice that is shown, in the background, so that the first click in it is fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from MaskSAMCore.errors import InputError
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work.context import Context

INTERVAL_S = 0.25
"""Between two looks; what is the same at both has come to rest."""
SLABS = 2
"""Slabs that are encoded around the slice; the rest waits until it is needed."""


class Prefetch:
    """Watches volume, model and slice views, and says when there is something new to encode.

    Args:
        views: The slice views; without them the middle of the volume is meant.
        clock: Seconds that only grow.
    """

    def __init__(self, context: Context, views: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._context, self._views, self._clock = context, views, clock
        self._next = 0.0
        self._last: Any = None
        self._encoded: Any = None

    def next_steps(self) -> Steps | None:
        """Steps that encode what is shown, once it has come to rest; None where nothing is new."""
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
        """Encode what is shown even if that was done: the engine is another one, or has forgotten it."""
        self._encoded = None

    def _visible(self) -> Any:
        """What is shown, as something that is equal as long as it is the same."""
        volume, model = self._context.parameters.inputVolume, self._context.model
        if volume is None or volume.GetImageData() is None or model is None:
            return None
        return bridge.fingerprint(volume), model.name, self._plane(volume)

    def _plane(self, volume: Any) -> tuple[int, int] | None:
        """The slice of the volume that is shown; None where it is in no view."""
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
