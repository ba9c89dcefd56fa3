"""Ranks on nodes that share no folder, with their checkpoints in a store: two plain processes with a cache for each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.location import RemotePath
from retort.orchestration.train.metrics import read_metrics
from retort.run_config import PretrainConfig
from retort.store.checkpoints import steps_at
from retort.store.place import store_of
from retort.store.results import result_of
from tests.orchestration.s3_node import BUCKET, s3_service
from tests.orchestration.train_runs import pretrain, run_ranks, weight_bytes, write_tokens

STEPS, KILLED_AT = 9, 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("apart")
    write_tokens(folder / "data")
    with s3_service(folder / "driver"):
        yield folder


def job(root: Path, name: str, *, remote: bool) -> PretrainConfig:
    workers = {"num_workers": 2, "zero_stage": 1}
    made = pretrain(root, name, dropout=0.1, steps=STEPS, checkpoint_every=2, log_every=1, workers=workers)
    return made.replace(output=RemotePath("s3:", BUCKET, "runs", name)) if remote else made


@pytest.fixture(scope="module")
def expected(root: Path) -> bytes:
    unbroken = job(root, "unbroken", remote=False)
    assert run_ranks(root, [(unbroken, {})], 2) == [0, 0], (root / "rank-0.txt").read_text()[-3000:]
    weights = weight_bytes(unbroken)
    # As if the group were started again because a rank died after the result was written.
    assert run_ranks(root, [(unbroken, {})], 2) == [0, 0]
    assert not (unbroken.output / "failure.json").exists()
    assert weight_bytes(unbroken) == weights
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["rank 0 on the other node", "rank 0 where it was, its last upload lost"])
def test_killed_ranks_go_on_with_the_same_bits_on_whichever_node_they_are(
    root: Path, expected: bytes, fate: str, tmp_path: Path
) -> None:
    apart, (a, b, c) = job(root, fate.split(",")[0].replace(" ", "-"), remote=True), (tmp_path / x for x in "abc")
    place = apart.output
    assert isinstance(place, RemotePath)
    checkpoints = f"{place.key}/checkpoints"
    assert set(run_ranks(root, [(apart, {"die_at": KILLED_AT})], 2, [a, b])) != {0}
    # What a rank leaves there when it dies while a checkpoint is put together.
    store_of(BUCKET).write_bytes(f"{checkpoints}/step-00000006.tmp-{'0' * 32}/rank_00001.safetensors", b"half")
    if "lost" in fate:
        store_of(BUCKET).delete_prefix(f"{checkpoints}/step-00000004")
        caches = [a, c]
    else:
        caches = [b, c]
    assert run_ranks(root, [(apart, {})], 2, caches) == [0, 0], (root / "rank-0.txt").read_text()[-3000:]
    assert (result_of(place) / "model.safetensors").read_bytes() == expected
    assert steps_at(place / "checkpoints")[-1] == STEPS
    assert not [key for key in store_of(BUCKET).list(checkpoints) if ".tmp-" in key]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(store_of(BUCKET).read_bytes(f"{place.key}/metrics.jsonl"))
    assert [record["step"] for _, record in read_metrics(metrics)] == list(range(1, STEPS + 1))
    log = store_of(BUCKET).read_bytes(f"{place.key}/train.log").decode()
    assert "resuming after step" in log
    if "lost" in fate:
        assert "resuming after step 4" in log, "what rank 0 has on its disk is not lost"
    # As if the group were started again because a rank died after the result was written.
    stored = store_of(BUCKET).read_bytes(f"{place.key}/result/COMMITTED")
    for again in (caches, [tmp_path / "d", tmp_path / "e"]):
        assert run_ranks(root, [(apart, {})], 2, again) == [0, 0], (root / "rank-0.txt").read_text()[-3000:]
        assert "failure.json" not in {key.rpartition("/")[2] for key in store_of(BUCKET).list(place.key)}
        assert store_of(BUCKET).read_bytes(f"{place.key}/result/COMMITTED") == stored
    # No rank keeps its part of a checkpoint that is in the store.
    parts = [path for cache in caches for path in cache.rglob("step-*.tmp-*")]
    assert parts == []
