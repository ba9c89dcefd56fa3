"""Small token sets, teachers and runs for the tests of training."""

import json
import multiprocessing
import os
import socket
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from retort.config import validate
from retort.data.tokens import TokenRow, TokenSetDescription, write_description, write_shard
from retort.location import RemotePath
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.presets import tiny
from retort.models.weights import save_model
from retort.orchestration.train.metrics import read_metrics
from retort.orchestration.train.task import TrainJob
from retort.orchestration.train.worker import Assignment
from retort.run_config import DistillConfig, PretrainConfig
from retort.store.artifact import Artifact, describe_artifact, write_artifact
from tests.orchestration.train_ranks import begin

VOCABULARIES = (12, 2, 16)


def token_rows(count: int = 48) -> list[TokenRow]:
    """Ragged rows, so that means over micro-batches differ from means over tokens."""
    generator = torch.Generator().manual_seed(0)
    return [
        TokenRow(
            id=f"row-{i:03d}",
            text="as spoken",
            text_ids=tuple(torch.randint(3, 12, (2 + i % 5,), generator=generator).tolist()),
            speaker=f"speaker-{i % 3}",
            split="train" if i % 6 else "test",
            codes_KT=torch.randint(0, 16, (2, 3 + (i * 7) % 17), generator=generator),
            duration_s=1.0,
        )
        for i in range(count)
    ]


def write_tokens(folder: Path, *, codec: str = "codec-a", text: str = "text-a") -> Artifact:
    description = TokenSetDescription(
        codec_fingerprint=codec,
        text_fingerprint=text,
        text_vocabulary_size=12,
        num_codebooks=2,
        codebook_size=16,
        sample_rate=16_000,
        frame_rate=40.0,
    )

    def fill(temporary: Path) -> None:
        write_shard(temporary / "part.parquet", token_rows())
        write_description(temporary, description)
        for part in ("codec", "text"):  # training only copies them
            (temporary / part).mkdir()
            (temporary / part / "config.json").write_text("{}")

    return write_artifact(folder / "result", describe_artifact("tokens", "t", "1", inputs={}, config={}), fill)


def write_teacher(folder: Path, *, dropout: float = 0.0, **lineage: Any) -> CodecLM:
    torch.manual_seed(7)
    model = CodecLM(tiny(VOCABULARIES).replace(dropout=dropout))
    with torch.no_grad():  # sharp distributions, so that guidance and matching show
        model.heads.weight.mul_(20.0)
    facts: dict[str, Any] = {
        "method": "pretrain",
        "codec_fingerprint": "codec-a",
        "text_fingerprint": "text-a",
        "trained_drops": ("null",),
        **lineage,
    }
    info = describe_artifact("model", "teacher", "1", inputs={}, config={})
    write_artifact(folder / "result", info, lambda temporary: save_model(temporary, model, CodecLMLineage(**facts)))
    return model


def training_tree(**changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "steps": 6,
        "batch": {"max_utterances": 4, "max_frames": 200},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2, "ema_decay": 0.8, "gradient_clip": 0.5},
        "workers": {"num_workers": 1},
        "checkpoint_every": 4,
        "log_every": 1,
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return tree


def pretrain(root: Path, name: str, *, dropout: float = 0.0, **training: Any) -> PretrainConfig:
    shape = {"kind": "shape", "dim": 32, "num_layers": 2, "num_heads": 2, "ffn_dim": 64, "dropout": dropout}
    tree = {"output": root / name, "data": root / "data", "model": shape, "training": training_tree(**training)}
    return validate(tree, PretrainConfig, where=name)


def distill(root: Path, name: str, *, method: dict[str, Any] | None = None, **changes: Any) -> DistillConfig:
    training = changes.pop("training", {})
    tree = {
        "output": root / name,
        "data": root / "data",
        "teacher": root / "teacher",
        "student": {"kind": "teacher"},
        "init": "random",
        "method": {"kind": "cfg_distill", "guidance": {"kind": "two_term", "scale": 1.5}, **(method or {})},
        "training": training_tree(**training),
        **changes,
    }
    return validate(tree, DistillConfig, where=name)


def run_ranks(
    root: Path,
    runs: Sequence[tuple[TrainJob, dict[str, Any]]],
    world_size: int,
    caches: Sequence[Path] = (),
) -> list[int | None]:
    """Run the jobs one after another on plain processes; returns their exit codes (-9: killed).

    Args:
        root: where the list of runs and the processes' output are written.
        runs: each a job and what :mod:`tests.orchestration.train_ranks` can do to it; ``{}`` for nothing.
        world_size: number of processes.
        caches: where each process keeps its copies, as if it were on a node of its own.
    """
    assignments = [Assignment(job, job.model_dump(mode="json"), {"data": "d"}, "run") for job, _ in runs]
    for job, _ in runs:
        if not isinstance(job.output, RemotePath):
            job.output.mkdir(exist_ok=True)
    plan = root / "runs.json"
    plan.write_text(
        json.dumps([{"assignment": a.to_tree(), **faults} for a, (_, faults) in zip(assignments, runs, strict=True)])
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _start_server()
    processes = []
    for rank in range(world_size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
        names |= {"XDG_CACHE_HOME": caches[rank]} if caches else {}
        # The server has the environment in which it was started; a test may have another one by now.
        variables = {**os.environ, **{name: str(value) for name, value in names.items()}}  # noqa: TID251
        processes.append(_SERVER.Process(target=begin, args=(variables, root / f"rank-{rank}.txt", plan)))
        processes[-1].start()
    for process in processes:
        process.join()  # pytest has a limit for all of it
    return [process.exitcode for process in processes]


_SERVER = multiprocessing.get_context("forkserver")
"""Forks a rank from a process that has imported what all of them need: five seconds of a core, each time."""
_SERVER.set_forkserver_preload(["deepspeed", "tests.orchestration.train_ranks"])


def _start_server() -> None:
    with patch.dict(os.environ, {"DS_ACCELERATOR": "cpu"}):  # noqa: TID251 - DeepSpeed reads it when it is imported
        forkserver.ensure_running()


def weights_of(job: TrainJob) -> dict[str, Tensor]:
    return load_file(job.output / "result" / "model.safetensors")


def assert_learned_alike(found: dict[str, Tensor], expected: dict[str, Tensor], first: dict[str, Tensor]) -> None:
    """The weights are the same but for rounding, and have moved from the first ones.

    Adam divides a gradient by its own size, so where a gradient is hardly more than rounding, rounding decides about
    much of a learning rate. No weight by itself is compared, but each tensor, with how far it has moved.
    """
    assert found.keys() == expected.keys()
    assert max(float((first[name] - weight).abs().max()) for name, weight in expected.items()) > 3e-3
    for name, weight in expected.items():
        apart, moved = float((found[name] - weight).norm()), float((weight - first[name]).norm())
        assert apart <= 3e-3 * moved, f"{name} moved by {moved}, and is {apart} from what it should be"


def weight_bytes(job: TrainJob) -> bytes:
    return (job.output / "result" / "model.safetensors").read_bytes()


def losses_of(job: TrainJob, *, without: Sequence[int] = ()) -> list[float]:
    """Of all steps but those, each once and in order."""
    records = [record for _, record in read_metrics(job.output / "metrics.jsonl")]
    made = [step for step in range(1, len(records) + len(without) + 1) if step not in without]
    assert [record["step"] for record in records] == made
    return [record["loss"] for record in records]


def events_of(job: TrainJob) -> str:
    return (job.output / "train.log").read_text()
