"""A job on a Ray cluster: pack what git tracks, submit it with a token, show its log, return its exit code."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import retort
from retort.config import validate
from retort.errors import ConfigError, MissingRequirementError, ResourceError, StorageError
from retort.orchestration.jobs import load_job
from retort.run_config import AnyConfig, RunConfig

MAX_PACK_BYTES = 50 * 2**20
"""Ray keeps a packed working directory in the head's memory; data belong on storage, not in the pack."""
RUN_FILE_IN_PACK = "submitted-run.yaml"
_ANSWER_S = 10.0
_STOPPED_EXIT_CODE = 130
_RECONNECTIONS = 5


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
        resume: go on where an earlier run stopped, or refuse if there is one.
    """

    job: str
    config: Path
    overrides: tuple[str, ...]
    address: str
    root: Path | None = None
    python: str | None = None
    resume: bool = True

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
        resume = [] if self.resume else ["--no-resume"]
        return shlex.join([python, f"jobs/{self.job}.py", RUN_FILE_IN_PACK, *resume])


def pack_plan(submission: Submission) -> str:
    """What would be submitted: the command, the pack, the resolved run file."""
    config, files = resolved_config(submission), tracked_files(project_root())
    size = sum(file.stat().st_size for file in files)
    head = f"# {submission.entrypoint}\n# at {submission.address}, with {len(files)} files, {size / 2**20:.1f} MiB\n"
    return head + _as_yaml(config).rstrip("\n")


def submit_job(submission: Submission, *, log: Callable[[str], None]) -> int:
    """Submit, stream the job's log into ``log``, and return the exit code of its entry script.

    Raises:
        ConfigError: the run file is faulty, or a relative path has no root on the cluster.
        ResourceError: the pack is too large.
        StorageError: the cluster does not answer, or refuses the token; never a hang.
        MissingRequirementError: this is no git clone, or the cluster could not start the job.
    """
    config = resolved_config(submission)
    _require_token()
    check_answer(submission.address)
    if not submission.is_local and submission.address.startswith("http://"):
        log("warning: the token and the log travel unencrypted; forward the port or use https\n")
    with packed(project_root(), _as_yaml(config)) as folder:
        client = _client(submission.address)
        try:
            identity = client.submit_job(
                entrypoint=submission.entrypoint,
                runtime_env={"working_dir": str(folder), "py_modules": [str(folder / "platform" / "retort")]},
                metadata={"retort_job": submission.job},
            )
        except (RuntimeError, ConnectionError, ValueError) as error:
            raise StorageError(f"{submission.address}: the cluster did not take the job: {error}") from error
    log(f"submitted {submission.job} as {identity} to {submission.address}\n")
    try:
        asyncio.run(_follow(client, identity, log))
    except KeyboardInterrupt:
        log(f"\nthe job goes on at the cluster; stop it with: ray job stop {identity} --address {submission.address}\n")
        raise
    return _exit_code(client, identity)


def resolved_config(submission: Submission) -> AnyConfig:
    """The validated configuration, with every relative path made absolute from the root on the cluster."""
    parts = urllib.parse.urlsplit(submission.address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--address {submission.address}: expected http://host:port, the cluster's dashboard")
    config = load_job(submission.config, expected=submission.job, overrides=submission.overrides)
    root = submission.root or (Path.cwd() if submission.is_local else None)
    relative: list[str] = []
    tree = _rooted(config.model_dump(mode="python"), root, "", relative)
    if relative:
        raise ConfigError(
            f"{', '.join(relative[:3])}: relative, and the cluster runs the job in a temporary folder; "
            "give --root, a folder on storage that all its machines share"
        )
    return validate(tree, RunConfig, where=str(submission.config))  # type: ignore[arg-type]


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


def _as_yaml(config: AnyConfig) -> str:
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


def token_file() -> Path:
    """Where Ray looks for the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _require_token() -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"].lower() == "disabled" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    if not token_file().is_file():
        raise StorageError(
            f"no token for the cluster: {token_file()} does not exist and RAY_AUTH_TOKEN is not set; copy the "
            "cluster's token there (mode 600), or set RAY_AUTH_TOKEN_PATH"
        )


def _token() -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return ""
    return os.environ.get("RAY_AUTH_TOKEN") or token_file().read_text(encoding="utf-8").strip()


def check_answer(address: str, *, timeout_s: float = _ANSWER_S) -> None:
    """Ask the dashboard for its version, so that a wrong address or token is told at once.

    Raises:
        StorageError: nothing answers, something else answers, or the token is refused.
    """
    request = urllib.request.Request(address.rstrip("/") + "/api/version")
    if token := _token():
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            content = answer.read(100_000)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise StorageError(f"{address}: the cluster refuses the token; is it this cluster's own?") from None
        raise StorageError(f"{address}: answers {error.code}; is it the dashboard of a Ray cluster?") from None
    except (OSError, ValueError) as error:  # refused, unknown host, timeout, broken protocol
        reason = getattr(error, "reason", error)
        raise StorageError(
            f"{address}: does not answer ({reason}); is the cluster up and its port reachable?"
        ) from None
    if b"ray_version" not in content:
        raise StorageError(f"{address}: something answers that is not a Ray dashboard; check host and port")


def _client(address: str) -> Any:
    # What git tracks is packed, also where a pattern of .gitignore would match it.
    os.environ.setdefault("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise StorageError(f"{address}: {error}") from error


async def _follow(client: Any, identity: str, log: Callable[[str], None]) -> None:
    """Pass on the log until the job has ended; a lost connection is taken up again without repeating lines."""
    shown, losses = 0, 0
    while True:
        seen = 0
        try:
            async for text in client.tail_job_logs(identity):
                start = max(0, shown - seen)
                seen += len(text)
                if fresh := text[start:]:
                    shown += len(fresh)
                    log(fresh)
        except (ConnectionError, OSError, RuntimeError) as error:
            losses += 1
            if losses > _RECONNECTIONS:
                raise StorageError(f"the log of {identity} was lost: {error}; the job may go on") from error
        if client.get_job_status(identity).is_terminal():
            return
        await asyncio.sleep(1.0)


def _exit_code(client: Any, identity: str) -> int:
    deadline = time.monotonic() + _ANSWER_S
    info = client.get_job_info(identity)
    # The status may be written a moment before the exit code.
    while info.driver_exit_code is None and str(info.status.value) == "FAILED" and time.monotonic() < deadline:
        time.sleep(0.5)
        info = client.get_job_info(identity)
        if info.error_type and "ENTRYPOINT" not in str(info.error_type):
            break
    match str(info.status.value):
        case "SUCCEEDED":
            return 0
        case "STOPPED":
            return _STOPPED_EXIT_CODE
    if info.driver_exit_code:
        return int(info.driver_exit_code)
    raise MissingRequirementError(f"the cluster could not run {identity}: {info.message}")
