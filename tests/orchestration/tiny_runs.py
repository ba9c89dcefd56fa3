"""Tiny corpora, token sets and teachers for the tests of the jobs: everything real, nothing learned."""

import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from retort.audio.files import wav_bytes
from retort.audio.mel_rvq import MelRVQConfig, fit_mel_rvq
from retort.data.tokens import TokenRow, TokenSet, TokenSetDescription, write_description, write_shard
from retort.inference.synthesizer import save_speaking_model
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.presets import tiny
from retort.store.artifact import describe_artifact, write_artifact
from retort.text.front_end import CharactersConfig, build_text_front_end
from tests.patience import comes

RATE = 16000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def tone(seed, seconds=0.4, rate=RATE):
    """A sound with some structure: a few partials under an envelope."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    partials = sum(np.sin(2 * np.pi * f * t + rng.uniform(0, 6)) for f in rng.uniform(150, 3000, 4))
    envelope = 0.4 + 0.6 * np.abs(np.sin(2 * np.pi * rng.uniform(1, 4) * t))
    return torch.from_numpy((0.1 * partials * envelope + 0.003 * rng.standard_normal(len(t))).astype(np.float32))


def write_ljspeech(folder: Path, count: int, *, seconds=0.4) -> Path:
    """A folder in the LJSpeech layout with ``count`` tones."""
    (folder / "wavs").mkdir(parents=True)
    lines = []
    for i in range(count):
        (folder / "wavs" / f"T{i:03d}.wav").write_bytes(wav_bytes(tone(i, seconds + 0.01 * (i % 7)), RATE))
        text = f"{WORDS[i % 10]} {WORDS[i // 10 % 10]}"
        lines.append(f"T{i:03d}|{text}|{text}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def add_bad_rows(folder: Path) -> dict[str, str]:
    """Rows that cannot be used: id → code that each is rejected with."""
    wavs = folder / "wavs"
    whole = wav_bytes(tone(1), RATE)
    wavs.joinpath("B_empty.wav").write_bytes(wav_bytes(torch.zeros(0), RATE))
    samples = tone(2).numpy().copy()
    samples[100] = np.nan
    data = samples.astype("<f4").tobytes()
    head = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 3, 1, RATE, RATE * 4, 4, 32, b"data", len(data))
    wavs.joinpath("B_nan.wav").write_bytes(
        b"RIFF" + struct.pack("<I", 4 + len(head) + len(data)) + b"WAVE" + head + data
    )
    eight = np.zeros((1600, 8), dtype="<i2").tobytes()
    head = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, 8, RATE, RATE * 16, 16, 16, b"data", len(eight))
    wavs.joinpath("B_eight.wav").write_bytes(
        b"RIFF" + struct.pack("<I", 4 + len(head) + len(eight)) + b"WAVE" + head + eight
    )
    wavs.joinpath("B_cut.wav").write_bytes(whole[: len(whole) // 2])
    wavs.joinpath("B_silent.wav").write_bytes(wav_bytes(torch.zeros(8000), RATE))
    codes = {
        "B_empty": "empty", "B_nan": "non_finite", "B_eight": "too_many_channels", "B_cut": "truncated",
        "B_silent": "silent", "B_gone": "missing_file",
    }  # fmt: skip
    with (folder / "metadata.csv").open("a") as file:
        file.writelines(f"{name}|one|one\n" for name in codes)
    return codes


def write_token_set(folder: Path, *, rows=24, held_out=3, speakers=3, codebook_size=16, num_codebooks=2) -> Path:
    """A committed token set with random codes, a real codec and a real text front-end; returns the result folder."""
    front_end = build_text_front_end(CharactersConfig(kind="characters"))
    config = MelRVQConfig(num_codebooks=num_codebooks, codebook_size=codebook_size, kmeans_iterations=2)
    codec = fit_mel_rvq([tone(i, 1.0) for i in range(4)], config)
    description = TokenSetDescription(
        codec_fingerprint=codec.fingerprint(),
        text_fingerprint=front_end.fingerprint(),
        text_vocabulary_size=front_end.vocabulary_size,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        sample_rate=codec.sample_rate,
        frame_rate=codec.frame_rate,
    )
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(rows + held_out):
        text = f"{WORDS[i % 10]} {WORDS[i // 10]}"
        T = 6 + int(torch.randint(8, (1,), generator=generator))
        codes = torch.randint(codebook_size, (num_codebooks, T), generator=generator)
        split = "train" if i < rows else "test"
        row_id, speaker = f"u{i:03d}", f"s{i % speakers}"
        made.append(TokenRow(row_id, text, tuple(front_end.encode(text)), speaker, split, codes, T / codec.frame_rate))

    def fill(target: Path) -> None:
        write_shard(target / "part-00000.parquet", made)
        write_description(target, description)
        codec.save(target / "codec")
        front_end.save(target / "text")

    info = describe_artifact("tokens", "tiny", "1", inputs={}, config={})
    return write_artifact(folder / "result", info, fill).path


def write_teacher(folder: Path, data: Path, *, seed=0, **lineage) -> Path:
    """A committed teacher with random weights for a token set, which can speak; returns the result folder."""
    made = TokenSet.open(data).description
    torch.manual_seed(seed)
    model = CodecLM(tiny((made.text_vocabulary_size, made.num_codebooks, made.codebook_size))).eval()
    with torch.no_grad():
        model.heads.weight.mul_(40)  # random but far from uniform
    values = {
        "method": "pretrain",
        "codec_fingerprint": made.codec_fingerprint,
        "text_fingerprint": made.text_fingerprint,
        "trained_drops": ("null",),
        **lineage,
    }
    info = describe_artifact("model", "teacher", "1", inputs={}, config={})
    return write_artifact(
        folder / "result", info, lambda target: save_speaking_model(target, model, CodecLMLineage(**values), data)
    ).path


class Lines:
    """A progress that remembers."""

    def __init__(self):
        self.lines, self.updates = [], []

    def update(self, done, total, note):
        self.updates.append((done, total, note))

    def log(self, line):
        self.lines.append(line)


def actors_of(ancestor: int) -> list[int]:
    """Processes below ``ancestor`` that hold a Ray Data actor."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            is_actor = entry.name.isdigit() and b"MapWorker" in (entry / "cmdline").read_bytes()
            if is_actor and ancestor in _ancestors(int(entry.name)):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _ancestors(pid: int) -> set[int]:
    seen = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        seen.add(pid)
    return seen


