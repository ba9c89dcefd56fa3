"""Jobs whose inputs and outputs all lie in a store: a real S3 service on the loopback, and nothing kept on the disk."""

import json
import pickle
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from retort import cli
from retort.config import validate
from retort.data.utterance import Reject
from retort.errors import ConfigError, DataError
from retort.inference.opening import open_speaker
from retort.location import RemotePath, parse_location
from retort.orchestration.chunks import ChunkFolder, ChunkResult, arrived, sent
from retort.orchestration.cluster import ray_session
from retort.orchestration.jobs import refuse_existing_output, run_job
from retort.orchestration.outputs import job_output
from retort.orchestration.train.metrics import MetricsWriter, shown
from retort.orchestration.train.reports import reports_of
from retort.orchestration.train.trackers import followed
from retort.run_config import RunConfig
from retort.store.artifact import read_artifact
from retort.store.place import cache_folder, local_of, store_of, workplace
from retort.store.results import result_of
from retort.store.uploads import Mirror
from tests.inference.speaking import speaking_model
from tests.orchestration.promotions import write_evaluation
from tests.orchestration.s3_node import BUCKET, s3_service
from tests.orchestration.tiny_runs import Lines, write_ljspeech

ROOT = f"s3://{BUCKET}/runs"
GUIDANCE = {"kind": "two_term", "scale": 1.5}
# A teacher with random weights says nonsense of any length.
ANYTHING = {"stability": {"max_s_per_word": 100.0, "min_s_per_word": 0.0, "max_repeat_ratio": 1.0}}
TRAINING = {
    "steps": 4,
    "batch": {"max_utterances": 4, "max_frames": 400},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
    "workers": {"num_workers": 1},
    "checkpoint_every": 2,
    "log_every": 1,
}
SHAPE = {"kind": "shape", "dim": 32, "num_layers": 2, "num_heads": 2, "ffn_dim": 64}


@pytest.fixture(scope="module", autouse=True)
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An S3 service, an empty bucket, and a node with an empty cache and an empty current folder."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "here").mkdir()
    with s3_service(folder / "cache"):
        yield folder


def keys(name: str) -> set[str]:
    return {key.removeprefix(f"runs/{name}/") for key in store_of(BUCKET).list(f"runs/{name}")}


def job(tree: dict[str, Any]) -> Any:
    return validate(tree, RunConfig, where="test")  # type: ignore[arg-type]


def prepare(corpus: Path) -> dict[str, Any]:
    codec = {"kind": "mel_rvq", "num_codebooks": 2, "codebook_size": 16, "kmeans_iterations": 2}
    return {
        "job": "prepare",
        "output": f"{ROOT}/data",
        "corpus": {"kind": "ljspeech", "path": str(corpus)},
        "codec": codec,
        "text": {"kind": "characters"},
        "splits": {"test_fraction": 0.2, "validation_fraction": 0.1},
        "pool": {"size": 1},
    }


