"""The job that writes a zero-shot model as a folder which speaks without torch and Ray."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from retort.inference.onnx_bundle import write_bundle
from retort.orchestration.after_finish import after_finish
from retort.orchestration.outputs import job_output, run_once
from retort.orchestration.progress import Progress
from retort.run_config import BundleConfig
from retort.store.artifact import Artifact, describe_artifact, write_artifact
from retort.store.results import RESULT, result_of


def run_bundle(config: BundleConfig, progress: Progress) -> dict[str, Any]:
    """Write a model as a bundle, which is the job's ``result``; returns at once if it is done.

    Returns the summary: ``result`` (folder), ``fingerprint``, ``parameters``, ``difference``, ``megabytes``,
    ``runtime``, ``rtf`` of each runtime that was tried, ``seconds``.

    Raises:
        ConfigError: the model is of another family, which is named.
        DataError: there is no model, or it is damaged.
        MissingRequirementError: ``onnx`` or ONNX Runtime is not installed.
        QualityGateError: the graphs say something else than the model.
    """
    artifact, seconds = run_once(config, progress, lambda: _bundle(config), after_finish(config))
    metrics = artifact.info.metrics
    return {
        "job": config.job,
        "output": str(config.output),
        "result": str(artifact.path),
        "fingerprint": artifact.info.version,
        **{name: metrics[name] for name in ("parameters", "difference", "megabytes")},
        **{name: metrics.get(name) for name in ("runtime", "rtf")},  # bundles of old have no choice
        "seconds": round(seconds, 1),
    }


def _bundle(config: BundleConfig) -> Artifact:
    model = result_of(config.model)
    with job_output(config) as output, tempfile.TemporaryDirectory() as scratch:
        written = write_bundle(model, Path(scratch), note=config.note, runtime=config.runtime)
        info = describe_artifact(
            "bundle",
            config.job,
            written.fingerprint,
            inputs={"model": written.fingerprint},
            config=config.model_dump(mode="json"),
            metrics={
                "parameters": written.parameters,
                "difference": written.difference,
                "megabytes": round(written.size_bytes / 1e6, 2),
                "runtime": written.runtime,
                "rtf": {name: round(rtf, 5) for name, rtf in written.rtf.items()},
            },
        )

        def fill(target: Path) -> None:
            shutil.copytree(scratch, target, dirs_exist_ok=True)

        return write_artifact(output / RESULT, info, fill)
