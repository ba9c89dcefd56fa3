"""C13: what Ray Serve adds to the first byte of a stream: over the same API and engine in one bare uvicorn process.

Servers run in processes of their own and are asked in turns, request by request and one at a time, for the first bytes
of a PCM stream: the API with the engine in one process (uvicorn), and Ray Serve behind HAProxy, with the API in the
engine's process (``layout: together``) and in a process of its own (``apart``). The order of each turn is drawn, and
the machine rests before each request: a server that is done with a stream still cleans up and logs for some
milliseconds, on the core that the next one needs. What Serve adds is the median of the differences, and of the ratios,
within a turn: from one round to the next, this machine's speed changes by more than that. The engine alone, in this
process, says what a first piece takes without any HTTP.
"""

import argparse
import contextlib
import http.client
import json
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.c16_warm_up import write_model
from benchmarks.protocol import Gate, conclude, interleave, parse_arguments, prepare, print_table
from retort.inference.backends import DecodePrecision
from retort.inference.speaker import Request, Wish
from retort.inference.speech import GuardConfig, SpeechEngine
from retort.inference.synthesizer import Synthesizer
from retort.serving.settings import ServeConfig, ServedModel
from retort.store.artifact import describe_artifact, write_artifact

TEXT, MODEL, SLOTS = "one two three four", "bench", 4
PRECISION: DecodePrecision = "int8"
LAYOUTS = ("together", "apart")
GUARD = GuardConfig(extra_seconds=2.0, seconds_per_character=0.001, retries=0)
REQUESTS = 60
_REST_S = 0.05


def write_job_output(root: Path) -> Path:
    """A model with random weights, as the output of a training job."""
    model = write_model(root)
    info = describe_artifact("model", MODEL, "1", inputs={}, config={}, metrics={})
    write_artifact(root / "output" / "result", info, lambda to: _copy(model, to))
    return root / "output"


def _copy(folder: Path, to: Path) -> None:
    shutil.copytree(folder, to, dirs_exist_ok=True)


def settings(model: Path, port: int, layout: str) -> ServeConfig:
    """One model under one name, with one number format everywhere: each process would choose its own by measuring."""
    served = ServedModel(name=MODEL, path=model, slots=SLOTS, precision=PRECISION)
    return ServeConfig(models=(served,), guard=GUARD, port=port, proxy="haproxy", layout=layout)  # type: ignore[arg-type]


def serve_bare(config: ServeConfig) -> None:
    """The API and the engine in this process, under uvicorn, until it is ended."""
    import uvicorn

    from retort.serving.api import build_api
    from retort.serving.backends import LocalBackend

    api = build_api(config, {MODEL: LocalBackend(config.models[0], config)})
    uvicorn.run(api, host=config.host, port=config.port, log_level="error")


@contextlib.contextmanager
def server(kind: str, model: Path) -> Iterator[int]:
    """A server in a process of its own, ready; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "benchmarks.c13_serve",
        "--serve",
        kind,
        "--model",
        str(model),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the {kind} server did not start")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()


def is_ready(port: int) -> bool:
    """Whether a server answers that its model has passed its warm-up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Client:
    """Asks one server, on a connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def first_byte(self, seed: int) -> float:
        """Seconds to the first byte of a stream."""
        body = json.dumps({"model": MODEL, "input": TEXT, "voice": "s", "seed": seed, "response_format": "pcm"})
        begin = time.perf_counter()
        self._connection.request("POST", "/v1/audio/speech", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        assert answer.read(1), "the payload must be sound"
        seconds = time.perf_counter() - begin
        # Random weights do not end by themselves: the stream breaks at its limit, and the connection with it.
        with contextlib.suppress(http.client.HTTPException, OSError):
            answer.read()
        self._connection.close()
        return seconds

    def no_engine(self) -> float:
        """Seconds of an answer that takes no engine; connects again."""
        begin = time.perf_counter()
        self._connection.request("GET", "/health/live")
        self._connection.getresponse().read()
        return time.perf_counter() - begin


def in_turns(clients: Mapping[str, Client], number: int) -> dict[str, float]:
    """Medians: seconds of each server, and what Serve adds to the bare one, in seconds and as a ratio."""
    plain: dict[str, list[float]] = {kind: [] for kind in clients}
    first: dict[str, list[float]] = {kind: [] for kind in clients}
    for seed in range(number):
        for kind in random.Random(seed).sample(list(clients), len(clients)):
            time.sleep(_REST_S)
            plain[kind].append(clients[kind].no_engine())
            first[kind].append(clients[kind].first_byte(seed))
    medians = {f"{kind}, no engine": statistics.median(plain[kind]) for kind in clients}
    medians |= {kind: statistics.median(first[kind]) for kind in clients}
    for kind in LAYOUTS:
        pairs = list(zip(first[kind], first["bare"], strict=True))
        medians[f"{kind}, added"] = statistics.median(ours - bare for ours, bare in pairs)
        medians[f"{kind}, ratio"] = statistics.median(ours / bare for ours, bare in pairs)
    return medians


def engine_alone(engine: SpeechEngine, number: int) -> float:
    """Median seconds from a text to its first samples, without HTTP."""
    seconds = []
    for seed in range(number):
        begin = time.perf_counter()
        ticket = engine.add(Wish(Request(TEXT, "s", seed)))
        while not sum(sound.samples_N.numel() for sound in engine.step()):
            pass
        seconds.append(time.perf_counter() - begin)
        engine.cancel(ticket)
    return statistics.median(seconds)


def main() -> None:
    """Measure and print."""
    if "--serve" in sys.argv:
        serve_as_asked()
        return
    args = parse_arguments(__doc__ or "")
    prepare(args)
    number = 3 if args.quick else REQUESTS
    with contextlib.ExitStack() as stack:
        model = write_job_output(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        clients = {kind: Client(stack.enter_context(server(kind, model))) for kind in ("bare", *LAYOUTS)}
        engine = SpeechEngine(
            Synthesizer.open(model / "result", precision=PRECISION), max_slots=SLOTS, max_conditions=1, guard=GUARD
        )
        engine.warm_up()
        run = interleave(
            {"engine alone": lambda: engine_alone(engine, number), "server": lambda: in_turns(clients, number)}, args
        )
    print_table(run, "ms; ratios in thousandths", 1e3)
    verdicts = []
    for kind in LAYOUTS:
        added = 1e3 * run.median(f"server, {kind}, added")
        verdicts.append(Gate(f"C13 {kind}: ms added to the first byte", 1.0, 0.5).judge(added))
        ratio = run.median(f"server, {kind}, ratio")
        verdicts.append(Gate(f"C13 {kind} / uvicorn", 1.05, 1.02).judge(ratio))
    conclude(run, args, verdicts)


def serve_as_asked() -> None:
    """The body of a server's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", choices=("bare", "together", "apart"), required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    if args.serve == "bare":
        serve_bare(settings(args.model, args.port, "apart"))
        return
    from retort.serving.local import serving, wait_for_the_end

    with serving(settings(args.model, args.port, args.serve)):
        wait_for_the_end()


if __name__ == "__main__":
    main()
