import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.errors import StorageError
from retort.store import commit
from retort.store.commit import (
    commit_folder,
    is_committed,
    restore_replaced,
    sweep_orphans,
    verify_folder,
    write_bytes_atomic,
    write_json_atomic,
)
from retort.store.disk import remove_tree
from tests.store.conftest import CONTENT, fill, read_tree

OLD = {"weights": b"old", "sub/more": b"old too"}
NEW = {"weights": b"new and longer", "other": b"x"}


def write(target: Path, content: dict[str, bytes], *, replace: bool = False) -> None:
    with commit_folder(target, replace=replace) as folder:
        fill(folder, content)


def payload(target: Path) -> dict[str, bytes]:
    verify_folder(target)
    return {k: v for k, v in read_tree(target).items() if k not in ("COMMITTED", "MANIFEST.sha256")}


def test_committed_folder_verifies_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "out"
    write(target, CONTENT)
    assert payload(target) == CONTENT
    assert is_committed(target)
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_target_is_absent_until_the_end(tmp_path: Path) -> None:
    with commit_folder(tmp_path / "out") as folder:
        fill(folder)
        assert not (tmp_path / "out").exists()
        assert not is_committed(folder)
        assert folder.name.startswith("out.tmp-")


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_failure_leaves_the_old_target_and_no_temporary(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "out", OLD)

    def fail() -> None:
        with commit_folder(tmp_path / "out", replace=True) as folder:
            fill(folder, NEW)
            raise error

    with pytest.raises(type(error)):
        fail()
    assert payload(tmp_path / "out") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_existing_target_is_refused_then_replaced_on_request(tmp_path: Path) -> None:
    write(tmp_path / "out", OLD)
    with pytest.raises(StorageError, match="exists already"):
        write(tmp_path / "out", NEW)
    assert payload(tmp_path / "out") == OLD
    write(tmp_path / "out", NEW, replace=True)
    assert payload(tmp_path / "out") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(StorageError, match="no commit wrote"):
        write(tmp_path / "thesis", NEW, replace=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="not a folder"):
        write(tmp_path / "file", NEW, replace=True)
    assert read_tree(tmp_path) == {"file": b"x", "thesis/chapter1.tex": b"years of work"}


def test_target_that_appears_meanwhile_wins(tmp_path: Path) -> None:
    slow = commit_folder(tmp_path / "out")
    fill(slow.__enter__(), NEW)
    write(tmp_path / "out", OLD)
    with pytest.raises(StorageError, match="exists already"):
        slow.__exit__(None, None, None)
    assert payload(tmp_path / "out") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["COMMITTED", "MANIFEST.sha256"])
def test_reserved_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="reserved"):
        write(tmp_path / "out", {name: b"forged"})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sealed") / "out"
    write(target, CONTENT)
    return target


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_detected_and_its_file_named(sealed: Path, data: st.DataObject) -> None:
    files = [path for path in sorted(sealed.rglob("*")) if path.is_file() and path.stat().st_size]
    file = data.draw(st.sampled_from(files))
    content = file.read_bytes()
    position, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    file.write_bytes(damaged)
    try:
        with pytest.raises(StorageError) as raised:
            verify_folder(sealed)
    finally:
        file.write_bytes(content)
    # A changed marker cannot be told from a changed manifest, so either of the two names is right for it.
    assert file.name in str(raised.value) or "MANIFEST" in file.name
    verify_folder(sealed)


def test_every_byte_of_a_small_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, {"a": b"xy", "b/c": b"z"})
    undetected = []
    for file in [path for path in target.rglob("*") if path.is_file()]:
        content = file.read_bytes()
        for position in range(len(content)):
            for changed in (
                content[:position],
                content[:position] + bytes([content[position] ^ 32]) + content[position + 1 :],
            ):
                file.write_bytes(changed)
                try:
                    verify_folder(target)
                    undetected.append((file.name, position))
                except StorageError:
                    continue
        file.write_bytes(content)
    assert undetected == []
    verify_folder(target)


@pytest.mark.parametrize("name", ["config.json", "COMMITTED", "MANIFEST.sha256", "deep/er/empty.bin"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "out", CONTENT)
    (tmp_path / "out" / name).unlink()
    with pytest.raises(StorageError, match=f"{name}: missing"):
        verify_folder(tmp_path / "out")


def test_extra_file_and_link_in_place_of_a_file_are_named(tmp_path: Path) -> None:
    write(tmp_path / "out", CONTENT)
    (tmp_path / "out" / "deep" / "intruder").write_text("x")
    with pytest.raises(StorageError, match="deep/intruder: extra"):
        verify_folder(tmp_path / "out")
    (tmp_path / "out" / "deep" / "intruder").unlink()
    (tmp_path / "same").write_bytes(CONTENT["config.json"])
    (tmp_path / "out" / "config.json").unlink()
    (tmp_path / "out" / "config.json").symlink_to(tmp_path / "same")
    with pytest.raises(StorageError, match=r"config\.json: neither"):
        verify_folder(tmp_path / "out")


def crash_at(number: int, action: Callable[[], None]) -> bool:
    """Run ``action`` in a forked child that is killed after ``number`` file operations; True if it finished."""
    child = os.fork()
    if child == 0:
        seen = 0

        def watch(event: str, _: object) -> None:
            nonlocal seen
            if event.split(".")[0] in ("open", "os", "fcntl", "shutil", "ctypes") and event != "os.kill":
                seen += 1
                if seen > number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), "the action failed by itself"
    return status == 0


