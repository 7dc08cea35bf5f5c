"""Citations of the design documents resolve, and so do the links of every document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from Testing.docs import documents

OLD = re.compile(r"\b(?:MODEL|PRODUCT|FAULTS)(?:\.md\b|'s\b| §| rows? \d)|\bANY\.md\b|\btest_fault_\d")
"""How these documents and tests were cited before they were in the repository."""


@pytest.fixture(scope="module")
def targets(repo: Path) -> set[str]:
    """Everything that may be cited."""
    design = repo / "docs" / "design"
    found = {f"row {row}" for row in documents.fault_rows((repo / "docs" / "faults.md").read_text(encoding="utf-8"))}
    for name in ("model", "product"):
        numbers = documents.sections((design / f"{name}.md").read_text(encoding="utf-8"))
        found |= {f"{name} {number}" for number in numbers}
    return found


def test_the_documents_are_whole(targets: set[str]) -> None:
    assert {f"row {row}" for row in range(1, 61)} <= targets
    assert {f"model {number}" for number in range(1, 21)} <= targets
    assert {f"product {number}" for number in range(1, 10)} <= targets


def test_every_citation_resolves(repo: Path, targets: set[str]) -> None:
    lost, cited = [], set()
    for path in documents.texts(repo, ".py", ".md", ".ui"):
        if path.parent == repo / "Testing" / "docs":
            continue
        for citation in documents.citations(path.read_text(encoding="utf-8")):
            target = citation.target
            if path.name == "product.md" and target.startswith("model "):
                target = target.replace("model", "product", 1)
            cited.add(target)
            if target not in targets:
                lost.append(f"{path.relative_to(repo)}:{citation.line}: {citation.target}")
    assert not lost, "\n".join(lost)
    assert len(cited) > 50


def test_no_citation_names_a_document_that_is_elsewhere(repo: Path) -> None:
    found = []
    for path in documents.texts(repo, ".py", ".md", ".toml", ".json", ".txt"):
        if path.parent == repo / "Testing" / "docs":
            continue
        text = path.read_text(encoding="utf-8")
        found += [
            f"{path.relative_to(repo)}:{text.count(chr(10), 0, m.start()) + 1}: {m[0]}" for m in OLD.finditer(text)
        ]
    assert not found, "\n".join(found)


def test_every_link_of_a_document_resolves(repo: Path) -> None:
    pages = list(documents.texts(repo, ".md"))
    assert len(pages) > 15
    broken = [link for path in pages for link in documents.broken_links(path, path.read_text(encoding="utf-8"))]
    assert not broken, "\n".join(broken)


def test_every_fault_names_its_tests_and_every_test_names_its_fault(repo: Path) -> None:
    rows = documents.fault_rows((repo / "docs" / "faults.md").read_text(encoding="utf-8"))
    assert sorted(rows) == list(range(1, 61))
    assert [row for row, tests in rows.items() if not tests] == []
    for path in sorted((repo / "Testing" / "faults").glob("test_*.py")):
        name = f"Testing/faults/{path.name}"
        first_line = path.read_text(encoding="utf-8").split("\n", 1)[0]
        cited = {citation.target for citation in documents.citations(first_line)}
        assert cited, f"{name} does not name its row of faults.md in its first line"
        assert {f"row {row}" for row, tests in rows.items() if name in tests} == cited, name
    named = {name for tests in rows.values() for name in tests}
    assert [name for name in sorted(named) if not (repo / name).is_file()] == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("see model.md §4.3, §7", {"model 4.3", "model 7"}),
        ("(model.md §6.1-6.3)", {"model 6.1", "model 6.3"}),
        ("(model.md\n    §12.3)", {"model 12.3"}),
        ("what `train` does (product.md §2)", {"product 2"}),
        ("faults.md rows 26, 27 and 33", {"row 26", "row 27", "row 33"}),
        ("faults.md row 31, for regions", {"row 31"}),
        ("faults.md rows 47 to 49, for the worker", {"row 47", "row 48", "row 49"}),
        ("nothing", set()),
    ],
)
def test_citations_are_found(text: str, wanted: set[str]) -> None:
    assert {citation.target for citation in documents.citations(text)} == wanted


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    good = "# A `title`, here\n\n```\n[no](link.md)\n```\n[x](page.md#a-title-here) "
    page.write_text(good + "[y](gone.md) [z](#nowhere)\n")
    broken = documents.broken_links(page, page.read_text())
    assert [link.rsplit(": ", 2)[-2] for link in broken] == ["gone.md", "#nowhere"]
