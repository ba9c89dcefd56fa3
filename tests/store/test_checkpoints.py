import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.errors import DataError, ResourceError, StorageError
from retort.store.checkpoints import CheckpointFolder
from retort.store.commit import verify_folder
from tests.patience import HANG_S
from tests.store.conftest import fill


def save(folder: CheckpointFolder, step: int, size: int = 10) -> Path:
    return folder.save(step, lambda path: fill(path, {"w.bin": bytes([step % 256]) * size}), {"loss": step / 2})


def latest(folder: CheckpointFolder) -> int | None:
    good = folder.latest_good()
    return None if good is None else good.step


def flip(file: Path, position: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_saved_checkpoint_is_found_with_its_record(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    assert folder.latest_good() is None
    assert folder.steps() == []
    assert save(folder, 1000).name == "step-00001000"
    good = folder.latest_good()
    assert good is not None
    assert (good.step, good.meta, good.path.name) == (1000, {"loss": 500.0}, "step-00001000")
    assert {entry.path for entry in good.manifest.entries} == {"w.bin", "meta.json"}


def test_only_the_last_ones_stay(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=3)
    for step in range(0, 60, 10):
        save(folder, step)
    assert folder.steps() == [30, 40, 50]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000030", "step-00000040", "step-00000050"]


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": lambda path: flip(path / "w.bin"),
    "manifest": lambda path: flip(path / "MANIFEST.sha256", 30),
    "marker": lambda path: flip(path / "COMMITTED"),
    "deleted": lambda path: (path / "w.bin").unlink(),
    "uncommitted": lambda path: (path / "COMMITTED").unlink(),
    "truncated": lambda path: os.truncate(path / "w.bin", 3),
    "emptied": lambda path: [p.unlink() for p in path.iterdir()] and None,
    "renamed": lambda path: path.rename(path.with_name("step-00000099")) and None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_falls_back_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, 10)
    DAMAGES[damage](save(folder, 20))
    with caplog.at_level(logging.WARNING, logger="retort.store.checkpoints"):
        assert latest(folder) == 10
    assert len(caplog.records) == 1
    assert ("step 99" if damage == "renamed" else "step 20") in caplog.text
    assert any(word in caplog.text for word in ("damaged", "missing", "renamed"))
    # The run goes on from step 10 and comes by step 20 again.
    if damage != "renamed":
        save(folder, 20)
        assert latest(folder) == 20


def test_record_that_is_no_record_counts_as_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from retort.store.commit import commit_folder

    folder = CheckpointFolder(tmp_path)
    save(folder, 10)
    with commit_folder(tmp_path / "step-00000020") as path:
        (path / "meta.json").write_text("[]")
    assert latest(folder) == 10
    assert "not a checkpoint's record" in caplog.text


def test_intact_one_below_damaged_newer_ones_stays(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1)
    flip(save(folder, 20) / "w.bin")
    save(folder, 10)  # the newest committed name is step 20, which does not verify
    assert latest(folder) == 10
    save(folder, 15)
    assert latest(folder) == 15
    assert folder.steps() == [15, 20]
    save(folder, 30)
    assert folder.steps() == [30]


@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(
        st.tuples(st.sampled_from(["save", "save", "flip", "unmark", "delete"]), st.integers(0, 3)), max_size=12
    ),
    keep=st.integers(1, 3),
)
def test_the_last_verified_one_is_never_deleted(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, int]], keep: int
) -> None:
    # The model: whatever is saved after whatever damage, the newest intact checkpoint before a save is still there
    # after it, unless the save made a newer or the same one.
    root = tmp_path_factory.mktemp("c")
    folder = CheckpointFolder(root, keep_last=keep)
    for move, step in moves:
        path = root / f"step-{step:08d}"
        if move == "save":
            before = latest(folder)
            save(folder, step)
            verify_folder(path) if before is None or step >= before else None
            assert latest(folder) == max(step, -1 if before is None else before)
        elif path.is_dir():
            if move == "delete":
                shutil.rmtree(path)
            elif move == "unmark":
                (path / "COMMITTED").unlink(missing_ok=True)
            else:
                flip(path / "w.bin")
    shutil.rmtree(root)


WRITER = """
import sys, pathlib
from retort.store.checkpoints import CheckpointFolder
folder = CheckpointFolder(pathlib.Path(sys.argv[1]), keep_last=2)
step = max(folder.steps(), default=0)
def fill(path):
    for part in range(8):
        (path / f"part{part}.bin").write_bytes(bytes([step % 256, part]) * 20_000)
print("ready", flush=True)
while True:
    step += 1
    folder.save(step, fill, {"step": step})
    print(step, flush=True)
"""


def test_killed_writers_lose_nothing_that_was_committed(tmp_path: Path) -> None:
    rng = random.Random(7)
    acknowledged = 0
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        begun = time.monotonic()
        said = writer.stdout.readline()
        # Somewhere within the next save or the one after, however fast this machine is.
        time.sleep(rng.uniform(0.0, 2.0) * (time.monotonic() - begun))
        writer.send_signal(signal.SIGKILL)
        said += writer.communicate()[0]
        # The last line can be cut by the kill; a whole one was printed after its commit.
        acknowledged = max(
            [acknowledged, *(int(line) for line in said.splitlines(keepends=True) if line.endswith("\n"))]
        )
        good = CheckpointFolder(tmp_path).latest_good()
        assert (0 if good is None else good.step) >= acknowledged
        if good is not None:
            assert (good.path / "part7.bin").read_bytes() == bytes([good.step % 256, 7]) * 20_000
    assert acknowledged > 0
    folder = CheckpointFolder(tmp_path)
    save(folder, acknowledged + 100)
    assert latest(folder) == acknowledged + 100
    assert all(path.name.startswith("step-") and ".tmp-" not in path.name for path in tmp_path.iterdir())


