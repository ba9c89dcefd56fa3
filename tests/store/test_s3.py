import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.errors import StorageError
from retort.store.commit import commit_folder, verify_folder
from retort.store.s3 import S3Credentials, S3Store
from retort.store.s3_faults import RemoteStoreError, StoreFault
from tests.patience import HANG_S
from tests.store.conftest import CONTENT, CREDENTIALS, SLOW_S, FaultProxy, fill, read_tree

Opener = Callable[..., S3Store]


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    with commit_folder(tmp_path / "sealed") as folder:
        fill(folder)
    return tmp_path / "sealed"


@pytest.fixture
def big(tmp_path: Path) -> Path:
    fill(tmp_path / "big", {"weights.bin": os.urandom(1 << 16) * 640})  # 40 MiB: three parts
    return tmp_path / "big"


def fault(action: Callable[[], object]) -> StoreFault:
    with pytest.raises(RemoteStoreError) as raised:
        action()
    return raised.value.fault


def test_marker_is_written_last_and_read_first(
    open_s3: Opener, proxy: FaultProxy, sealed: Path, tmp_path: Path
) -> None:
    store = open_s3()
    store.put_folder(sealed, "a")
    puts = [path.split("?")[0].rsplit("/some/prefix/a/")[1] for method, path, _ in proxy.requests if method == "PUT"]
    assert puts[-2:] == ["MANIFEST.sha256", "COMMITTED"]
    assert set(puts[:-2]) == set(CONTENT)
    proxy.requests.clear()
    store.get_folder("a", tmp_path / "got")
    assert proxy.requests[0][1].split("?")[0].endswith("/a/COMMITTED")


@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        ("config.json", "503:SlowDown"),
        ("model.safetensors", "lost"),
        ("MANIFEST.sha256", "reset"),
        ("COMMITTED", "500:InternalError"),
        ("COMMITTED", "lost"),
    ],
)
def test_passing_fault_at_any_write_is_survived(
    open_s3: Opener, proxy: FaultProxy, sealed: Path, tmp_path: Path, suffix: str, how: str
) -> None:
    store = open_s3()
    proxy.break_next("PUT", suffix, how)
    manifest = store.put_folder(sealed, "a")
    assert proxy.faults == []
    assert proxy.count("PUT", suffix) == 2
    assert store.get_folder("a", tmp_path / "got") == manifest


@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        ("model.safetensors", "503:SlowDown"),
        ("model.safetensors", "cut"),
        ("model.safetensors", "flip"),
        ("MANIFEST.sha256", "cut"),
        ("COMMITTED", "flip"),
        ("COMMITTED", "reset"),
    ],
)
def test_passing_fault_at_any_read_is_survived(
    open_s3: Opener, proxy: FaultProxy, sealed: Path, tmp_path: Path, suffix: str, how: str
) -> None:
    store = open_s3()
    store.put_folder(sealed, "a")
    proxy.break_next("GET", suffix, how)
    store.get_folder("a", tmp_path / "got")
    assert proxy.faults == []
    assert read_tree(tmp_path / "got") == read_tree(sealed)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "suffix"), [("PUT", "model.safetensors"), ("GET", "model.safetensors")])
def test_an_answer_that_takes_too_long_is_asked_for_again(
    open_s3: Opener, proxy: FaultProxy, sealed: Path, tmp_path: Path, method: str, suffix: str
) -> None:
    store = open_s3(timeout_s=SLOW_S / 2, max_attempts=2, outage_s=HANG_S)
    proxy.break_next(method, suffix, "slow", times=3)
    manifest = store.put_folder(sealed, "a")
    assert store.get_folder("a", tmp_path / "got") == manifest
    assert proxy.faults == []


