"""The rules by which Slicer's Extensions Index judges an extension before it is listed.

The index clones the repository and reads CMakeLists.txt as text: a value behind a variable, without quotes or over
several lines is not found.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

HOSTS = ("github.com", "raw.githubusercontent.com")
PICTURE = {b"\x89PNG": (".png",), b"\xff\xd8\xff": (".jpg", ".jpeg"), b"GIF8": (".gif",)}
LICENCES = ("LICENSE", "LICENCE", "LICENSE.txt", "License.txt", "COPYING")
OWNED = ("CMakeLists.txt", "MaskSAM.json")
"""Files in which the account of the publisher stands."""


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """What the index looks at.

    Attributes:
        name: Of the entry, without ".json".
        entry: The entry's text.
        cmake: The text of the top-level CMakeLists.txt.
        root: The clone.
    """

    name: str
    entry: str
    cmake: str
    root: Path


def value(cmake: str, key: str) -> str | None:
    """A variable of CMakeLists.txt as the index reads it: one quoted literal on one line."""
    found = re.search(rf'^\s*set\s*\({key}\s+"([^"\n]*)" *\)', cmake, re.MULTILINE | re.IGNORECASE)
    return found[1].strip() if found else None


def refusals(checkout: Checkout) -> list[str]:
    """Why the index would refuse the extension; empty where it would not."""
    entry, found = json.loads(checkout.entry), []
    project = re.search(r"project\s*\(\s*([^\s)]+)", checkout.cmake, re.IGNORECASE)
    if project is None or project[1].strip("\"'") != checkout.name:
        found.append("the project is not called as the entry")
    address = urlsplit(entry.get("scm_url", ""))
    if address.scheme not in ("https", "git"):
        found.append("scm_url is no address")
    if "slicer" not in address.path.rsplit("/", 1)[-1].lower():
        found.append("the repository's name lacks Slicer")
    if entry.get("category") != "Segmentation":
        found.append("category is unknown")
    if not any((checkout.root / name).is_file() for name in LICENCES):
        found.append("no licence file")
    base = entry.get("scm_url", "").replace("https://github.com", "https://raw.githubusercontent.com")
    for key in ("EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"):
        text = value(checkout.cmake, key)
        if not text:
            found.append(f"{key} is not found")
            continue
        found += [f"{key}: {url}: {why}" for url in text.split() if (why := _picture(url, base, entry, checkout.root))]
    homepage = value(checkout.cmake, "EXTENSION_HOMEPAGE")
    if not homepage or not homepage.startswith("https://"):
        found.append("EXTENSION_HOMEPAGE is no https address")
    found += [
        f"{key} is not found"
        for key in ("EXTENSION_CONTRIBUTORS", "EXTENSION_CATEGORY")
        if not value(checkout.cmake, key)
    ]
    return found


def _picture(url: str, base: str, entry: dict[str, str], root: Path) -> str:
    if not url.startswith("http"):
        return "no address"
    prefix = f"{base}/{entry.get('scm_revision')}/"
    if not url.startswith(prefix):
        return f"not in {prefix}"
    file = root / url.removeprefix(prefix)
    if not file.is_file():
        return "no such file in the repository"
    head = file.read_bytes()[:4]
    kinds = next((kinds for magic, kinds in PICTURE.items() if head.startswith(magic)), ())
    return "" if file.suffix in kinds else "no picture"


@pytest.fixture
def checkout(repo: Path) -> Checkout:
    entry = repo / "MaskSAM.json"
    return Checkout(
        name=entry.stem,
        entry=entry.read_text(encoding="utf-8"),
        cmake=(repo / "CMakeLists.txt").read_text(encoding="utf-8"),
        root=repo,
    )


def test_the_index_would_take_it(checkout: Checkout) -> None:
    assert refusals(checkout) == []
    assert json.loads(checkout.entry)["scm_revision"] == "main"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("project(MaskSAM)", "project(SlicerMaskSAM)", "the project is not called as the entry"),
        ('set(EXTENSION_ICONURL "https://raw', 'set(EXTENSION_ICONURL "${_files}https://raw', "no address"),
        ('set(EXTENSION_ICONURL "', "set(EXTENSION_ICONURL (", "EXTENSION_ICONURL is not found"),
        ("SlicerMaskSAM.png", "Absent.png", "no such file in the repository"),
        ("/Icons/SlicerMaskSAM.png", "/Icons/SlicerMaskSAM.svg", "no picture"),
        ("Screenshots/refine.png https", "Screenshots/refine.png \\\nhttps", "EXTENSION_SCREENSHOTURLS is not found"),
        ('HOMEPAGE "https://', 'HOMEPAGE "http://', "EXTENSION_HOMEPAGE is no https address"),
    ],
)
def test_what_the_index_refuses_is_found(checkout: Checkout, old: str, new: str, words: str) -> None:
    assert old in checkout.cmake
    spoiled = Checkout(
        name=checkout.name, entry=checkout.entry, cmake=checkout.cmake.replace(old, new), root=checkout.root
    )
    assert any(words in refusal for refusal in refusals(spoiled)), refusals(spoiled)


def test_the_owner_is_the_same_everywhere(repo: Path, checkout: Checkout) -> None:
    address = re.compile(rf"https://(?:{'|'.join(map(re.escape, HOSTS))})/([\w.-]+)/SlicerMaskSAM")
    owner = urlsplit(json.loads(checkout.entry)["scm_url"]).path.split("/")[1]
    files = [path for path in repo.iterdir() if path.suffix in (".md", ".txt", ".json", ".toml")]
    files += [*(repo / "docs").rglob("*.md"), *(repo / ".github").rglob("*.yml")]
    named = {path.name: set(address.findall(path.read_text(encoding="utf-8"))) for path in files}
    assert {name for name, owners in named.items() if owners} == set(OWNED), "the owner stands in these two files alone"
    assert all(owners <= {owner} for owners in named.values())


def test_the_topic_of_the_repository_is_named(repo: Path) -> None:
    assert "3d-slicer-extension" in (repo / "CONTRIBUTING.md").read_text(encoding="utf-8")