@contextmanager
def killing_an_actor_after(records: int, work: Path) -> Iterator[list[int]]:
    """Meanwhile, one of this process's actors is SIGKILLed as soon as so many chunks are done; gives its number."""
    killed: list[int] = []
    is_over = threading.Event()

    def watch():
        while not killed and not is_over.wait(0.01):
            if len(list(work.glob("*/chunks/records/*.json"))) >= records:
                for pid in actors_of(os.getpid())[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        is_over.set()
        thread.join()


def run_and_kill_the_driver(job: str, config: Path, work: Path, *, records: int) -> int:
    """Run a job in a process of its own, SIGKILL it once so many chunks are done, and return how many were."""
    code = (
        "import sys; from pathlib import Path; from retort.orchestration.jobs import load_job, run_job;"
        "from retort.orchestration.progress import QuietProgress;"
        f"run_job(load_job(Path(sys.argv[1]), expected={job!r}), QuietProgress())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(config)], stderr=subprocess.PIPE, start_new_session=True
    )

    def done() -> int:
        assert process.poll() is None, process.stderr.read().decode()
        count = len(list(work.glob("*/chunks/records/*.json")))
        return count if count >= records else 0

    try:
        found = comes(done, every_s=0.005)
        assert found, "the driver did not get that far"
        return found
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
