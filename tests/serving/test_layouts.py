"""The API in the models' own process, behind HAProxy, as ``retort serve`` starts it."""

import json
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from ray._common.utils import get_default_ray_temp_dir

from retort.config import validate
from retort.errors import ConfigError, MissingRequirementError
from retort.serving.local import _haproxy, deploy, serving
from retort.serving.settings import Limits, ServeConfig
from tests.inference.speaking import speaking_model
from tests.patience import HANG_S, ONE_TRY_S, comes
from tests.serving.running import api_of, backends, running, settings
from tests.serving.test_api import body, good_seed, speak
from tests.serving.test_app import load

if sys.platform != "linux":
    pytest.skip("HAProxy comes with Ray on Linux only", allow_module_level=True)

REQUEST_HEAD = (
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: retort\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
LONG = body(2, model="long", input="one two " * 118, response_format="pcm", speed=0.25)
"""Minutes, played four times slower."""


def kernel_bytes() -> int:
    """What kernels keep, at most, between the API and a client that reads nothing: sent, received by HAProxy, sent."""
    received, sent = (
        int(Path(f"/proc/sys/net/ipv4/tcp_{name}").read_text("ascii").split()[2]) for name in ("rmem", "wmem")
    )
    return received + 2 * sent


ENDLESS_S = 1.5 * kernel_bytes() / (4 * 48_000)
"""Of a voice that never ends, before the guard ends it: played four times slower, more than kernels keep."""


@dataclass(frozen=True)
class Layout:
    """Everything in one process, and what it says without Ray."""

    config: ServeConfig
    seed: int
    short: bytes
    long: bytes


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    base = settings(speaking_model(tmp_path_factory.mktemp("short")), layout="together", proxy="haproxy", port=0)
    long = speaking_model(tmp_path_factory.mktemp("long"), mean_frames=2000.0)
    models = tuple(model.replace(cpus=0.5) for model in base.models)
    endless = speaking_model(tmp_path_factory.mktemp("endless"), mean_frames=1e9)
    models += tuple(
        models[0].replace(name=name, path=path, slots=1, part_characters=4096)
        for name, path in (("long", long), ("endless", endless))
    )
    limits = Limits(max_seconds=max(200.0, ENDLESS_S), max_waiting_seconds=60.0, deadline_s=HANG_S)
    config = base.replace(models=models, limits=limits)
    made = backends(config)
    seed = good_seed(made["tiny"])
    with running(api_of(config, made)) as plain:
        short, long_speech = (speak(plain, wanted).content for wanted in (body(seed, response_format="pcm"), LONG))
    for backend in made.values():
        backend.speaking.stop()
    assert len(long_speech) > 16_000_000
    return Layout(config, seed, short, long_speech)


@pytest.fixture(scope="module")
def command(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """``retort serve`` once it is ready: its address and its process, which must end well."""
    file = tmp_path_factory.mktemp("command") / "serve.yaml"
    file.write_text(json.dumps(layout.config.model_dump(mode="json")))
    server = subprocess.Popen(
        [sys.executable, "-m", "retort.cli", "serve", str(file)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert "stop with Ctrl-C" in said, "said once every model is ready"
        yield said.partition(" at ")[2].partition(" ")[0], server
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(HANG_S) == 0


@pytest.mark.ray
@pytest.mark.slow
def test_everything_in_one_process_behind_haproxy_says_the_same(
    layout: Layout, command: tuple[str, "subprocess.Popen[str]"]
) -> None:
    address, _ = command
    assert httpx.get(f"{address}/health/ready").status_code == 200
    wanted = [body(layout.seed, model=name, response_format="pcm") for name in ("tiny", "other")]
    answers = [speak(address, one) for one in (*wanted, {**wanted[0], "stream_format": "audio"})]
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, layout.short)}
    assert [len(answer.headers.get_list("x-request-id")) for answer in answers] == [1, 1, 1], "Ray Serve's"


@pytest.mark.ray
@pytest.mark.slow
def test_the_server_that_the_command_starts_is_guarded(command: tuple[str, "subprocess.Popen[str]"]) -> None:
    """What tests/serving/test_front.py and test_origins.py show one by one, in what a user starts."""
    address, _ = command
    assert httpx.get(f"{address}/-/routes").status_code == 404
    assert httpx.get(f"{address}/v1/models", headers={"Host": "evil.example"}).status_code == 421
    cross = httpx.post(f"{address}/v1/audio/speech", json=body(1), headers={"Origin": "https://evil.example"})
    assert cross.status_code == 403
    url = httpx.URL(address)
    with socket.create_connection((url.host, url.port or 80), timeout=HANG_S) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n")
        assert b" 408 " in connection.recv(200), "after `body_timeout_s`"


@pytest.mark.ray
@pytest.mark.slow
def test_what_has_begun_is_said_to_its_end_after_sigterm(
    layout: Layout, command: tuple[str, "subprocess.Popen[str]"]
) -> None:
    address, server = command
    name = {"X-Request-ID": uuid.uuid4().hex}
    with httpx.stream("POST", f"{address}/v1/audio/speech", json=LONG, headers=name) as answer:
        chunks = answer.iter_raw()
        received = next(chunks)
        server.send_signal(signal.SIGTERM)
        assert comes(lambda: not is_live(address)), "nobody else is let in"
        assert received + b"".join(chunks) == layout.long
    assert server.wait(HANG_S) == 0
    logs = Path(get_default_ray_temp_dir()).glob("session_*/logs/serve/*.log")
    assert any(name["X-Request-ID"] in log.read_text(errors="replace") for log in logs), "its line of the access log"


def is_live(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/live", timeout=ONE_TRY_S).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def hasty(layout: Layout) -> Iterator[tuple[ServeConfig, str]]:
    """A server of this process that does not wait long for slow readers."""
    patient = {"max_waiting_seconds": 3600.0, "deadline_s": HANG_S}
    config = layout.config.replace(limits=layout.config.limits.replace(slow_reader_s=1.0, **patient))
    with serving(config) as address:
        yield config, address


@pytest.mark.ray
@pytest.mark.slow
def test_who_reads_nothing_is_cut_off_behind_haproxy(hasty: tuple[ServeConfig, str]) -> None:
    config, address = hasty
    text = "one two " * round(ENDLESS_S / config.guard.seconds_per_character / 8)
    wanted = json.dumps({**LONG, "model": "endless", "input": text}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = httpx.URL(address)
        client.connect((url.host, url.port))
        client.sendall(REQUEST_HEAD % len(wanted) + wanted)
        assert comes(lambda: 'requests_total{model="endless"' in httpx.get(f"{address}/metrics").text)
        metrics = httpx.get(f"{address}/metrics").text
        ended = [line for line in metrics.splitlines() if line.startswith('retort_requests_total{model="endless"')]
        assert ended == ['retort_requests_total{model="endless",status="499"} 1.0'], "cut off, before the guard ends it"
        assert 'retort_audio_seconds_in_flight{model="endless"} 0.0' in metrics
        received = b"".join(iter(lambda: client.recv(1 << 20), b""))
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n"), "the stream is never closed as if it were whole"


@pytest.mark.ray
@pytest.mark.slow
def test_a_new_version_of_everything_takes_over_without_a_failed_request(
    layout: Layout, hasty: tuple[ServeConfig, str], tmp_path: Path
) -> None:
    config, address = hasty
    promoted = config.models[0].replace(path=speaking_model(tmp_path, weights_seed=1))
    with load(address, layout.seed, clients=6) as answers:
        deploy(config.replace(models=(promoted, *config.models[1:])))
        assert comes(lambda: bool(answers) and answers[-1][1] != layout.short)
    new = speak(address, body(layout.seed, response_format="pcm"))
    assert set(answers) == {(200, layout.short), (new.status_code, new.content)}, "HAProxy sends nobody to who has left"


@pytest.mark.parametrize("name", ["port", "counters_port", "stats_port"])
def test_a_port_that_is_taken_is_named(name: str, tmp_path: Path) -> None:
    if name != "port" and _haproxy() is None:
        pytest.skip("no HAProxy on this machine")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        config = settings(tmp_path, **{"port": 0, name: taken})
        told = rf"{taken}: Address already in use.*--set {name}="
        with pytest.raises(MissingRequirementError, match=told), serving(config):
            pass
    elsewhere = config.replace(host="198.51.100.7")
    with pytest.raises(MissingRequirementError, match=r"198\.51\.100\.7:.*Cannot assign"), serving(elsewhere):
        pass


def test_what_is_together_scales_as_one(tmp_path: Path) -> None:
    tree = settings(tmp_path, layout="together").model_dump(mode="json")
    tree["models"][0]["max_replicas"] = 2
    with pytest.raises(ConfigError, match="same replicas"):
        validate(tree, ServeConfig, where="serve.yaml")
