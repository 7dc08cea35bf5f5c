"""`python -m MaskSAMCore.worker`: run the engine as a process that is driven by JSON lines on stdin and stdout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from MaskSAMCore.commandline import add_device_option, command_parser, run

EPILOG = """Programs start it through MaskSAMCore.worker.client.EngineClient. It ends when its input does.
There is one request per line,

  {"id": 1, "op": "hello", "protocol": 1}

is answered by {"id": 1, "result": {...}} or {"id": 1, "error": {...}}.
The module MaskSAMCore.worker.protocol lists all requests."""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = command_parser("worker", "Answer clicks, boxes and segmentations for another program.", epilog=EPILOG)
    p.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="private folder for arrays, made and locked by that program"
    )
    p.add_argument("--threads", type=_count, metavar="N", help="threads on the CPU (default: PyTorch's choice)")
    add_device_option(p)
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the worker until its input ends. It exits the process itself; a return means that it did not start."""
    options = parser().parse_args(argv)
    return run(lambda: _serve(options))


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 1024, found {text!r}")
    return int(text)


def _serve(options: argparse.Namespace) -> int:
    from MaskSAMCore.worker.engine import Engine
    from MaskSAMCore.worker.server import serve

    return serve(lambda: Engine(device=options.device, threads=options.threads), options.folder)


if __name__ == "__main__":
    sys.exit(main())
