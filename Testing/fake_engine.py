"""A worker without torch: the real server around an engine that answers by rule, for the tests of the process.

`python -m Testing.fake_engine` takes the options of the real command. What it does is chosen by the model's name, one
or more words with dashes between:

plain    answers cubes around the positive points, less those around the negative ones
slow     0.4 seconds per slab and per window, in steps that can be cancelled
deaf     the same, but it never asks whether it was cancelled
dies     prompts end the process, as the system's killer would
once     the same, the first time only
leaves   prompts call sys.exit
noisy    prompts print, from Python, C and another process
parent   prompts start a process that would stay
breaks   prompts raise an error that nobody expects
doubts   has a warning about every scan
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import InputError, ModelError
from MaskSAMCore.progress import CancelToken, Progress
from MaskSAMCore.worker import exports
from MaskSAMCore.worker.__main__ import parser
from MaskSAMCore.worker.server import serve

WORDS = ["plain", "parent", "slow", "deaf", "dies", "once", "leaves", "noisy", "breaks", "doubts"]
HALF = 2


def block(shape: tuple[int, ...], prompts: Any) -> np.ndarray:
    """The answer to a list of prompts: cubes around the positive points, less those around the negative ones."""
    mask = np.zeros(shape, np.uint8)
    for prompt in prompts:
        k, j, i = (round(v) for v in prompt["position"][::-1])
        place = tuple(slice(max(v - HALF, 0), v + HALF + 1) for v in (k, j, i))
        mask[place] = prompt.get("positive", True)
    return mask


def bounds(mask: np.ndarray) -> list[int] | None:
    """The smallest box around what is set; None where nothing is."""
    places = np.argwhere(mask)
    if not len(places):
        return None
    return [int(v) for pair in zip(places.min(0), places.max(0) + 1, strict=True) for v in pair]


class FakeEngine:
    """Keeps masks of whole scans and answers what changed in them, like a session."""

    def __init__(self) -> None:
        self.cases: dict[int, tuple[np.ndarray, list[str]]] = {}
        self.masks: dict[tuple[int, int], np.ndarray] = {}
        self.lists: dict[tuple[int, int], Any] = {}
        self.before: dict[tuple[int, int], tuple[Any, Any]] = {}

    def hello(self) -> dict[str, Any]:
        return {"device": "none", "models": [{"name": word} for word in WORDS]}

    def handle(self, op: str, fields: dict[str, Any], *, progress: Progress, cancel: CancelToken) -> dict[str, Any]:
        if op in exports.OPERATIONS:
            return exports.export(op, fields, progress=progress, cancel=cancel)
        if op == "open":
            return self.open(fields)
        if fields["case"] not in self.cases:
            raise InputError("no such case", where=f"case {fields['case']}")
        volume, words = self.cases[fields["case"]]
        if op == "release":
            del self.cases[fields["case"]]
            for key in [key for key in self.masks if key[0] == fields["case"]]:
                del self.masks[key], self.lists[key], self.before[key]
            return {}
        if op in ("encode", "segment"):
            self.work(words, progress, cancel)
        if op == "encode":
            return {"encoded": 3}
        if op == "segment":
            mask = (volume > volume.mean()).astype(np.uint8)
            whole = [0, mask.shape[0], 0, mask.shape[1], 0, mask.shape[2]]
            corner = {"label": 2, "name": "corner", "box": [0, 1, 0, 1, 0, 1], "mask": np.ones((1, 1, 1), np.uint8)}
            blocks = [corner, {"label": 1, "name": "bright", "box": whole, "mask": mask}]
            return {"blocks": blocks, "warnings": [], "device": "none", "windows": 3, "seconds": 0.0}
        if op == "automatic":
            return {"prompts": []}
        self.misbehave(words)
        return self.update(volume, op, fields)

    def undelivered(self, op: str, fields: dict[str, Any]) -> None:
        key = fields.get("case", -1), fields.get("structure", -1)
        if key in self.before:
            self.masks[key], self.lists[key] = self.before[key]

    def open(self, fields: dict[str, Any]) -> dict[str, Any]:
        words = Path(fields["model"]).name.split("-")
        if set(words) - set(WORDS):
            raise ModelError("no such model", where=fields["model"])
        self.cases[fields["case"]] = fields["volume"], words
        shape = fields["volume"].shape[-3:]
        return {
            "id": fields["case"], "model": fields["model"], "shape": shape, "axis": 0, "labels": [],
            "warnings": ["a doubt"] if "doubts" in words else [],
        }  # fmt: skip

    def work(self, words: list[str], progress: Progress, cancel: CancelToken) -> None:
        for done in range(3):
            progress(done, 3, "working")
            cancel.check()
            if "deaf" in words:
                time.sleep(20)
            for _ in range(40 if "slow" in words else 0):
                time.sleep(0.01)
                cancel.check()

    def misbehave(self, words: list[str]) -> None:
        marker = Path(tempfile.gettempdir()).parent / "once"
        if "dies" in words or ("once" in words and not marker.exists()):
            marker.touch()
            sys.stderr.write("about to die\n")
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        if "parent" in words:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (Path(tempfile.gettempdir()).parent / "child").write_text(str(child.pid))
        if "leaves" in words:
            sys.exit("a library left")
        if "noisy" in words:
            print("a library prints")  # noqa: T201
            os.write(1, b"and so does its C code\n")
            os.system("echo and a process that it starts")
        if "breaks" in words:
            raise KeyError("a bug")

    def update(self, volume: np.ndarray, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        key, shape = (fields["case"], fields["structure"]), volume.shape[-3:]
        old = self.masks.get(key, np.zeros(shape, np.uint8))
        prompts = fields.get("prompts", self.lists.get(key, ()) if op == "propagate" else ())
        new = block(shape, prompts)
        self.before[key] = old, self.lists.get(key, ())
        self.masks[key], self.lists[key] = new, prompts
        box, mask = bounds(old != new), None
        if box is not None:
            mask = new[tuple(slice(a, b) for a, b in zip(box[::2], box[1::2], strict=True))]
        return {
            "structure": key[1], "box": box, "mask": mask, "extent": bounds(new), "voxels": new.sum(), "axis": 0,
            "quality": [], "worst": None, "candidates": [], "suggestion": None, "encoded": 0, "seconds": 0.0,
            "messages": [],
        }  # fmt: skip


if __name__ == "__main__":
    serve(FakeEngine, parser().parse_args().folder)
