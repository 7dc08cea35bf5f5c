"""Installation and removal of the packages and weights that the engine needs.

The extension PyTorch installs PyTorch, because it knows the computer's GPU. The other packages are installed into
Slicer's Python by `pip install` with constraints that keep Slicer's own packages unchanged. Slicer's `pip_install` and
`pip_ensure` run the same command, but block the application and cannot be cancelled.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.io.atomic import write_json
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.zoo import base_weights, installed
from SlicerMaskSAMLib.engine.commands import CommandJob, core_command, interpreter
from SlicerMaskSAMLib.engine.requirements import (
    PACKAGES,
    Need,
    constraints,
    describe,
    installed_packages,
    is_satisfied,
    missing,
)
from SlicerMaskSAMLib.values.tasks import Steps

BASE = "mobile"
"""Base weights of the bundled models, and of models trained here."""
PACKAGES_FILE = "slicer-packages.json"
NOTES = (
    "None of your data is sent anywhere. Without a network, use Import model file for base weights and models, and set "
    "the environment variable PIP_FIND_LINKS to a folder with the packages."
)


class Setup:
    """Installs what is missing, and removes what was installed.

    Args:
        install_torch: Installs PyTorch and blocks meanwhile; see `torch_by_extension`.
        installed: Lists the packages of this Python; see `installed_packages`.
        start: Starts a program in the background.
        command: Starts a command of the engine.
    """

    def __init__(
        self,
        *,
        install_torch: Callable[[str], None] | None = None,
        installed: Callable[[], Mapping[str, str]] = installed_packages,
        start: Callable[..., CommandJob] = CommandJob,
        command: Callable[..., CommandJob] = core_command,
    ) -> None:
        self._install_torch = install_torch or torch_by_extension
        self._installed, self._start, self._command = installed, start, command
        self._installed_here = _InstalledPackages(base_weights.home("data") / PACKAGES_FILE)

    def missing(self, base: str = BASE) -> tuple[Need, ...]:
        """Packages and base weights that the engine lacks. Looks at file names only."""
        return missing(self._installed(), base)

    def text(self, base: str = BASE) -> str:
        """Text for the user's consent, with sources and sizes; "" if nothing is missing."""
        lines = describe(self.missing(base))
        return "\n".join(["The engine needs these once:", *(f"- {line}" for line in lines), NOTES]) if lines else ""

    def steps(self, base: str = BASE) -> Steps:
        """Install what is missing, after the user has agreed to `text`.

        Returns advice for the user, or "". What was installed before an error or a cancellation is kept; the next call
        continues from there.

        Raises:
            MaskSAMError: Something cannot be installed.
        """
        needs = self.missing(base)
        _refuse_old_slicer(needs)
        before = self._installed()
        if _names(needs, "torch"):
            yield _Notice("Installing PyTorch; Slicer does not respond meanwhile")
            torch = PACKAGES["torch"][0]
            self._install_torch(before[torch.name] if is_satisfied(torch, before) else "")
        if _names(needs, "package"):
            yield from self._install(_names(needs, "package"))
        after = self._installed()
        if after != before:
            _refuse_unreachable_packages(missing(after, base))
            yield from self._check_imports()
        for name in _names(needs, "base"):
            yield self._command("models", "fetch", name)
        changed = sorted(name for name, version in before.items() if after.get(name, version) != version)
        return f"Restart Slicer before you go on: the version of {', '.join(changed)} has changed." if changed else ""

    def import_model(self, path: str | Path) -> Steps:
        """Import a model (folder or .zip) or base weights, without a network."""
        yield self._command("models", "import", path)

    def remove_model(self, name: str) -> Steps:
        """Delete a model of the user's, or base weights. The engine must not use it."""
        yield self._command("models", "remove", name)

    def remove_everything(self, *, packages: bool = False) -> Steps:
        """Delete base weights, sample data and the user's models.

        The engine must not be running.

        Args:
            packages: Whether to uninstall the packages that were installed from here. PyTorch, which other extensions
                need too, is left to its own extension; Slicer's packages stay.
        """
        bases = [name for name in base_weights.BASES if base_weights.base_path(name).is_file()]
        models = [model.name for model in installed.installed_models() if model.origin == "user"]
        for name in [*bases, *models]:
            yield self._command("models", "remove", name)
        for file in (base_weights.home("cache") / "samples").glob("*"):
            file.unlink(missing_ok=True)
        if packages and (ours := self._installed_here.names):
            yield self._start([*_pip("uninstall"), "--yes", *ours], name="pip uninstall", stdout_is_progress=True)
            self._installed_here.forget()

    def _install(self, names: Iterable[str]) -> Steps:
        """Run pip with constraints, and record the packages it added."""
        _refuse_second_installation()
        before = self._installed()
        wanted = [f"{package.name}>={package.at_least}" for package in PACKAGES["package"] if package.name in names]
        try:
            with tempfile.TemporaryDirectory(prefix="masksam-setup-") as folder:
                file = Path(folder) / "constraints.txt"
                file.write_text(constraints(before), encoding="utf-8")
                words = [*_pip("install"), "--constraint", str(file), *wanted]
                yield self._start(words, name="pip install", stdout_is_progress=True)
        except Cancelled:
            raise
        except MaskSAMError as error:
            remedy = "Check the network; a proxy's address goes into the environment variable HTTPS_PROXY."
            raise MaskSAMError(
                "the packages cannot be installed", where=", ".join(names), why=str(error), remedy=remedy
            ) from error
        finally:
            self._installed_here.add(self._installed().keys() - before.keys())

    def _check_imports(self) -> Steps:
        """Import all packages once, in a separate process."""
        modules = ", ".join(package.module for packages in PACKAGES.values() for package in packages)
        try:
            yield self._start([interpreter(), "-c", f"import {modules}"], name="importing the packages")
        except Cancelled:
            raise
        except MaskSAMError as error:
            remedy = (
                "Restart Slicer. If that does not help, reinstall the named package in the Python "
                "console: slicer.util.pip_install('--force-reinstall --no-deps NAME')."
            )
            raise MaskSAMError(
                "the packages are installed, but cannot be used", why=str(error), remedy=remedy
            ) from error


