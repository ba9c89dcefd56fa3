"""HAProxy with the configuration that Ray Serve writes and this project mends, before the API, without Ray itself."""

import asyncio
import http.client
import json
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import torch

from retort.serving.gate import client_of
from retort.serving.haproxy import Front, mended, write_starter
from retort.serving.local import _free_port, _haproxy
from retort.serving.speaking import Snippet
from tests.patience import HANG_S, ONE_TRY_S, comes
from tests.serving.running import Stub, api_of_stub, running
from tests.serving.test_api import body

if TYPE_CHECKING:
    from ray.serve._private.haproxy import HAProxyApi

HEADER = "X-Retort-Client-0123456789abcdef"
KEY = "a-key-for-the-tests-0001"

LONGER_THAN_HEADERS_S = 3.0
"""Than the second that the headers of a request may take in the test."""

haproxy_only = pytest.mark.skipif(_haproxy() is None, reason="no HAProxy on this machine")


@dataclass(frozen=True)
class Running:
    """Where HAProxy and its pages are."""

    address: str
    counters: str
    stats: str
    config: str


def rays_own(folder: Path, to: str, host: str, ports: tuple[int, int, int]) -> "HAProxyApi":
    """What Ray Serve writes the configuration with, and starts and replaces HAProxy."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    url = httpx.URL(to)
    port, counters, stats = ports
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"), metrics_socket_path=str(folder / "metrics.sock"), metrics_port=counters,
        stats_port=stats, server_state_base=str(folder), server_state_file=str(folder / "state"), metrics_enabled=False,
        http_options=HTTPOptions(host=host, port=port), timeout_client_s=60, has_received_routes=True,
        has_received_servers=True, is_head=True,
    )  # fmt: skip
    server = ServerConfig("one", url.host, url.port or 80)
    backend = BackendConfig(
        name="retort", path_prefix="/", app_name="retort", servers=[server], http_health_check_path="/health/live"
    )
    return HAProxyApi(config, {"retort": backend}, str(folder / "haproxy.cfg"))


@contextmanager
def proxied(
    folder: Path, to: str, *, header_s: int = 600, max_connections: int = 16_384, host: str = "127.0.0.1"
) -> Iterator[Running]:
    """HAProxy before a server, as Ray Serve would start it."""
    port, counters, stats = _free_port(host), _free_port(host), _free_port(host)
    rays_own(folder, to, host, (port, counters, stats))._generate_config_file_internal()
    write_starter(folder / "haproxy", _haproxy() or "", Front(host, HEADER, max_connections, header_s, header_s))
    with (folder / "log").open("wb") as log:
        command = [str(folder / "haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    at = f"http://{host}:{port}"
    try:
        assert comes(lambda: answers(f"{at}/health/live")), (folder / "log").read_text()
        pages = f"http://{host}:{counters}/metrics", f"http://{host}:{stats}/stats"
        yield Running(at, *pages, (folder / "haproxy.cfg").read_text())
    finally:
        process.terminate()
        process.wait(HANG_S)


def test_no_port_is_chosen_that_the_kernel_gives_to_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """HAProxy takes its ports seconds later; Ray, which starts before it, once had been given one of them."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if first < 30_000:
        pytest.skip(f"this machine gives {first} to {last}")
    chosen = {_free_port("127.0.0.1") for _ in range(50)}
    assert len(chosen) > 1
    assert not [port for port in chosen if first <= port <= last]
    with socket.create_server(("127.0.0.1", taken := chosen.pop())):
        monkeypatch.setattr("retort.serving.local._OUR_PORTS", [taken] * 100)
        assert _free_port("127.0.0.1") != taken, "rather any than one that is taken"


@haproxy_only
def test_it_ends_with_who_started_it() -> None:
    """Where a signal ends Ray Serve and everything around it at once, nobody is left who would end HAProxy."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        ports = _free_port("127.0.0.1"), _free_port("127.0.0.1"), _free_port("127.0.0.1")
        rays_own(folder, "http://127.0.0.1:9", "127.0.0.1", ports)._generate_config_file_internal()
        write_starter(folder / "haproxy", _haproxy() or "", Front("127.0.0.1", HEADER, 1000, 5, 5))
        begun = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); sys.stdin.read()"
        command = [str(folder / "haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
        begin = [sys.executable, "-c", begun, *command]
        starter = subprocess.Popen(begin, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert starter.stdout is not None
        process = Path("/proc") / starter.stdout.readline().strip()
        assert comes(lambda: process.joinpath("exe").resolve().name == "haproxy")
        starter.kill()
        starter.wait(HANG_S)
        assert comes(lambda: not process.exists() or not process.joinpath("cmdline").read_bytes())


@haproxy_only
def test_ray_serve_starts_and_replaces_what_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own code, which knows a new HAProxy by its process id and by the file in its command line."""
    import ray.serve._private.haproxy as theirs

    async def start_and_replace(folder: Path, to: str) -> list[tuple[int, int]]:
        ports = _free_port("127.0.0.1"), _free_port("127.0.0.1"), _free_port("127.0.0.1")
        api = rays_own(folder, to, "127.0.0.1", ports)
        at, seen = f"http://127.0.0.1:{ports[0]}", []
        await api.start()
        try:
            for _ in range(3):
                assert await asyncio.to_thread(comes, lambda: answers(f"{at}/health/live"))
                seen.append((httpx.get(f"{at}/-/routes").status_code, api._proc.pid))
                assert api._is_our_haproxy(api._proc.pid)
                await api.reload()
        finally:
            await api.stop()
        return seen

    with tempfile.TemporaryDirectory(dir="/tmp") as name, running(api_of_stub(tone())) as url:  # short, for sockets
        starter = Path(name, "haproxy")
        write_starter(starter, _haproxy() or "", Front("127.0.0.1", HEADER, 1000, 5, 5))
        monkeypatch.setattr(theirs, "RAY_SERVE_HAPROXY_BINARY_PATH", str(starter))
        seen = asyncio.run(start_and_replace(Path(name), url))
    assert [status for status, _ in seen] == [404] * 3, "each is mended"
    assert len({pid for _, pid in seen}) == 3


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=ONE_TRY_S).status_code == 200
    except httpx.HTTPError:
        return False