def test_full_disk_keeps_the_last_good(tmp_path: Path, small_disk: Callable[[str], Path | None]) -> None:
    import resource

    disk = small_disk("size=3m")
    root = (disk or tmp_path) / "checkpoints"
    folder = CheckpointFolder(root, keep_last=1)
    save(folder, 1, 1_200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if disk is None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        for step in (2, 3):
            with pytest.raises(ResourceError, match=f"step-0000000{step}: needs more than"):
                save(folder, step, 2_500_000)
            assert latest(folder) == 1
        save(folder, 4, 1_200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folder.steps() == [4]
    assert latest(folder) == 4


RANK = """
import sys, pathlib
from retort.store.checkpoints import CheckpointFolder
root, attempt, rank = sys.argv[1:]
folder = CheckpointFolder(pathlib.Path(root), attempt=attempt)
for step in (1, 2, 3):
    (folder.begin(step) / f"rank{rank}.bin").write_bytes(bytes([step, int(rank)]) * 1000)
    print("written", flush=True)       # the barrier: the parent waits for all and answers
    sys.stdin.readline()
    if rank == "0":
        folder.finish(step, {"ranks": 3}, expected_files=[f"rank{r}.bin" for r in range(3)])
    print("done", flush=True)
    sys.stdin.readline()
"""


def test_several_processes_write_one_checkpoint(tmp_path: Path) -> None:
    attempt = uuid.uuid4().hex
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path), attempt, str(rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]

    def barrier(word: str) -> None:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == word + "\n"
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("\n")
            rank.stdin.flush()

    for step in (1, 2, 3):
        barrier("written")
        barrier("done")
        good = CheckpointFolder(tmp_path).latest_good()
        assert good is not None
        assert good.step == step
        assert [(good.path / f"rank{r}.bin").read_bytes()[:2] for r in range(3)] == [bytes([step, r]) for r in range(3)]
    for rank in ranks:
        rank.communicate(timeout=HANG_S)
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert CheckpointFolder(tmp_path).steps() == [2, 3]


def test_shards_of_a_dead_attempt_do_not_mix_in(tmp_path: Path) -> None:
    dead = CheckpointFolder(tmp_path)
    (dead.begin(5) / "rank7.bin").write_bytes(b"stale")
    dead._release()  # as the kernel does when the process dies
    alive = CheckpointFolder(tmp_path)
    fill(alive.begin(5), {"rank0.bin": b"fresh"})
    alive.finish(5, {})
    good = alive.latest_good()
    assert good is not None
    assert {entry.path for entry in good.manifest.entries} == {"rank0.bin", "meta.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_late_shard_is_not_committed_without(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, 1)
    fill(folder.begin(2), {"rank0.bin": b"x"})
    with pytest.raises(StorageError, match=r"rank1\.bin: missing when step 2"):
        folder.finish(2, {}, expected_files=["rank0.bin", "rank1.bin"])
    assert folder.steps() == [1]
    fill(folder.begin(2), {"rank0.bin": b"x", "rank1.bin": b"y"})
    folder.finish(2, {}, expected_files=["rank0.bin", "rank1.bin"])
    assert latest(folder) == 2


def test_reader_leaves_a_living_writer_alone(tmp_path: Path) -> None:
    writer, reader = CheckpointFolder(tmp_path), CheckpointFolder(tmp_path)
    fill(writer.begin(1), {"w.bin": b"x"})
    assert reader.latest_good() is None
    save(reader, 7)  # even another writer's sweep does
    writer.finish(1, {})
    assert reader.steps() == [1, 7]


def test_reading_deletes_nothing_but_moves_a_lost_target_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, 1)
    save(folder, 2).rename(tmp_path / f"step-00000002.old-{'0' * 32}")  # a writer died between two renames
    dead = tmp_path / f"step-00000003.tmp-{'0' * 32}"  # on a network file system it may live on another host
    fill(dead)
    assert latest(folder) == 2
    assert dead.exists()


def test_wrong_arguments_are_bugs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_last is 0"):
        CheckpointFolder(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match=r"attempt is '\.\./x'"):
        CheckpointFolder(tmp_path, attempt="../x")
    with pytest.raises(ValueError, match="step is -1"):
        save(CheckpointFolder(tmp_path), -1)


def test_record_that_is_not_json_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, 1)
    with pytest.raises(DataError, match="step 2: its record is not JSON data"):
        folder.save(2, fill, {"loss": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_record_is_plain_json(tmp_path: Path) -> None:
    path = save(CheckpointFolder(tmp_path), 3)
    record = json.loads((path / "meta.json").read_text())
    assert record["step"] == 3
    assert record["meta"] == {"loss": 1.5}
