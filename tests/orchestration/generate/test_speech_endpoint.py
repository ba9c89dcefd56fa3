"""A speech service as a teacher: every id once, and the key nowhere but in requests."""

import json

import pytest
import torch
import yaml

from retort.cli import run
from retort.errors import ConfigError, StorageError
from retort.orchestration.cluster import ray_session
from retort.orchestration.generate.speech_job import run_generate_speech
from retort.serving.speaking import Snippet
from tests.inference.test_endpoint import KEY, Service, refusal
from tests.orchestration.generate.speech_runs import in_process, records_of, speech_config, tree_of
from tests.orchestration.tiny_runs import Lines, killing_an_actor_after
from tests.serving.running import Stub, api_of_stub, running

TONE = torch.sin(torch.arange(36_000) / 24_000 * 2 * torch.pi * 200) * 0.2
PATIENT = {"stability": {"max_s_per_word": 5.0, "min_s_per_word": 0.01}}


def teacher(url, **changes):
    return {
        "kind": "endpoint", "base_url": f"{url}/v1", "model": "tiny", "voices": ["s0"], "licence": "ours", **changes,
    }  # fmt: skip


def everything_in(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_service_speaks_and_its_key_is_in_nothing_that_is_written_or_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPEECH_KEY", KEY)
    service = Service(refusal(500, f"broken by {KEY}"), refusal(400, f"no, {KEY}"), *[0.3] * 12)
    with running(service.api) as url:
        config = speech_config(tmp_path / "out", teacher(url, api_key_env="SPEECH_KEY", concurrency=3), filters=PATIENT)
        summary = in_process(config)
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(tree_of(tmp_path / "dry", teacher(url, api_key_env="SPEECH_KEY"))))
        assert run(["generate", str(file), "--dry-run"]) == 0
    assert (summary["rows"], summary["dropped"]) == (12, {"refused_by_teacher": 1})
    assert {headers["authorization"] for headers, _ in service.seen} == {f"Bearer {KEY}"}
    assert 2 <= service.most_at_once <= 3
    records = records_of(tmp_path / "out")
    assert {row["teacher"] for row in records.values()} == {f"tiny at {url}/v1"}
    shown = capsys.readouterr()
    assert KEY.encode() not in everything_in(tmp_path) + (shown.out + shown.err).encode()


def test_without_its_key_nothing_begins_and_a_service_that_is_gone_stops_the_job(tmp_path, monkeypatch):
    monkeypatch.delenv("SPEECH_KEY", raising=False)
    with pytest.raises(ConfigError, match="SPEECH_KEY is not set"):
        run_generate_speech(speech_config(tmp_path / "a", teacher("http://x", api_key_env="SPEECH_KEY")), Lines())
    assert not (tmp_path / "a").exists()
    with pytest.raises(StorageError, match="goes on where it stopped"):
        in_process(speech_config(tmp_path / "b", teacher("http://127.0.0.1:9", max_attempts=1)))


def test_requests_a_minute_are_shared_by_the_pool(tmp_path):
    """Two workers of 240 a minute: each sends one in half a second at most."""
    service = Service()
    with running(service.api) as url:
        in_process(speech_config(tmp_path / "out", teacher(url, max_per_minute=240.0), filters=PATIENT))
    gaps = [after - before for before, after in zip(service.times, service.times[1:], strict=False)]
    assert len(gaps) == 12
    assert sum(gaps) >= 0.5 * 11


@pytest.mark.ray
def test_a_killed_worker_leaves_each_id_of_our_own_service_exactly_once(tmp_path):
    stub = Stub(Snippet(TONE, "said"))
    texts = {"kind": "english", "train": 40, "validation": 2, "test": 6}
    with running(api_of_stub(stub)) as url, ray_session(num_cpus=2):
        config = speech_config(
            tmp_path / "out", teacher(url, send_seed=True), texts=texts, chunk_size=2, filters=PATIENT
        )
        with killing_an_actor_after(2, tmp_path / "out" / "work") as killed:
            run_generate_speech(config, Lines())
    assert len(killed) == 1
    records = records_of(tmp_path / "out")
    assert sorted(records) == [f"speech-{number:06d}" for number in range(48)]
    asked = {ask.text for ask in stub.asks}
    assert {row["text"] for row in records.values()} == asked
    seeds = {ask.text: ask.seed for ask in stub.asks}
    assert all(json.loads(row["settings"])["seed"] == seeds[row["text"]] for row in records.values())