def tone() -> Stub:
    return Stub(Snippet(0.1 * torch.ones(2400), "said"))


@contextmanager
def idle(url: str, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that send no more than that; some may not get further than the kernel's queue."""
    address = httpx.URL(url)
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for connection in held:
            connection.settimeout(HANG_S if sent else 0)
            connection.connect_ex((address.host, address.port or 80))
            if sent:
                connection.sendall(sent)
        yield held


def wait_until_closed(held: list[socket.socket], *, count: int) -> int:
    """How many the server has closed once it is that many."""
    closed, deadline = 0, time.monotonic() + HANG_S
    with selectors.DefaultSelector() as selector:
        for connection in held:
            selector.register(connection, selectors.EVENT_READ)
        while closed < count and time.monotonic() < deadline:
            for key, _ in selector.select(1.0):
                try:
                    over = not key.fileobj.recv(65536)  # type: ignore[union-attr]
                except OSError:
                    over = True
                if over:
                    selector.unregister(key.fileobj)
                    closed += 1
    return closed


@haproxy_only
@pytest.mark.parametrize("what", ["the API", "the counters", "the page of counters"])
def test_thousands_of_idle_connections_keep_nobody_out(tmp_path: Path, what: str) -> None:
    """More than the 4,096 that everything shared; whoever sends no headers is sent away."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 12_000:
        pytest.skip(f"needs 12,000 open files, this account may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with running(api_of_stub(tone())) as url, proxied(tmp_path, url, header_s=10) as front:
            target = {"the API": front.address, "the counters": front.counters, "the page of counters": front.stats}
            with idle(target[what], 4200):
                speech = httpx.post(f"{front.address}/v1/audio/speech", json=body(1))
                assert speech.status_code == 200
                if what == "the API":
                    assert answers(front.counters)
                    assert answers(front.stats)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@haproxy_only
@pytest.mark.parametrize(
    "sent",
    [
        b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET /stats HTTP/1.1\r\nX-A: " + b"a" * 500,
        b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)  # fmt: skip
def test_who_sends_no_whole_headers_or_nothing_more_is_sent_away_everywhere(tmp_path: Path, sent: bytes) -> None:
    with running(api_of_stub(tone())) as url, proxied(tmp_path, url, header_s=1) as front:
        for target in (front.address, front.counters, front.stats):
            with idle(target, 20, sent) as held:
                assert wait_until_closed(held, count=20) == 20


def own_address() -> str:
    """Of this machine, other than the loopback device's; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@haproxy_only
def test_one_address_does_not_take_all_connections(tmp_path: Path) -> None:
    own = own_address()
    if own.startswith("127."):
        pytest.skip("this machine has the loopback device only")
    with (
        running(api_of_stub(tone())) as url,
        proxied(tmp_path, url, max_connections=40, host=own) as front,
    ):
        assert "    maxconn 40\n" in front.config
        with idle(front.address, 30) as held:
            assert wait_until_closed(held, count=10) == 10, "half of them are let in"


@haproxy_only
def test_an_answer_that_takes_longer_than_headers_may_is_waited_for(tmp_path: Path) -> None:
    class Slow(Stub):
        async def speak(self, ask):  # type: ignore[no-untyped-def]
            import asyncio

            await asyncio.sleep(LONGER_THAN_HEADERS_S)
            async for piece in super().speak(ask):
                yield piece

    slow = Slow(*tone().pieces)
    with running(api_of_stub(slow)) as url, proxied(tmp_path, url, header_s=1) as front:
        assert httpx.post(f"{front.address}/v1/audio/speech", json=body(1)).status_code == 200


@haproxy_only
def test_the_pages_of_counters_listen_where_the_server_does(tmp_path: Path) -> None:
    with running(api_of_stub(tone())) as url, proxied(tmp_path, url) as front:
        assert "haproxy_frontend_current_sessions" in httpx.get(front.counters).text
        assert "Statistics Report for HAProxy" in httpx.get(front.stats).text
        binds = [line.split()[1] for line in front.config.splitlines() if line.strip().startswith("bind ")]
    assert len(binds) == 3
    assert all(bind.startswith("127.0.0.1:") for bind in binds), binds


@haproxy_only
def test_wrong_keys_count_for_their_sender_however_it_calls_itself(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with (
        running(api_of_stub(tone(), api_keys=str(keys), client_header=HEADER)) as url,
        proxied(tmp_path, url) as front,
        httpx.Client(base_url=front.address, headers={"Authorization": "Bearer not-the-key-0123456789"}) as guesser,
    ):
        forged = [{"X-Forwarded-For": f"192.0.2.{n}", HEADER: f"192.0.2.{n}", "Forwarded": "for=x"} for n in range(40)]
        statuses = [guesser.get("/v1/models", headers=headers).status_code for headers in forged]
        assert statuses == [401] * 30 + [429] * 10
        elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(base_url=front.address, transport=elsewhere) as other:
            assert other.get("/v1/models").status_code == 401, "another address has its own thirty"
            right = {"Authorization": f"Bearer {KEY}"}
            assert other.get("/v1/models", headers=right).status_code == 200


@haproxy_only
@pytest.mark.parametrize("path", ["/-/routes", "/-/healthz", "/-/ROUTES", "/%2D/routes", "/-/anything"])
def test_what_ray_serve_tells_by_itself_is_told_to_nobody(tmp_path: Path, path: str) -> None:
    with running(api_of_stub(tone())) as url, proxied(tmp_path, url) as front:
        answer = httpx.get(front.address + path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert "retort" not in answer.text


@haproxy_only
def test_a_server_that_is_gone_is_told_in_openais_shape(tmp_path: Path) -> None:
    with proxied_to_nobody(tmp_path) as front:
        answer = httpx.get(f"{front}/v1/models")
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        assert answer.headers["retry-after"] == "5"


def raw_answer(url: str, sent: bytes) -> tuple[int, str, bytes]:
    """Status, type and body of what is answered to these bytes, up to the end of the connection."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), HANG_S) as connection:
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, str(answer.headers["content-type"]), answer.read()


@haproxy_only
@pytest.mark.parametrize("method", ["CONNECT", "BREW", "PROPFIND", "get"])
def test_methods_that_no_server_knows_are_told_in_openais_shape(tmp_path: Path, method: str) -> None:
    target = "a:80" if method == "CONNECT" else "/v1/models"
    with running(api_of_stub(tone())) as url, proxied(tmp_path, url) as front:
        sent = f"{method} {target} HTTP/1.1\r\nHost: a:80\r\n\r\n".encode()
        status, kind, text = raw_answer(front.address, sent)
        assert httpx.request("TRACE", f"{front.address}/v1/models").status_code == 405, "the API's own answer"
    assert (status, kind, json.loads(text)["error"]["code"]) == (405, "application/json", "method_not_allowed")


@haproxy_only
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 400),
        (b"POST /v1/audio/speech HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n{}", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", 408),
    ],
)
def test_what_is_no_request_never_reaches_the_api_and_is_told_nothing_of_it(
    tmp_path: Path, sent: bytes, expected: int
) -> None:
    """HAProxy answers it in its own words, for which it takes no others."""
    with running(api_of_stub(tone())) as url, proxied(tmp_path, url, header_s=1) as front:
        status, _, text = raw_answer(front.address, sent)
        assert answers(f"{front.address}/health/live")
    assert status == expected
    assert b"retort" not in text
    assert b"uvicorn" not in text


@contextmanager
def proxied_to_nobody(folder: Path) -> Iterator[str]:
    """A server that ends once HAProxy has seen it."""
    with ExitStack() as stack:
        url = stack.enter_context(running(api_of_stub(tone())))
        with proxied(folder, url) as front:
            stack.close()
            yield front.address


def test_a_configuration_that_is_not_rays_is_not_taken() -> None:
    front = Front("127.0.0.1", HEADER, 100, 1, 1)
    for text in ("", "global\n    maxconn 5\n", "defaults\n    mode http\n"):
        with pytest.raises(ValueError, match="has 0 places"):
            mended(text, front, {})


@pytest.mark.parametrize(
    ("told", "header", "expected"),
    [
        (None, None, "192.0.2.9"),
        ("192.0.2.1", None, "192.0.2.9"),
        ("192.0.2.1", "X-Real-IP", "192.0.2.1"),
        ("198.51.100.7, 192.0.2.1", "X-Real-IP", "192.0.2.1"),
        ("unknown", "X-Real-IP", "192.0.2.9"),
        ("", "X-Real-IP", "192.0.2.9"),
        ("2001:db8:1:2:3:4:5:6", "X-Real-IP", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "X-Real-IP", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "X-Real-IP", "192.0.2.1"),
    ],
)
def test_whose_request_it_is(told: str | None, header: str | None, expected: str) -> None:
    headers = [] if told is None else [(b"x-real-ip", told.encode())]
    assert client_of({"type": "http", "headers": headers, "client": ("192.0.2.9", 5)}, header) == expected
