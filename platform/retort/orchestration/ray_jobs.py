"""A cluster's job API: does it answer and take the token, what runs there, a job's log, its end, its exit code."""

import asyncio
import contextlib
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from retort.errors import ConfigError, MissingRequirementError, NodeLostError, ResourceError, StorageError
from retort.orchestration.auth_token import token_file

_ANSWER_S = 10.0
_STOPPED_EXIT_CODE = 130
_KILLED = 128
"""As a shell reports it, a program that a signal ended has this and the signal's number as exit code."""
_RECONNECTIONS = 5
"""One after another, without a word of the job between them."""
_PAUSE_S = 1.0
"""Before the log is asked for again; twice as long after each loss."""


@dataclass(frozen=True)
class ClusterJob:
    """A job that a cluster knows.

    Attributes:
        identity: what ``retort jobs logs`` and the others ask for.
        job: its name, of ours; ``None`` for somebody else's.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        started: ISO 8601, UTC; ``None`` before.
        seconds: from start to end, or to now.
        exit_code: of its entry script, where it has one.
    """

    identity: str
    job: str | None
    status: str
    started: str | None
    seconds: float | None
    exit_code: int | None


def list_jobs(address: str) -> tuple[ClusterJob, ...]:
    """The jobs that were submitted to a cluster, the latest first.

    Raises:
        StorageError: the cluster does not answer, or refuses the token.
    """
    client = connect(address)
    with _told(address):
        details = [details for details in client.list_jobs() if details.submission_id]
    return tuple(_row(one) for one in sorted(details, key=lambda one: one.start_time or 0, reverse=True))


def _row(details: Any) -> ClusterJob:
    start = None if details.start_time is None else details.start_time / 1000
    end = time.time() if details.end_time is None else details.end_time / 1000
    return ClusterJob(
        identity=details.submission_id,
        job=(details.metadata or {}).get("retort_job"),
        status=str(details.status.value),
        started=None if start is None else datetime.fromtimestamp(start, UTC).isoformat(timespec="seconds"),
        seconds=None if start is None else round(end - start, 1),
        exit_code=details.driver_exit_code,
    )


def log_of(address: str, identity: str) -> str:
    """What a job has written so far.

    Raises:
        ConfigError: the cluster knows no such job.
        StorageError: the cluster does not answer, or refuses the token.
    """
    client = connect(address)
    with _told(address, identity):
        client.get_job_info(identity)
        return str(client.get_job_logs(identity))


def attach(address: str, identity: str, *, log: Callable[[str], None]) -> int:
    """Pass on a job's log until it ends; returns its exit code. See :func:`log_of` for the errors."""
    client = connect(address)
    with _told(address, identity):
        client.get_job_info(identity)
    return await_end(client, address, identity, log=log)


def stop(address: str, identity: str, *, patience_s: float = 120.0) -> ClusterJob:
    """Ask a job to end (SIGTERM, after which it writes a checkpoint if it can) and wait until it has.

    Returns the job as it then is; one that has ended already is left alone.

    Raises:
        ConfigError: the cluster knows no such job.
        ResourceError: it has not ended after ``patience_s`` seconds.
        StorageError: the cluster does not answer, or refuses the token.
    """
    client = connect(address)
    with _told(address, identity):
        _stop(client, identity, patience_s)
        return _row(client.get_job_info(identity))


def _stop(client: Any, identity: str, patience_s: float) -> None:
    if client.get_job_status(identity).is_terminal():
        return
    client.stop_job(identity)
    deadline = time.monotonic() + patience_s
    while not client.get_job_status(identity).is_terminal():
        if time.monotonic() > deadline:
            raise ResourceError(f"{identity}: asked to stop {patience_s:.0f} s ago and still there; see its log")
        time.sleep(0.5)


def latest_try(client: Any, address: str, identity: str) -> tuple[int, bool]:
    """How many tries of this job the cluster knows, and whether the last of them has not ended.

    Raises:
        StorageError: the cluster does not answer.
    """
    with _told(address):
        known = {details.submission_id: details.status for details in client.list_jobs() if details.submission_id}
    count = 0
    while name_of_try(identity, count + 1) in known:
        count += 1
    return count, count > 0 and not known[name_of_try(identity, count)].is_terminal()


