"""A load test of a real server: Poisson arrivals, ten times too many of them, the time after, and a killed replica.

``retort serve`` runs in a process of its own on loopback; clients come open-loop, that is, whether or not the server
keeps up, and read PCM streams as they come. Texts are strings of digits for the demo's students (``make demo``). An
underrun is a stream that would have made a player that starts with the first bytes wait.

The phases: one request at a time; arrivals at half of what the server was seen to sustain; arrivals at ten times of it;
one request at a time again, until the first audio comes as it did before; arrivals during which a replica is killed; a
long stream while the server is told to end.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.protocol import Gate, load_average
from retort.serving.memory import keep_everything

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RATE = 24_000
_BYTES = 2 * RATE
_LONG = 600
"""Words of a stream that lasts longer than the end of a server without clients."""
_LEAST_GATED = 20
"""Requests below which a percentile is not judged."""


@dataclass
class Reply:
    """What one client saw; seconds since it asked."""

    status: int = 0
    first_s: float = 0.0
    total_s: float = 0.0
    audio_s: float = 0.0
    stalled_s: float = 0.0
    is_whole: bool = False
    retry_after: str | None = None


@dataclass
class Phase:
    """The replies of a phase, and the memory of the server's processes meanwhile, in MiB."""

    name: str
    replies: list[Reply] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)

    @property
    def said(self) -> list[Reply]:
        """Those that were accepted and came whole."""
        return [reply for reply in self.replies if reply.status == 200 and reply.is_whole]

    def count(self, status: int) -> int:
        """Replies with a status."""
        return sum(reply.status == status for reply in self.replies)

    def first_ms(self, share: float) -> float:
        """Quantile of the time to the first audio."""
        times = sorted(reply.first_s for reply in self.said)
        return 1e3 * times[min(len(times) - 1, int(share * len(times)))]

    def line(self) -> str:
        """For the table."""
        if not self.said:
            return f"{self.name:22s}{len(self.replies):7d}      0"
        rtf = statistics.median(reply.total_s / reply.audio_s for reply in self.said)
        underruns = sum(reply.stalled_s > 0 for reply in self.said) / len(self.said)
        broken = sum(reply.status == 200 and not reply.is_whole for reply in self.replies)
        others = len(self.replies) - self.count(200) - self.count(429)
        quantiles = "".join(f"{self.first_ms(share):8.0f}" for share in (0.5, 0.95, 0.99))
        return (
            f"{self.name:22s}{len(self.replies):7d}{len(self.said):7d}{self.count(429):7d}{broken:8d}{others:7d}"
            f"{quantiles}{rtf:8.3f}{100 * underruns:11.1f}{max(self.memory, default=0):9.0f}"
        )


