"""Names of files that belong to ids: safe whatever the id, and each id's own."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.store.file_names import file_name
from retort.store.manifest import safe_key

HOSTILE = (
    "a/b", "a\\b", "/a", "\\a", "..", ".", "../../a", ".hidden", "x" * 300, "x" * 301, "ü" * 300, "tab\tid", "line\nid",
    "nul\0id", "\x1b[2J", "Ü", "ü", "u\u0308", "你好", "A", "a", "a_b", "a b", "a%2Fb", "a--b", "a~0123456789abcdef",
    "", "-rf", "a.", "con", "CON", "*?<>|:\"", "\u202eevil", "u01.wav",
)  # fmt: skip


@pytest.mark.parametrize(
    "names", [("slow",), ("recordings", "u00"), ("teacher_guided", "0_jackson_12"), ("a.b-c", "1")]
)
def test_plain_names_stay_as_they_are(names: tuple[str, ...]) -> None:
    assert file_name(*names) == "--".join(names)


def test_every_name_has_a_file_of_its_own_even_where_capitals_are_small_letters(tmp_path: Path) -> None:
    found = [file_name(name) for name in HOSTILE] + [file_name(one, other) for one in HOSTILE for other in HOSTILE]
    assert len({name.casefold() for name in found}) == len(HOSTILE) + len(HOSTILE) ** 2
    for name in found[: len(HOSTILE)]:
        (tmp_path / f"{name}-0000.mels.safetensors.tmp-{'0' * 32}").touch()
    assert len(list(tmp_path.iterdir())) == len(HOSTILE)


@given(st.lists(st.text(max_size=400), min_size=1, max_size=3))
def test_any_name_is_one_short_part_of_a_path_and_a_key(names: list[str]) -> None:
    found = file_name(*names)
    assert safe_key(found) == found
    assert "/" not in found
    assert not found.startswith((".", "-"))
    assert len(found.encode()) <= 160
    assert file_name(*names) == found


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_where_names_are_joined_nobody_takes_the_place_of_others(a: str, b: str, c: str) -> None:
    made = {file_name(f"{a}--{b}", c), file_name(a, f"{b}--{c}"), file_name(f"{a}--{b}--{c}"), file_name(a, b, c)}
    assert len(made) == 4
