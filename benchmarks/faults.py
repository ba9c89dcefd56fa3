"""What survives a fault: tiny jobs are harmed at random moments, started again, and compared with unharmed ones.

``python -m benchmarks.faults --faults driver sigterm --repetitions 5`` adds its counts, with date and commit, to
``benchmarks/faults.json`` and prints the table of all of them; ``--at-least 20`` goes on until there are so many of
each. A repetition survives if the job, started again as its message says, ends with exit code 0. Nothing else is judged
by the message: outputs are compared. A job that was nearly done, and ends well before SIGTERM or a full disk could be
noticed, is no repetition; one with half of its work left that does not notice is wrong.
"""

import argparse
import contextlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.fault_jobs import (
    Outcome,
    RowsJob,
    TinyJob,
    TrainingJob,
    cut_a_file,
    end_all_of,
    flip_a_byte,
    kill_below,
    write_inputs,
)
from benchmarks.fault_records import add_record, fewest, read_records, record_of, table
from retort.errors import HeadLostError, PreemptedError, ResourceError

RECORDS = Path(__file__).with_name("faults.json")
_STARTS = 4
"""How often a job is started before it is given up."""
_TRIES = 5
"""How many jobs may end too early, one after the other."""
_JITTER_S = 0.3
_LONGEST_OUTAGE_S = 20.0


class UnharmedError(Exception):
    """A job ended before its moment had come, as on a busy machine, or was done before it noticed the harm."""


Fault = Callable[[TinyJob, random.Random, Outcome], None]
"""Starts the job, harms it once, and leaves it ended, in whatever state."""


def kill_worker(job: TinyJob, moment: random.Random, outcome: Outcome) -> None:
    """SIGKILL to a worker; the job itself starts another one."""
    process = _begun(job, moment)
    committed = job.committed() if isinstance(job, TrainingJob) else 0
    job.kill_worker(process)
    outcome.exit_codes.append(process.wait())
    if isinstance(job, TrainingJob):
        outcome.steps_lost = job.steps_lost(committed, restarted=False)


def kill_driver(job: TinyJob, moment: random.Random, outcome: Outcome) -> None:
    """SIGKILL to the driver, and with it to its Ray."""
    end_all_of(_begun(job, moment))
    outcome.exit_codes.append(-signal.SIGKILL)


def kill_head(job: TinyJob, moment: random.Random, outcome: Outcome) -> None:
    """SIGKILL to the head of the driver's Ray: the driver gets done without it, or says by its code that it is lost."""
    process = _begun(job, moment, {"RAY_gcs_rpc_server_reconnect_timeout_s": "12"})
    kill_below(process.pid, "gcs_server")
    outcome.exit_codes.append(process.wait())
    if outcome.exit_codes[-1] not in (0, HeadLostError.exit_code):  # what is running may get done without a head
        outcome.wrong_outputs += 1


def kill_node(job: TinyJob, moment: random.Random, outcome: Outcome) -> None:
    """A cluster whose only node with CPUs is killed, and another one comes: the job itself goes on there."""
    from ray.cluster_utils import Cluster

    health = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": health}
    )
    try:
        node = cluster.add_node(num_cpus=2)
        process = _begun(job, moment, {"RAY_ADDRESS": str(cluster.address)})
        committed = job.committed() if isinstance(job, TrainingJob) else 0
        cluster.remove_node(node, allow_graceful=False)
        time.sleep(moment.uniform(0.0, 5.0))
        cluster.add_node(num_cpus=2)
        outcome.exit_codes.append(process.wait())
        if isinstance(job, TrainingJob):
            outcome.steps_lost = job.steps_lost(committed, restarted=False)
    finally:
        cluster.shutdown()


def sigterm(job: TinyJob, moment: random.Random, outcome: Outcome) -> None:
    """SIGTERM to the driver: it must end by itself, and say so by its code."""
    process = _begun(job, moment)
    left = job.size - job.done()
    process.terminate()
    expect_code(job, process, outcome, PreemptedError.exit_code, left=left)


