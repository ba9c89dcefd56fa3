"""API keys: more than one, rotated without a restart, never opened by a mistake."""

from pathlib import Path

import pytest

from retort.errors import ConfigError
from retort.serving.gate import Failures
from retort.serving.keys import ApiKeys

FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"


def write(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def test_each_key_opens_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{FIRST}\n\n{SECOND}\n")
    keys = ApiKeys(path)
    assert keys.accepts(f"Bearer {FIRST}")
    assert keys.accepts(f"bearer  {SECOND} ")
    for wrong in (
        None,
        "",
        FIRST,
        f"Basic {FIRST}",
        "Bearer ",
        f"Bearer {FIRST[:-1]}",
        f"Bearer {FIRST}x",
        "Bearer # ours",
    ):
        assert not keys.accepts(wrong), wrong


def test_keys_are_rotated_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(FIRST)
    keys = ApiKeys(path)
    write(path, f"{FIRST}\n{SECOND}\n")
    assert keys.accepts(f"Bearer {SECOND}")
    assert keys.accepts(f"Bearer {FIRST}")
    write(path, SECOND)
    assert not keys.accepts(f"Bearer {FIRST}")


@pytest.mark.parametrize("content", ["", "# nothing\n", "short\n"])
def test_a_spoilt_file_neither_opens_nor_locks(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"no API key|fewer than 16 characters"):
        ApiKeys(path)
    path.write_text(FIRST)
    keys = ApiKeys(path)
    write(path, content)
    assert keys.accepts(f"Bearer {FIRST}")
    assert not keys.accepts("Bearer ")
    path.unlink()
    assert keys.accepts(f"Bearer {FIRST}")


def test_an_address_that_keeps_guessing_waits_and_others_do_not() -> None:
    now = 0.0
    failures = Failures(most=3, clock=lambda: now)
    assert [failures.add("a") for _ in range(5)] == [False, False, False, True, True]
    assert not failures.add("b")
    now = 61.0
    assert not failures.add("a"), "a minute later it may try again"


def test_a_storm_of_addresses_takes_no_memory() -> None:
    failures = Failures()
    for number in range(20_000):
        failures.add(str(number))
    assert len(failures) <= 10_000
