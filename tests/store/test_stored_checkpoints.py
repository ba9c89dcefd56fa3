"""Checkpoints in a store: copied while the job goes on, taken from there by the next node, refused, damaged, or out."""

import threading
from typing import Any

import pytest

from retort.errors import StorageError
from retort.store import uploads
from retort.store.checkpoints import CheckpointFolder, steps_at
from retort.store.commit import is_committed
from retort.store.place import local_of, push, store_of
from tests.patience import HANG_S, comes
from tests.store.conftest import FaultProxy, Node, fill


def save(folder: CheckpointFolder, step: int) -> None:
    folder.save(step, lambda target: fill(target, {"rank.bin": str(step).encode() * 100}), {"step": step})


def test_checkpoints_reach_the_store_and_the_next_node_goes_on_from_them(node: Node) -> None:
    root = node.place("runs/a/checkpoints")
    ours = CheckpointFolder(local_of(root), keep_last=2)
    for step in (2, 4, 6):
        save(ours, step)
    assert ours.close(60)
    assert steps_at(root)[-1] == 6
    assert len(steps_at(root)) <= 2
    node.become_another()
    found = CheckpointFolder(local_of(root), keep_last=2).latest_good()
    assert found is not None
    assert found.step == 6
    assert (found.path / "rank.bin").read_bytes() == b"6" * 100


def test_a_damaged_checkpoint_in_the_store_is_passed_over(node: Node, raw_s3: Any) -> None:
    root = node.place("runs/a/checkpoints")
    for step in (2, 4):
        ours = CheckpointFolder(local_of(root), keep_last=2)
        save(ours, step)
        assert ours.close(60)
    raw_s3.put_object(Bucket=node.bucket, Key="runs/a/checkpoints/step-00000004/rank.bin", Body=b"5" * 100)
    node.become_another()
    found = CheckpointFolder(local_of(root)).latest_good()
    assert found is not None
    assert found.step == 2


@pytest.mark.parametrize("how", ["changed", "a file is missing", "its manifest changed", "its marker changed"])
def test_a_damaged_checkpoint_does_not_stand_in_the_way_of_the_one_that_is_made_again(
    node: Node, raw_s3: Any, how: str
) -> None:
    """Only one is kept in the store, and the damaged one is not it."""
    root = node.place("runs/a/checkpoints")
    for step in (2, 8):
        ours = CheckpointFolder(local_of(root), keep_last=2)
        save(ours, step)
        assert ours.close(HANG_S)
    name = {"its manifest changed": "MANIFEST.sha256", "its marker changed": "COMMITTED"}.get(how, "rank.bin")
    damaged = f"{root.key}/step-00000008/{name}"
    if how == "a file is missing":
        raw_s3.delete_object(Bucket=node.bucket, Key=damaged)
    else:
        raw_s3.put_object(Bucket=node.bucket, Key=damaged, Body=b"damaged")
    for made, found_before in ((6, 2), (8, 6)):
        node.become_another()
        again = CheckpointFolder(local_of(root), keep_last=1)
        found = again.latest_good()
        assert found is not None
        assert found.step == found_before
        again.save(made, lambda target: fill(target, {"rank.bin": b"made again"}), {})
        assert again.close(HANG_S)
        assert steps_at(root) == [made]
    node.become_another()
    found = CheckpointFolder(local_of(root)).latest_good()
    assert found is not None
    assert (found.path / "rank.bin").read_bytes() == b"made again"


