"""Ray's token: made for its owner's eyes alone, once, whoever starts at the same time."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from retort.orchestration.auth_token import ensure_private_token, token_file
from tests.patience import HANG_S

VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)
    return tmp_path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_new_token_is_its_owners_alone_whatever_the_umask(home: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        ensure_private_token()
    finally:
        os.umask(before)
    assert token_file() == home / ".ray" / "auth_token"
    assert (mode_of(token_file()), mode_of(home / ".ray") & 0o077) == (0o600, 0)
    assert len(token_file().read_text()) == 64
    assert [path.name for path in (home / ".ray").iterdir()] == ["auth_token"]


def test_a_token_that_is_there_stays(home: Path) -> None:
    token_file().parent.mkdir()
    token_file().write_text("theirs")
    ensure_private_token()
    assert token_file().read_text() == "theirs"


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_TOKEN", "t"), ("RAY_AUTH_TOKEN_PATH", "/nowhere/t"), ("RAY_AUTH_MODE", "disabled")]
)
def test_nothing_is_made_for_a_ray_that_is_told_otherwise(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    ensure_private_token()
    assert not list(home.iterdir())


def test_where_no_file_can_be_written_the_process_has_a_token_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "no-folder").touch()
    monkeypatch.setenv("HOME", str(home / "no-folder"))
    ensure_private_token()
    first = os.environ["RAY_AUTH_TOKEN"]  # noqa: TID251 - it is what the function sets
    assert len(first) == 64
    assert not token_file().exists()
    ensure_private_token()
    assert os.environ["RAY_AUTH_TOKEN"] == first, "the same for every Ray of this process"  # noqa: TID251


def test_jobs_that_start_together_have_one_token(home: Path) -> None:
    found: list[str] = []
    together = threading.Barrier(8)

    def start() -> None:
        together.wait()
        ensure_private_token()
        found.append(token_file().read_text())

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(found[0]) == 64
    assert len(list((home / ".ray").iterdir())) == 1


@pytest.mark.ray
@pytest.mark.slow
def test_ray_takes_the_token_that_a_session_made(home: Path) -> None:
    code = "from retort.orchestration.cluster import ray_session\nwith ray_session(num_cpus=2):\n    import ray\n"
    code += "    print(ray.get(ray.remote(lambda: 6 * 7).remote()))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S)
    assert said.stdout.strip() == "42", said.stderr
    assert mode_of(token_file()) == 0o600
    assert len(token_file().read_text()) == 64, "ours, which Ray did not replace"
