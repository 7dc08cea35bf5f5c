"""Fixtures of every test that needs Slicer's scene; Testing/conftest.py hands them to all folders."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from Testing.slicer import parameter_node_wrapper

# Before any test module imports a class that is decorated with it.
parameter_node_wrapper.install()


@pytest.fixture(scope="session")
def slicer_process() -> Iterator[Any]:
    """The scene of this process, made once; most tests want `scene`."""
    from Testing.slicer import environment

    yield environment.start()
    environment.stop()


@pytest.fixture
def scene(slicer_process: Any) -> Iterator[Any]:
    """Slicer's scene (slicer.mrmlScene), empty before and closed after the test.

    VTK only prints what an observer raises; here the test fails. Observers that it leaves behind are removed; they
    would meddle with the next test's nodes.
    """
    from Testing.slicer import environment

    raised: list[str] = []
    hook, sys.excepthook = sys.excepthook, lambda *error: raised.append("".join(traceback.format_exception(*error)))
    try:
        scene = environment.clear()
        with environment.observers(scene) as left:
            yield scene
        for tag in left:
            scene.RemoveObserver(tag)
        environment.clear()
    finally:
        sys.excepthook = hook
    if raised:
        pytest.fail("an observer raised:\n" + "\n".join(raised))


class Views:
    """Makes offscreen views; they are closed after the test."""

    def __init__(self) -> None:
        self._made: list[Any] = []

    def slice(self, name: str = "Red", orientation: str = "Axial", size: tuple[int, int] = (400, 300)) -> Any:
        """A slice view."""
        from Testing.slicer.offscreen import SliceView

        return self._keep(SliceView(name, orientation, size))

    def three_d(self, name: str = "1", size: tuple[int, int] = (400, 300)) -> Any:
        """A 3-D view."""
        from Testing.slicer.offscreen import ThreeDView

        return self._keep(ThreeDView(name, size))

    def _keep(self, view: Any) -> Any:
        self._made.append(view)
        return view

    def close(self) -> None:
        """Close all of them."""
        while self._made:
            self._made.pop().close()


@pytest.fixture
def views(scene: Any) -> Iterator[Views]:
    """Offscreen slice and 3-D views of Slicer's scene (layer L2); skips where nothing can be drawn."""
    from Testing.slicer import offscreen

    if why := offscreen.missing():
        pytest.skip(f"NOT TESTED HERE: {why}")
    made = Views()
    yield made
    made.close()


@pytest.fixture
def rig(scene: Any) -> Iterator[Any]:
    """A controller (`rig.Rig`) on Slicer's scene, with an engine that answers by rule."""
    from Testing.slicer.rig import Rig

    with Rig(scene) as made:
        yield made
