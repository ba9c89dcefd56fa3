"""What was counted of each fault: a file of records that runs of :mod:`benchmarks.faults` add to, several at a time."""

import fcntl
import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.fault_jobs import Outcome
from retort.store.commit import write_bytes_atomic

Record = dict[str, Any]
_OF_ONE_RUN = ("fault", "date", "commit", "seed")
_COUNTED = ("steps_lost", "rows_lost", "rows_doubled", "wrong_outputs")


def record_of(fault: str, outcome: Outcome, seed: int) -> Record:
    """The counts of one repetition, with today's date and the commit that is checked out."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return {
        "fault": fault,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "seed": seed,
        "repetitions": 1,
        "survived": int(outcome.survived),
        **{name: asdict(outcome)[name] for name in _COUNTED},
        "exit_codes": [outcome.exit_codes],
        "seconds": outcome.seconds,
    }


def read_records(path: Path) -> list[Record]:
    """What earlier runs have added to a file of records."""
    records: list[Record] = json.loads(path.read_text()) if path.is_file() else []
    return records


def add_record(path: Path, record: Record) -> None:
    """Add to a file of records, to the one of the same run if there is one.

    Several runs may add to one file at the same time.
    """
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records = read_records(path)
        same = next((r for r in records if all(r[key] == record[key] for key in _OF_ONE_RUN)), None)
        if same is None:
            records.append(record)
        else:
            same |= {key: same[key] + record[key] for key in record if key not in _OF_ONE_RUN}
            same["seconds"] = round(same["seconds"], 1)
        write_bytes_atomic(path, (json.dumps(records, indent=1) + "\n").encode())


def fewest(records: Iterable[Record], faults: Sequence[str], *, at_least: int) -> str | None:
    """The fault that was repeated the least often; None where each was repeated ``at_least`` so often."""
    counts = dict.fromkeys(faults, 0)
    for record in records:
        if record["fault"] in counts:
            counts[record["fault"]] += record["repetitions"]
    name = min(counts, key=lambda fault: counts[fault])
    return name if counts[name] < at_least else None


def table(records: Sequence[Record]) -> str:
    """All records, added up by fault, as Markdown."""
    lines = [
        "| fault | repetitions | survived | committed steps lost | rows lost | rows doubled | wrong outputs | last |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(record["fault"] for record in records):
        own = [record for record in records if record["fault"] == name]
        sums = [str(sum(record[column] for record in own)) for column in ("repetitions", "survived", *_COUNTED)]
        lines.append(f"| {name} | {' | '.join(sums)} | {own[-1]['date']}, {own[-1]['commit']} |")
    return "\n".join(lines)