def test_lasting_overload_ends_with_a_clear_error_and_nothing_committed(
    open_s3: Opener, proxy: FaultProxy, sealed: Path, tmp_path: Path
) -> None:
    store = open_s3(max_attempts=2)
    proxy.break_next("PUT", "config.json", "503:SlowDown", times=99)
    with pytest.raises(StorageError, match=r"\[store/busy\] s3://.*config\.json: the service keeps refusing"):
        store.put_folder(sealed, "a")
    assert proxy.count("PUT", "config.json") == 2
    assert proxy.count("PUT", "COMMITTED") == 0
    proxy.faults.clear()
    assert not store.exists("a")
    store.put_folder(sealed, "a")
    store.get_folder("a", tmp_path / "got")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("403:AccessDenied", StoreFault.ACCESS_DENIED),
        ("403:InvalidAccessKeyId", StoreFault.ACCESS_DENIED),
        ("403:SignatureDoesNotMatch", StoreFault.ACCESS_DENIED),
        ("400:ExpiredToken", StoreFault.EXPIRED_TOKEN),
        ("403:RequestTimeTooSkewed", StoreFault.CLOCK_SKEW),
        ("404:NoSuchBucket", StoreFault.BUCKET_MISSING),
        ("400:EntityTooLarge", StoreFault.OTHER),
    ],
)
def test_lasting_refusals_are_named_and_not_repeated(
    open_s3: Opener, proxy: FaultProxy, sealed: Path, how: str, expected: StoreFault
) -> None:
    store = open_s3()
    store.write_bytes("k", b"v")
    proxy.break_next("GET", "/k", how)
    assert fault(lambda: store.read_bytes("k")) is expected
    assert proxy.count("GET", "/k") == 1
    proxy.break_next("PUT", "config.json", how)
    assert fault(lambda: store.put_folder(sealed, "a")) is expected
    assert proxy.count("PUT", "config.json") == 1


def test_missing_things(open_s3: Opener, proxy: FaultProxy, sealed: Path, tmp_path: Path) -> None:
    store = open_s3()
    assert fault(lambda: store.read_bytes("none")) is StoreFault.NOT_FOUND
    assert fault(lambda: store.get_folder("none", tmp_path / "x")) is StoreFault.NOT_FOUND
    nowhere = S3Store("s3://no-such-bucket/p", endpoint_url=proxy.url, credentials=CREDENTIALS, max_attempts=2)
    for action in (
        lambda: nowhere.exists("a"),
        lambda: nowhere.list(),
        lambda: nowhere.read_bytes("a"),
        lambda: nowhere.write_bytes("a", b""),
        lambda: nowhere.put_folder(sealed, "a"),
        lambda: nowhere.get_folder("a", tmp_path / "x"),
    ):
        assert fault(action) is StoreFault.BUCKET_MISSING


def test_refused_head_is_an_error_and_not_an_absence(open_s3: Opener, proxy: FaultProxy) -> None:
    proxy.break_next("HEAD", "a/COMMITTED", "403:AccessDenied")
    assert fault(lambda: open_s3().exists("a")) is StoreFault.ACCESS_DENIED


