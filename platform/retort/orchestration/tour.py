"""A tour: the jobs of one file in order. What is finished is not done again, what was cut short goes on."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from retort.evaluation.listening import LISTENING_PAGE
from retort.orchestration.cluster import ray_session
from retort.orchestration.jobs import run_job
from retort.orchestration.outputs import job_output
from retort.orchestration.progress import Progress
from retort.run_config import DemoConfig, EvaluateConfig
from retort.store.commit import write_bytes_atomic, write_json_atomic
from retort.store.place import push
from retort.store.results import result_of

TIMES_FILE = "times.json"


def run_demo(config: DemoConfig, progress: Progress) -> dict[str, Any]:
    """Run every job in one Ray session, then put the last evaluation's report, summary and audio beside each other.

    Returns the last evaluation's headline figures, the seconds of each job (over all runs), and where the report is.
    """
    with job_output(config, others=_names_within(config)) as output:
        seconds = _read_times(output)
        results: dict[str, Any] = {}
        with ray_session():
            for number, job in enumerate(config.jobs, start=1):
                name = f"{job.job} {job.output.name}"
                progress.log(f"[{number}/{len(config.jobs)}] {name}")
                start = time.monotonic()
                results[job.output.name] = run_job(job, progress)
                seconds[job.output.name] = round(seconds.get(job.output.name, 0.0) + time.monotonic() - start, 1)
                write_json_atomic(output / TIMES_FILE, seconds)
                push(output / TIMES_FILE)
        evaluations = [job for job in config.jobs if isinstance(job, EvaluateConfig)]
        if not evaluations:
            return {"jobs": results, "seconds": seconds}
        last = evaluations[-1]
        report = _publish(result_of(last.output), output)
        return {"evaluation": results[last.output.name], "seconds": seconds, "report": str(report)}


def _names_within(config: DemoConfig) -> list[str]:
    """Names in the tour's folder under which its jobs' outputs lie."""
    where = config.output.absolute()
    outputs = [job.output.absolute() for job in config.jobs]
    return [output.relative_to(where).parts[0] for output in outputs if where in output.parents]


def _read_times(output: Path) -> dict[str, float]:
    path = output / TIMES_FILE
    times: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    return times


def _publish(result: Path, output: Path) -> Path:
    """Copy report and listening page, ``summary.json``, ``results.jsonl`` and the audio to the tour's folder."""
    for name in ("report.html", "summary.json", "results.jsonl", LISTENING_PAGE):
        if (result / name).is_file():  # where there is nothing to compare by ear there is no listening page
            write_bytes_atomic(output / name, (result / name).read_bytes())
    shutil.copytree(result / "audio", output / "audio", dirs_exist_ok=True)
    return output / "report.html"
