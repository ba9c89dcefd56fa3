"""A real HTTP S3 on the loopback, with a proxy before it that breaks answers, and folders to store."""

import http.client
import os
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from retort.location import RemotePath
from retort.store.place import store_of
from retort.store.s3 import S3Credentials, S3Store
from tests.patience import HANG_S

CREDENTIALS = S3Credentials("testing-key", "testing-secret")
SLOW_S = 6.0
CONTENT = {"model.safetensors": bytes(range(256)) * 9, "config.json": b'{"layers": 2}', "deep/er/empty.bin": b""}


def fill(folder: Path, content: dict[str, bytes] | None = None) -> None:
    for name, data in (CONTENT if content is None else content).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass
class Fault:
    """One answer to break: which request (method and end of path) and how."""

    method: str
    suffix: str
    how: str  # a status such as "503:SlowDown"; cut, flip, slow; reset (not forwarded), lost (forwarded, no answer)


@dataclass
class FaultProxy:
    upstream: int
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)
    port: int = 0
    unknown: tuple[str, ...] = ()
    """Headers, in small letters, that the service ignores."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def break_next(self, method: str, suffix: str, how: str, *, times: int = 1) -> None:
        self.faults += [Fault(method, suffix, how)] * times

    def take(self, method: str, path: str, headers: dict[str, str]) -> str:
        with self.lock:
            self.requests.append((method, path, headers))
            for index, fault in enumerate(self.faults):
                if fault.method == method and path.split("?")[0].endswith(fault.suffix):
                    return self.faults.pop(index).how
        return ""

    def count(self, method: str, suffix: str = "") -> int:
        return sum(m == method and p.split("?")[0].endswith(suffix) for m, p, _ in self.requests)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy

    def handle_error(self, *_: object) -> None:
        """Resets are wanted here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the parent's)
        """Quiet."""

    def relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        how = self.server.proxy.take(self.command, self.path, dict(self.headers))
        if how == "reset":
            return self.reset()
        if how == "slow":
            time.sleep(SLOW_S)
        if ":" in how:
            status, code = how.split(":")
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
            return self.answer(int(status), [("Content-Type", "application/xml")], text.encode())
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.proxy.upstream, timeout=HANG_S)
        unknown = self.server.proxy.unknown
        upstream.request(
            self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() not in unknown}
        )
        answer = upstream.getresponse()
        content = answer.read()
        if how == "lost":
            return self.reset()
        if how == "flip":
            content = bytes([content[0] ^ 1]) + content[1:]
        return self.answer(answer.status, answer.getheaders(), content, cut=how == "cut")

    def answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False) -> None:
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", lengths[0] if self.command == "HEAD" and lengths else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    def reset(self) -> None:
        # No lingering, and closed below the objects that still hold the socket: the peer gets a reset, not an end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        os.close(self.connection.detach())

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def proxy(s3_port: int) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3_port)
    server = _Server(proxy)
    proxy.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield proxy
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def raw_s3(s3_port: int) -> Any:
    """A plain client straight to the service, past the proxy and past our code."""
    from boto3.session import Session

    session = Session(CREDENTIALS.access_key, CREDENTIALS.secret_key, region_name="us-east-1")
    return session.client("s3", endpoint_url=f"http://127.0.0.1:{s3_port}")


@pytest.fixture
def bucket(raw_s3: Any) -> str:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    raw_s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def open_s3(proxy: FaultProxy, bucket: str) -> Callable[..., S3Store]:
    def make(**options: object) -> S3Store:
        arguments = {
            "endpoint_url": proxy.url,
            "credentials": CREDENTIALS,
            "max_attempts": 3,
            "timeout_s": HANG_S,
            "outage_s": 0.0,
        }
        return S3Store(f"s3://{bucket}/some/prefix", **{**arguments, **options})

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path | None]]:
    """Mount a tmpfs with given options; None where mounting is not permitted (the caller then limits file sizes)."""
    mounted: list[Path] = []

    def mount(options: str) -> Path | None:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        try:
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        except FileNotFoundError:
            return None
        if done.returncode:
            return None
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass
class Node:
    """A node that knows the service from its environment, as a pod does, and its cache folder."""

    bucket: str
    cache: Path
    monkeypatch: pytest.MonkeyPatch

    def place(self, name: str) -> RemotePath:
        return RemotePath("s3:", self.bucket, *name.split("/"))

    def become_another(self) -> None:
        """Go on as a node with an empty disk."""
        self.cache = self.cache.with_name(self.cache.name + "x")
        self.monkeypatch.setenv("XDG_CACHE_HOME", str(self.cache))


@pytest.fixture
def node(proxy: FaultProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CREDENTIALS.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CREDENTIALS.secret_key)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store_of.cache_clear()
    yield Node(bucket, tmp_path / "cache", monkeypatch)
    store_of.cache_clear()