PRETRAIN = {
    "job": "pretrain", "output": f"{ROOT}/teacher", "data": f"{ROOT}/data", "model": SHAPE,
    "training": {**TRAINING, "batch": {**TRAINING["batch"], "drop_both": 0.1}},
}  # fmt: skip
GENERATE = {
    "job": "generate", "output": f"{ROOT}/synthetic", "teacher": f"{ROOT}/teacher", "data": f"{ROOT}/data",
    "guidance": GUIDANCE, "top_k": 8, "num_sampled": 4, "max_frames": 30, "batch_size": 4, "filters": ANYTHING,
    "pool": {"size": 1},
}  # fmt: skip
DISTILL = {
    "job": "distill", "output": f"{ROOT}/student", "teacher": f"{ROOT}/teacher", "data": f"{ROOT}/data",
    "synthetic": f"{ROOT}/synthetic", "student": SHAPE, "init": "random",
    "method": {"kind": "cfg_distill", "guidance": GUIDANCE, "targets": "cached"}, "training": TRAINING,
}  # fmt: skip
EVALUATE = {
    "job": "evaluate", "output": f"{ROOT}/evaluation", "data": f"{ROOT}/data", "num_strings": 2, "max_frames": 30,
    "systems": [
        {"name": "recordings", "kind": "recordings"},
        {"name": "student", "kind": "model", "role": "student", "model": f"{ROOT}/student"},
    ],
    "recogniser": {"kind": "pocketsphinx", "words": ["one", "two"]}, "num_resamples": 100, "speed": None,
    "pool": {"size": 1},
}  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_every_job_of_a_tour_reads_and_writes_a_store(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_ljspeech(tmp_path / "corpus", 24, seconds=0.8)
    monkeypatch.chdir(node / "here")
    trees = [prepare(corpus), PRETRAIN, GENERATE, DISTILL, EVALUATE]
    with ray_session(num_cpus=4):
        for tree in trees:
            run_job(job(tree), Lines())
            # The next job finds what it reads in the store alone, as on a new cluster.
            shutil.rmtree(cache_folder())
    assert list((node / "here").iterdir()) == []
    for tree in trees:
        name = tree["output"].removeprefix(f"{ROOT}/")
        found = keys(name)
        assert {"run.yaml", "result/COMMITTED", "result/artifact.json", "result/MANIFEST.sha256"} <= found
        # Neither unfinished work nor a lease is left.
        assert not {key for key in found if key.startswith("work/")}
        assert f"runs/{name}.lock" not in store_of(BUCKET).list(f"runs/{name}.lock")
    assert "metrics.jsonl" in keys("student")
    assert {"checkpoints/step-00000002/COMMITTED", "checkpoints/step-00000004/COMMITTED"} <= keys("teacher")
    student = read_artifact(result_of(job(EVALUATE).systems[1].model))
    assert student.path.is_relative_to(cache_folder())
    # A finished job is known without a Ray, and is refused with another configuration.
    again = Lines()
    run_job(job(DISTILL), again)
    assert any("is finished" in line for line in again.lines)
    with pytest.raises(ConfigError, match="another configuration"):
        run_job(job({**DISTILL, "sampled_fraction": 0.5}), Lines())
    with pytest.raises(ConfigError, match=r"s3://retort-test/runs/student exists"):
        refuse_existing_output(job(DISTILL))


def _another_node(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on with an empty disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(node / uuid.uuid4().hex))


def _chunk(number: int) -> ChunkResult:
    return ChunkResult({"rows": pa.table({"n": [number, number]})}, [Reject(f"r{number}", "bad", "", "")], {"sum": 1.0})


def test_chunks_made_on_other_nodes_are_put_together_by_the_driver(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = RemotePath("s3:", BUCKET, "runs", "chunked", "work", "k", "chunks")
    sent_to_workers = pickle.dumps(ChunkFolder(local_of(place), 3))
    for number in range(3):
        _another_node(node, monkeypatch)
        chunks = pickle.loads(sent_to_workers)
        assert chunks.folder.is_relative_to(cache_folder())
        chunks.write(number, _chunk(number))
        # A worker that died after this is not asked for it again, wherever its follower runs.
        _another_node(node, monkeypatch)
        assert pickle.loads(sent_to_workers).read(number).rows == {"rows": 2}
    _another_node(node, monkeypatch)
    driver = ChunkFolder(local_of(place), 3)
    assert driver.missing() == []
    assert driver.collect(driver.records(), "rows", tmp_path / "out") == 6
    assert [row["n"] for row in driver.table_rows("rows")] == [0, 0, 1, 1, 2, 2]
    driver.forget(1)
    _another_node(node, monkeypatch)
    assert ChunkFolder(local_of(place), 3).missing() == [1]


def test_a_chunk_whose_table_changed_in_the_store_is_done_again(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = RemotePath("s3:", BUCKET, "runs", "changed", "chunks")
    ChunkFolder(local_of(place), 1).write(0, _chunk(0))
    store_of(BUCKET).write_bytes("runs/changed/chunks/rows/00000.parquet", b"something else")
    _another_node(node, monkeypatch)
    assert ChunkFolder(local_of(place), 1).missing() == [0]


def test_what_workers_are_given_reaches_every_node(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = local_of(RemotePath("s3:", BUCKET, "runs", "given", "work"))
    (work / "deep").mkdir(parents=True)
    (work / "deep" / "plan.json").write_text("{}")
    arguments = pickle.dumps(sent({"work": work, "plan": work / "deep" / "plan.json", "size": 3}))
    _another_node(node, monkeypatch)
    here = arrived(pickle.loads(arguments))
    assert here["size"] == 3
    assert here["plan"].read_text() == "{}"
    assert here["plan"].is_relative_to(cache_folder())
    assert here["work"] == here["plan"].parents[1]


def test_a_driver_that_fails_leaves_to_the_next_what_it_has_done(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = job({"job": "export", "output": f"{ROOT}/interrupted", "model": f"{ROOT}/nothing"})

    def fail() -> None:
        with job_output(config) as output:
            (output / "rejects.jsonl").write_text("line\n")
            raise RuntimeError("the driver fails")

    with pytest.raises(RuntimeError, match="the driver fails"):
        fail()
    assert keys("interrupted") == {"run.yaml", "rejects.jsonl"}
    _another_node(node, monkeypatch)
    with pytest.raises(DataError, match="interrupted: the job that writes it has not finished"):
        result_of(config.output)
    with job_output(config) as output:
        assert (output / "rejects.jsonl").read_text() == "line\n"
        (output / "audio").mkdir()
        (output / "audio" / "a.wav").write_bytes(b"sound")
    assert keys("interrupted") == {"run.yaml", "rejects.jsonl", "audio/a.wav"}


def test_the_reports_of_a_training_on_another_node_are_seen_by_the_driver(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, lines = RemotePath("s3:", BUCKET, "runs", "reported"), Lines()
    store_of(BUCKET).write_bytes("runs/reported/metrics.jsonl", b'{"step": 1, "loss": 9.0}\n')
    with (
        reports_of(place) as reports,
        followed(reports.folder, None, lines, run="r"),
        shown(reports.folder, lines, total=10),
    ):
        here = cache_folder().parent
        _another_node(node, monkeypatch)
        output = workplace(place, "run")
        with Mirror([output / "metrics.jsonl", output / "train.log"]):
            (output / "train.log").write_text("resuming after step 1\n")
            with MetricsWriter(output, 1) as writer:
                writer.write({"step": 2, "loss": float("nan")})
        monkeypatch.setenv("XDG_CACHE_HOME", str(here))
        reports.refresh()
    assert "resuming after step 1" in lines.lines
    assert any(line.startswith("ALERT step 2: loss is not a number") for line in lines.lines)
    assert not local_of(place).exists(), "the driver's node wrote nothing, so it has nothing to overwrite it with"
    stored = store_of(BUCKET).read_bytes("runs/reported/metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in stored] == [1, 2]


def test_what_is_promoted_into_a_store_is_what_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = f"{ROOT}/registry"
    assert cli.run(["serve", "--registry", registry, "--dry-run"]) == DataError.exit_code
    assert f"{registry} holds no model; put one there: retort promote" in capsys.readouterr().err
    model = speaking_model(tmp_path)
    judged = write_evaluation(tmp_path / "judged", {"m": model}, wrong=0)
    options = ["--as", "small", "--evaluation", str(judged), "--registry", registry]
    assert cli.run(["promote", str(model), *options]) == 0
    capsys.readouterr()
    assert cli.run(["serve", "--registry", registry, "--set", "port=9123", "--dry-run"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["port"], config["models"][0]["path"]) == (9123, f"{registry}/small/1")
    assert config["models"][0]["decoding"]["sampler"]["temperature"] == 0.7, "as it was judged"
    served = open_speaker(result_of(parse_location(config["models"][0]["path"])))
    assert served.facts.fingerprint == open_speaker(model).facts.fingerprint
    (tmp_path / "serve.yaml").write_text("job: serve\nmodels: []\n")
    assert cli.run(["serve", str(tmp_path / "serve.yaml"), "--registry", registry]) == ConfigError.exit_code


def test_an_input_that_is_not_there_is_told_with_its_url() -> None:
    with pytest.raises(DataError, match=r"s3://retort-test/runs/nothing: no result lies there"):
        result_of(RemotePath("s3:", BUCKET, "runs", "nothing"))