class Server:
    """``retort serve`` in a process of its own.

    Args:
        args: of the script.
        folder: for its run file and log.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._layout = args.layout
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        tree = {
            "job": "serve", "port": self.port, "proxy": args.proxy, "layout": args.layout,
            "models": [{
                "name": "bench", "path": str(args.model.resolve()), "part_characters": 32, "slots": args.slots,
                "cpus": 0.5, "min_replicas": args.replicas, "max_replicas": args.replicas,
            }],
            "limits": {"max_waiting_seconds": args.max_waiting_seconds},
        }  # fmt: skip
        config = folder / "serve.yaml"
        config.write_text(json.dumps(tree))
        self._log = (folder / "serve.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "retort.cli", "serve", str(config)], stdout=self._log, stderr=self._log
        )

    async def ready(self) -> None:
        """Wait for its models."""
        for _ in range(1500):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
                if (await fetch(self.port, "GET", "/health/ready")).status == 200:
                    return
            await asyncio.sleep(0.2)
        raise SystemExit("the server did not start")

    def replicas(self) -> list[psutil.Process]:
        """Processes of the model."""
        title = "ServeReplica:retort:" + ("Whole" if self._layout == "together" else "model-bench")
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if title in " ".join(_command(child))]

    def memory_mb(self) -> float:
        """Resident memory of everything that serves: proxy, front end and replicas."""
        total = 0
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if "Serve" in "".join(_command(child)) or "Proxy" in "".join(_command(child)):
                with contextlib.suppress(psutil.Error):
                    total += child.memory_info().rss
        return total / 2**20

    def stop(self) -> None:
        """End it and all it started."""
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        self.process.kill()
        self._log.close()


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


async def fetch(port: int, method: str, path: str, body: bytes = b"") -> Reply:
    """One request on a connection of its own, read as it comes."""
    reply, begun = Reply(), time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
        reply.status = int((await reader.readline()).split()[1])
        headers = {}
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        reply.retry_after = headers.get("retry-after")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ValueError):
            if headers.get("transfer-encoding") == "chunked":
                while size := int(await reader.readline(), 16):
                    await reader.readexactly(size + 2)
                    heard(reply, size, time.perf_counter() - begun)
                reply.is_whole = True
            else:
                await reader.readexactly(int(headers.get("content-length", "0")))
                reply.is_whole = True
    finally:
        writer.close()
    reply.total_s = time.perf_counter() - begun
    return reply


def heard(reply: Reply, size: int, now: float) -> None:
    """Note bytes that came at ``now``, in seconds since the request."""
    if not reply.first_s:
        reply.first_s = now
    # The player began with the first bytes; it waits whenever it has played all that had come.
    late = now - reply.first_s - reply.audio_s - reply.stalled_s
    reply.stalled_s += max(0.0, late)
    reply.audio_s += size / _BYTES


class Clients:
    """Clients with texts and arrival times from one seed."""

    def __init__(self, server: Server, words: int) -> None:
        self.server, self._words, self._random = server, words, random.Random(0)

    async def ask(self, words: int | None = None) -> Reply:
        """One request; a connection that breaks is a reply without an end."""
        text = " ".join(self._random.choices(WORDS, k=words or self._words))
        body = {
            "model": "bench", "input": text, "voice": self.voice, "response_format": "pcm",
            "seed": self._random.randrange(2**31),
        }  # fmt: skip
        try:
            return await fetch(self.server.port, "POST", "/v1/audio/speech", json.dumps(body).encode())
        except (OSError, asyncio.IncompleteReadError, IndexError):
            return Reply()

    async def prepare(self) -> None:
        """Ask for the voices."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(b"GET /v1/audio/voices HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        self.voice = json.loads(answer[answer.index(b"\r\n\r\n") + 4 :].partition(b"\r\n0\r\n")[0])["voices"][0]["id"]

    async def one_by_one(self, name: str, number: int) -> Phase:
        """Without any load."""
        phase = Phase(name, [await self.ask() for _ in range(number)])
        phase.memory.append(self.server.memory_mb())
        return phase

    async def poisson(
        self, name: str, rate: float, seconds: float, *, at_half: Callable[[], Awaitable[None]] | None = None
    ) -> Phase:
        """Open-loop arrivals."""
        phase, tasks = Phase(name), []
        begun = next_arrival = time.perf_counter()
        told = False
        sampler = asyncio.create_task(self._watch(phase))
        while next_arrival < begun + seconds:
            await asyncio.sleep(max(0.0, next_arrival - time.perf_counter()))
            tasks.append(asyncio.create_task(self.ask()))
            next_arrival += self._random.expovariate(rate)
            if at_half is not None and not told and time.perf_counter() - begun > seconds / 2:
                told = True
                await at_half()
        phase.replies = list(await asyncio.gather(*tasks))
        sampler.cancel()
        return phase

    async def _watch(self, phase: Phase) -> None:
        while True:
            phase.memory.append(await asyncio.to_thread(self.server.memory_mb))
            await asyncio.sleep(1.0)


async def sustained_rate(clients: Clients, together: int, seconds: float) -> float:
    """Requests a second that closed-loop clients get whole."""
    done = 0
    deadline = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < deadline:
            reply = await clients.ask()
            done += reply.is_whole and reply.status == 200
            if reply.status != 200:
                await asyncio.sleep(0.05)

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(together)))
    return done / (time.perf_counter() - begun)


