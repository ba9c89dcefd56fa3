"""What lies in a store, on nodes that share nothing: copies, outputs, uploads, and outages of the service."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from retort.errors import DataError, StorageError
from retort.store import uploads
from retort.store.artifact import describe_artifact, read_artifact, write_artifact
from retort.store.checkpoints import CheckpointFolder, steps_at
from retort.store.commit import is_committed
from retort.store.place import (
    behind,
    cache_folder,
    claim,
    is_used,
    local_of,
    localise,
    open_output,
    pull,
    push,
    push_files,
    store_of,
    workplace,
)
from retort.store.registry import Card, Registry
from retort.store.results import result_of
from retort.store.uploads import Mirror
from tests.patience import HANG_S, comes
from tests.store.conftest import CONTENT, FaultProxy, Node, fill, read_tree


def write_result(node: Node, name: str, content: dict[str, bytes] | None = None) -> Path:
    info = describe_artifact("model", "m", "1", inputs={}, config={})
    folder = local_of(node.place(name)) / "result"
    return write_artifact(folder, info, lambda target: fill(target, content)).path


def test_a_path_here_and_its_place_in_a_store_lead_to_each_other(node: Node, tmp_path: Path) -> None:
    place = node.place("runs/a")
    assert behind(local_of(place) / "result") == place / "result"
    assert (local_of(tmp_path), behind(tmp_path)) == (tmp_path, None)
    assert behind(cache_folder() / "artifacts" / "x") is None


def test_a_result_written_on_one_node_is_read_on_another(node: Node) -> None:
    written = write_result(node, "runs/a")
    assert store_of(node.bucket).exists("runs/a/result")
    node.become_another()
    for name in ("runs/a", "runs/a/result"):
        found = result_of(node.place(name))
        assert found.is_relative_to(node.cache)
        assert {k: v for k, v in read_tree(found).items() if k in CONTENT} == CONTENT
    assert found.name == read_artifact(found).fingerprint
    assert not written.is_relative_to(node.cache)


def test_the_driver_reads_a_result_that_another_node_wrote(node: Node) -> None:
    write_result(node, "runs/a")
    node.become_another()
    assert read_artifact(local_of(node.place("runs/a")) / "result").info.name == "m"


def test_many_processes_of_a_node_fetch_one_copy(node: Node, proxy: FaultProxy) -> None:
    write_result(node, "runs/a")
    node.become_another()
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(result_of(node.place("runs/a")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert [path.name for path in (node.cache / "retort" / "artifacts").iterdir()] == [found[0].name]
    proxy.requests.clear()
    result_of(node.place("runs/a"))
    assert proxy.count("GET", "model.safetensors") == 0


def test_a_damaged_copy_is_never_given(node: Node, raw_s3: Any) -> None:
    write_result(node, "runs/a")
    raw_s3.put_object(Bucket=node.bucket, Key="runs/a/result/config.json", Body=b'{"layers": 3}')
    node.become_another()
    with pytest.raises(StorageError, match=r"config\.json"):
        result_of(node.place("runs/a"))
    assert list((node.cache / "retort" / "artifacts").glob("*")) == []


def test_an_output_opens_with_what_the_store_has_and_nothing_else(node: Node) -> None:
    place = node.place("runs/a")
    first = open_output(place, kept_apart=("result",))
    fill(first, {"run.yaml": b"a: 1", "work/key/plan.json": b"{}", "only-here.txt": b"lost"})
    push(first / "run.yaml")
    push(first / "work")
    write = node.place("runs/ab/other.txt")  # a neighbour whose name begins the same
    store_of(node.bucket).write_bytes(write.key, b"x")
    node.become_another()
    for _ in range(2):
        assert read_tree(open_output(place, kept_apart=("result",))) == {
            "run.yaml": b"a: 1",
            "work/key/plan.json": b"{}",
        }


def test_an_output_opens_where_a_console_made_a_folder(node: Node, raw_s3: Any) -> None:
    for key in ("runs/a/", "runs/a/work/"):
        raw_s3.put_object(Bucket=node.bucket, Key=key, Body=b"")
    assert not is_used(node.place("runs/a"))
    assert read_tree(open_output(node.place("runs/a"), kept_apart=("result",))) == {}


def test_what_another_run_left_on_a_node_is_not_trusted(node: Node) -> None:
    """As when a job was killed there, and its output was deleted from the store and is written anew."""
    root = node.place("runs/a/checkpoints")
    old = CheckpointFolder(workplace(node.place("runs/a"), "first") / "checkpoints")
    save(old, 6)
    assert old.close(60)
    store_of(node.bucket).delete_prefix("runs/a")
    for run, expected in (("first", 6), ("second", None), ("second", None)):
        found = CheckpointFolder(workplace(node.place("runs/a"), run) / "checkpoints").latest_good()
        assert (found.step if found else None) == expected
    # Who opened the output has just taken from the store what is there.
    fill(open_output(node.place("runs/a"), kept_apart=()), {"run.yaml": b"a: 1"})
    claim(local_of(node.place("runs/a")), "third")
    assert "run.yaml" in read_tree(workplace(node.place("runs/a"), "third"))
    push_files(local_of(node.place("runs/a")))
    assert store_of(node.bucket).list("runs/a") == ("runs/a/run.yaml",)
    assert steps_at(root) == []


def test_an_output_leaves_alone_the_outputs_that_lie_in_it(node: Node, raw_s3: Any) -> None:
    """A tour's: it neither fetches nor sends them, nor their leases, nor ends their uploads."""
    inside = {"corpus/result/tokens.bin": b"x", "corpus.lock": b"{}", "deep/er/run.yaml": b"y", "times.json": b"{}"}
    for name, content in inside.items():
        store_of(node.bucket).write_bytes(f"runs/tour/{name}", content)
    raw_s3.create_multipart_upload(Bucket=node.bucket, Key="runs/tour/corpus/checkpoints/big.bin")
    output = open_output(node.place("runs/tour"), kept_apart=("result",), others=("corpus", "deep"))
    assert read_tree(output) == {"times.json": b"{}"}
    fill(output, {"corpus.lock": b"of another time"})
    push_files(output)
    assert store_of(node.bucket).read_bytes("runs/tour/corpus.lock") == b"{}"
    assert len(raw_s3.list_multipart_uploads(Bucket=node.bucket)["Uploads"]) == 1


