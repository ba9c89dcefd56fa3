"""A job on a Ray cluster: pack what git tracks, submit it with a token, show its log, return its exit code."""

import contextlib
import hashlib
import ipaddress
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import retort
from retort.config import validate
from retort.errors import ConfigError, MissingRequirementError, NodeLostError, ResourceError, StorageError
from retort.orchestration.jobs import load_job
from retort.orchestration.ray_jobs import await_end, connect, latest_try, name_of_try
from retort.run_config import AnyConfig, RunConfig

MAX_PACK_BYTES = 50 * 2**20
"""Ray keeps a packed working directory in the head's memory; data belong on storage, not in the pack."""
RUN_FILE_IN_PACK = "submitted-run.yaml"
_NO_OTHER_TRY = (0, 2, 3, 4, 7, 126, 127, 130)
"""Exit codes of what another try would end with again, or what a person stopped."""


@dataclass(frozen=True)
class Execution:
    """How a job is run, wherever it is.

    Attributes:
        resume: go on where an earlier run stopped, or refuse if there is one.
        retries: how often it is started again after a failure that may pass.
        timeout_s: longest time before it is stopped; ``None`` is for ever.
        driver_cpus: CPUs that its entry script holds, where they are free; ``None`` runs it on the head.
        environment: variables of the entry script and the workers. On a cluster of Ray, everybody who has the token
            can read them.
    """

    resume: bool = True
    retries: int = 0
    timeout_s: int | None = None
    driver_cpus: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Submission:
    """What to run where.

    Attributes:
        job: name of the job.
        config: its run file, on this machine.
        overrides: ``a.b=value``, applied here.
        address: the dashboard, ``http://host:port``.
        root: folder on the cluster from which the run file's relative paths start. ``None`` is this folder for a
            cluster on this machine; elsewhere relative paths are then refused.
        python: interpreter on the cluster; ``None`` is this one for a cluster on this machine, else ``python``.
        execution: how it is run.
    """

    job: str
    config: Path
    overrides: tuple[str, ...]
    address: str
    root: Path | None = None
    python: str | None = None
    execution: Execution = Execution()

    @property
    def is_local(self) -> bool:
        """Whether the cluster is on this machine (or behind a forwarded port: then give root and python)."""
        host = urllib.parse.urlsplit(self.address).hostname or ""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(host).is_loopback
        return host == "localhost"

    @property
    def entrypoint(self) -> str:
        """The shell command that the cluster runs in the unpacked folder."""
        python = self.python or (sys.executable if self.is_local else "python")
        resume = [] if self.execution.resume else ["--no-resume"]
        return shlex.join([python, f"jobs/{self.job}.py", RUN_FILE_IN_PACK, *resume])


def pack_plan(submission: Submission) -> str:
    """What would be submitted: the command, the pack, the resolved run file."""
    config, files = resolved_config(submission), tracked_files(project_root())
    size = sum(file.stat().st_size for file in files)
    head = f"# {submission.entrypoint}\n# at {submission.address}, with {len(files)} files, {size / 2**20:.1f} MiB\n"
    return head + as_yaml(config).rstrip("\n")


def submit_job(submission: Submission, *, log: Callable[[str], None], wait: bool = True) -> int:
    """Submit, stream the job's log into ``log``, and return the exit code of its entry script.

    The same job with the same values has the same name, so one that runs already is attached to, not started twice.
    Without ``wait`` it returns 0 as soon as the cluster has the job.

    Raises:
        ConfigError: the run file is faulty, a relative path has no root there, or nobody waits for a timeout.
        ResourceError: the pack is too large, or the job ran too long.
        StorageError: the cluster does not answer, or refuses the token; never a hang.
        NodeLostError: what ran its entry script is gone, and no retry is left.
        MissingRequirementError: this is no git clone, or the cluster could not start the job.
    """
    execution = submission.execution
    if not wait and (execution.retries or execution.timeout_s is not None):
        raise ConfigError("--no-wait: nobody is there to try again or to stop it; leave --retries and --timeout-s out")
    run_file = as_yaml(resolved_config(submission))
    identity = identity_of(submission.job, run_file)
    client = connect(submission.address)
    if not submission.is_local and submission.address.startswith("http://"):
        log("warning: the token and the log travel unencrypted; forward the port or use https\n")
    for left in range(execution.retries, -1, -1):
        number, is_running = latest_try(client, submission.address, identity)
        if is_running:
            log(f"{submission.job} runs already as {name_of_try(identity, number)} at {submission.address}\n")
        else:
            number += 1
            _start(client, submission, run_file, name_of_try(identity, number))
            log(f"submitted {submission.job} as {name_of_try(identity, number)} to {submission.address}\n")
        if not wait:
            return 0
        name = name_of_try(identity, number)
        try:
            code = await_end(client, submission.address, name, log=log, timeout_s=execution.timeout_s)
        except NodeLostError as error:
            if not left:
                raise
            log(f"{error}\n")
            code = error.exit_code
        if code in _NO_OTHER_TRY or not left:
            return code
        log(f"{name} ended with exit code {code}; it is tried again, {left} of {execution.retries} retries left\n")
    raise AssertionError("the last try returns")


