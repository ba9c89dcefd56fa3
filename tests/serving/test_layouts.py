"""The API in the models' own process, behind HAProxy, as ``retort serve`` starts it."""

import json
import signal
import socket
import subprocess
import sys
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.ray
@pytest.mark.slow
def test_everything_in_one_process_behind_haproxy_says_the_same(tmp_path: Path) -> None:
    port = free_port()
    config = settings(speaking_model(tmp_path), layout="together", proxy="haproxy", port=port)
    made = backends(config)
    seed = good_seed(made["tiny"])
    with running(api_of(config, made)) as plain:
        expected = speak(plain, body(seed, response_format="pcm")).content
    file = tmp_path / "serve.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "retort.cli", "serve", str(file)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert "stop with Ctrl-C" in server.stdout.readline(), "said once every model is ready"
        address = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{address}/health/ready", timeout=30).status_code == 200
        answers = [speak(address, body(seed, model=name, response_format="pcm")) for name in ("tiny", "other")]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert {answer.content for answer in answers} == {expected}
        assert [len(answer.headers.get_list("x-request-id")) for answer in answers] == [1, 1], "Ray Serve's"
        streamed = speak(address, body(seed, response_format="pcm", stream_format="audio"))
        assert streamed.content == expected
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(120) == 0
        for backend in made.values():
            backend.speaking.stop()


@pytest.mark.ray
@pytest.mark.slow
def test_a_new_version_of_everything_takes_over_without_a_failed_request(tmp_path: Path) -> None:
    base = settings(speaking_model(tmp_path), layout="together", proxy="haproxy", port=free_port())
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
    guard = GuardConfig(seconds_per_character=0.2, retries=0)
    limits = Limits(max_seconds=200.0, slow_reader_s=1.0)
    endless = ServedModel(name="tiny", path=speaking_model(tmp_path, ends=False), slots=1, part_characters=1000)
    config = ServeConfig(models=(endless,), guard=guard, limits=limits, layout="together", proxy="haproxy", port=0)
    # Kernels keep some 8 MB of it, so there must be more: 190 s, played four times slower, of 48 kB a second.
    wanted = json.dumps(body(1, input="one two " * 118, response_format="pcm", speed=0.25)).encode()
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
