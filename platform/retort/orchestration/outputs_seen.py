"""Outputs of jobs as they lie on the disk: what ran, how far it is, what it says. No cluster, no Ray, no writing."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from retort.errors import DataError, RetortError
from retort.orchestration.alerts import alerts_of_metrics, alerts_of_training
from retort.orchestration.outputs import CHECKPOINTS, METRICS_FILE
from retort.store.artifact import Artifact, read_artifact
from retort.store.checkpoints import CheckpointFolder
from retort.store.commit import is_committed
from retort.store.results import RESULT, RUN_FILE

State = Literal["finished", "running", "failed", "stopped", "damaged"]
_FAILURE_FILE = "failure.json"
_MAX_DEPTH = 4
_INSIDE = frozenset({RESULT, CHECKPOINTS, "tensorboard"})
"""Folders of an output in which no other output lies."""


@dataclass(frozen=True)
class OutputSeen:
    """One output.

    Attributes:
        path: its folder.
        job: the verb, or "?" where ``run.yaml`` cannot be read.
        state: ``running`` is known on the machine that holds the lock only; elsewhere such a run looks ``stopped``.
        steps: that the job will do; None where it does not train.
        last: the newest record of ``metrics.jsonl``.
        checkpoints: steps of those that are committed.
        changed_at: when something was last written, UTC, ISO 8601.
        reference: of the result, ``name@version``.
        fingerprint: of the result.
        inputs: name of each input to its fingerprint.
        metrics: of the result.
        code_version: that made the result.
        why: of ``failed`` and ``damaged``.
        alerts: what looks wrong.
    """

    path: str
    job: str
    state: State
    steps: int | None
    last: dict[str, Any]
    checkpoints: tuple[int, ...]
    changed_at: str
    reference: str | None
    fingerprint: str | None
    inputs: dict[str, str]
    metrics: dict[str, Any]
    code_version: str | None
    why: str | None
    alerts: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @property
    def progress(self) -> str:
        """Steps done, of how many."""
        done = self.last.get("step")
        return "" if self.steps is None else f"{0 if done is None else done}/{self.steps}"

    def text(self) -> str:
        """For a person, in lines."""
        lines = [f"{self.path}: {self.job}, {self.state}" + (f" ({self.why})" if self.why else "")]
        lines += [f"  last written {self.changed_at}"]
        if self.progress:
            kept = ", ".join(map(str, self.checkpoints)) or "none"
            lines += [f"  steps {self.progress}, checkpoints {kept}"]
        lines += [f"  {name}: {_shown(value)}" for name, value in self.last.items() if name != "step"]
        if self.reference:
            lines += [f"  made {self.reference}", f"  fingerprint {self.fingerprint}, by {self.code_version}"]
        lines += [f"  from {name}: {value}" for name, value in self.inputs.items()]
        lines += [line for name, value in self.metrics.items() for line in _lines_of(name, value)]
        return "\n".join(lines + [f"  ALERT {alert}" for alert in self.alerts])


def look_at(output: Path) -> OutputSeen:
    """One output.

    Raises:
        DataError: the folder is no job's output.
    """
    if not (output / RUN_FILE).is_file():
        raise DataError(f"{output}: no {RUN_FILE}, so no job wrote it; `retort ls FOLDER` shows those that did")
    config = _config_of(output)
    records = list(_records(output / METRICS_FILE))
    artifact, damage = _result_of(output)
    failure = None if artifact else _failure_of(output)
    state: State = "stopped"
    if damage:
        state = "damaged"
    elif _is_held(output):
        state = "running"  # a finished job may go on
    elif artifact is not None or _is_finished_tour(config, output):
        state = "finished"
    elif failure:
        state = "failed"
    info = None if artifact is None else artifact.info
    metrics = {} if info is None else dict(info.metrics)
    training = config.get("training")
    return OutputSeen(
        path=str(output),
        job=str(config.get("job", "?")),
        state=state,
        steps=training.get("steps") if isinstance(training, Mapping) else None,
        last=records[-1] if records else {},
        checkpoints=tuple(CheckpointFolder(output / CHECKPOINTS).steps()),
        changed_at=_changed_at(output),
        reference=None if info is None else info.reference,
        fingerprint=None if artifact is None else artifact.fingerprint,
        inputs={} if info is None else dict(info.inputs),
        metrics=metrics,
        code_version=None if info is None else info.code_version,
        why=damage or (failure if state == "failed" else None),
        alerts=(*alerts_of_training(records), *alerts_of_metrics(metrics)),
    )


def outputs_in(folder: Path) -> list[OutputSeen]:
    """All outputs below a folder, itself included, by path; those inside other outputs too, as a tour's.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the one where runs are written")
    return [look_at(path) for path in sorted(_outputs_below(folder, _MAX_DEPTH))]


def table(seen: Sequence[OutputSeen]) -> str:
    """A line for each."""
    head = ("OUTPUT", "JOB", "STATE", "STEPS", "LOSS", "LAST WRITTEN", "ALERTS")
    rows = [
        (
            one.path, one.job, one.state, one.progress, _shown(one.last.get("loss", "")), one.changed_at,
            str(len(one.alerts) or ""),
        )
        for one in seen
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def _outputs_below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / RUN_FILE).is_file():
        yield folder
    if depth == 0:
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name not in _INSIDE and not path.name.startswith("."):
            yield from _outputs_below(path, depth - 1)


def _config_of(output: Path) -> Mapping[str, Any]:
    try:
        tree = yaml.safe_load((output / RUN_FILE).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, Mapping) else {}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines with a step; what a killed writer left unfinished is passed over."""
    if not path.is_file():
        return
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


def _result_of(output: Path) -> tuple[Artifact | None, str | None]:
    """The artifact, or what is wrong with it; hashes of its files are not computed."""
    if not is_committed(output / RESULT):
        return None, None
    try:
        return read_artifact(output / RESULT, verify=False), None
    except RetortError as error:
        return None, str(error)


def _is_finished_tour(config: Mapping[str, Any], output: Path) -> bool:
    """Whether every job of a tour has a result; a tour has none of its own."""
    jobs = config.get("jobs")
    if not isinstance(jobs, list) or not jobs:
        return False
    try:
        # Where they lie beside the tour's own folder, which may have been moved with them.
        made = [job for job in jobs if job["job"] != "report"]  # a report has no result of its own
        places = [os.path.relpath(job["output"], config["output"]) for job in made]
    except (KeyError, TypeError, ValueError):
        return False
    return all(is_committed(output / place / RESULT) for place in places)


def _failure_of(output: Path) -> str | None:
    try:
        return str(json.loads((output / _FAILURE_FILE).read_bytes())["text"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_held(output: Path) -> bool:
    """Whether a process of this machine holds the output's lock; nothing is made and nobody is kept from it."""
    try:
        fd = os.open(output.with_name(output.name + ".lock"), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _changed_at(output: Path) -> str:
    newest = max(path.stat().st_mtime for path in (output, output / RUN_FILE, *output.glob("*.jsonl")))
    return datetime.fromtimestamp(newest, UTC).isoformat("T", "seconds")


def _lines_of(name: str, value: Any) -> Iterator[str]:
    """A figure on one line, a list on a line for each of its entries; tables are told with ``--json`` only."""
    if isinstance(value, list):
        yield f"  {name}:" + ("" if value else " none")
        yield from (f"    {_shown(entry)}" for entry in value)
    elif not isinstance(value, dict):
        yield f"  {name}: {_shown(value)}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
