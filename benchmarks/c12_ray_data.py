"""C12: sequences per second that Ray Data samples from a guided teacher, against a bare loop over the same worker.

The worker is that of ``retort generate``: guided sampling, filters, encoding of the top-k, and writing each chunk with
its record. The bare loop runs it chunk by chunk in this process; Ray Data runs it in a pool of one actor with as many
threads. The job is cut to about a minute of the bare loop. "All" counts from before Ray starts (and, in the loop,
before the teacher is opened); "steady" from the first finished chunk to the last. Both must write the same bytes.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.made_up_data import write_teacher, write_token_set
from benchmarks.protocol import Gate, conclude, interleave, parse_arguments, prepare, print_table
from retort.config import validate
from retort.data.logit_cache import DEFAULT_ENCODING
from retort.data.synthetic import SyntheticDescription
from retort.data.tokens import TokenSet
from retort.models.weights import load_codec_lm
from retort.orchestration.chunks import ChunkFolder, run_chunks, sum_numbers
from retort.orchestration.cluster import ray_session
from retort.orchestration.generate.plan import plan_generation
from retort.orchestration.generate.worker import GenerateWorker
from retort.run_config import GenerateConfig

# A teacher with random weights says nonsense of any length; what it does not end itself is decoded and dropped.
ANYTHING = {"stability": {"max_s_per_word": 1e6, "min_s_per_word": 0.0, "max_repeat_ratio": 1.0}}


class Stamps:
    """A progress that notes when each chunk was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def update(self, done: int, total: int, note: str) -> None:
        """One more chunk."""
        del done, total, note
        self.times.append(time.perf_counter())

    def log(self, line: str) -> None:
        """Nothing."""
        del line


class Job:
    """The plan, and the two ways to do it."""

    def __init__(self, root: Path, num_chunks: int, args: argparse.Namespace) -> None:
        batch_size = 4 if args.quick else 16
        self.root = root
        self.config = validate(
            {
                "output": root / "out",
                "teacher": root / "teacher" / "result",
                "data": root / "data" / "result",
                "guidance": {"kind": "two_term", "scale": 1.5},
                "teacher_forced": False,
                "num_sampled": num_chunks * batch_size,
                "max_frames": 24 if args.quick else 60,
                "batch_size": batch_size,
                "filters": ANYTHING,
                "precision": "auto",
                "pool": {"size": 1, "threads_per_worker": args.threads},
            },
            GenerateConfig,
            where="benchmark",
        )
        self.num_chunks, self.rounds, self.hashes = num_chunks, 0, dict[str, list[Any]]()
        self.sampled_s = 0.0
        plan_generation(self.config, TokenSet.open(self.config.data)).write(root / "plan.json")
        self.arguments: dict[str, Any] = {
            "tree": self.config.model_dump(mode="json"),
            "plan": root / "plan.json",
            "description": describe(self.config).model_dump_json(),
        }

    def loop(self) -> dict[str, float]:
        """The peer."""
        stamps, begin = Stamps(), time.perf_counter()
        chunks = self._folder("loop")
        worker = GenerateWorker(**self.arguments)
        for number in range(self.num_chunks):
            chunks.write(number, worker.work(number))
            stamps.update(number, self.num_chunks, "")
        return self._measured(chunks, stamps, begin)

    def ray(self) -> dict[str, float]:
        """Ours."""
        stamps, begin = Stamps(), time.perf_counter()
        chunks = self._folder("ray")
        with ray_session():
            run_chunks(chunks, GenerateWorker, self.arguments, self.config.pool, stamps, "benchmark")
            end = time.perf_counter()
        return {**self._measured(chunks, stamps, begin), "all": end - begin}

    def _folder(self, kind: str) -> ChunkFolder:
        shutil.rmtree(self.root / kind, ignore_errors=True)
        return ChunkFolder(self.root / kind, self.num_chunks)

    def _measured(self, chunks: ChunkFolder, stamps: Stamps, begin: float) -> dict[str, float]:
        end = time.perf_counter()
        records = chunks.records()
        numbers = sum_numbers(records)
        assert numbers["sampled_seconds"] > 0, "audio must come out"
        self.sampled_s = numbers["sampled_seconds"]
        self.hashes[chunks.folder.name] = [record.hashes for record in records]
        return {"all": end - begin, "steady": stamps.times[-1] - stamps.times[0]}


def describe(config: GenerateConfig) -> SyntheticDescription:
    """The description that ``retort generate`` would write."""
    model, tokens = load_codec_lm(config.teacher), TokenSet.open(config.data)
    return SyntheticDescription(
        teacher_fingerprint=model.fingerprint,
        data_fingerprint="made-up",
        tokens=tokens.description,
        delays=model.model.config.codebook_delays,
        guidance=config.guidance,
        coefficients={str(name): value for name, value in config.guidance.build().coefficients.items()},
        temperature=config.temperature,
        top_k=config.top_k,
        encoding=DEFAULT_ENCODING,
        sampler=config.sampler.model_dump(mode="json"),
        prompt_max_frames=120,
        precision=config.precision,
        seed=config.seed,
        code_version="benchmark",
    )


def chunks_for(seconds: float, root: Path, args: argparse.Namespace) -> int:
    """How many chunks the bare loop does in so many seconds."""
    probe = Job(root, 4, args)
    probe.loop()
    return max(4, round(seconds / (probe.loop()["steady"] / 3)))


def main() -> None:
    """Measure and print."""
    args = parse_arguments(__doc__ or "")
    prepare(args)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_token_set(root / "data", rows=100, mean_frames=40)
        write_teacher(root / "teacher", "tiny" if args.quick else "demo")
        job = Job(root, 6 if args.quick else chunks_for(60.0, root, args), args)
        run = interleave({"ray": job.ray, "loop": job.loop}, args)
        torch.set_num_threads(args.threads)
    print_table(run)
    print(f"{job.config.num_sampled} sequences in {job.num_chunks} chunks; {job.sampled_s:.1f} s of audio kept")
    assert job.hashes["ray"] == job.hashes["loop"], "both must write the same bytes"
    print("both wrote the same bytes")
    with_start = run.ratios("loop, all", "ray, all")
    steady = run.ratios("loop, steady", "ray, steady")
    verdicts = [
        Gate("C12 rows/s with start-up / bare loop (best, median)", 0.85, 0.92, at_least=True).judge(*with_start),
        Gate("C12 rows/s without start-up / bare loop (best, median)", 0.95, 0.98, at_least=True).judge(*steady),
    ]
    conclude(run, args, verdicts)


if __name__ == "__main__":
    main()