class _Notice:
    """Waits for one tick, so that the panel can show why Slicer is about to block."""

    def __init__(self, text: str) -> None:
        self.progress: tuple[int, int, str] | None = (0, 0, text)
        self._asked = 0

    def done(self) -> bool:
        """False on the first call, true from the second on."""
        self._asked += 1
        return self._asked > 1

    def result(self) -> None:
        """Nothing."""

    def cancel(self) -> None:
        """No effect."""


class _InstalledPackages:
    """File with the packages that were installed from here, by Slicer installation."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def names(self) -> list[str]:
        return self._read().get(sys.prefix, [])

    def add(self, names: Iterable[str]) -> None:
        if new := {*names} - {*self.names}:
            self._write({**self._read(), sys.prefix: sorted({*self.names, *new})})

    def forget(self) -> None:
        self._write({prefix: names for prefix, names in self._read().items() if prefix != sys.prefix})

    def _read(self) -> dict[str, list[str]]:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _write(self, record: Mapping[str, list[str]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, record, overwrite=True)


def torch_by_extension(version: str) -> None:
    """Install PyTorch with the module PyTorchUtils. Slicer blocks meanwhile.

    Args:
        version: Version of an installed torch that is kept when only torchvision is missing; "" for any version.

    Raises:
        MaskSAMError: The extension PyTorch is missing, or could not install it.
        Cancelled: The user did not agree.
    """
    try:
        import PyTorchUtils
    except ImportError as error:
        remedy = "Install PyTorch in the Extensions Manager, restart Slicer, and press Set up again."
        raise MaskSAMError("the extension PyTorch is not installed", why=str(error), remedy=remedy) from error
    install = PyTorchUtils.PyTorchUtilsLogic().installTorch
    wanted = {f"{package.name}VersionRequirement": f">={package.at_least}" for package in PACKAGES["torch"]}
    if version:
        wanted["torchVersionRequirement"] = f"=={version.partition('+')[0]}"
    known = inspect.signature(install).parameters
    try:
        torch = install(askConfirmation=False, **{name: value for name, value in wanted.items() if name in known})
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        remedy = "See the Python console for details. The module PyTorch Utils can uninstall the present version."
        raise MaskSAMError("PyTorch cannot be installed", why=str(error), remedy=remedy) from error
    if torch is None:
        raise Cancelled


def _pip(action: str) -> list[str]:
    return [interpreter(), "-m", "pip", action, "--disable-pip-version-check", "--no-input"]


def _names(needs: Iterable[Need], *kinds: str) -> list[str]:
    return [need.name for need in needs if need.kind in kinds]


def _refuse_old_slicer(needs: Iterable[Need]) -> None:
    old = describe([need for need in needs if need.kind == "slicer"])
    if old:
        raise MaskSAMError("this Slicer cannot run the engine", why="; ".join(old))


def _refuse_second_installation() -> None:
    """Raise MaskSAMError while Slicer's own pip is running."""
    try:
        from slicer import packaging
    except ImportError:
        return  # Slicer 5.10 has no such module
    if packaging.isPipInstallInProgress():
        raise MaskSAMError("Slicer is installing other packages", remedy="Press Set up again when that is done.")


def _refuse_unreachable_packages(needs: Iterable[Need]) -> None:
    """Raise MaskSAMError where pip installed to a folder that Slicer does not search.

    pip does so when it may not write to Slicer's folder.
    """
    if lacking := _names(needs, "torch", "package"):
        remedy = "Install Slicer in a folder where you may write."
        raise MaskSAMError(
            "the installed packages cannot be found",
            where=", ".join(lacking),
            why=f"looked in {sys.prefix}",
            remedy=remedy,
        )
