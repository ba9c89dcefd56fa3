"""What a speech service says while many ask at once: word errors, voices, runaways, underruns, time to the first sound.

    python -m benchmarks.quality_under_load --data runs/demo/corpus --model runs/demo/student_large
    python -m benchmarks.quality_under_load --data runs/demo/corpus --url http://host:8000/v1 --name tts-1 --voice alloy

The test strings of a token set are asked for in one stream of PCM each, by 1, 8 and 64 clients that ask again as soon
as they have heard the end. Without ``--url`` the script serves the model itself. A runaway is a refusal to go on
(``generation_unstable``) or a stream that breaks; an underrun, a stream that made a player wait which began with its
first bytes. Seeds are the same at every concurrency, so our own server must say the same bits: the table counts them.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.protocol import load_average
from benchmarks.serve_load import RATE, Reply, Server, heard
from retort.errors import DataError, RetortError
from retort.evaluation.asr import FasterWhisperConfig, PocketSphinxConfig, label_of, open_recogniser
from retort.evaluation.judge import Judge, System, TestStrings
from retort.evaluation.metrics import ABSENT, labels_of
from retort.evaluation.results import SystemInfo, summarise
from retort.evaluation.scoring import Scorers
from retort.evaluation.speaker import ResemblyzerConfig, open_speaker_encoder
from retort.evaluation.wheels import WHISPER_EXTRA, WHISPER_WEIGHTS, missing
from retort.inference.speaker import Request, Spoken
from retort.store.results import result_of

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PATIENCE_S = 600.0


@dataclass
class Clients:
    """So many clients of a service, each with one request at a time; a judge may ask them like any service.

    Attributes:
        base_url: up to ``/v1``.
        model: name that the service calls it by.
        voice: of all requests; None asks for each speaker by name.
        key: or None.
        concurrency: how many.
        replies: of the last batch, by its order.
    """

    base_url: str
    model: str
    voice: str | None
    key: str | None
    concurrency: int
    replies: list[Reply] = field(default_factory=list)
    runaways: int = 0

    def speak(self, requests: Sequence[Request]) -> list[Spoken | RetortError]:
        """The sound of each request, or why there is none."""
        self.replies, self.runaways = [Reply() for _ in requests], 0
        return asyncio.run(self._speak(requests))

    async def _speak(self, requests: Sequence[Request]) -> list[Spoken | RetortError]:
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        limits, waiting = httpx.Limits(max_connections=None), iter(list(enumerate(requests)))
        found: dict[int, Spoken | RetortError] = {}
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=_PATIENCE_S, trust_env=False) as http:

            async def client() -> None:
                for number, request in waiting:
                    found[number] = await self._ask(http, request, self.replies[number])

            await asyncio.gather(*(client() for _ in range(self.concurrency)))
        return [found[number] for number in range(len(requests))]

    async def _ask(self, http: httpx.AsyncClient, request: Request, reply: Reply) -> Spoken | RetortError:
        body: dict[str, Any] = {
            "model": self.model, "input": request.text, "voice": self.voice or request.speaker,
            "response_format": "pcm", "seed": request.seed,
        }  # fmt: skip
        begun, pieces = time.perf_counter(), list[bytes]()
        try:
            async with http.stream("POST", f"{self.base_url}/audio/speech", json=body) as response:
                reply.status = response.status_code
                if response.status_code != 200:
                    said = (await response.aread()).decode("utf-8", "replace")
                    self.runaways += "generation_unstable" in said
                    return DataError(f"{response.status_code} {said[:200]}")
                async for piece in response.aiter_raw():
                    heard(reply, len(piece), time.perf_counter() - begun)
                    pieces.append(piece)
        except httpx.TransportError as error:
            self.runaways += reply.status == 200
            return DataError(f"the stream broke: {error}")
        reply.is_whole, reply.total_s = True, time.perf_counter() - begun
        sound = bytearray(b"".join(pieces))
        samples_N = torch.frombuffer(sound, dtype=torch.int16).float() / 32768 if sound else torch.zeros(0)
        return Spoken(samples_N, RATE)


@dataclass(frozen=True)
class Row:
    """A line of the table: how many asked, what was found of each, and the sound of each string by its id."""

    concurrency: int
    cells: Mapping[str, str]
    sounds: Mapping[str, str | None]


def measure(judge: Judge, clients: Clients) -> Row:
    """Ask for every string, then judge what was said."""
    begun = time.perf_counter()
    name = f"at {clients.concurrency}"
    verdicts = judge.judge(System(name, "endpoint", service=clients), list(judge.strings.rows))
    items = [verdict.item for verdict in verdicts]
    wall_s = time.perf_counter() - begun
    (figures,) = summarise(items, [SystemInfo(name, "student")]).systems
    whole = [reply for reply in clients.replies if reply.is_whole and reply.audio_s]
    firsts = sorted(reply.first_s for reply in whole)
    fields = [f"wer_corpus@{label}" for label in labels_of(figures)] or ["wer_corpus"]
    cells = {field.replace("wer_corpus", "WER"): f"{figures[field]:.4f}" for field in fields}
    likeness = figures["speaker_similarity"]
    cells |= {
        "similarity": ABSENT if likeness is None else f"{likeness:.4f}",
        "failures": f"{figures['failure_rate']:.3f}",
        "runaways": str(clients.runaways),
        "not delivered": str(len(items) - len(whole)),
        "underruns": f"{sum(reply.stalled_s > 0 for reply in whole)}/{len(whole)}",
        "first sound, ms, p50": f"{1e3 * firsts[len(firsts) // 2]:.0f}" if firsts else ABSENT,
        "p95": f"{1e3 * firsts[int(0.95 * (len(firsts) - 1))]:.0f}" if firsts else ABSENT,
        "seconds with judging": f"{wall_s:.0f}",
    }
    return Row(clients.concurrency, cells, {item.id: item.audio_sha256 for item in items})


def table(rows: Sequence[Row]) -> str:
    """In Markdown; the last column is how many strings are the same bits as in the first row."""
    titles = ["asked at once", *rows[0].cells, f"same bits as at {rows[0].concurrency}"]
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        same = sum(sound is not None and sound == rows[0].sounds[name] for name, sound in row.sounds.items())
        lines.append([str(row.concurrency), *row.cells.values(), f"{same}/{len(row.sounds)}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def judge_of(data: Path, strings: int, *, only_digits: bool) -> Judge:
    """Every string of the test split is heard by all recognisers that are here."""
    ears: dict[str, Any] = {}
    if only_digits:
        sphinx = PocketSphinxConfig(words=WORDS, noise_gate_db=35.0)
        ears[label_of(sphinx)] = open_recogniser(sphinx)
    if missing((*WHISPER_EXTRA, *WHISPER_WEIGHTS)) is None:
        ears["whisper"] = open_recogniser(FasterWhisperConfig())
    if not ears:
        raise SystemExit("nobody listens: install retort[whisper], or say --digits for pocketsphinx")
    label, first = next(iter(ears.items()))
    others = {name: ear for name, ear in ears.items() if name != label}
    scorers = Scorers(first, open_speaker_encoder(ResemblyzerConfig()), others=others, label=label)
    return Judge(TestStrings(result_of(data), split="test", count=strings), scorers, max_frames=1, seed=0)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="output of `retort prepare`, with test rows")
    parser.add_argument("--model", type=Path, help="a job's output folder, which is served here")
    parser.add_argument("--url", help="of a service that runs already, up to /v1")
    parser.add_argument("--name", default="bench", help="what the service calls the model")
    parser.add_argument("--voice", help="of all strings; without it speakers are asked for by name")
    parser.add_argument("--api-key-env", help="name of the variable that holds the key")
    parser.add_argument("--strings", type=int, default=128)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--slots", type=int, default=64, help="utterances that the served model speaks at once")
    parser.add_argument("--digits", action="store_true", help="the strings are digits: pocketsphinx listens, too")
    args = parser.parse_args()
    if (args.model is None) == (args.url is None):
        parser.error("give --model, which is served here, or --url of what runs already")
    judge = judge_of(args.data, args.strings, only_digits=args.digits)
    key = None if args.api_key_env is None else os.environ[args.api_key_env]
    print(f"{args.strings} strings, {args.url or args.model.name}, {torch.get_num_threads()} threads, {load_average()}")

    def rows(url: str) -> list[Row]:
        Clients(url, args.name, args.voice, key, 1).speak([Request("one", next(iter(judge.strings.voices)), 0)])
        return [measure(judge, Clients(url, args.name, args.voice, key, many)) for many in args.concurrency]

    if args.url is not None:
        print(table(rows(args.url)))
        return
    serving = argparse.Namespace(
        model=args.model, proxy="auto", layout="together", slots=args.slots, replicas=1, max_waiting_seconds=1e4
    )
    with tempfile.TemporaryDirectory() as folder:
        server = Server(serving, Path(folder))
        try:
            asyncio.run(server.ready())
            print(table(rows(f"http://127.0.0.1:{server.port}/v1")))
        except BaseException:
            print((Path(folder) / "serve.log").read_text()[-3000:])
            raise
        finally:
            server.stop()
    print(load_average())


if __name__ == "__main__":
    main()