def test_files_that_grow_are_mirrored_and_go_on_on_another_node(node: Node, proxy: FaultProxy) -> None:
    place = node.place("runs/a")

    def there() -> bytes:
        found = store_of(node.bucket).read_tagged("runs/a/log.txt")
        return b"" if found is None else found[0]

    with Mirror([local_of(place) / "log.txt", local_of(place) / "never.txt"], every_s=0.05):
        fill(local_of(place), {"log.txt": b"one\n"})
        assert comes(lambda: there() == b"one\n")
        # An unchanged file is not sent again.
        proxy.requests.clear()
        time.sleep(0.3)
        assert proxy.count("PUT") == 0
        fill(local_of(place), {"log.txt": b"one\ntwo\n"})
    assert there() == b"one\ntwo\n"
    first = node.cache
    node.become_another()
    with Mirror([local_of(place) / "log.txt"], every_s=60), (local_of(place) / "log.txt").open("ab") as file:
        file.write(b"three\n")
    assert there() == b"one\ntwo\nthree\n"
    # Back on the first node, whose own file is shorter than what the second one wrote.
    node.monkeypatch.setenv("XDG_CACHE_HOME", str(first))
    with Mirror([local_of(place) / "log.txt"], every_s=60):
        pass
    assert (local_of(place) / "log.txt").read_bytes() == b"one\ntwo\nthree\n"


def test_a_mirror_does_not_hold_up_its_job_and_asks_for_no_store_where_there_is_none(
    node: Node, proxy: FaultProxy, tmp_path: Path
) -> None:
    with Mirror([tmp_path / "log.txt"], every_s=0.01):
        (tmp_path / "log.txt").write_text("one")
    assert proxy.requests == []

    def fail() -> None:
        with Mirror([local_of(node.place("runs/a")) / "log.txt"]):
            fill(local_of(node.place("runs/a")), {"log.txt": b"last words"})
            raise RuntimeError("of the job")

    with pytest.raises(RuntimeError, match="of the job"):
        fail()
    assert store_of(node.bucket).read_bytes("runs/a/log.txt") == b"last words"


