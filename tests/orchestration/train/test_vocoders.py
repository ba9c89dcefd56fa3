"""A vocoder and its adversary through the training job: two optimizers, killed on the way, the bits of one run."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from retort.audio.files import wav_bytes
from retort.config import validate
from retort.errors import DataError
from retort.models.weights import load_vocoder
from retort.orchestration.cluster import ray_session
from retort.orchestration.failures import clear_failure
from retort.orchestration.progress import QuietProgress
from retort.orchestration.train.bad_steps import BadStep, bad_steps, note_bad_step
from retort.orchestration.train.job import run_pretrain
from retort.orchestration.train.metrics import read_metrics
from retort.run_config import PretrainVocoderConfig
from retort.store.checkpoints import CheckpointFolder
from tests.methods.vocoder_toys import MEL, voice
from tests.orchestration.train.test_job import kill_a_worker
from tests.orchestration.train_runs import events_of, losses_of, run_ranks, training_tree, weight_bytes

ADVERSARY = {"from_step": 2, "channels": 4}


def write_voices(folder: Path, count: int = 8) -> None:
    """A manifest of recordings, the last of which is for tests."""
    folder.mkdir()
    lines = []
    for i in range(count):
        (folder / f"v{i}.wav").write_bytes(wav_bytes(voice(1.0 + 0.1 * i, seed=i), MEL.sample_rate))
        split = "test" if i == count - 1 else "train"
        lines.append({"id": f"v{i}", "text": "la", "speaker": "s", "audio": f"v{i}.wav", "split": split})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def vocoder(
    root: Path, name: str, *, adversary: dict[str, Any] | None = None, **training: Any
) -> PretrainVocoderConfig:
    tree = {
        "family": "vocoder",
        "output": root / name,
        "corpus": {"kind": "manifest", "path": root / "voices" / "manifest.jsonl"},
        "mel": MEL.model_dump(mode="json"),
        "model": {"kind": "shape", "dim": 16, "hidden": 32, "num_blocks": 3, "pitch_dim": 16},
        "method": {"adversary": ADVERSARY if adversary is None else adversary},
        "training": {**training_tree(**training), "batch": {"segments": 2, "segment_frames": 16}},
    }
    return validate(tree, PretrainVocoderConfig, where=name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocoders")
    write_voices(folder / "voices")
    return folder


def tensors_of(checkpoint: Path) -> set[str]:
    with safe_open(checkpoint / "rank_00000.safetensors", framework="pt") as file:
        return set(file.keys())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "accumulation"),
    [
        ({"zero_stage": 0}, 1),
        ({"zero_stage": 2, "num_workers": 2}, 1),
        ({"zero_stage": 1, "num_workers": 2}, 2),
        ({"zero_stage": 0, "precision": "bf16"}, 1),
    ],
    ids=["plain", "sharded", "accumulated", "bf16"],
)
def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(
    root: Path, request: pytest.FixtureRequest, workers: dict[str, Any], accumulation: int
) -> None:
    """No Ray here. The checkpoint of step 4 holds both optimizers."""
    name, world_size = request.node.callspec.id, workers.get("num_workers", 1)
    settings: dict[str, Any] = {"workers": workers, "optimizer": {"accumulation": accumulation}}
    whole, broken = (vocoder(root, f"{which}-{name}", **settings) for which in ("whole", "broken"))
    assert run_ranks(root, [(whole, {})], world_size) == [0] * world_size
    codes = run_ranks(root, [(broken, {"die_at": 4 * accumulation + 1})], world_size)
    assert -9 in codes
    checkpoints = CheckpointFolder(broken.output / "checkpoints")
    assert checkpoints.steps() == [4]
    found = checkpoints.latest_good()
    assert found is not None
    kinds = {"/".join(name.split("/")[:2]) for name in tensors_of(found.path)}
    assert {"student/fp32", "student/exp_avg", "student/ema", "adversary/fp32", "adversary/exp_avg_sq"} <= kinds
    assert "adversary/ema" not in kinds
    assert run_ranks(root, [(broken, {})], world_size) == [0] * world_size
    assert weight_bytes(broken) == weight_bytes(whole)
    assert losses_of(broken) == losses_of(whole)
    records = [record for _, record in read_metrics(broken.output / "metrics.jsonl")]
    assert ["discriminator" in record for record in records] == [False, False, True, True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["nan_at", "bad_gradient_at"])
def test_a_bad_step_of_the_adversary_is_left_out_of_both(root: Path, fault: str) -> None:
    """With ZeRO DeepSpeed passes over a bad gradient, after the vocoder has made its step already."""
    met, told = (vocoder(root, f"{fault}-{name}", workers={"zero_stage": 1}) for name in ("met", "told"))
    run_ranks(root, [(met, {fault: [4]})], 1)
    assert bad_steps(met.output) == (5,)
    clear_failure(met.output)  # as the driver does before it starts the workers again
    assert run_ranks(root, [(met, {})], 1) == [0]
    told.output.mkdir()
    note_bad_step(told.output, BadStep(5, 0, 1, "x", (4,), ("v0",)))
    assert run_ranks(root, [(told, {})], 1) == [0]
    assert weight_bytes(met) == weight_bytes(told)
    assert losses_of(met, without=[5]) == losses_of(told, without=[5])


def test_a_corpus_without_training_rows_is_refused(root: Path) -> None:
    lines = (root / "voices" / "manifest.jsonl").read_text().replace('"train"', '"test"')
    (root / "voices" / "held-out.jsonl").write_text(lines)
    job = vocoder(root, "none")
    corpus = job.corpus.replace(path=root / "voices" / "held-out.jsonl")
    with pytest.raises(DataError, match="no rows to train on; check corpus and splits"):
        run_pretrain(job.replace(corpus=corpus), QuietProgress())


@pytest.fixture(scope="module")
def cluster(root: Path) -> Iterator[Path]:
    with ray_session():
        yield root


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_with_a_killed_worker_on_the_way(cluster: Path) -> None:
    settings: dict[str, Any] = {"steps": 40, "checkpoint_every": 5, "workers": {"num_workers": 2, "zero_stage": 1}}
    job, unbroken = (vocoder(cluster, name, **settings) for name in ("ray", "unbroken"))
    done = threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(job, 12, done))
    killer.start()
    try:
        summary = run_pretrain(job, QuietProgress())
    finally:
        done.set()
        killer.join()
    assert run_ranks(cluster, [(unbroken, {})], world_size=2) == [0, 0]
    assert weight_bytes(job) == weight_bytes(unbroken)
    assert "resuming after step" in events_of(job)
    loaded = load_vocoder(Path(summary["result"]))
    assert (loaded.fingerprint, loaded.lineage.adversarial) == (summary["fingerprint"], True)
    assert loaded.model.config.mel == MEL
    assert run_pretrain(job, QuietProgress())["seconds"] == 0.0
