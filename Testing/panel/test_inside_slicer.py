"""The tests that are shipped for Slicer run here on the stand-ins: they fit the module, and skip what they must."""

from __future__ import annotations

import importlib.util
import sys
import types
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from SlicerMaskSAMLib.work import sample_data
from Testing.panel.slicer_gui import Gui
from Testing.slicer import environment

NAME = "SlicerMaskSAMModuleTest"


class SampleDataLogic:
    """Slicer's list of sample data."""

    sources: list[Any]

    @classmethod
    def registerCustomSampleDataSource(cls, *, sampleName: str, uris: str, **_more: str) -> None:
        cls.sources.append(types.SimpleNamespace(sampleName=sampleName, uris=[uris]))

    def sourceForSampleName(self, name: str) -> Any:
        return next((source for source in self.sources if source.sampleName == name), None)


@pytest.fixture
def slicer_with_the_module(gui: Gui, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What slicer.util says of the module, which is open; no network."""
    import qt
    import slicer
    import slicer.util

    import SlicerMaskSAM

    parent = slicer.qMRMLWidget()
    qt.QVBoxLayout(parent)
    gui.window.setCentralWidget(parent)
    widget = SlicerMaskSAM.SlicerMaskSAMWidget(parent)
    widget.setup()
    for name, stand_in in {
        "selectModule": lambda module: widget.enter(),
        "getModuleWidget": lambda module: widget,
        "saveScene": lambda path: bool(environment.save_scene(Path(path))),
        "loadScene": lambda path: slicer.mrmlScene.ReadFromMRB(path, False),
    }.items():
        monkeypatch.setattr(slicer.util, name, stand_in)
    samples = types.ModuleType("SampleData")
    samples.SampleDataLogic = type("SampleDataLogic", (SampleDataLogic,), {"sources": []})
    monkeypatch.setitem(sys.modules, "SampleData", samples)
    sample_data.register()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    yield slicer
    widget.exit()
    widget.cleanup()


@pytest.mark.slow
def test_they_pass_or_skip_with_a_reason(slicer_with_the_module: Any, repo: Path, monkeypatch: pytest.MonkeyPatch):
    path = repo / "SlicerMaskSAM" / "Testing" / "Python" / f"{NAME}.py"
    spec = importlib.util.spec_from_file_location(NAME, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, NAME, module)
    spec.loader.exec_module(module)
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromName(NAME).run(result)
    assert [text for _, text in (*result.failures, *result.errors)] == []
    assert result.testsRun == 4
    assert all("press Set up first" in why or "the sample scan cannot be fetched" in why for _, why in result.skipped)
    assert [test.id().rpartition(".")[2] for test, _ in result.skipped] in (
        [],
        ["test_a_hippocampus_is_found_clicked_and_restored"],
    )
