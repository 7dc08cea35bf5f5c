"""Every command explains itself without importing torch or SimpleITK."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[2] / "MaskSAMCore"
# A command is a module that hands its main() to the interpreter.
COMMANDS = sorted(p.stem for p in CORE.glob("*.py") if "sys.exit(main())" in p.read_text(encoding="utf-8"))

PROBE = """
import importlib, sys
parser = importlib.import_module("MaskSAMCore.{name}").parser()
text = parser.format_help()
print([m for m in ("torch", "SimpleITK", "monai", "scipy", "matplotlib") if m in sys.modules])
"""


def python(repo: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_the_commands_are_found() -> None:
    assert {"models", "train", "segment", "prepare", "evaluate"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_nothing_heavy(repo: Path, name: str) -> None:
    done = python(repo, "-c", PROBE.format(name=name))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_version_exit_0(repo: Path, name: str) -> None:
    done = python(repo, "-m", f"MaskSAMCore.{name}", "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m MaskSAMCore.{name}" in done.stdout
    assert python(repo, "-m", f"MaskSAMCore.{name}", "--version").stdout.startswith("MaskSAM ")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_exits_2(repo: Path, name: str) -> None:
    done = python(repo, "-m", f"MaskSAMCore.{name}", "--no-such-option")
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert "Traceback" not in done.stderr