def crash_everywhere(action: Callable[[], None], check: Callable[[], None]) -> int:
    """Kill ``action`` before each of its file operations in turn, with ``check`` after each; how many there were."""
    for number in range(1000):
        finished = crash_at(number, action)
        check()
        if finished:
            return number
    raise AssertionError("the action does not end")


def test_writer_killed_at_any_file_operation(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def check() -> None:
        if target.exists():
            assert payload(target) == NEW
            shutil.rmtree(target)
        write(target, OLD)  # the next writer succeeds and clears what the dead one left
        assert payload(target) == OLD
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        shutil.rmtree(target)

    assert crash_everywhere(lambda: write(target, NEW), check) > 20


def test_replacing_writer_killed_at_any_file_operation(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, OLD)
    results = []

    def check() -> None:
        results.append(payload(target))  # a whole folder, old or new, at every moment
        assert results[-1] in (OLD, NEW)
        write(target, OLD, replace=True)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    crash_everywhere(lambda: write(target, NEW, replace=True), check)
    assert OLD in results
    assert NEW in results


def test_swap_without_an_atomic_exchange_killed_at_any_file_operation(tmp_path: Path) -> None:
    target, fresh = tmp_path / "out", tmp_path / f"out.tmp-{'0' * 32}"
    gaps = 0

    def prepare() -> None:
        write(target, OLD)
        fill(fresh, NEW)
        commit.seal_folder(fresh)

    def check() -> None:
        nonlocal gaps
        gaps += not target.exists()
        restore_replaced(tmp_path)
        assert payload(target) in (OLD, NEW)
        sweep_orphans(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        shutil.rmtree(target)
        prepare()

    prepare()
    crash_everywhere(lambda: commit._swap_by_renames(fresh, target), check)
    assert gaps >= 1  # the moment between the two renames was hit


def test_sweep_spares_the_living(tmp_path: Path) -> None:
    with commit_folder(tmp_path / "out") as folder:
        fill(folder)
        assert sweep_orphans(tmp_path) == []
        dead = tmp_path / f"out.tmp-{'a' * 32}"
        fill(dead)
        assert sweep_orphans(tmp_path) == [dead]
        assert not dead.exists()
    assert payload(tmp_path / "out") == CONTENT


def test_sweep_touches_only_leftovers(tmp_path: Path) -> None:
    for name in ("out.tmp-short", "out", "my.tmp-" + "g" * 32, "notes.old-2024"):
        fill(tmp_path / name)
    stale, fresh = (tmp_path / f"x.json.tmp-{digit * 32}" for digit in "12")
    stale.write_text("{")
    fresh.write_text("{")
    os.utime(stale, (time.time() - 3600,) * 2)
    before = set(tmp_path.iterdir())
    assert sweep_orphans(tmp_path) == [stale]
    assert before - set(tmp_path.iterdir()) == {stale}


def test_removal_never_leaves_a_half_deleted_folder_in_place(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, CONTENT)

    def check() -> None:
        if target.exists():
            assert payload(target) == CONTENT
        else:
            write(target, CONTENT)

    assert crash_everywhere(lambda: remove_tree(target), check) > 5


def test_sweep_of_one_name(tmp_path: Path) -> None:
    mine, other = tmp_path / f"a.tmp-{'0' * 32}", tmp_path / f"b.tmp-{'0' * 32}"
    fill(mine)
    fill(other)
    assert sweep_orphans(tmp_path, name="a") == [mine]
    assert other.exists()


def test_lock_dies_with_its_holder(tmp_path: Path) -> None:
    with commit_folder(tmp_path / "out") as folder:
        fd = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file/out: cannot create"):
        write(tmp_path / "file" / "out", NEW)
    with pytest.raises(StorageError, match=r"file/x\.json: cannot write"):
        write_json_atomic(tmp_path / "file" / "x.json", {})


def test_error_of_the_body_is_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), commit_folder(tmp_path / "out"):
        (tmp_path / "no such input").read_bytes()


def test_json_is_replaced_whole_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    write_json_atomic(path, {"b": 1, "a": [1.5, None, "ü"]})
    assert json.loads(path.read_text()) == {"a": [1.5, None, "ü"], "b": 1}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomic(path, float("nan"))
    assert crash_everywhere(lambda: write_bytes_atomic(path, b"2"), lambda: json.loads(path.read_text())) > 3
    assert path.read_bytes() == b"2"
