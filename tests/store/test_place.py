"""What lies in a store, on nodes that share nothing: copies, outputs, uploads, and outages of the service."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from retort.errors import DataError, StorageError
from retort.store.artifact import describe_artifact, read_artifact, write_artifact
from retort.store.checkpoints import CheckpointFolder, steps_at
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
from tests.patience import comes
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
