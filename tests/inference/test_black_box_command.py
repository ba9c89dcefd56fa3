"""A program that somebody kills is run again; what it does of itself is a verdict on the line."""

import sys
from pathlib import Path

import pytest

from retort.inference.black_box import command
from retort.inference.black_box.command import Command, CommandConfig
from retort.inference.black_box.teacher import Line, Unspoken

SPEAKER = Path(__file__).parents[1] / "orchestration" / "generate" / "speaking_program.py"
LINE = Line("two words", "low", 1)


def ending(folder: Path, how: str, *, times: int) -> Command:
    """A program that ends in some way the first times, and then speaks."""
    program = folder / "program.sh"
    program.write_text(
        f'echo run >> "{folder}/runs"\n'
        f'if [ "$(wc -l < "{folder}/runs")" -le {times} ]; then {how}; fi\n'
        f'exec "{sys.executable}" "{SPEAKER}"\n'
    )
    return Command(CommandConfig(kind="command", arguments=("sh", str(program)), name="a", licence="b"))


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_KILLED_S", (0.0, 0.0))


@pytest.mark.parametrize(
    "how", ["kill -KILL $$", "kill -TERM $$", "kill -INT $$", "kill -HUP $$", "sh -c 'kill -9 $$'; exit"]
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_killed_program_is_run_again(tmp_path: Path, how: str, times: int) -> None:
    assert ending(tmp_path, how, times=times).speak(LINE).duration_s == pytest.approx(0.6)
    assert runs(tmp_path) == times + 1


def test_one_that_is_always_killed_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(Unspoken, match=r"killed \(-9\), 3 times") as fault:
        ending(tmp_path, "kill -KILL $$", times=9).speak(LINE)
    assert (fault.value.code, runs(tmp_path)) == ("teacher_killed", 3)


@pytest.mark.parametrize("how", ["exit 1", "kill -SEGV $$", "kill -ABRT $$"])
def test_what_it_does_of_itself_is_a_verdict_at_once(tmp_path: Path, how: str) -> None:
    with pytest.raises(Unspoken) as fault:
        ending(tmp_path, how, times=1).speak(LINE)
    assert (fault.value.code, runs(tmp_path)) == ("teacher_failed", 1)
