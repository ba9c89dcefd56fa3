"""The budgets: a file has at most 400 lines, a function 60 lines and 8 arguments, an entry script 40 lines."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("platform", "jobs", "serve", "benchmarks")
MAX_FILE, MAX_FUNCTION, MAX_ARGUMENTS, MAX_ENTRY_SCRIPT = 400, 60, 8, 40
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "core", "factory", "misc"}


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def over_budget(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION:
                yield f"{node.name} has {lines} lines"
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MAX_ARGUMENTS:
                yield f"{node.name} has {count} arguments"


def test_files_are_short() -> None:
    files = python_files(*CODE, "tests")
    lengths = {file.relative_to(ROOT): len(file.read_text().splitlines()) for file in files}
    assert len(files) > 100
    assert {str(file): lines for file, lines in lengths.items() if lines > MAX_FILE} == {}


def test_functions_are_short_and_take_few_arguments() -> None:
    files = python_files(*CODE)
    assert {str(f.relative_to(ROOT)): found for f in files if (found := list(over_budget(f.read_text())))} == {}


def test_entry_scripts_are_boring() -> None:
    scripts = sorted((ROOT / "jobs").glob("*.py"))
    assert scripts
    assert [script.name for script in scripts if len(script.read_text().splitlines()) > MAX_ENTRY_SCRIPT] == []


def test_no_module_is_named_after_nothing() -> None:
    named = [file for file in python_files(*CODE) if BANNED_NAMES & {file.stem, *file.relative_to(ROOT).parts[:-1]}]
    assert named == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f():\n" + "    x = 1\n" * 60, ["f has 61 lines"]),
        ("class C:\n    def f(self, a, b, c, d, e, *, g, h, i): ...", []),
        ("async def f(a, b, c, d, /, e, *, g, h, i, j): ...", ["f has 9 arguments"]),
    ],
)
def test_budgets_are_counted_right(text: str, expected: list[str]) -> None:
    assert list(over_budget(text)) == expected
