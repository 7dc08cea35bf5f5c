"""faults.md row 35: a web page, a truncated or another file is deleted; expected and found are shown."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from MaskSAMCore.errors import ModelError
from MaskSAMCore.zoo import base_weights
from MaskSAMCore.zoo.download import UrlSource
from Testing.models import CONTENT, SHA256, fake_base, server

PAGE = b"\n<!DOCTYPE html><html><body>Sign in to the hospital's network</body></html>"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (PAGE, "it is a web page"),
        (CONTENT[:-1], "not the expected file"),
        (CONTENT[::-1], "not the expected file"),
        (b"", "0 bytes"),
    ],
)
def test_what_is_not_the_file_is_deleted(home: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, words: str) -> None:
    with server({"/w.pt": (200, body, {})}) as address:
        fake_base(monkeypatch, UrlSource(url=f"{address}/w.pt"))
        with pytest.raises(ModelError) as caught:
            base_weights.fetch_base("mobile")
    message = str(caught.value)
    assert words in message
    assert f"{address}/w.pt" in message
    assert f"expected sha256 {SHA256}" in message
    assert f"found {hashlib.sha256(body).hexdigest()}" in message
    assert list((home / "bases").iterdir()) == []


def test_a_wrong_source_is_passed_over_for_a_right_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server({"/page": (200, PAGE, {}), "/w.pt": (200, CONTENT, {})}) as address:
        fake_base(monkeypatch, UrlSource(url=f"{address}/page"), UrlSource(url=f"{address}/w.pt"))
        assert base_weights.fetch_base("mobile").read_bytes() == CONTENT


def test_a_wrong_file_in_the_cache_is_not_used_and_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server({"/w.pt": (200, CONTENT, {})}) as address:
        fake_base(monkeypatch, UrlSource(url=f"{address}/w.pt"))
        path = base_weights.base_path("mobile")
        path.parent.mkdir()
        path.write_bytes(PAGE)
        with pytest.raises(ModelError) as caught:
            base_weights.find_base("mobile")
        assert SHA256 in str(caught.value)
        assert hashlib.sha256(PAGE).hexdigest() in str(caught.value)
        assert base_weights.fetch_base("mobile").read_bytes() == CONTENT
