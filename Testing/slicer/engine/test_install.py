"""Set-up: what is missing, how it comes without touching what is Slicer's, and how it goes again."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from MaskSAMCore.errors import MaskSAMError, ModelError
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.zoo import base_weights
from SlicerMaskSAMLib.engine.commands import CommandJob, CommandResult
from SlicerMaskSAMLib.engine.install import Setup
from SlicerMaskSAMLib.engine.requirements import PACKAGES, canonical, installed_packages, is_satisfied
from SlicerMaskSAMLib.values.tasks import Steps, Task
from Testing.workers import eventually

FRESH = {"numpy": "2.1.0", "simpleitk": "2.5.5", "scipy": "1.15.3", "pydicom": "2.4.4", "pip": "25.0"}
"""What a new Slicer brings."""
ENGINE = {canonical(package.name): "99.0" for packages in PACKAGES.values() for package in packages}


class Job:
    """A program that has ended."""

    def __init__(self, outcome: Exception | CommandResult) -> None:
        self.progress: tuple[int, int, str] | None = None
        self._outcome = outcome

    def done(self) -> bool:
        return True

    def result(self) -> CommandResult:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        pass


class Computer:
    """A computer that can be installed on: its packages, and what was done to it."""

    def __init__(self, packages: dict[str, str]) -> None:
        self.packages = dict(packages)
        self.done: list[str] = []
        self.constraints = ""
        self.fails: dict[str, Exception] = {}
        self.setup = Setup(
            install_torch=self.install_torch,
            installed=lambda: dict(self.packages),
            start=self.start,
            command=lambda *words: self.run(" ".join(map(str, words))),
        )

    def install_torch(self, version: str) -> None:
        self.run(f"torch {version}".strip())
        self.packages |= {"torch": version or "2.8.0+cu128", "torchvision": "0.23.0", "filelock": "3.0"}

    def start(self, words: list[str], *, name: str, stdout_is_progress: bool = False) -> Job:
        if name == "pip install":
            self.constraints = Path(words[words.index("--constraint") + 1]).read_text()
            wanted = [re.match(r"[\w-]+", word)[0] for word in words[words.index("--constraint") + 2 :]]
            self.packages |= {canonical(name): "99.0" for name in [*wanted, "fonttools"] if name not in self.fails}
        return self.run(" ".join([name, *words[1:]] if "uninstall" in words else [name]))

    def run(self, what: str) -> Job:
        self.done.append(what)
        return Job(self.fails.get(what, CommandResult(stdout="")))

    def settle(self, steps: Steps) -> tuple[Any, list[str]]:
        """Drive steps to their end; what they return, and the errors that they told."""
        returned: list[Any] = [None]
        errors: list[str] = []

        def all_of_them() -> Steps:
            returned[0] = yield from steps

        task = Task("setup", all_of_them(), on_error=lambda error: errors.append(str(error)))
        assert eventually(lambda: (task.tick(), task.ended)[1])
        return returned[0], errors


@pytest.fixture
def fresh(home: Path) -> Computer:
    return Computer(FRESH)


@pytest.fixture
def weights(home: Path) -> Path:
    """A file of the size of the base weights, where they lie."""
    path = base_weights.base_path("mobile")
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(base_weights.BASES["mobile"].size)
    return path


def names(computer: Computer) -> list[str]:
    return [need.name for need in computer.setup.missing()]


# -- what is missing -------------------------------------------------------------------------------------------------


def test_the_engine_needs_what_the_project_declares(repo: Path):
    text = (repo / "pyproject.toml").read_text(encoding="utf-8")
    core = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]
    # the module writes DICOM SEG, and takes every model
    extras = re.findall(r"^(?:evaluate|distill|dicom) = \[(.*?)\]", text, re.MULTILINE)
    wanted = {f"{package.name}>={package.at_least}" for packages in PACKAGES.values() for package in packages}
    assert wanted == set(re.findall(r'"(.+?)"', "".join([core, *extras])))


def test_everything_that_is_tried_out_can_be_imported_by_that_name():
    modules = [package.module for packages in PACKAGES.values() for package in packages]
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


def test_a_new_slicer_lacks_torch_packages_that_are_old_or_absent_and_base_weights(fresh: Computer):
    torch, base = "torch torchvision", "mobile"
    packages = "segment-anything timm monai einops pillow pydicom highdicom safetensors matplotlib psutil tqdm"
    assert names(fresh) == [*torch.split(), *packages.split(), base]
    assert [need.found for need in fresh.setup.missing() if need.name == "pydicom"] == ["2.4.4"]


def test_nothing_is_missing_where_everything_is(weights: Path):
    ready = Computer(ENGINE)
    assert ready.setup.missing() == ()
    assert ready.setup.text() == ""
    assert ready.settle(ready.setup.steps()) == ("", [])
    assert ready.done == []


@pytest.mark.parametrize(
    ("version", "good"),
    [("2.4", True), ("2.4.1+cu121", True), ("2.10.0", True), ("2.3.9", False), ("2.4.0rc1", True), ("", False)],
)
def test_versions_are_compared_by_their_numbers(version: str, good: bool):
    torch = PACKAGES["torch"][0]
    assert is_satisfied(torch, {"torch": version}) is good


def test_base_weights_are_recognised_by_size_without_reading_them(weights: Path, fresh: Computer):
    assert "mobile" not in names(fresh)
    with pytest.raises(ModelError):
        base_weights.find_base("mobile")  # which reads them
    weights.write_bytes(b"half a download")
    assert "mobile" in names(fresh)


def test_packages_are_found_by_the_names_of_their_folders(tmp_path: Path):
    for name in ("Segment_Anything-1.0", "torch-2.5.1+cu121", "other-1"):
        (tmp_path / "first" / f"{name}.dist-info").mkdir(parents=True)
    (tmp_path / "second" / "torch-1.0.dist-info").mkdir(parents=True)
    found = installed_packages([str(tmp_path / "first"), str(tmp_path / "second"), str(tmp_path / "none")])
    assert found == {"segment-anything": "1.0", "torch": "2.5.1+cu121", "other": "1"}
    assert installed_packages()["pytest"] == pytest.__version__


def test_the_consent_names_source_size_and_hash(fresh: Computer):
    text, base = fresh.setup.text(), base_weights.BASES["mobile"]
    assert "from the extension PyTorch: 0.2 GB for the CPU, up to 3 GB for a GPU" in text
    assert "about 46 MB: segment-anything, timm" in text
    assert "pydicom (in place of 2.4.4)" in text
    assert "numpy and SimpleITK are not changed" in text
    assert f"40.7 MB, licence Apache-2.0, sha256 {base.sha256}, from {base.sources[0]}" in text
    assert "None of your data is sent anywhere." in text


# -- how it comes ----------------------------------------------------------------------------------------------------


def test_everything_is_installed_in_order_and_imported(fresh: Computer):
    advice, errors = fresh.settle(fresh.setup.steps())
    assert fresh.done == ["torch", "pip install", "importing the packages", "models fetch mobile"]
    assert errors == []
    assert names(fresh) == ["mobile"]
    assert advice == "Restart Slicer before you go on: the version of pydicom has changed."


def test_what_slicer_and_torch_brought_is_held(fresh: Computer):
    fresh.settle(fresh.setup.steps())
    assert fresh.constraints.split() == [
        "numpy==2.1.0", "SimpleITK==2.5.5", "scipy==1.15.3", "torch==2.8.0+cu128", "torchvision==0.23.0",
    ]  # fmt: skip


def test_a_torch_that_will_do_stays_when_only_torchvision_is_missing(weights: Path):
    computer = Computer({**ENGINE, "torch": "2.5.1+cu121"})
    del computer.packages["torchvision"]
    computer.settle(computer.setup.steps())
    assert computer.done[0] == "torch 2.5.1+cu121"


def test_the_panel_shows_a_notice_before_slicer_blocks(fresh: Computer):
    task = Task("setup", fresh.setup.steps(), on_error=lambda error: None)
    task.tick()
    assert "Slicer does not respond" in task.progress[2]
    task.tick()
    assert fresh.done == []
    task.tick()
    assert fresh.done[0] == "torch"


def test_a_slicer_that_is_too_old_is_refused_before_anything_comes(fresh: Computer):
    fresh.packages["numpy"] = "1.24.4"
    assert "Slicer 5.10 or newer: too old or missing in this one: numpy (1.24.4)" in fresh.setup.text()
    _, errors = fresh.settle(fresh.setup.steps())
    assert "too old" in errors[0]
    assert fresh.done == []


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("pip install", "timm.*the packages cannot be installed .no network.* HTTPS_PROXY"),
        ("importing the packages", "installed, but cannot be used .no network.*Restart Slicer"),
        ("models fetch mobile", "no network"),
    ],
)
def test_a_step_that_fails_ends_the_setup_with_the_reason(fresh: Computer, step: str, words: str):
    fresh.fails[step] = MaskSAMError("no network")
    _, errors = fresh.settle(fresh.setup.steps())
    assert fresh.done[-1] == step
    assert re.search(words, errors[0])


@pytest.mark.parametrize("step", ["pip install", "importing the packages", "models fetch mobile"])
def test_a_cancelled_step_ends_the_set_up_in_silence(fresh: Computer, step: str):
    fresh.fails[step] = Cancelled()
    assert fresh.settle(fresh.setup.steps()) == (None, [])
    assert fresh.done[-1] == step


def test_packages_that_went_elsewhere_are_noticed(fresh: Computer):
    fresh.fails["timm"] = Exception("never arrives")
    _, errors = fresh.settle(fresh.setup.steps())
    assert errors
    assert errors[0].startswith("timm: the installed packages cannot be found")


def test_two_installations_at_a_time_are_refused(fresh: Computer, monkeypatch: pytest.MonkeyPatch):
    import slicer

    packaging = types.SimpleNamespace(isPipInstallInProgress=lambda: True)
    monkeypatch.setattr(slicer, "packaging", packaging, raising=False)
    _, errors = fresh.settle(fresh.setup.steps())
    assert "Slicer is installing other packages" in errors[0]
    assert "pip install" not in fresh.done


# -- pip itself ------------------------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    """A wheel without a module."""
    stem = f"{name.replace('-', '_')}-{version}"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (
        f"Requires-Dist: {requires}\n" * bool(requires)
    )
    files = {"METADATA": about, "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as bundle:
        for file, text in files.items():
            bundle.writestr(f"{stem}.dist-info/{file}", text)
        bundle.writestr(f"{stem}.dist-info/RECORD", "".join(f"{stem}.dist-info/{file},,\n" for file in files))


@pytest.mark.slow
def test_pip_brings_what_is_missing_and_leaves_numpy_as_it_is(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    wheels.mkdir()
    for package in PACKAGES["package"]:
        wheel(wheels, package.name, "99.0", requires="numpy>=1" if package.name == "timm" else "")
    for version in ("2.1.0", "99.0"):
        wheel(wheels, "numpy", version)
    settings = {"NO_INDEX": "1", "FIND_LINKS": wheels, "TARGET": target, "CONFIG_FILE": "/dev/null", "NO_DEPS": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    computer = Computer({**FRESH, "torch": "2.8.0", "torchvision": "0.23.0"})

    def start(words: list[str], *, name: str, stdout_is_progress: bool = False) -> CommandJob | Job:
        return (
            CommandJob(words, name=name, stdout_is_progress=stdout_is_progress)
            if "pip" in words
            else computer.run(name)
        )

    setup = Setup(
        installed=lambda: {**computer.packages, **installed_packages([str(target)])},
        start=start,
        command=lambda *words: computer.run(" ".join(words)),
    )
    assert computer.settle(setup.steps())[1] == []
    found = installed_packages([str(target)])
    assert found.pop("numpy") == "2.1.0"
    assert found == dict.fromkeys(found, "99.0")
    assert {"timm", "pydicom", "segment-anything"} <= found.keys()
    assert computer.done == ["importing the packages", "models fetch mobile"]


# -- by hand, and away -----------------------------------------------------------------------------------------------


def test_base_weights_come_as_a_file_and_go_again(fresh: Computer, mobile_sam: Path):
    setup = Setup(installed=lambda: FRESH)
    assert fresh.settle(setup.import_model(mobile_sam)) == (None, [])
    assert base_weights.find_base("mobile") == base_weights.base_path("mobile")
    assert "mobile" not in names(fresh)
    assert fresh.settle(setup.remove_model("mobile")) == (None, [])
    assert "mobile" in names(fresh)


def test_a_file_that_is_not_a_model_is_reported(fresh: Computer, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("not a model")
    _, errors = fresh.settle(Setup().import_model(tmp_path / "notes.txt"))
    assert errors
    assert "neither a model folder, a .zip of one, nor base weights" in errors[0]


@pytest.fixture
def furnished(fresh: Computer, weights: Path, repo: Path) -> Computer:
    """A computer after set-up, with a model of the user's and the sample."""
    fresh.settle(fresh.setup.steps())
    fresh.done.clear()
    shutil.copytree(repo / "Resources" / "Models" / "hippocampus-mr", base_weights.home("data") / "models" / "mine")
    (base_weights.home("cache") / "samples").mkdir()
    (base_weights.home("cache") / "samples" / "head.nii.gz").touch()
    return fresh


def test_everything_goes_but_the_packages(furnished: Computer):
    assert furnished.settle(furnished.setup.remove_everything()) == (None, [])
    assert furnished.done == ["models remove mobile", "models remove mine"]
    assert not list((base_weights.home("cache") / "samples").iterdir())


def test_packages_go_on_request_but_only_those_that_came_from_here(furnished: Computer):
    furnished.settle(furnished.setup.remove_everything(packages=True))
    words = furnished.done[-1].split()
    assert words[:2] == ["pip", "uninstall"]
    assert "--yes" in words
    came = "einops fonttools highdicom matplotlib monai pillow psutil safetensors segment-anything timm tqdm"
    assert set(words[words.index("--yes") + 1 :]) == set(came.split())
    furnished.done.clear()
    furnished.settle(furnished.setup.remove_everything(packages=True))
    assert not any("uninstall" in what for what in furnished.done)


def test_what_another_slicer_got_is_not_uninstalled_here(furnished: Computer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "prefix", "/another/slicer")
    furnished.settle(furnished.setup.remove_everything(packages=True))
    assert not any("uninstall" in what for what in furnished.done)