def corrupt_byte(job: TinyJob, moment: random.Random, outcome: Outcome) -> None:
    """A bit of the newest checkpoint flips while nobody runs; the one before is what can be kept."""
    kill_driver(job, moment, outcome)
    newest = sorted((job.output / "checkpoints").glob("step-????????"))[-1:]
    for folder in newest:
        flip_a_byte(folder, moment)


def truncated_shard(job: TinyJob, moment: random.Random, outcome: Outcome) -> None:
    """A finished chunk's table is cut while nobody runs; it is to be done again."""
    kill_driver(job, moment, outcome)
    cut_a_file(job.output, "work/*/chunks/*/*.parquet", moment)


def disk_full(job: TinyJob, moment: random.Random, outcome: Outcome) -> None:
    """The output's file system is full for a while."""
    job.output.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(job.output)], capture_output=True, check=False
    )
    if mounted.returncode:
        raise SystemExit(f"disk: needs the right to mount a small file system: {mounted.stderr.decode().strip()}")
    process = _begun(job, moment)
    filler = job.output / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # full: that is the fault
        while True:
            file.write(b"\0" * (1 << 16))
    expect_code(job, process, outcome, ResourceError.exit_code, left=job.size - job.done())
    filler.unlink()


def store_outage(job: TinyJob, moment: random.Random, outcome: Outcome) -> None:
    """The S3 service that holds the output is killed and comes back; the job itself waits and goes on."""
    store = job.move_into_store()
    process = _begun(job, moment)
    committed = job.committed() if isinstance(job, TrainingJob) else 0
    store.kill()
    time.sleep(moment.uniform(1.0, _LONGEST_OUTAGE_S))
    store.start()
    outcome.exit_codes.append(process.wait())
    if isinstance(job, TrainingJob):
        outcome.steps_lost = job.steps_lost(committed, restarted=False)


FAULTS: dict[str, tuple[type[TinyJob], Fault]] = {
    "worker of a training killed": (TrainingJob, kill_worker),
    "worker of a pool killed": (RowsJob, kill_worker),
    "driver of a training killed": (TrainingJob, kill_driver),
    "driver of a pool killed": (RowsJob, kill_driver),
    "head of a training killed": (TrainingJob, kill_head),
    "head of a pool killed": (RowsJob, kill_head),
    "node of a training killed": (TrainingJob, kill_node),
    "node of a pool killed": (RowsJob, kill_node),
    "SIGTERM to a training": (TrainingJob, sigterm),
    "SIGTERM to a pool": (RowsJob, sigterm),
    "corrupt byte in a checkpoint": (TrainingJob, corrupt_byte),
    "truncated chunk": (RowsJob, truncated_shard),
    "disk full while training": (TrainingJob, disk_full),
    "S3 outage while training": (TrainingJob, store_outage),
    "S3 outage while generating": (RowsJob, store_outage),
}


def repeat(name: str, root: Path, reference: TinyJob, moment: random.Random, number: int) -> Outcome:
    """One repetition: harm a fresh job once, start it until it ends well, compare.

    Raises:
        UnharmedError: it ended before it could be harmed.
    """
    kind, fault = FAULTS[name]
    job, outcome, began = kind(root, f"{kind.verb}-{number}"), Outcome(), time.monotonic()
    try:
        fault(job, moment, outcome)
        committed = job.committed() if isinstance(job, TrainingJob) else 0
        was_finished = job.is_finished()
        while outcome.exit_codes[-1] != 0 and len(outcome.exit_codes) < _STARTS:
            outcome.exit_codes.append(job.start().wait())
            # What a corrupt checkpoint held is lost by design: the one before it is taken.
            if isinstance(job, TrainingJob) and len(outcome.exit_codes) == 2 and fault is not corrupt_byte:
                outcome.steps_lost = 0 if was_finished else job.steps_lost(committed, restarted=committed > 0)
        outcome.survived = outcome.exit_codes[-1] == 0
        outcome.seconds = round(time.monotonic() - began, 1)
        if outcome.survived:
            job.compare(reference, outcome)
        if not outcome.survived or outcome.wrong_outputs:
            print(f"{name}: the job said last:\n{job.log()[-3000:]}", flush=True)
    finally:
        _clear(job)
    return outcome


