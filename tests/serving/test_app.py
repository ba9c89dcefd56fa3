"""The application on a real Ray Serve: the client, streams, a killed replica, and a redeployment under load."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from ray.serve.schema import ServeDeploySchema

from retort.config import load_config
from retort.serving.local import demo_config, serving
from retort.serving.settings import ServeConfig, ServedModel
from tests.inference.speaking import speaking_model
from tests.serving.running import backends, settings
from tests.serving.test_api import body, good_seed, speak

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    base = settings(speaking_model(tmp_path_factory.mktemp("app")))
    tiny = base.models[0].replace(cpus=0.5, min_replicas=1, max_replicas=2, target_audio_seconds=2.0)
    return base.replace(models=(tiny, base.models[1].replace(cpus=0.5)), port=8713, drain_s=20.0)


@pytest.fixture(scope="module")
def seed(config: ServeConfig) -> int:
    made = backends(config)
    found = good_seed(made["tiny"])
    for backend in made.values():
        backend.speaking.stop()
    return found


@pytest.fixture(scope="module")
def address(config: ServeConfig) -> Iterator[str]:
    with serving(config) as url:
        yield url


@pytest.mark.ray
@pytest.mark.slow
def test_it_speaks_streams_and_lists(address: str, seed: int) -> None:
    assert httpx.get(f"{address}/health/ready", timeout=30).json()["models"] == ["other", "tiny"]
    whole = speak(address, body(seed, response_format="pcm"))
    assert whole.status_code == 200
    other = speak(address, body(seed, model="other", response_format="pcm"))
    assert whole.content == other.content, "the same weights and seed, in another replica"
    assert speak(address, body(seed, voice="nobody")).status_code == 400


def replicas_of(name: str) -> list[int]:
    """Process ids of a model's replicas, among the processes that this one has started."""
    title = f"ServeReplica:retort:model-{name}"
    return [child.pid for child in psutil.Process().children(recursive=True) if title in " ".join(child.cmdline())]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_replica_breaks_its_streams_loudly_and_comes_back(address: str, seed: int) -> None:
    expected = speak(address, body(seed, response_format="pcm")).content
    broken: list[object] = []

    def stream() -> None:
        try:
            answer = speak(address, body(seed, input="one two " * 20, response_format="pcm"))
            broken.append(answer.status_code)
        except httpx.HTTPError as error:
            broken.append(type(error).__name__)

    victims = replicas_of("tiny")
    assert victims
    threads = [threading.Thread(target=stream) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert speak(address, body(seed, model="other", response_format="pcm")).content == expected, "others go on"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = speak(address, body(seed, response_format="pcm"))
        if answer.status_code == 200 and answer.content == expected:
            break
        time.sleep(0.5)
    else:
        pytest.fail("the replica did not come back")
    assert len(broken) == 4


def test_the_yaml_files_are_valid_deployments() -> None:
    import yaml

    files = sorted((ROOT / "serve").glob("*.yaml"))
    assert len(files) == 2
    for path in files:
        tree = yaml.safe_load(path.read_text())
        if "applications" in tree:
            schema = ServeDeploySchema.model_validate(tree)
            for application in schema.applications:
                assert application.import_path == "retort.serving.app:build"
                ServeConfig.model_validate(application.args)
        else:
            load_config(path, ServeConfig)


def test_the_default_serves_the_students_that_there_are(tmp_path: Path) -> None:
    from retort.errors import DataError

    with pytest.raises(DataError, match="run `make demo` first"):
        demo_config(tmp_path)
    (tmp_path / "student_medium" / "result").mkdir(parents=True)
    config = demo_config(tmp_path)
    assert [model.name for model in config.models] == ["student_medium"]
    assert config.default_model == "student_medium"
    assert isinstance(config.models[0], ServedModel)
