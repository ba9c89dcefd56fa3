"""What the command line writes: summaries on standard output, everything else on standard error."""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer

from retort.errors import ConfigError, ResourceError, RetortError

_USER_OF_URL = re.compile(r"://[^/@\s]+@")
_BROKEN_PIPE = 141
"""As a shell reports a program whose reader went away (128 + SIGPIPE)."""


@dataclass(frozen=True)
class Failure:
    """A failure that a person can act on."""

    message: str
    exit_code: int


def explain_failure(error: BaseException) -> Failure | None:
    """The message and exit code of an error that is the user's to mend; None for a fault of ours."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        # What a Ray worker raises comes back as a class made of Ray's and ours, whose text holds the remote traceback.
        inner = getattr(link, "cause", None)
        if isinstance(inner, RetortError):
            return Failure(without_passwords(str(inner)), inner.exit_code)
        if isinstance(link, RetortError):
            return Failure(without_passwords(str(link)), link.exit_code)
        if isinstance(link, MemoryError) or type(link).__name__ in ("OutOfMemoryError", "OutOfDiskError"):
            cure = "use smaller batches or fewer workers, or a machine with more"
            return Failure(
                f"out of memory or disk: {str(link) or type(link).__name__}; {cure}", ResourceError.exit_code
            )
        if type(link).__name__ == "ValidationError":
            from pydantic import ValidationError

            from retort.config import first_fault

            if isinstance(link, ValidationError):
                return Failure(f"{link.title}: {first_fault(link)}; correct the value", ConfigError.exit_code)
        if isinstance(link, BrokenPipeError):
            return Failure("nobody reads the output", _BROKEN_PIPE)
        link = inner if isinstance(inner, BaseException) else link.__cause__ or link.__context__
    return None


def without_passwords(text: str) -> str:
    """``text`` with what stands before the host of its urls left out: errors repeat what a person typed."""
    return _USER_OF_URL.sub("://…@", text)


@contextlib.contextmanager
def job_streams(*, as_json: bool) -> Iterator[None]:
    """Inside, with ``as_json``, whatever a library prints goes to standard error, so that the output is one object."""
    if not as_json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def echo_summary(summary: Mapping[str, Any], *, as_json: bool) -> None:
    """Write a job's summary: one JSON object on one line, or a line for each plain value that says something."""
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, default=str))
        return
    for name, value in summary.items():
        if value != "" and (isinstance(value, str | int | float | bool) or value is None):
            typer.echo(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
