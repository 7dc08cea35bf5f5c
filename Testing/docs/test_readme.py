"""What README, CONTRIBUTING and the pages of docs promise is there: length, pictures, commands, files."""

from __future__ import annotations

import ast
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from MaskSAMCore.config.describe import network_description
from MaskSAMCore.zoo import model_folder
from Testing.docs import documents

LONGEST = 900
"""Words of the README, as `wc -w` counts them."""
CHANGES = (
    "a loss",
    "a preset",
    "an adapter",
    "a prompt source",
    "the DICOM reader",
    "an output format",
    "what a click does",
    "a panel button",
    "a message",
    "a card",
    "a key",
    "a recipe",
)
FILE = re.compile(r"`([\w./*-]+/[\w.*-]+\.(?:py|json|ui|yml|toml|txt|png))`")
SOURCE = re.compile(r"`((?:[\w]+/)*[\w]+\.py)`")
COMMAND = re.compile(r"^(?:masksam |python -m MaskSAMCore[. ]|torchrun .* -m MaskSAMCore\.)", re.MULTILINE)
BASES = ("", "MaskSAMCore", "SlicerMaskSAM", "SlicerMaskSAM/SlicerMaskSAMLib")
PAGES = ("README.md", "CONTRIBUTING.md", "docs")


def pages(repo: Path) -> Iterator[Path]:
    """The documents for users and developers, without the log of experiments and the changelog."""
    for name in PAGES:
        path = repo / name
        yield from sorted(path.rglob("*.md")) if path.is_dir() else [path]


def commands(text: str) -> Iterator[list[str]]:
    """Every command of ours in a document's blocks, as words: ["segment", "scan.nii.gz", ...]."""
    for line in text.splitlines():
        line = line.strip().split(" #")[0].strip()
        if not COMMAND.match(line) or "…" in line:
            continue
        words = shlex.split(line.replace("[", "").replace("]", "").replace(" ...", ""))
        if words[0] == "masksam":
            yield words[1:]
            continue
        module = next(i for i, word in enumerate(words) if word.startswith("MaskSAMCore"))
        name = words[module].partition(".")[2]
        yield [name, *words[module + 1 :]] if name else words[module + 1 :]


def cells(text: str) -> list[list[str]]:
    """The rows of a document's tables."""
    lines = (line for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_readme_is_short(repo: Path) -> None:
    assert len((repo / "README.md").read_text(encoding="utf-8").split()) < LONGEST


def test_the_readme_begins_with_a_picture_that_is_small(repo: Path) -> None:
    first = (repo / "README.md").read_text(encoding="utf-8").split("\n\n")[1]
    picture = re.fullmatch(r"!\[.+\]\((Resources/Screenshots/[\w.]+)\)", first)
    assert picture
    folder = repo / "Resources" / "Screenshots"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    assert (repo / picture[1]).stat().st_size < 300_000


def test_the_readme_has_the_figures_of_the_results(repo: Path) -> None:
    results = (repo / "docs" / "RESULTS.md").read_text(encoding="utf-8").split("## Where it fails")[0]
    measured: dict[str, list[str]] = {}
    for name, table in re.findall(r"--recipe ([\w-]+)`(.*?)(?=--recipe|\Z)", results, re.DOTALL):
        figures = [row[1].split(" ± ") for row in cells(table) if "±" in row[1]]
        measured[name] = [f"{float(mean):.2f}" for mean, _ in figures[:-1]]
    readme = (repo / "README.md").read_text(encoding="utf-8")
    shown = {
        row[0].strip("`"): re.findall(r"\d\.\d\d", row[2])
        for row in cells(readme)
        if len(row) == 5 and row[0].startswith("`")
    }
    assert {name: figures for name, figures in shown.items() if figures} == measured
    assert {path.name for path in (repo / "Resources" / "Models").iterdir()} >= set(shown)


def test_the_readme_says_what_the_bundled_models_are_made_of(repo: Path) -> None:
    readme = (repo / "README.md").read_text(encoding="utf-8")
    for folder in (repo / "Resources" / "Models").iterdir():
        description = network_description(model_folder.load_card(folder).config.model)
        assert description in readme, folder.name


def test_every_screenshot_is_shown_somewhere(repo: Path) -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in [*pages(repo), repo / "CMakeLists.txt"])
    names = sorted(path.name for path in (repo / "Resources" / "Screenshots").iterdir())
    assert [name for name in names if f"Screenshots/{name}" not in texts] == []


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_every_python_example_is_python(repo: Path, page: str) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", (repo / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(examples) >= 2
    for example in examples:
        ast.parse(example)


def test_every_command_of_the_documents_parses(repo: Path) -> None:
    parsers: dict[str, ArgumentParser] = {}
    wrong, found = [], 0
    for path in pages(repo):
        for name, *words in commands(path.read_text(encoding="utf-8")):
            found += 1
            try:
                module = import_module(f"MaskSAMCore.{name}")
                if not hasattr(module, "parser"):
                    continue
                parsers.setdefault(name, module.parser()).parse_args(words)
            except (ImportError, SystemExit) as error:
                wrong.append(f"{path.relative_to(repo)}: {name} {shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)
    assert found > 15


def test_every_source_file_that_a_document_names_is_there(repo: Path) -> None:
    lost = []
    for path in pages(repo):
        if path.name in ("EXPERIMENTS.md",):
            continue
        text = documents.without_code(path.read_text(encoding="utf-8"))
        for name in {*FILE.findall(text), *SOURCE.findall(text)}:
            if "/" not in name and any(repo.rglob(name)):
                continue
            if not any(list((repo / base).glob(name)) for base in BASES):
                lost.append(f"{path.relative_to(repo)}: {name}")
    assert not lost, "\n".join(sorted(lost))


def test_contributing_names_the_file_to_open_for_each_change(repo: Path) -> None:
    text = (repo / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## To change … open …")[1].split("\n## ")[0]
    opened = {row[0]: FILE.findall(row[1]) for row in cells(table)[2:]}
    assert tuple(opened) == CHANGES
    for change, files in opened.items():
        assert files, f"{change}: names no file"
        assert all(list(repo.glob(file)) for file in files), f"{change}: {files}"


def test_the_workflow_covers_three_systems_and_runs_what_it_says(repo: Path) -> None:
    workflow = yaml.safe_load((repo / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert {name.split("-")[0] for name in job["strategy"]["matrix"]["os"]} == {"ubuntu", "windows", "macos"}
    steps = "\n".join(step.get("run", "") for step in job["steps"])
    assert "pip install" in steps
    assert "masksam demo" in steps
    assert '-m "not slow"' in steps


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("masksam segment scan.nii.gz -m NAME -o out", ["segment", "scan.nii.gz", "-m", "NAME", "-o", "out"]),
        ("    python -m MaskSAMCore.train A -o B [--fold N]   # now", ["train", "A", "-o", "B", "--fold", "N"]),
        ("torchrun --nproc-per-node 2 -m MaskSAMCore.train A", ["train", "A"]),
        ("python -m MaskSAMCore models list", ["models", "list"]),
    ],
)
def test_commands_are_found(line: str, wanted: list[str]) -> None:
    assert list(commands(line)) == [wanted]
