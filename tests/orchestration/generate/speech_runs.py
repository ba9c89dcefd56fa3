"""Runs of `retort generate` for speech in this process, and a teacher that is a command."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from retort.config import validate
from retort.orchestration.generate import chunked
from retort.orchestration.generate.speech_job import run_generate_speech
from retort.run_config import GenerateSpeechConfig
from retort.store.results import result_of
from tests.orchestration.tiny_runs import Lines

SPEAKER = Path(__file__).with_name("speaking_program.py")
COMMAND = {
    "kind": "command",
    "arguments": [sys.executable, str(SPEAKER), "--output", "{output}", "--voice", "{voice}"],
    "name": "tones 1",
    "licence": "made for a test",
    "voices": ["low", "high"],
}


def tree_of(output, teacher=COMMAND, **changes):
    return {
        "job": "generate", "makes": "speech", "output": str(output), "teacher": teacher,
        "texts": {"kind": "english", "train": 10, "validation": 1, "test": 2, "max_words": 5}, "chunk_size": 4,
        **changes,
    }  # fmt: skip


def speech_config(output, teacher=COMMAND, **changes):
    return validate(tree_of(output, teacher, **changes), GenerateSpeechConfig, where="test")


class _ThisProcess:
    """A workplace without Ray: the work is done here."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def run(self, work):
        return work(Lines())


def in_process(config):
    """Run the job without Ray: the worker, the plan and the result are the real ones."""

    def run_chunks(chunks, worker, arguments, pool, progress, note):
        del pool, progress, note
        alive = worker(**arguments)
        for number in chunks.missing():
            chunks.write(number, alive.work(number))
        return chunks.num_chunks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "run_chunks", run_chunks)
        patch.setattr(chunked, "workplace", _ThisProcess)
        return run_generate_speech(config, Lines())


def records_of(output):
    """The rows of the corpus, by id."""
    rows = pq.read_table(result_of(output) / "corpus").to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}
