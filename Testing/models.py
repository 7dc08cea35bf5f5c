"""Small models and local sources for the tests of the zoo; nothing here needs a network."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from MaskSAMCore.config import presets
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.zoo import base_weights
from MaskSAMCore.zoo.model_folder import ModelCard, save_model

CONTENT = bytes(range(256)) * 64
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def tiny_card(name: str = "tiny-test", **changes: Any) -> ModelCard:
    """Card of the `tiny` preset: random weights, two structures, no base."""
    config = presets.get("tiny")
    names = ["anterior", "posterior", "third", "fourth"][: config.model.classes - 1]
    labels = tuple(Label(id=i, name=n, color=(10 * i, 20, 30)) for i, n in enumerate(names, start=1))
    values = {"name": name, "config": config, "labels": LabelTable(labels=labels), "plan": {}, "modality": "MR"}
    return ModelCard(**{**values, "licence": "CC0-1.0", **changes})


def tiny_model(folder: Path, name: str = "tiny-test", **changes: Any) -> tuple[Path, Any]:
    """Save a `tiny` network under `folder`/`name`; returns its path and the network."""
    import torch

    from MaskSAMCore.network.build import build_model

    card = tiny_card(name, **changes)
    torch.manual_seed(0)
    network = build_model(card.config.model)
    return save_model(folder / name, card, network.state_dict(), "# tiny\n"), network


def fake_base(monkeypatch: Any, *sources: Any, name: str = "mobile") -> base_weights.BaseWeights:
    """Make `name` in the registry stand for the few bytes of CONTENT."""
    base = base_weights.BaseWeights(
        name=name, file="mobile_sam.pt", sha256=SHA256, size=len(CONTENT), licence="CC0-1.0", sources=sources
    )
    monkeypatch.setitem(base_weights.BASES, name, base)
    return base


@contextmanager
def server(pages: dict[str, tuple[int, bytes, dict[str, str]]]) -> Iterator[str]:
    """Serve `pages` (path to status, body, headers) on this machine; yields the address.

    A header Content-Length that exceeds the body makes a download that breaks off.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, headers = pages.get(self.path, (404, b"not here", {}))
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
