"""A run that lost its output in a store, or may have, writes nothing there any more; what two runs spoilt is mended."""

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.errors import StorageError
from retort.store import place
from retort.store.artifact import describe_artifact, write_artifact
from retort.store.commit import commit_folder, verify_folder
from retort.store.lease import Lease
from retort.store.lock import OutputLock
from retort.store.place import drop, hold, local_of, push, push_files, refuse_lost, store_of
from retort.store.s3 import S3Store
from tests.patience import HANG_S, comes
from tests.store.conftest import FaultProxy, Node, fill, read_tree

LEASE_S = 4.0
BY_ANOTHER = "another run writes it: process 7 on host elsewhere"


def write_result(folder: Path) -> None:
    write_artifact(folder, describe_artifact("model", "m", "1", inputs={}, config={}), lambda target: fill(target))


def take_away(node: Node, held: Lease | OutputLock) -> None:
    """Another run takes ``runs/a``, and the holder learns of it."""
    holder = {"host": "elsewhere", "pid": 7, "taken": "now", "nonce": "n", "count": 1}
    store_of(node.bucket).write_bytes("runs/a.lock", json.dumps(holder).encode())
    assert BY_ANOTHER in comes(lambda: fault_of(held))


def fault_of(held: Lease | OutputLock) -> str:
    try:
        held.check()
    except StorageError as error:
        return str(error)
    return ""


@pytest.fixture
def output(node: Node, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This node's folder of ``runs/a``, whose lease is a short one."""
    monkeypatch.setattr(place, "LEASE_S", LEASE_S)
    return local_of(node.place("runs/a"))


def test_a_run_that_lost_its_output_changes_nothing_there(node: Node, output: Path) -> None:
    fill(output, {"run.yaml": b"of the loser", "work/plan.json": b"{}"})
    store_of(node.bucket).write_bytes("runs/a/run.yaml", b"of the other")
    with hold(node.place("runs/a")) as held:
        take_away(node, held)
        for write in (
            lambda: write_result(output / "result"),
            lambda: push(output / "work"),
            lambda: push(output / "run.yaml"),
            lambda: push_files(output),
            lambda: drop(output / "run.yaml"),
            lambda: refuse_lost(output / "work"),
        ):
            with pytest.raises(StorageError, match=BY_ANOTHER):
                write()
        # What it does elsewhere is its own business.
        push(fill_one(local_of(node.place("runs/ab"))))
    assert store_of(node.bucket).list("runs/a") == ("runs/a/run.yaml",)
    assert store_of(node.bucket).read_bytes("runs/a/run.yaml") == b"of the other"
    push(output / "work")  # not held by this process: whoever gave it the work answers for it


def fill_one(folder: Path) -> Path:
    fill(folder, {"a.bin": b"a"})
    return folder / "a.bin"


def test_a_run_that_loses_its_output_while_it_uploads_does_not_commit(
    node: Node, proxy: FaultProxy, output: Path
) -> None:
    take = proxy.take
    with hold(node.place("runs/a")) as held:

        def lose_it(method: str, path: str, headers: dict[str, str]) -> str:
            if method == "PUT" and path.endswith("/result/MANIFEST.sha256"):
                proxy.take = take  # type: ignore[method-assign]
                take_away(node, held)
            return take(method, path, headers)

        proxy.take = lose_it  # type: ignore[method-assign]
        with pytest.raises(StorageError, match=BY_ANOTHER):
            write_result(output / "result")
    assert "runs/a/result/config.json" in store_of(node.bucket).list("runs/a")
    assert not store_of(node.bucket).exists("runs/a/result")


def test_a_holder_that_cannot_renew_counts_for_itself(open_s3: Callable[..., S3Store], proxy: FaultProxy) -> None:
    patient = Lease(open_s3(), "runs/b", lease_s=2.0, outage_s=HANG_S)
    with patient, Lease(open_s3(), "runs/a", lease_s=2.0) as held:
        proxy.break_next("PUT", ".lock", "503:SlowDown", times=9999)
        told = comes(lambda: fault_of(held))
        assert re.match(
            r"runs/a: its lease was last renewed \d+ s ago, so another run may have taken it; nothing more", told
        )
        assert told.endswith("check the store and the network, and run the same command again")
        held.refuse_lost()  # nobody is known to have it: the work may go on
        time.sleep(0.9)  # the other's last renewal may be a little younger
        with pytest.raises(StorageError, match="its lease was last renewed"):
            patient.check(is_patient=False)  # as a job that ends does
        threading.Timer(0.3, proxy.faults.clear).start()
        patient.check()
        assert proxy.faults == []
        # Nobody took it meanwhile.
        assert comes(lambda: not fault_of(held))


def test_a_renewal_that_hangs_is_given_up(node: Node, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_SHORT_TIMEOUT_S", 0.5)
    proxy.break_next("PUT", "runs/a.lock", "slow")
    store_of(node.bucket, is_patient=False).swap("runs/a.lock", b"{}", None)
    assert proxy.count("PUT", "runs/a.lock") == 2


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    with commit_folder(tmp_path / "sealed") as folder:
        fill(folder)
    return tmp_path / "sealed"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "MANIFEST.sha256", "stray.bin"])
@pytest.mark.parametrize("content", [b"of another writer", None])
def test_a_committed_folder_that_another_writer_spoilt_is_mended_by_the_same_one(
    open_s3: Callable[..., S3Store],
    raw_s3: Any,
    bucket: str,
    sealed: Path,
    tmp_path: Path,
    name: str,
    content: bytes | None,
) -> None:
    store = open_s3()
    manifest = store.put_folder(sealed, "a")
    if content is None:
        raw_s3.delete_object(Bucket=bucket, Key=f"some/prefix/a/{name}")
    else:
        store.write_bytes(f"a/{name}", content)
    assert store.put_folder(sealed, "a") == manifest == verify_folder(sealed)
    store.get_folder("a", tmp_path / "got")
    assert read_tree(tmp_path / "got") == read_tree(sealed)
    assert store.list("a") == tuple(sorted(f"a/{file}" for file in read_tree(sealed)))


def test_a_committed_folder_that_is_whole_is_not_sent_again(
    open_s3: Callable[..., S3Store], proxy: FaultProxy, sealed: Path
) -> None:
    open_s3().put_folder(sealed, "a")
    proxy.requests.clear()
    open_s3().put_folder(sealed, "a")
    assert (proxy.count("PUT"), proxy.count("DELETE")) == (0, 0)
