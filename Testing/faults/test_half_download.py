"""faults.md row 36: half a download never counts as installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from MaskSAMCore.errors import ModelError
from MaskSAMCore.zoo import base_weights
from MaskSAMCore.zoo.download import UrlSource
from Testing.models import CONTENT, fake_base, server


def test_a_download_that_breaks_off_is_deleted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = CONTENT[: len(CONTENT) // 2]
    with server({"/w.pt": (200, half, {"Content-Length": str(len(CONTENT))})}) as address:
        fake_base(monkeypatch, UrlSource(url=f"{address}/w.pt"))
        with pytest.raises(ModelError, match=f"{len(half)} of {len(CONTENT)} bytes"):
            base_weights.fetch_base("mobile")
    assert list((home / "bases").iterdir()) == []


@pytest.mark.parametrize("content", [CONTENT, CONTENT[:-1]])
def test_a_part_file_is_never_taken_for_the_file(home: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    fake_base(monkeypatch)
    (home / "bases").mkdir()
    (home / "bases" / "mobile_sam.pt.part").write_bytes(content)
    with pytest.raises(ModelError, match="not on this computer"):
        base_weights.find_base("mobile")


SLOW = """
import http.server, subprocess, sys, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 24))
        self.end_headers()
        self.wfile.write(bytes(3 << 20))
        self.wfile.flush()
        time.sleep(120)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
from MaskSAMCore.zoo import base_weights
from MaskSAMCore.zoo.download import UrlSource
base_weights.fetch_base("mobile", sources=(UrlSource(url=f"http://127.0.0.1:{server.server_port}/w.pt"),))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_fetch_counts_as_nothing_and_does_not_block_the_next(
    home: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    process = subprocess.Popen([sys.executable, "-c", SLOW], env=environment)
    part = home / "bases" / "mobile_sam.pt.part"
    try:
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(ModelError, match="not on this computer"):
        base_weights.find_base("mobile")
    with server({"/w.pt": (200, CONTENT, {})}) as address:
        fake_base(monkeypatch, UrlSource(url=f"{address}/w.pt"))
        assert base_weights.fetch_base("mobile").read_bytes() == CONTENT
    assert [p.name for p in (home / "bases").iterdir()] == ["mobile_sam.pt"]
