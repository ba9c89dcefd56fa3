"""No test depends on the machine's speed: limits of seconds are those of tests/patience.py, and sleeps are short.

A sleep of at most a second lets something happen that must not, or is the step of a poll; one longer than a hang stands
for a process that does not end by itself.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import HANG_S

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SHORT_S = 1.0
_CLOCKS = re.compile(r"\b(monotonic|perf_counter|time)\(\)")
_WAITS = {"wait", "join", "settimeout", "communicate", "set_default_timeout", "wait_for"}
_SLEEP_IN_TEXT = re.compile(r"\bsleep[( ](\d[\d_.e]*)")


def _number(node: ast.expr) -> float | None:
    is_number = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return float(node.value) if is_number and not isinstance(node.value, bool) else None  # type: ignore[attr-defined]


def _is_a_wait(seconds: float | None) -> bool:
    return seconds is not None and SHORT_S < seconds < HANG_S


def _faults_of_call(call: ast.Call) -> Iterator[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    text = ast.unparse(call.func)
    first = _number(call.args[0]) if call.args else None
    if name == "sleep" and _is_a_wait(first):
        yield f"{text}({first:g}) is a fixed wait: wait for what is to happen"
    if name in _WAITS and first is not None and first > SHORT_S:
        yield f"{text}({first:g}) is a limit of its own"
    if text == "pytest.mark.timeout":
        yield "pytest has one limit for all tests, in pyproject.toml"
    if any(keyword.arg == "timeout" and _number(keyword.value) is not None for keyword in call.keywords):
        yield f"{text}(timeout=…) is a limit of its own"


def faults(text: str) -> Iterator[str]:
    """What in a test's source depends on the machine's speed."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Call():
                yield from _faults_of_call(node)
            case ast.BinOp(op=ast.Add(), right=limit) if _CLOCKS.search(ast.unparse(node.left)):
                if _number(limit) is not None:
                    yield f"{ast.unparse(node)} is a limit of its own"
            case ast.Compare(ops=[ast.Lt() | ast.LtE()], comparators=[limit]) if _CLOCKS.search(ast.unparse(node.left)):
                if _number(limit) is not None:
                    yield f"{ast.unparse(node)} holds on a fast machine only"
            case ast.Constant(value=str(program)):
                found = [float(seconds) for seconds in _SLEEP_IN_TEXT.findall(program)]
                yield from (
                    f"sleep({seconds:g}) in a program ends by itself" for seconds in found if _is_a_wait(seconds)
                )


@pytest.mark.parametrize(
    "text",
    [
        "time.sleep(2)", "await asyncio.sleep(3.0)", "process.communicate(timeout=60)", "httpx.get(url, timeout=5)",
        "subprocess.run(x, timeout=280)", "thread.join(100)", "event.wait(60)", "connection.settimeout(30)",
        "page.wait_for_function('x', timeout=30_000)", "tab.set_default_timeout(20_000)",
        "deadline = time.monotonic() + 20", "end = time.time() + 120", "assert time.monotonic() - began < 5",
        "@pytest.mark.timeout(600)\ndef test(): ...", "JOB = 'import time\\ntime.sleep(60)'", "run('exec sleep 600')",
    ],
)  # fmt: skip
def test_waits_that_a_loaded_machine_fails_are_found(text: str) -> None:
    source = f"async def test():\n    {text}" if text.startswith("await") else text
    assert len(list(faults(source))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "time.sleep(0.3)", "time.sleep(1e6)", "done.wait(0.02)", "process.communicate(timeout=HANG_S)", "thread.join()",
        "deadline = time.monotonic() + HANG_S", "assert time.monotonic() - began >= 3.0", "', '.join(names)",
        "JOB = 'time.sleep(1e6)'", "limits = Limits(body_timeout_s=0.2)", "os.path.join('a', 'b')",
    ],
)  # fmt: skip
def test_waits_for_events_pass(text: str) -> None:
    assert list(faults(text)) == []


def test_no_test_depends_on_the_machines_speed() -> None:
    files = sorted(file for file in TESTS.rglob("*.py") if file != Path(__file__))
    assert len(files) > 200
    found = {str(file.relative_to(ROOT)): list(faults(file.read_text())) for file in files}
    assert {file: told for file, told in found.items() if told} == {}


def test_pytests_own_limit_leaves_room_for_a_hang_to_be_told() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert settings["timeout"] >= 2 * HANG_S