@pytest.mark.parametrize("how", ["503:SlowDown", "403:AccessDenied"])
def test_a_checkpoint_that_cannot_be_fetched_is_neither_passed_over_nor_deleted(
    node: Node, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    root = node.place("runs/a/checkpoints")
    for step in (2, 4):
        ours = CheckpointFolder(local_of(root), keep_last=2)
        save(ours, step)
        assert ours.close(HANG_S)
    node.become_another()
    monkeypatch.setenv("RETORT_S3_OUTAGE_MINUTES", "0")
    store_of.cache_clear()
    proxy.break_next("GET", "step-00000004/MANIFEST.sha256", how, times=999)
    with pytest.raises(StorageError, match="step-00000004"):
        CheckpointFolder(local_of(root)).latest_good()
    proxy.faults.clear()
    assert steps_at(root) == [2, 4]
    found = CheckpointFolder(local_of(root)).latest_good()
    assert found is not None
    assert found.step == 4


def test_closing_says_whether_the_newest_checkpoint_is_stored(node: Node, proxy: FaultProxy) -> None:
    root = node.place("runs/a/checkpoints")
    assert CheckpointFolder(local_of(root)).close(), "there is none"
    for step, how, is_stored in ((2, "", True), (4, "403:AccessDenied", False), (6, "", True)):
        ours = CheckpointFolder(local_of(root), keep_last=1)
        take = proxy.take
        if how:
            proxy.take = lambda method, *rest: "403:AccessDenied" if method == "PUT" else ""  # type: ignore[method-assign]
        save(ours, step)
        assert ours.close(HANG_S) is is_stored
        proxy.take = take  # type: ignore[method-assign]
        assert (step in steps_at(root)) is is_stored
    # One that is stored is not called lost because older ones may not be deleted.
    proxy.take = lambda method, *rest: "403:AccessDenied" if method == "DELETE" else ""  # type: ignore[method-assign]
    ours = CheckpointFolder(local_of(root), keep_last=1)
    save(ours, 8)
    assert ours.close(HANG_S)
    assert steps_at(root) == [6, 8]


def test_a_store_that_refuses_checkpoint_after_checkpoint_ends_the_training_with_a_copy_kept_here(
    node: Node, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_RETRY_S", 0.01)
    root = node.place("runs/a/checkpoints")
    ours, take, is_refusing = CheckpointFolder(local_of(root), keep_last=9), proxy.take, threading.Event()

    def answer(*request: Any) -> str:
        how = take(*request)
        return "403:AccessDenied" if is_refusing.is_set() else how

    proxy.take = answer  # type: ignore[method-assign]

    def save_and_be_refused(step: int) -> None:
        save(ours, step)
        assert comes(lambda: proxy.count("HEAD", f"step-{step:08d}/COMMITTED") > 1), "refused, and tried again"

    is_refusing.set()
    for step in (2, 4):
        save_and_be_refused(step)
    is_refusing.clear()
    assert comes(lambda: 4 in steps_at(root)), "what was refused before one was stored does not count"
    is_refusing.set()
    for step in (6, 8, 10):
        save_and_be_refused(step)
    with pytest.raises(StorageError, match="access denied") as error:
        save(ours, 12)
    assert str(error.value).startswith("step-00000006, step-00000008, step-00000010 could not be stored, and step-0000")
    here = local_of(root) / "step-00000012"
    assert f"copy {here} to {root}/step-00000012 before you run the same command again" in str(error.value)
    assert is_committed(here)
    is_refusing.clear()
    assert comes(lambda: 12 in steps_at(root)), "it is tried until the end"
    assert ours.close(HANG_S)


def test_a_checkpoint_that_the_store_has_otherwise_is_taken_from_there(node: Node, proxy: FaultProxy) -> None:
    """Ranks on several nodes must go on from the same bytes, whatever an earlier attempt left on their disks."""
    root = node.place("runs/a/checkpoints")
    here = CheckpointFolder(local_of(root))
    save(here, 4)
    assert here.close(60)
    first = node.cache
    node.become_another()
    CheckpointFolder(local_of(root)).save(4, lambda target: fill(target, {"rank.bin": b"other"}), {})
    store_of(node.bucket).delete_prefix(f"{root.key}/step-00000004")
    push(local_of(root) / "step-00000004")
    node.monkeypatch.setenv("XDG_CACHE_HOME", str(first))
    for fetched in (1, 0):
        proxy.requests.clear()
        found = CheckpointFolder(local_of(root)).latest_good()
        assert found is not None
        assert (found.path / "rank.bin").read_bytes() == b"other"
        assert proxy.count("GET", "rank.bin") == fetched


def test_parts_of_a_checkpoint_that_nobody_put_together_are_swept(node: Node) -> None:
    root, attempt = node.place("runs/a/checkpoints"), "a" * 32
    ours = CheckpointFolder(local_of(root), attempt=attempt)
    save(ours, 2)
    assert ours.close(60)
    for name in (f"step-00000004.tmp-{'0' * 32}", f"step-00000004.tmp-{attempt}"):
        store_of(node.bucket).write_bytes(f"{root.key}/{name}/rank_00001.safetensors", b"part")
    found = CheckpointFolder(local_of(root), attempt=attempt).latest_good()
    assert found is not None
    assert found.step == 2
    parts = [key for key in store_of(node.bucket).list(root.key) if ".tmp-" in key]
    assert parts == [f"{root.key}/step-00000004.tmp-{attempt}/rank_00001.safetensors"]
    folder = ours.begin(4)
    fill(folder, {"rank_00001.safetensors": b"part"})
    ours.leave(4)
    assert not folder.exists()


def test_training_goes_on_through_an_outage_and_the_newest_checkpoint_is_uploaded_later(
    node: Node, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_S3_OUTAGE_MINUTES", "0")
    root = node.place("runs/a/checkpoints")
    ours = CheckpointFolder(local_of(root), keep_last=2)
    take, is_out = proxy.take, threading.Event()
    is_out.set()
    proxy.take = lambda *request: "503:SlowDown" if is_out.is_set() else take(*request)  # type: ignore[method-assign]
    for step in (2, 4, 6, 8):
        save(ours, step)  # returns though nothing can be stored
    here = [path.name for path in sorted(local_of(root).glob("step-*"))]
    assert here[-2:] == ["step-00000006", "step-00000008"]
    is_out.clear()
    assert comes(lambda: 8 in steps_at(root), every_s=0.2)
    assert steps_at(root)[-1] == 8
    assert ours.close(HANG_S)
    assert is_committed(local_of(root) / "step-00000008")