def identity_of(job: str, run_file: str) -> str:
    """A job's name on a cluster: the same for the same values, another for others."""
    return f"retort-{job}-{hashlib.sha256(run_file.encode()).hexdigest()[:12]}"


def _start(client: Any, submission: Submission, run_file: str, name: str) -> None:
    with packed(project_root(), run_file) as folder:
        runtime = {"working_dir": str(folder), "py_modules": [str(folder / "platform" / "retort")]}
        try:
            client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=name,
                runtime_env={**runtime, "env_vars": dict(submission.execution.environment)},
                metadata={"retort_job": submission.job},
                entrypoint_num_cpus=submission.execution.driver_cpus,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise StorageError(f"{submission.address}: the cluster did not take the job: {error}") from error


def resolved_config(submission: Submission) -> AnyConfig:
    """The validated configuration, with every relative path made absolute from the root on the cluster."""
    parts = urllib.parse.urlsplit(submission.address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--address {submission.address}: expected http://host:port, the cluster's dashboard")
    root = submission.root or (Path.cwd() if submission.is_local else None)
    return rooted_config(submission.job, submission.config, submission.overrides, root)


def rooted_config(job: str, file: Path, overrides: Sequence[str], root: Path | None) -> AnyConfig:
    """A run file's configuration with every relative path made absolute from ``root``.

    Raises:
        ConfigError: the run file is faulty, or a path is relative and there is no root.
    """
    config = load_job(file, expected=job, overrides=overrides)
    relative: list[str] = []
    tree = _rooted(config.model_dump(mode="python"), root, "", relative)
    if relative:
        raise ConfigError(
            f"{', '.join(relative[:3])}: relative, and the cluster runs the job in a temporary folder; "
            "give --root, a folder on storage that all its machines share"
        )
    return validate(tree, RunConfig, where=str(file))  # type: ignore[arg-type]


def _rooted(value: Any, root: Path | None, place: str, relative: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _rooted(item, root, f"{place}.{key}".lstrip("."), relative) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rooted(item, root, f"{place}.{index}", relative) for index, item in enumerate(value)]
    if not isinstance(value, Path):
        return value
    if not value.is_absolute() and root is None:
        relative.append(f"{place} is {value}")
    return str((root or Path()) / value)


def as_yaml(config: AnyConfig) -> str:
    """A configuration as a run file."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def project_root() -> Path:
    """The clone that this package was installed from."""
    return Path(retort.__file__).resolve().parents[2]


def tracked_files(root: Path) -> list[Path]:
    """The files below ``root`` that git tracks, as they are now; links and deleted files are left out.

    Raises:
        MissingRequirementError: git is missing, or ``root`` is no clone.
        ResourceError: together they are larger than a pack may be; the largest are named.
    """
    cure = "submit from a git clone of Retort that was installed with `pip install -e .`"
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    except FileNotFoundError:
        raise MissingRequirementError("git is not on the PATH; install it: submit packs what git tracks") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()
        raise MissingRequirementError(f"{root}: git lists no files ({reason}); {cure}") from None
    files = [root / name for name in listed.stdout.decode().split("\0") if name]
    files = [file for file in files if file.is_file() and not file.is_symlink()]
    if root / "platform" / "retort" / "__init__.py" not in files:
        raise MissingRequirementError(f"{root}: git does not track the package here; {cure}")
    size = sum(file.stat().st_size for file in files)
    if size > MAX_PACK_BYTES:
        largest = sorted(files, key=lambda file: -file.stat().st_size)[:3]
        named = ", ".join(f"{file.relative_to(root)} ({file.stat().st_size / 2**20:.0f} MiB)" for file in largest)
        raise ResourceError(
            f"the tracked files are {size / 2**20:.0f} MiB, a pack may have {MAX_PACK_BYTES / 2**20:.0f}; the largest: "
            f"{named}. Put data on shared storage and give their path in the run file"
        )
    return files


@contextlib.contextmanager
def packed(root: Path, run_file: str) -> Iterator[Path]:
    """A temporary folder with the tracked files and the run file; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="retort-submit-") as name:
        folder = Path(name)
        for file in tracked_files(root):
            target = folder / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        (folder / RUN_FILE_IN_PACK).write_text(run_file, encoding="utf-8")
        yield folder
