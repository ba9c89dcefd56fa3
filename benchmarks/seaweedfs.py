"""SeaweedFS as one process: a real S3 service on this machine, which can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retort.store.s3 import S3Credentials, S3Store

WEED = Path(sys.executable).with_name("weed")
CREDENTIALS = S3Credentials("testing-key", "testing-secret")
_START_S = 900.0


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class SeaweedFS:
    """Master, volumes, filer and S3 gateway in one process, its data in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("master", "volume", "filer", "s3")
        ports = free_ports(2 * len(names))
        self.ports = dict(zip(names, ports[: len(names)], strict=True))
        self.grpc = dict(zip(names, ports[len(names) :], strict=True))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of the S3 gateway."""
        return f"http://127.0.0.1:{self.ports['s3']}"

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to find it, as the AWS tools do."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": CREDENTIALS.access_key,
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS.secret_key,
        }

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        options = [f"-{name}.port={port}" for name, port in self.ports.items()]
        options += [f"-{name}.port.grpc={port}" for name, port in self.grpc.items()]
        command = [str(WEED), "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-s3", "-filer", *options]
        command += ["-volume.max=200", "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True)

    def kill(self) -> None:
        """SIGKILL, to all of it."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def store(self, bucket: str, prefix: str = "p", **options: Any) -> S3Store:
        """A store in a bucket of it."""
        return S3Store(f"s3://{bucket}/{prefix}", endpoint_url=self.url, credentials=CREDENTIALS, **options)

    def make_bucket(self, name: str) -> None:
        """Make a bucket, as soon as the service answers."""
        from boto3.session import Session
        from botocore.exceptions import BotoCoreError, ClientError

        session = Session(CREDENTIALS.access_key, CREDENTIALS.secret_key, region_name="us-east-1")
        client = session.client("s3", endpoint_url=self.url)
        deadline = time.monotonic() + _START_S
        while True:
            try:
                client.create_bucket(Bucket=name)
            except (BotoCoreError, ClientError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return
