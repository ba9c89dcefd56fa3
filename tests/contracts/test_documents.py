"""What the documents point at exists."""

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