def test_endpoint_that_does_not_answer(tmp_path: Path, sealed: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        store = S3Store(
            "s3://b", endpoint_url=url, credentials=CREDENTIALS, max_attempts=1, timeout_s=1.0, outage_s=0.0
        )
        for action in (
            lambda: store.read_bytes("k"),
            lambda: store.put_folder(sealed, "a"),
            lambda: store.get_folder("a", tmp_path / "x"),
        ):
            assert fault(action) is StoreFault.UNREACHABLE
    with pytest.raises(StorageError, match="check AWS_ENDPOINT_URL"):
        store.list()


def test_answers_that_stay_cut(open_s3: Opener, proxy: FaultProxy, sealed: Path, tmp_path: Path) -> None:
    store = open_s3(max_attempts=2)
    store.put_folder(sealed, "a")
    proxy.break_next("GET", "model.safetensors", "cut", times=99)
    assert fault(lambda: store.get_folder("a", tmp_path / "got")) is StoreFault.UNREACHABLE
    proxy.break_next("GET", "COMMITTED", "cut", times=99)
    assert fault(lambda: store.read_bytes("a/COMMITTED")) is StoreFault.UNREACHABLE
    assert list(tmp_path.glob("got*")) == []


@pytest.mark.parametrize("forged", [True, False])
def test_damage_at_rest_is_found(
    open_s3: Opener, bucket: str, raw_s3: Any, sealed: Path, tmp_path: Path, forged: bool
) -> None:
    """Whether the object changed under its recorded hash, or somebody put another object with a hash of its own."""
    store = open_s3(max_attempts=2)
    store.put_folder(sealed, "a")
    for name in (*CONTENT, "MANIFEST.sha256", "COMMITTED"):
        content = (sealed / name).read_bytes()
        recorded = hashlib.sha256(content).hexdigest()
        changed = content[:-1] + bytes([content[-1] ^ 4]) if content else b"x"
        digest = hashlib.sha256(changed).hexdigest() if forged else recorded
        where = {"Bucket": bucket, "Key": f"some/prefix/a/{name}"}
        raw_s3.put_object(**where, Body=changed, Metadata={"sha256": digest})
        assert fault(lambda: store.get_folder("a", tmp_path / "got")) is StoreFault.DAMAGED
        assert list(tmp_path.glob("got*")) == []
        raw_s3.put_object(**where, Body=content, Metadata={"sha256": recorded})
    store.get_folder("a", tmp_path / "got")


def test_hostile_manifest_cannot_write_outside(open_s3: Opener, tmp_path: Path) -> None:
    from retort.store.commit import marker_content
    from retort.store.manifest import Manifest, ManifestEntry

    store = open_s3()
    evil = Manifest((ManifestEntry("../../evil", 4, hashlib.sha256(b"evil").hexdigest()),)).to_bytes()
    store.write_bytes("a/MANIFEST.sha256", evil)
    store.write_bytes("a/COMMITTED", marker_content(evil))
    with pytest.raises(StorageError, match="unsafe key"):
        store.get_folder("a", tmp_path / "in" / "side" / "got")
    assert read_tree(tmp_path) == {}


def test_large_file_goes_in_parts_and_survives_faults_in_them(
    open_s3: Opener, proxy: FaultProxy, big: Path, tmp_path: Path
) -> None:
    store = open_s3()
    for how in ("503:SlowDown", "reset"):
        proxy.break_next("PUT", "weights.bin", how)
    store.put_folder(big, "a")
    assert proxy.count("PUT", "weights.bin") == 5  # three parts and two repeats
    proxy.break_next("GET", "weights.bin", "cut")
    proxy.break_next("GET", "weights.bin", "flip")
    store.get_folder("a", tmp_path / "got")
    assert (tmp_path / "got" / "weights.bin").read_bytes() == (big / "weights.bin").read_bytes()


def test_failed_multipart_upload_leaves_no_parts(
    open_s3: Opener, proxy: FaultProxy, big: Path, raw_s3: Any, bucket: str
) -> None:
    proxy.break_next("PUT", "weights.bin", "403:AccessDenied", times=3)
    assert fault(lambda: open_s3().put_folder(big, "a")) is StoreFault.ACCESS_DENIED
    assert "Uploads" not in raw_s3.list_multipart_uploads(Bucket=bucket)
    assert open_s3().list() == ()


UPLOAD = """
import sys, pathlib
from retort.store.s3 import S3Credentials, S3Store
url, endpoint, folder = sys.argv[1:]
S3Store(url, endpoint_url=endpoint, credentials=S3Credentials("k", "s")).put_folder(pathlib.Path(folder), "a")
"""


def test_uploader_killed_between_parts(
    open_s3: Opener, proxy: FaultProxy, bucket: str, big: Path, raw_s3: Any, tmp_path: Path
) -> None:
    fill(big, {"a-first.bin": b"1"})
    child = subprocess.Popen([sys.executable, "-c", UPLOAD, f"s3://{bucket}/some/prefix", proxy.url, str(big)])
    reached = threading.Event()
    take = proxy.take

    def watch(method: str, path: str, headers: dict[str, str]) -> str:
        if method == "PUT" and "partNumber=2" in path:
            child.send_signal(signal.SIGKILL)
            child.wait()
            reached.set()
        return take(method, path, headers)

    proxy.take = watch  # type: ignore[method-assign]
    assert reached.wait(HANG_S)
    proxy.take = take  # type: ignore[method-assign]
    store = open_s3()
    assert not store.exists("a")
    assert len(raw_s3.list_multipart_uploads(Bucket=bucket)["Uploads"]) == 1
    assert store.abort_stale_uploads(older_than_s=1e9) == 0  # the service under test dates all uploads to 2010
    assert store.abort_stale_uploads(older_than_s=0) == 1
    assert "Uploads" not in raw_s3.list_multipart_uploads(Bucket=bucket)
    proxy.requests.clear()
    manifest = store.put_folder(big, "a")
    assert proxy.count("PUT", "a-first.bin") == 0  # sent by the dead one already
    assert store.get_folder("a", tmp_path / "got") == manifest


def test_next_writer_clears_what_another_content_left(
    open_s3: Opener, proxy: FaultProxy, sealed: Path, tmp_path: Path
) -> None:
    store = open_s3(max_attempts=1)
    fill(tmp_path / "other", {"config.json": b"old", "stray.bin": b"s"})
    proxy.break_next("PUT", "COMMITTED", "503:SlowDown")
    assert fault(lambda: store.put_folder(tmp_path / "other", "a")) is StoreFault.BUSY
    store.put_folder(sealed, "a")
    assert store.list("a") == tuple(sorted(f"a/{name}" for name in [*CONTENT, "COMMITTED", "MANIFEST.sha256"]))
    store.get_folder("a", tmp_path / "got")


def let_another_commit(proxy: FaultProxy, raw_s3: Any, bucket: str, *, before: str) -> None:
    """Another writer commits ``a`` just before the file of this name is sent."""
    take = proxy.take

    def other_writer_first(method: str, path: str, headers: dict[str, str]) -> str:
        if method == "PUT" and path.endswith(before):
            raw_s3.put_object(Bucket=bucket, Key="some/prefix/a/COMMITTED", Body=b"other\n")
        return take(method, path, headers)

    proxy.take = other_writer_first  # type: ignore[method-assign]


def test_second_of_two_writers_is_refused(
    open_s3: Opener, proxy: FaultProxy, raw_s3: Any, bucket: str, sealed: Path
) -> None:
    store = open_s3()
    let_another_commit(proxy, raw_s3, bucket, before="COMMITTED")
    assert fault(lambda: store.put_folder(sealed, "a")) is StoreFault.CONFLICT


def test_a_marker_that_came_during_the_upload_is_seen_where_conditions_are_ignored(
    open_s3: Opener, proxy: FaultProxy, raw_s3: Any, bucket: str, sealed: Path
) -> None:
    proxy.unknown = ("if-match", "if-none-match")
    let_another_commit(proxy, raw_s3, bucket, before="MANIFEST.sha256")
    assert fault(lambda: open_s3().put_folder(sealed, "a")) is StoreFault.CONFLICT
    assert open_s3().read_bytes("a/COMMITTED") == b"other\n"


def test_service_without_conditional_writes(open_s3: Opener, proxy: FaultProxy, sealed: Path, tmp_path: Path) -> None:
    store = open_s3(max_attempts=1)
    proxy.break_next("PUT", "COMMITTED", "501:NotImplemented")
    store.put_folder(sealed, "a")
    assert store.get_folder("a", tmp_path / "got") == verify_folder(sealed)
    assert [h.get("If-None-Match") for m, p, h in proxy.requests if m == "PUT" and p.endswith("COMMITTED")] == [
        "*",
        None,
    ]


def test_checksums_of_boto3_are_sent_only_when_asked_for(open_s3: Opener, proxy: FaultProxy, sealed: Path) -> None:
    def sent(store: S3Store) -> set[str]:
        proxy.requests.clear()
        store.put_folder(sealed, "a")
        store.delete_prefix("a")
        names = {name.lower() for method, _, headers in proxy.requests if method == "PUT" for name in headers}
        return {name for name in names if name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer"))}

    assert sent(open_s3()) == set()
    assert sent(open_s3(checksum="when_supported")) != set()


def test_secrets_are_not_shown(open_s3: Opener, proxy: FaultProxy) -> None:
    shown = repr(S3Credentials("public", "hidden-1", "hidden-2"))
    assert "public" in shown
    assert "hidden" not in shown
    proxy.break_next("GET", "/k", "403:AccessDenied")
    with pytest.raises(StorageError) as raised:
        open_s3().read_bytes("k")
    assert CREDENTIALS.secret_key not in str(raised.value)


def test_session_token_is_sent(open_s3: Opener, proxy: FaultProxy) -> None:
    open_s3(credentials=S3Credentials("k", "s", "my-token")).write_bytes("k", b"v")
    assert proxy.requests[-1][2]["X-Amz-Security-Token"] == "my-token"


def test_damaged_objects_are_found(open_s3: Opener, bucket: str, raw_s3: Any) -> None:
    store = open_s3(max_attempts=2)
    store.write_bytes("k", b"value")
    raw_s3.put_object(Bucket=bucket, Key="some/prefix/k", Body=b"valve", Metadata={"sha256": "0" * 64})
    assert fault(lambda: store.read_bytes("k")) is StoreFault.DAMAGED
    raw_s3.put_object(Bucket=bucket, Key="some/prefix/k", Body=b"by another program")
    assert store.read_bytes("k") == b"by another program"