async def test(args: argparse.Namespace, server: Server) -> list[str]:
    """All phases; the verdicts."""
    keep_everything()  # A collection would stop all clients for a tenth of a second, and look like the server's.
    clients = Clients(server, args.words)
    await server.ready()
    await clients.prepare()
    seconds = 3.0 if args.quick else args.seconds
    await clients.one_by_one("warm-up", 5)
    unloaded = await clients.one_by_one("one at a time", 10 if args.quick else 40)
    rate = await sustained_rate(clients, args.slots * args.replicas, min(10.0, seconds))
    half = await clients.poisson("half of the capacity", 0.5 * rate, seconds)
    before = server.memory_mb()
    flood = await clients.poisson("ten times as much", 10 * rate, seconds)
    after = Phase("recovery")
    begun = time.perf_counter()
    while time.perf_counter() - begun < 60:
        after.replies.append(await clients.ask())
        last = after.replies[-5:]
        if len(last) == 5 and statistics.median(r.first_s for r in last) <= 1.5e-3 * unloaded.first_ms(0.5):
            break
    recovery_s = time.perf_counter() - begun
    calm = await clients.one_by_one("afterwards", 10 if args.quick else 40)
    verdicts = [
        Gate("accepted at 10x: median first audio / unloaded", 2.0, 1.5).judge(
            flood.first_ms(0.5) / unloaded.first_ms(0.5)
        ),
        Gate("accepted at 10x: p95 first audio / unloaded p95", 2.0, 1.5).judge(
            flood.first_ms(0.95) / unloaded.first_ms(0.95)
        ),
        Gate("memory during the flood / before", 1.15, 1.05).judge(max(flood.memory) / before),
        Gate("seconds to recover", 10.0, 2.0).judge(recovery_s),
        Gate("refused with Retry-After, of all that were not accepted", 1.0, 1.0, True).judge(
            sum(r.status == 429 and r.retry_after is not None for r in flood.replies)
            / max(1, sum(r.status != 200 for r in flood.replies))
        ),
    ]
    phases = [unloaded, half, flood, after, calm]
    if args.replicas > 1:
        phases.append(await clients.poisson("a replica is killed", 0.3 * rate, seconds, at_half=lambda: kill(server)))
        survived = len(phases[-1].said) / len(phases[-1].replies)
        verdicts.append(Gate("whole streams while a replica is killed", 0.8, 0.95, True).judge(survived))
        for _ in range(100):
            if len(server.replicas()) == args.replicas:
                break
            await asyncio.sleep(0.3)
        verdicts.append(Gate("replicas after it", args.replicas, args.replicas, True).judge(len(server.replicas())))
    verdicts.append(await told_to_end(clients, server))
    print(f"sustained: {rate:.1f} requests/s of {statistics.mean(r.audio_s for r in unloaded.said):.1f} s of speech")
    print(
        f"{'':22s}{'asked':>7s}{'whole':>7s}{'429':>7s}{'broken':>8s}{'other':>7s}"
        f"{'p50 ms':>8s}{'p95':>8s}{'p99':>8s}{'RTF':>8s}{'underrun %':>11s}{'MiB':>9s}"
    )
    for phase in phases:
        print(phase.line())
    refused = [r.total_s for r in flood.replies if r.status == 429]
    if refused:
        print(f"refusals take {1e3 * statistics.median(refused):.0f} ms in the median at ten times the capacity")
    return verdicts


async def told_to_end(clients: Clients, server: Server) -> str:
    """Whether a long stream goes on to its end while the server drains."""
    stream = asyncio.create_task(clients.ask(_LONG))
    await asyncio.sleep(1.0)
    server.process.send_signal(signal.SIGTERM)
    told = time.perf_counter()
    reply = await stream
    print(f"told to end: a stream of {reply.audio_s:.0f} s went on for {time.perf_counter() - told:.1f} s")
    return Gate("whole stream after SIGTERM", 1, 1, True).judge(float(reply.is_whole))


async def kill(server: Server) -> None:
    """End one replica as a lack of memory would."""
    os.kill(server.replicas()[0].pid, signal.SIGKILL)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("runs/demo/student_large"), help="a job's output folder")
    parser.add_argument("--proxy", choices=("auto", "haproxy", "python"), default="auto")
    parser.add_argument("--layout", choices=("apart", "together"), default="apart")
    parser.add_argument("--slots", type=int, default=4, help="utterances that a replica speaks at once")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--words", type=int, default=20, help="of each text")
    parser.add_argument("--max-waiting-seconds", type=float, default=1.0, help="speech that may wait for a slot")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase")
    parser.add_argument("--quick", action="store_true", help="a short check that everything runs; proves nothing")
    args = parser.parse_args()
    print(
        f"{args.proxy} proxy, models {args.layout}, {args.replicas} replica(s) of {args.slots} slots, {load_average()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        server = Server(args, Path(folder))
        try:
            for line in asyncio.run(test(args, server)):
                print(line + ("  [quick check: proves nothing]" if args.quick else ""))
        except BaseException:
            print((Path(folder) / "serve.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            server.stop()


if __name__ == "__main__":
    main()