def name_of_try(identity: str, number: int) -> str:
    """The first try has the job's own name, later ones their number behind it: a cluster keeps the records of all."""
    return identity if number == 1 else f"{identity}-{number}"


def await_end(
    client: Any, address: str, identity: str, *, log: Callable[[str], None], timeout_s: float | None = None
) -> int:
    """Pass on a job's log until it ends; returns its exit code, 130 if it was stopped.

    Raises:
        ResourceError: it ran longer than ``timeout_s``, and was stopped.
        StorageError: the cluster was lost, and did not come back.
        NodeLostError: what ran its entry script is gone; it may be tried again.
        MissingRequirementError: the cluster could not run it.
    """
    try:
        asyncio.run(asyncio.wait_for(_follow(client, address, identity, log), timeout_s))
    except TimeoutError:
        with _told(address, identity):
            _stop(client, identity, patience_s=120.0)
        raise ResourceError(
            f"{identity}: not done after {timeout_s:g} s, and stopped; submit it again to go on from what it wrote, "
            "with a longer --timeout-s"
        ) from None
    except KeyboardInterrupt:
        log(f"\nthe job goes on at the cluster; stop it with: retort jobs stop {identity} --address {address}\n")
        raise
    with _told(address, identity):
        return _exit_code(client, identity)


@contextlib.contextmanager
def _told(address: str, identity: str | None = None) -> Iterator[None]:
    """What the cluster answers to a question, in our words."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if identity is not None and ("404" in str(error) or "does not exist" in str(error)):
            raise ConfigError(
                f"{identity}: {address} knows no such job; see: retort jobs list --address {address}"
            ) from None
        raise StorageError(f"{address}: {error}") from error


def require_token() -> None:
    """Have Ray use the token.

    Raises:
        StorageError: there is none.
    """
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


def connect(address: str) -> Any:
    """A client of the job API of a cluster that answers and takes the token.

    Raises:
        StorageError: it does not.
    """
    require_token()
    check_answer(address)
    # What git tracks is packed, also where a pattern of .gitignore would match it.
    os.environ.setdefault("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{address}: {error}") from error


async def _follow(client: Any, address: str, identity: str, log: Callable[[str], None]) -> None:
    """Pass on the log until the job has ended; a lost connection is taken up again without repeating lines."""
    shown, losses = 0, 0
    while True:
        seen, lost = 0, None
        try:
            async for text in _tail(client, address, identity):
                losses = 0
                start = max(0, shown - seen)
                seen += len(text)
                if fresh := text[start:]:
                    shown += len(fresh)
                    log(fresh)
        except StorageError as error:
            lost = error
        try:
            with _told(address):
                if client.get_job_status(identity).is_terminal():
                    return
        except StorageError as error:
            lost = error
        if lost is not None:
            losses += 1
        if losses > _RECONNECTIONS:
            raise StorageError(f"the log of {identity} was lost: {lost}; the job may go on") from lost
        await asyncio.sleep(_PAUSE_S * 2**losses)


async def _tail(client: Any, address: str, identity: str) -> AsyncIterator[str]:
    """What the job has written, from its beginning to the end of the connection."""
    from aiohttp import ClientError  # what Ray's client follows a log with

    with _told(address):
        try:
            async for text in client.tail_job_logs(identity):
                yield text
        except ClientError as error:
            raise ConnectionError(error) from error


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
        code = int(info.driver_exit_code)
        return code if code > 0 else _KILLED - code
    # The supervisor of an entry script that had begun.
    if info.driver_node_id is not None and "JOB_SUPERVISOR" in str(info.error_type):
        raise NodeLostError(f"{identity}: what ran its entry script at the cluster is gone: {info.message}")
    raise MissingRequirementError(f"the cluster could not run {identity}: {info.message}")
