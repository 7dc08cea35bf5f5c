"""Every command explains itself without importing torch or SimpleITK."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[2] / "MaskSAMCore"
# A command is a module that hands its main() to the interpreter.
COMMANDS = sorted(
    p.stem for p in CORE.glob("*.py") if p.stem != "__main__" and "sys.exit(main())" in p.read_text(encoding="utf-8")
)

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


PROGRAMS = {"masksam": "masksam", "__main__.py": "python -m MaskSAMCore"}
RUN = """
import sys
from MaskSAMCore import __main__
sys.argv[0] = {script!r}
sys.exit(__main__.main({words!r}))
"""


def program(repo: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`masksam WORDS`, or `python -m MaskSAMCore WORDS`."""
    return python(repo, "-c", RUN.format(script=script, words=list(words)))


@pytest.mark.parametrize("script", PROGRAMS)
@pytest.mark.parametrize("name", [*COMMANDS, "worker"])
def test_help_names_the_command_that_was_typed(repo: Path, script: str, name: str) -> None:
    done = program(repo, script, name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {PROGRAMS[script]} {name}")
    others = {"python -m MaskSAMCore.", *PROGRAMS.values()} - {PROGRAMS[script]}
    assert not [other for other in others if other + " " in done.stdout or f"{other}{name}" in done.stdout]


@pytest.mark.parametrize("script", PROGRAMS)
def test_the_program_lists_its_commands(repo: Path, script: str) -> None:
    done = program(repo, script, "--help")
    assert done.returncode == 0
    assert f"usage: {PROGRAMS[script]} COMMAND" in done.stdout
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert listed == {*COMMANDS, "worker"}
    assert program(repo, script, "--version").stdout.startswith("MaskSAM ")
    bare = program(repo, script)
    assert (bare.returncode, bare.stdout) == (2, "")
    assert "COMMAND" in bare.stderr


@pytest.mark.parametrize(("typed", "meant"), [("sgment", "segment"), ("Train", "train"), ("evalute", "evaluate")])
def test_a_misspelt_command_gets_a_suggestion(repo: Path, typed: str, meant: str) -> None:
    done = program(repo, "masksam", typed)
    assert done.returncode == 2
    assert f'Did you mean "{meant}"?' in done.stderr


def test_the_programs_exit_code_is_the_commands(repo: Path, tmp_path: Path) -> None:
    assert program(repo, "masksam", "models", "show", "no-such-model").returncode == 2
    assert python(repo, "-m", "MaskSAMCore", "models", "list").returncode == 0
