"""The laws of a store, held by the local one and by S3 over HTTP alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.errors import StorageError
from retort.store.commit import commit_folder, verify_folder
from retort.store.remote import LocalStore, S3Store, Store, open_store
from tests.store.conftest import CONTENT, CREDENTIALS, FaultProxy, fill, read_tree


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, open_s3: Callable[..., S3Store]) -> Store:
    return LocalStore(tmp_path / "store") if request.param == "local" else open_s3()


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    with commit_folder(tmp_path / "sealed") as folder:
        fill(folder)
    return tmp_path / "sealed"


def test_folder_round_trips_bit_for_bit(store: Store, sealed: Path, tmp_path: Path) -> None:
    assert not store.exists("models/a@1")
    put = store.put_folder(sealed, "models/a@1")
    assert store.exists("models/a@1")
    got = store.get_folder("models/a@1", tmp_path / "got")
    assert got == put == verify_folder(tmp_path / "got")
    assert read_tree(tmp_path / "got") == read_tree(sealed)


def test_plain_folder_is_committed_on_the_way(store: Store, tmp_path: Path) -> None:
    fill(tmp_path / "plain")
    store.put_folder(tmp_path / "plain", "a")
    store.get_folder("a", tmp_path / "got")
    assert {k: v for k, v in read_tree(tmp_path / "got").items() if k in CONTENT} == CONTENT
    verify_folder(tmp_path / "got")


def test_damaged_folder_is_not_put(store: Store, sealed: Path) -> None:
    (sealed / "config.json").write_bytes(b"{}")
    with pytest.raises(StorageError, match=r"config\.json: damaged"):
        store.put_folder(sealed, "a")
    (sealed / "COMMITTED").unlink()  # nor is it given a fresh marker
    with pytest.raises(StorageError, match="COMMITTED: missing"):
        store.put_folder(sealed, "a")
    assert store.list() == ()


def test_same_content_again_is_a_success_and_other_content_is_refused(
    store: Store, sealed: Path, tmp_path: Path
) -> None:
    first = store.put_folder(sealed, "a")
    assert store.put_folder(sealed, "a") == first
    fill(tmp_path / "other", {"x": b"1"})
    with pytest.raises(StorageError, match="other content"):
        store.put_folder(tmp_path / "other", "a")
    assert store.get_folder("a", tmp_path / "got") == first


def test_existing_target_is_not_overwritten(store: Store, sealed: Path, tmp_path: Path) -> None:
    store.put_folder(sealed, "a")
    fill(tmp_path / "mine", {"notes": b"x"})
    with pytest.raises(StorageError, match="exists already"):
        store.get_folder("a", tmp_path / "mine")
    assert read_tree(tmp_path / "mine") == {"notes": b"x"}


def test_what_was_never_finished_does_not_exist(store: Store, tmp_path: Path) -> None:
    store.write_bytes("a/config.json", b"{}")
    assert not store.exists("a")
    with pytest.raises(StorageError, match="never finished"):
        store.get_folder("a", tmp_path / "got")
    with pytest.raises(StorageError, match="a/none"):
        store.read_bytes("a/none")
    assert not (tmp_path / "got").exists()


def test_objects_and_prefixes(store: Store) -> None:
    for key in ("a/b", "a/bc", "a/b2/x", "c"):
        store.write_bytes(key, key.encode())
    store.write_bytes("c", b"new")
    assert store.read_bytes("c") == b"new"
    assert store.exists("a/bc")
    assert not store.exists("a/z")
    assert store.list() == ("a/b", "a/b2/x", "a/bc", "c")
    assert store.list("a") == ("a/b", "a/b2/x", "a/bc")
    assert store.list("a/b") == ("a/b",)
    assert store.list("nothing") == ()
    assert store.delete_prefix("a/b") == 1
    assert store.list() == ("a/b2/x", "a/bc", "c")
    assert store.delete_prefix("a") == 2
    assert store.delete_prefix("a") == 0
    assert store.list() == ("c",)


def test_deleted_folder_is_gone(store: Store, sealed: Path) -> None:
    store.put_folder(sealed, "x/a")
    assert store.delete_prefix("x/a") == len(CONTENT) + 2
    assert not store.exists("x/a")


@pytest.mark.parametrize("key", ["../out", "/etc/passwd", "a/../../out", "", "a//b"])
def test_no_key_leads_out_of_the_store(store: Store, sealed: Path, tmp_path: Path, key: str) -> None:
    for action in (
        lambda: store.put_folder(sealed, key),
        lambda: store.get_folder(key, tmp_path / "got"),
        lambda: store.exists(key),
        lambda: store.read_bytes(key),
        lambda: store.write_bytes(key, b"x"),
        lambda: store.delete_prefix(key),
    ):
        with pytest.raises(StorageError, match="unsafe key"):
            action()
    assert not (tmp_path / "out").exists()


def test_links_do_not_lead_out_of_a_local_store(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.write_bytes("inside", b"x")
    (tmp_path / "secret").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match="a link leads out"):
        store.write_bytes("link/x", b"x")
    with pytest.raises(StorageError, match="a link leads out"):
        store.delete_prefix("link")
    assert list((tmp_path / "secret").iterdir()) == []


def test_local_damage_is_found_at_the_copy(tmp_path: Path, sealed: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put_folder(sealed, "a")
    (tmp_path / "store" / "a" / "config.json").write_bytes(b"{]")
    with pytest.raises(StorageError, match=r"config\.json: damaged"):
        store.get_folder("a", tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_open_store_by_url(tmp_path: Path, proxy: FaultProxy, bucket: str) -> None:
    for url in (str(tmp_path / "s"), f"file://{tmp_path}/s"):
        store = open_store(url)
        assert isinstance(store, LocalStore)
        store.write_bytes("k", b"v")
        assert (tmp_path / "s" / "k").read_bytes() == b"v"
    remote = open_store(f"s3://{bucket}/p/", endpoint_url=proxy.url, credentials=CREDENTIALS, max_attempts=1)
    assert isinstance(remote, S3Store)
    remote.write_bytes("k", b"v")
    assert open_store(f"s3://{bucket}", endpoint_url=proxy.url, credentials=CREDENTIALS).list() == ("p/k",)


@pytest.mark.parametrize("url", ["", "gs://bucket/x", "file://relative", "s3://", "s3://bucket/../x", "http://x"])
def test_other_urls_are_refused_with_the_cure(url: str) -> None:
    with pytest.raises(StorageError, match=r"s3://bucket|unsafe key"):
        open_store(url)


def test_folders_that_a_console_made_are_no_objects_and_are_deleted_with_what_is_below(
    open_s3: Callable[..., S3Store], bucket: str, raw_s3: Any, sealed: Path
) -> None:
    store = open_s3()
    for key in ("", "a/", "a/deep/", "b/"):
        raw_s3.put_object(Bucket=bucket, Key=f"some/prefix/{key}", Body=b"")
    assert store.list() == store.list("a") == ()
    store.put_folder(sealed, "a")
    assert set(store.list("a")) == {f"a/{name}" for name in [*CONTENT, "MANIFEST.sha256", "COMMITTED"]}
    raw_s3.put_object(Bucket=bucket, Key="some/prefix/a//x", Body=b"")
    with pytest.raises(StorageError, match=r"unsafe key 'a//x': .*; use letters, .*; rename or delete what"):
        store.read_bytes("a//x")
    assert store.delete_prefix("a") == len(CONTENT) + 5
    assert [found["Key"] for found in raw_s3.list_objects_v2(Bucket=bucket)["Contents"]] == [
        "some/prefix/",
        "some/prefix/b/",
    ]
