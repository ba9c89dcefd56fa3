"""What the documents point at exists."""

import ast
import re
from pathlib import Path

import pytest

from retort import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_readme_lists_the_commands_that_exist() -> None:
    commands = {
        command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback
    } | {group.name for group in cli.app.registered_groups}
    assert set(re.findall(r"\| `retort (\w+)", README)) == commands


def test_readme_shows_the_folders_that_exist() -> None:
    tree = README.split("## Folders")[1].split("```")[1]
    named = re.findall(r"^([\w/]+/)(?=\s)|^  ((?:\w+/ ?|\w+\.py)+)", tree, flags=re.MULTILINE)
    top = [name for name, _ in named if name]
    inside = [name for _, names in named for name in names.split()]
    assert len(top) >= 5
    assert len(inside) >= 12
    assert [name for name in top if not (ROOT / name).is_dir()] == []
    assert [name for name in inside if not (ROOT / "platform" / "retort" / name).exists()] == []
    package = {path.name + "/" for path in (ROOT / "platform" / "retort").iterdir() if (path / "__init__.py").is_file()}
    assert package <= set(inside), "every folder of the package is in the tree"


def test_readme_keeps_the_place_of_the_measured_results() -> None:
    assert README.count("<!-- results:begin -->") == 1
    assert README.index("<!-- results:begin -->") < README.index("<!-- results:end -->")


def test_files_that_architecture_names_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    names = [name for name in re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", text) if "<" not in name]
    missing = [n for n in names if not ((ROOT / "platform" / "retort" / n).exists() or (ROOT / n).exists())]
    assert len(names) > 10
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_decisions_are_numbered_without_gaps(document: Path) -> None:
    if document.parent.name != "decisions":
        assert document.read_text().startswith("# "), "a document opens with its title"
        return
    numbers = [int(path.name[:4]) for path in sorted(document.parent.glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))
    assert document.read_text().startswith(f"# {int(document.name[:4])}. ")


BAD_INPUT = (ROOT / "docs" / "bad_input.md").read_text()


def names_in(file: Path) -> set[str]:
    """Every test of a file, by its name in pytest below the file."""
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        held = [(node.name + "::", inner) for inner in node.body] if isinstance(node, ast.ClassDef) else [("", node)]
        names |= {prefix + inner.name for prefix, inner in held if isinstance(inner, ast.FunctionDef)}
    return {name for name in names if name.rpartition("::")[2].startswith("test_")}


def test_every_test_that_the_documents_name_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", "".join(document.read_text() for document in DOCUMENTS))
    assert len(named) > 60
    missing = [
        f"{file}::{name}" for file, name in named if not (ROOT / file).is_file() or name not in names_in(ROOT / file)
    ]
    assert missing == []


def test_every_bad_input_has_a_test_or_says_why_not() -> None:
    cases = re.split(r"^## (\d+)\. ", BAD_INPUT, flags=re.MULTILINE)
    assert [int(number) for number in cases[1::2]] == list(range(16, 26))
    for number, text in zip(cases[1::2], cases[2::2], strict=True):
        rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")][1:]
        assert len(rows) >= 4, number
        for what, happens, *test in rows:
            has_test = "`tests/" in "".join(test)
            assert has_test != happens.strip().startswith("no test: "), f"{number}: {what}"
