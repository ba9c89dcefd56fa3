"""The API in the models' own process, behind HAProxy, as ``retort serve`` starts it."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from retort.config import validate
from retort.errors import ConfigError, MissingRequirementError
from retort.inference.speech import GuardConfig
from retort.serving.local import deploy, serving
from retort.serving.settings import Limits, ServeConfig, ServedModel
from tests.inference.speaking import speaking_model
from tests.serving.running import api_of, backends, paused, running, settings
from tests.serving.test_api import body, good_seed, speak
from tests.serving.test_app import load

REQUEST_HEAD = (
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: retort\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


@contextmanager
def retort_serve(config: ServeConfig, folder: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The command, once it is ready: its address and its process, which must end well."""
    file = folder / "serve.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "retort.cli", "serve", str(file)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert "stop with Ctrl-C" in said, "said once every model is ready"
        yield said.partition(" at ")[2].partition(" ")[0], server
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(120) == 0


def long_speech(folder: Path, **changes: object) -> tuple[ServeConfig, dict[str, object]]:
    """A model and a request for two minutes, played four times slower: 23 MB, of which kernels keep some 8 for a client
    that reads nothing."""
    model = speaking_model(folder, mean_frames=2000.0)
    served = ServedModel(name="tiny", path=model, precision="fp32", slots=1, part_characters=1000)
    config = ServeConfig(
        models=(served,), guard=GuardConfig(seconds_per_character=0.2, retries=0), limits=Limits(max_seconds=200.0),
        layout="together", proxy="haproxy", port=0,
    )  # fmt: skip
    return config.replace(**changes), body(2, input="one two " * 118, response_format="pcm", speed=0.25)


@pytest.mark.ray
@pytest.mark.slow
def test_everything_in_one_process_behind_haproxy_says_the_same(tmp_path: Path) -> None:
    config = settings(speaking_model(tmp_path), layout="together", proxy="haproxy", port=0)
    made = backends(config)
    seed = good_seed(made["tiny"])
    with running(api_of(config, made)) as plain:
        expected = speak(plain, body(seed, response_format="pcm")).content
    for backend in made.values():
        backend.speaking.stop()
    with retort_serve(config, tmp_path) as (address, _):
        assert httpx.get(f"{address}/health/ready", timeout=30).status_code == 200
        answers = [speak(address, body(seed, model=name, response_format="pcm")) for name in ("tiny", "other")]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert {answer.content for answer in answers} == {expected}
        assert [len(answer.headers.get_list("x-request-id")) for answer in answers] == [1, 1], "Ray Serve's"
        streamed = speak(address, body(seed, response_format="pcm", stream_format="audio"))
        assert streamed.content == expected


@pytest.mark.ray
@pytest.mark.slow
def test_what_has_begun_is_said_to_its_end_after_sigterm(tmp_path: Path) -> None:
    config, wanted = long_speech(tmp_path)
    made = backends(config)
    with running(api_of(config, made)) as plain:
        expected = speak(plain, wanted).content
    made["tiny"].speaking.stop()
    assert len(expected) > 16_000_000
    with (
        retort_serve(config, tmp_path) as (address, server),
        httpx.stream("POST", f"{address}/v1/audio/speech", json=wanted, timeout=60) as answer,
    ):
        chunks = answer.iter_raw()
        received = next(chunks)
        server.send_signal(signal.SIGTERM)
        assert paused(20, lambda: not is_live(address)), "nobody else is let in"
        assert received + b"".join(chunks) == expected
        assert server.wait(60) == 0


def is_live(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/live").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.ray
@pytest.mark.slow
def test_a_new_version_of_everything_takes_over_without_a_failed_request(tmp_path: Path) -> None:
    base = settings(speaking_model(tmp_path), layout="together", proxy="haproxy", port=0)
    models = tuple(model.replace(cpus=0.5) for model in base.models)
    config = base.replace(models=models, limits=base.limits.replace(max_waiting_seconds=60.0))
    made = backends(config)
    seed = good_seed(made["tiny"])
    for backend in made.values():
        backend.speaking.stop()
    (tmp_path / "new").mkdir()
    promoted = models[0].replace(path=speaking_model(tmp_path / "new", weights_seed=1))
    with serving(config) as address:
        old = speak(address, body(seed, response_format="pcm"))
        with load(address, seed, clients=6) as answers:
            deploy(config.replace(models=(promoted, models[1])))
            assert paused(30, lambda: bool(answers) and answers[-1][1] != old.content)
        new = speak(address, body(seed, response_format="pcm"))
    assert set(answers) == {(200, old.content), (new.status_code, new.content)}, "HAProxy sends nobody to who has left"


@pytest.mark.ray
@pytest.mark.slow
def test_who_reads_nothing_is_cut_off_behind_haproxy(tmp_path: Path) -> None:
    config, request = long_speech(tmp_path, limits=Limits(max_seconds=200.0, slow_reader_s=1.0))
    wanted = json.dumps(request).encode()
    with serving(config) as address, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = httpx.URL(address)
        client.connect((url.host, url.port))
        client.sendall(REQUEST_HEAD % len(wanted) + wanted)
        assert paused(60, lambda: 'model="tiny",status="499"' in httpx.get(f"{address}/metrics").text)
        assert 'retort_audio_seconds_in_flight{model="tiny"} 0.0' in httpx.get(f"{address}/metrics").text
        received = b"".join(iter(lambda: client.recv(1 << 20), b""))
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n"), "the stream is never closed as if it were whole"


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = settings(tmp_path, port=other.getsockname()[1])
        with pytest.raises(MissingRequirementError, match=f"{config.port}: Address already in use"), serving(config):
            pass
    elsewhere = config.replace(host="198.51.100.7")
    with pytest.raises(MissingRequirementError, match=r"198\.51\.100\.7:.*Cannot assign"), serving(elsewhere):
        pass


def test_what_is_together_scales_as_one(tmp_path: Path) -> None:
    tree = settings(tmp_path, layout="together").model_dump(mode="json")
    tree["models"][0]["max_replicas"] = 2
    with pytest.raises(ConfigError, match="same replicas"):
        validate(tree, ServeConfig, where="serve.yaml")
