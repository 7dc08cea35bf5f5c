"""What the tests of the documents share: the repository's texts, and the headings, links and rows in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("MaskSAMCore", "SlicerMaskSAM", "Testing", "docs", "Resources")
"""Where sources and documents lie, besides the root itself."""
HEADING = re.compile(r"^(#{1,6}) +(.+?) *#*$", re.MULTILINE)
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")
ROW = re.compile(r"^\| (\d+) \|(.+)\|$", re.MULTILINE)
TEST = re.compile(r"`(Testing/faults/test_\w+\.py)`")
CITED_ROWS = re.compile(r"faults\.md\s+rows?\s+(\d+(?:(?:,\s*|\s+and\s+|\s+to\s+)\d+)*)")
CITED_SECTIONS = re.compile(r"(?:(model|product)\.md\W{0,3})?§\s?(\d+(?:\.\d+)*)(?:\s?[-–]\s?(\d+(?:\.\d+)*))?")


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A place that names a section or row.

    Attributes:
        line: Number of the line, from 1.
        target: "model 4.3", "product 2" or "row 34".
    """

    line: int
    target: str


def texts(repo: Path, *suffixes: str) -> Iterator[Path]:
    """Files of these suffixes in the root and in the project's folders, generated ones left out."""
    yield from sorted(path for path in repo.iterdir() if path.suffix in suffixes)
    for folder in FOLDERS:
        found = (path for path in (repo / folder).rglob("*") if path.suffix in suffixes and path.is_file())
        yield from sorted(path for path in found if not {"__pycache__", "_resources"} & set(path.parts))


def without_code(text: str) -> str:
    """A document without its fenced blocks, lines kept."""
    return FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)


def anchors(text: str) -> set[str]:
    """What `#…` in a link may name: a document's headings as GitHub writes them."""
    found: set[str] = set()
    for match in HEADING.finditer(without_code(text)):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[2]).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = sum(1 for other in found if re.fullmatch(re.escape(slug) + r"(-\d+)?", other))
        found.add(f"{slug}-{count}" if count else slug)
    return found


def links(text: str) -> Iterator[tuple[int, str]]:
    """Line and target of every link and picture of a document that is not an address on the web."""
    for match in LINK.finditer(without_code(text)):
        if not re.match(r"[a-z]+:", match[1]):
            yield without_code(text).count("\n", 0, match.start()) + 1, match[1]


def broken_links(path: Path, text: str) -> list[str]:
    """Links of the document `path` that lead to no file or heading."""
    found = []
    for line, target in links(text):
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            found.append(f"{path}:{line}: {target}: no such file")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text(encoding="utf-8"))):
            found.append(f"{path}:{line}: {target}: no such heading")
    return found


def sections(text: str) -> set[str]:
    """Numbers of a document's numbered headings, "4.3"."""
    numbers = (re.match(r"(\d+(?:\.\d+)*)\.? ", match[2]) for match in HEADING.finditer(without_code(text)))
    return {number[1] for number in numbers if number}


def fault_rows(text: str) -> dict[int, list[str]]:
    """Number of each row of the table of faults, and the test files that it names."""
    return {int(match[1]): TEST.findall(match[2]) for match in ROW.finditer(text)}


def citations(text: str) -> Iterator[Citation]:
    """What a source or document cites. A bare "§4.3" is a section of model.md, as the module's first line says."""
    for match in CITED_SECTIONS.finditer(text):
        document = match[1] or "model"
        for number in match.groups()[1:]:
            if number:
                yield Citation(line=text.count("\n", 0, match.start()) + 1, target=f"{document} {number}")
    for match in CITED_ROWS.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        for low, high in re.findall(r"(\d+)(?:\s+to\s+(\d+))?", match[1]):
            for number in range(int(low), int(high or low) + 1):
                yield Citation(line=line, target=f"row {number}")
