"""The program `masksam`, which is `python -m MaskSAMCore`: runs one of the commands."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from MaskSAMCore import __version__
from MaskSAMCore.commandline import EXIT_BAD_INPUT, called_as
from MaskSAMCore.errors import did_you_mean

SCRIPT = "masksam"
COMMANDS = {
    "segment": ("segment", "find every structure of a scan"),
    "train": ("train", "train a model on labelled scans"),
    "teach": ("teach", "make a model from a few cases, in minutes"),
    "prepare": ("prepare", "preprocess a data set once, into a cache"),
    "evaluate": ("evaluate", "compare segmentations, or measure a model"),
    "models": ("models", "list, show, fetch, import and remove models"),
    "demo": ("demo", "segment a real scan with a bundled model"),
    "worker": ("worker.__main__", "answer clicks for another program"),
}
"""Name of each command: its module, and what it does."""


def main(argv: list[str] | None = None) -> int:
    """Run `masksam COMMAND ...`; returns the command's exit code."""
    words = sys.argv[1:] if argv is None else argv
    program = SCRIPT if Path(sys.argv[0]).stem == SCRIPT else "python -m MaskSAMCore"
    name = words[0] if words else ""
    if name in ("-h", "--help", "help"):
        print(usage(program))
        return 0
    if name == "--version":
        print(f"MaskSAM {__version__}")
        return 0
    if name not in COMMANDS:
        problem = f"error: {name!r} is not a command. {did_you_mean(name, COMMANDS)}\n" if name else ""
        sys.stderr.write(f"{usage(program)}\n{problem}")
        return EXIT_BAD_INPUT
    module = importlib.import_module(f"MaskSAMCore.{COMMANDS[name][0]}")
    with called_as(program):
        return module.main(words[1:])


def usage(program: str) -> str:
    """The help text: all commands, a line each."""
    lines = [f"  {name:10}{about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join([f"usage: {program} COMMAND ...", "", *lines, "", f"Help on a command: {program} COMMAND --help"])


if __name__ == "__main__":
    sys.exit(main())
