"""PyTorch comes by its extension, which is not here: a stand-in is called as the real one is published."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.progress import Cancelled
from SlicerMaskSAMLib.engine.install import torch_by_extension


class TorchUtils:
    """The module PyTorchUtils, as its extension publishes it."""

    def __init__(self, outcome: object = "torch") -> None:
        self.asked: dict[str, Any] = {}
        utils = self

        class PyTorchUtilsLogic:
            def installTorch(
                self,
                askConfirmation: bool = False,
                forceComputationBackend: str | None = None,
                torchVersionRequirement: str | None = None,
                torchvisionVersionRequirement: str | None = None,
            ) -> object:
                utils.asked = {
                    "askConfirmation": askConfirmation,
                    "torchVersionRequirement": torchVersionRequirement,
                    "torchvisionVersionRequirement": torchvisionVersionRequirement,
                }
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome

        self.PyTorchUtilsLogic = PyTorchUtilsLogic


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> TorchUtils:
    utils = TorchUtils()
    monkeypatch.setitem(sys.modules, "PyTorchUtils", utils)
    return utils


def test_torch_comes_by_its_extension_without_a_second_question(extension: TorchUtils):
    torch_by_extension("")
    assert extension.asked == {
        "askConfirmation": False,
        "torchVersionRequirement": ">=2.4",
        "torchvisionVersionRequirement": ">=0.19",
    }
    torch_by_extension("2.5.1+cu121")
    assert extension.asked["torchVersionRequirement"] == "==2.5.1"


def test_an_older_extension_is_not_asked_for_what_it_does_not_know(extension: TorchUtils):
    def installTorch(self, askConfirmation=False, torchVersionRequirement=None):
        extension.asked = {"torch": torchVersionRequirement}
        return "torch"

    extension.PyTorchUtilsLogic.installTorch = installTorch
    torch_by_extension("")
    assert extension.asked == {"torch": ">=2.4"}


def test_without_the_extension_the_message_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(MaskSAMError, match="Install PyTorch in the Extensions Manager, restart Slicer"):
        torch_by_extension("")


@pytest.mark.parametrize("error", [subprocess.CalledProcessError(1, "pip"), RuntimeError("PythonSlicer not found")])
def test_a_failed_installation_of_torch_is_reported(monkeypatch: pytest.MonkeyPatch, error: Exception):
    monkeypatch.setitem(sys.modules, "PyTorchUtils", TorchUtils(error))
    with pytest.raises(MaskSAMError, match="PyTorch cannot be installed"):
        torch_by_extension("")


def test_a_user_who_declines_torch_has_cancelled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PyTorchUtils", TorchUtils(None))
    with pytest.raises(Cancelled):
        torch_by_extension("")
