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
from retort.errors import ConfigError
from retort.serving.settings import ServeConfig
from tests.inference.speaking import speaking_model
from tests.serving.running import api_of, backends, running, settings
from tests.serving.test_api import body, good_seed, speak


@pytest.mark.ray
@pytest.mark.slow
def test_everything_in_one_process_behind_haproxy_says_the_same(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
        streamed = speak(address, body(seed, response_format="pcm", stream_format="audio"))
        assert streamed.content == expected
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(120) == 0
        for backend in made.values():
            backend.speaking.stop()


def test_what_is_together_scales_as_one(tmp_path: Path) -> None:
    tree = settings(tmp_path, layout="together").model_dump(mode="json")
    tree["models"][0]["max_replicas"] = 2
    with pytest.raises(ConfigError, match="same replicas"):
        validate(tree, ServeConfig, where="serve.yaml")