def _clear(job: TinyJob) -> None:
    """Remove what it left, the small disk of a full one too."""
    subprocess.run(["umount", str(job.output)], capture_output=True, check=False)
    job.clear()


def repeat_until_harmed(name: str, root: Path, reference: TinyJob, moment: random.Random, number: int) -> Outcome:
    """The same, again where the job ended before its moment had come.

    Raises:
        UnharmedError: a few jobs in a row did.
    """
    for _ in range(_TRIES):
        try:
            return repeat(name, root, reference, moment, number)
        except UnharmedError as error:
            print(f"{name}: {error}", flush=True)
    raise UnharmedError(f"{name}: {_TRIES} jobs in a row ended before they could be harmed")


def expect_code(job: TinyJob, process: "subprocess.Popen[bytes]", outcome: Outcome, code: int, *, left: int) -> None:
    """Wait for the end; a job that does not say what happened to it is wrong.

    Raises:
        UnharmedError: it ended well, and at most half of its work was ``left`` when the harm was done.
    """
    outcome.exit_codes.append(process.wait())
    if outcome.exit_codes[-1] == 0 and left <= job.size // 2:
        raise UnharmedError(f"{job.output.name} was done before it could notice what ends with {code}")
    if outcome.exit_codes[-1] != code:
        outcome.wrong_outputs += 1


def _begun(job: TinyJob, moment: random.Random, environment: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start the job and wait for a random moment in its work."""
    process = job.start(environment)
    if not job.wait_until(process, moment.randrange(1, job.size)):
        raise UnharmedError(f"{job.output.name} ended before it could be harmed:\n{job.log()[-2000:]}")
    time.sleep(moment.uniform(0.0, _JITTER_S))
    return process


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the faults that are named, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), help="words that a fault's name contains")
    parser.add_argument("--repetitions", type=int, default=1, help="of each")
    parser.add_argument(
        "--at-least", type=int, help="instead: repeat the rarest, until the records have so many of each"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--records", type=Path, default=RECORDS)
    args = parser.parse_args(arguments)
    names = [name for name in FAULTS if any(word.lower() in name.lower() for word in args.faults)]
    if not names:
        parser.error(f"--faults: no fault is called {' or '.join(args.faults)}; there are: {', '.join(FAULTS)}")
    moment = random.Random(args.seed)
    root = Path(tempfile.mkdtemp(prefix="retort-faults-"))
    try:
        write_inputs(root)
        references: dict[type[TinyJob], TinyJob] = {}
        for number, name in enumerate(_chosen(names, args)):
            kind = FAULTS[name][0]
            if kind not in references:
                references[kind] = kind(root, f"{kind.verb}-unharmed")
                if references[kind].start().wait():
                    raise SystemExit(f"the unharmed job failed:\n{references[kind].log()[-2000:]}")
            outcome = repeat_until_harmed(name, root, references[kind], moment, number)
            print(f"{name}: {outcome}", flush=True)
            add_record(args.records, record_of(name, outcome, args.seed))
    except UnharmedError as error:
        raise SystemExit(str(error)) from None
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(table(read_records(args.records)))


def _chosen(names: Sequence[str], args: argparse.Namespace) -> Iterator[str]:
    """The faults to come, one by one, with regard to what other runs have counted meanwhile."""
    if args.at_least is None:
        yield from (name for name in names for _ in range(args.repetitions))
        return
    while (name := fewest(read_records(args.records), names, at_least=args.at_least)) is not None:
        yield name


if __name__ == "__main__":
    main()