def test_an_equal_file_is_neither_sent_nor_fetched_again(node: Node, proxy: FaultProxy) -> None:
    folder = local_of(node.place("runs/a"))
    fill(folder, {"x/a.bin": b"a" * 1000})
    push(folder / "x")
    proxy.requests.clear()
    push(folder / "x")
    pull(folder / "x")
    assert (proxy.count("PUT"), proxy.count("GET", "a.bin")) == (0, 0)
    (folder / "x" / "a.bin").write_bytes(b"b" * 1000)
    pull(folder / "x")
    assert (folder / "x" / "a.bin").read_bytes() == b"a" * 1000


def test_opening_an_output_sweeps_what_killed_uploads_left(node: Node, raw_s3: Any) -> None:
    for key in ("runs/a/work/big.bin", "runs/ab/big.bin"):
        upload = raw_s3.create_multipart_upload(Bucket=node.bucket, Key=key)
        raw_s3.upload_part(Bucket=node.bucket, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x")
    open_output(node.place("runs/a"), kept_apart=())
    left = raw_s3.list_multipart_uploads(Bucket=node.bucket).get("Uploads", [])
    assert [upload["Key"] for upload in left] == ["runs/ab/big.bin"]


@pytest.mark.parametrize("how", ["500:InternalError", "503:SlowDown", "reset", "cut"])
def test_an_outage_within_the_budget_is_survived_however_many_tries_it_takes(
    node: Node, proxy: FaultProxy, how: str
) -> None:
    folder = local_of(node.place("runs/a"))
    fill(folder, {"a.bin": b"a" * 1000})
    method = "GET" if how == "cut" else "PUT"
    proxy.break_next(method, "a.bin", how, times=12)  # more than the tries of one request
    push(folder / "a.bin")
    node.become_another()
    pull(local_of(node.place("runs/a")))
    assert read_tree(local_of(node.place("runs/a"))) == {"a.bin": b"a" * 1000}
    assert proxy.faults == []


def test_the_budget_is_time_and_a_refusal_is_not_repeated(
    node: Node, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_S3_OUTAGE_MINUTES", "0.05")
    folder = local_of(node.place("runs/a"))
    fill(folder, {"a.bin": b"a"})
    proxy.break_next("PUT", "a.bin", "503:SlowDown", times=9999)
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"\[store/busy\]"):
        push(folder / "a.bin")
    assert time.monotonic() - began >= 3.0
    proxy.faults.clear()
    proxy.requests.clear()
    proxy.break_next("PUT", "a.bin", "403:AccessDenied", times=9)
    with pytest.raises(StorageError, match="access denied"):
        push(folder / "a.bin")
    assert proxy.count("PUT", "a.bin") == 1


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_budget_that_is_no_number_is_refused(node: Node, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RETORT_S3_OUTAGE_MINUTES", text)
    with pytest.raises(StorageError, match="not a number of minutes"):
        push(fill_one(local_of(node.place("runs/a"))))


def fill_one(folder: Path) -> Path:
    fill(folder, {"a.bin": b"a"})
    return folder / "a.bin"


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


def test_a_registry_in_a_store_promotes_serves_and_keeps_what_it_has(node: Node) -> None:
    registry = Registry(node.place("registry"))
    assert registry.names() == []
    for seed in ("1", "2"):
        write_result(node, f"runs/{seed}", {"w.bin": seed.encode()})
    versions = []
    for seed in ("1", "2", "1"):  # the same model on the same evaluation is no new version
        source = read_artifact(result_of(node.place(f"runs/{seed}")))
        added = registry.add("small", source, Card({"seed": seed}, "text"), evaluation=f"e{seed}", system="s")
        versions.append(int(added.info.version))
        node.become_another()
    assert versions == [1, 2, 1]
    assert (registry.names(), registry.versions("small")) == (["small"], [1, 2])
    current = registry.current("small")
    assert current.path == node.place("registry/small/1")
    found = result_of(node.place("registry/small"))
    assert found.is_relative_to(node.cache)
    assert registry.card("small")["seed"] == (found / "w.bin").read_text()
    with pytest.raises(DataError, match="it has small"):
        registry.current("large")


def test_a_cache_that_cannot_be_written_gives_way_to_a_temporary_folder(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder().name == f"retort-{os.getuid()}"
    write_result(node, "runs/a")
    assert localise(node.place("runs/a") / "result").is_dir()
