"""The application on a real Ray Serve: the client, streams, a killed replica, and a redeployment under load."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from ray.serve.schema import ServeDeploySchema

from retort.config import load_config
from retort.errors import MissingRequirementError
from retort.serving.local import demo_config, deploy, serving
from retort.serving.settings import ServeConfig, ServedModel
from tests.inference.speaking import speaking_model
from tests.patience import comes
from tests.serving.running import backends, settings
from tests.serving.test_api import body, good_seed, speak

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    base = settings(speaking_model(tmp_path_factory.mktemp("app")))
    tiny = base.models[0].replace(cpus=0.5, min_replicas=1, max_replicas=2, target_audio_seconds=2.0)
    tiny = tiny.replace(upscale_delay_s=0.5, downscale_delay_s=2.0, load_window_s=3.0)
    patient = base.limits.replace(max_waiting_seconds=60.0)
    return base.replace(models=(tiny, base.models[1].replace(cpus=0.5)), port=8713, drain_s=20.0, limits=patient)


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
    assert httpx.get(f"{address}/health/ready").json()["models"] == ["other", "tiny"]
    whole = speak(address, body(seed, response_format="pcm"))
    assert whole.status_code == 200
    other = speak(address, body(seed, model="other", response_format="pcm"))
    assert whole.content == other.content, "the same weights and seed, in another replica"
    assert speak(address, body(seed, voice="nobody")).status_code == 400


def replicas_of(name: str) -> list[int]:
    """Process ids of a model's replicas, among the processes that this one has started."""
    title, found = f"ServeReplica:retort:model-{name}", []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            if title in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def heard(address: str, wanted: dict[str, object]) -> bytes | str:
    """All of a stream, or what went wrong."""
    try:
        answer = speak(address, wanted)
    except httpx.HTTPError as error:
        return type(error).__name__
    return answer.content if answer.status_code == 200 else f"status {answer.status_code}"


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_replica_breaks_its_streams_loudly_and_comes_back(address: str, seed: int) -> None:
    expected = speak(address, body(seed, response_format="pcm")).content
    long = body(seed, input="one two " * 20, response_format="pcm")
    whole = heard(address, long)
    outcomes: list[bytes | str] = []

    def stream() -> None:
        outcomes.append(heard(address, long))

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
    wanted = body(seed, response_format="pcm")
    assert comes(lambda: heard(address, wanted) == expected, every_s=0.5), "the replica comes back"
    assert len(outcomes) == 4
    assert all(outcome == whole or isinstance(outcome, str) for outcome in outcomes), (
        "never a short file that looks whole"
    )


@contextmanager
def load(address: str, seed: int, *, clients: int) -> Iterator[list[tuple[int, bytes]]]:
    """Clients that ask again and again; statuses and sounds of what they got."""
    answers: list[tuple[int, bytes]] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answer = speak(address, body(seed, response_format="pcm"))
            answers.append((answer.status_code, answer.content))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.ray
@pytest.mark.slow
def test_replicas_follow_the_load(address: str, seed: int) -> None:
    with load(address, seed, clients=12) as answers:
        assert comes(lambda: len(replicas_of("tiny")) == 2, every_s=0.2), "more speech in flight, more replicas"
        text = httpx.get(f"{address}/metrics").text
    assert "retort_audio_seconds_in_flight" in text
    assert {status for status, _ in answers} <= {200, 429}
    assert comes(lambda: len(replicas_of("tiny")) == 1, every_s=0.2), "and back to the floor after it"


@pytest.mark.ray
@pytest.mark.slow
def test_a_new_version_takes_over_without_a_failed_request(
    address: str, config: ServeConfig, seed: int, tmp_path: Path
) -> None:
    before = httpx.get(f"{address}/v1/models/tiny").json()["fingerprint"]
    old = speak(address, body(seed, response_format="pcm")).content
    new_model = speaking_model(tmp_path, weights_seed=1)
    models = (config.models[0].replace(path=new_model), config.models[1])
    with load(address, seed, clients=6) as answers:
        assert comes(lambda: answers)
        deploy(config.replace(models=models))
        assert comes(lambda: httpx.get(f"{address}/v1/models/tiny").json()["fingerprint"] != before)
        new = speak(address, body(seed, response_format="pcm"))
        assert comes(lambda: (new.status_code, new.content) in answers), "whoever goes on hears the new version"
    statuses, sounds = zip(*answers, strict=True)
    # Random weights rarely end by themselves: what the new version says may be a refused runaway, never a broken one.
    assert set(statuses) <= {200, new.status_code}
    assert {sound for status, sound in answers if status == 200} <= {old, new.content}
    assert sounds[0] == old


@pytest.mark.ray
@pytest.mark.slow
def test_a_version_that_does_not_start_leaves_the_old_one_in_service(
    address: str, config: ServeConfig, seed: int, tmp_path: Path
) -> None:
    deploy(config)
    wanted = body(seed, response_format="pcm")
    assert comes(lambda: speak(address, wanted).status_code == 200)
    before = speak(address, wanted).content
    broken = (config.models[0].replace(path=tmp_path / "absent"), config.models[1])
    with load(address, seed, clients=2) as answers, pytest.raises(MissingRequirementError, match="absent"):
        deploy(config.replace(models=broken))
    assert set(answers) == {(200, before)}
    assert speak(address, wanted).content == before
    assert httpx.get(f"{address}/health/ready").status_code == 200


def test_the_yaml_files_are_valid_deployments() -> None:
    import yaml

    files = sorted((ROOT / "serve").glob("*.yaml"))
    assert ROOT / "serve" / "local.yaml" in files
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
    (tmp_path / "student_small" / "result").mkdir(parents=True)
    config = demo_config(tmp_path)
    assert [model.name for model in config.models] == ["student_small"]
    assert config.default_model == "student_small"
    assert config.layout == "together"
    assert isinstance(config.models[0], ServedModel)
