"""Any program that speaks: it gets a text and writes a recording."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from retort.audio.files import Audio, read_audio
from retort.config import Config
from retort.errors import MissingRequirementError
from retort.inference.black_box.teacher import Line, TeacherFacts, Unspoken

_PLACES = ("{text}", "{text_file}", "{voice}", "{seed}", "{output}")
_SHOWN = 300
_FROM_OUTSIDE = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL}
_KILLED_S = (1.0, 5.0)
"""Pauses before a program that was killed is run again."""


class CommandConfig(Config):
    """A program and its arguments, without a shell: ``[espeak-ng, -v, "{voice}", -w, "{output}", --stdin]``.

    In each argument ``{text}``, ``{text_file}`` (a UTF-8 file with it), ``{voice}``, ``{seed}`` and ``{output}`` (where
    the recording is to be, a WAV file unless the program writes others) are filled in. Without ``{text}`` and
    ``{text_file}`` it reads the text from its standard input; without ``{output}`` it writes the recording to its
    standard output. Whoever runs a run file runs what it says here.
    """

    kind: Literal["command"]
    arguments: tuple[str, ...] = Field(min_length=1)
    name: str = Field(min_length=1)
    """What it is, with its version."""
    licence: str = Field(min_length=1)
    """What its owner lets you do with what it says; every row carries it."""
    voices: tuple[str, ...] = Field(default=("default",), min_length=1)
    language: str = "en"
    timeout_s: float = Field(default=60.0, gt=0)
    """A line that takes longer is given up."""
    concurrency: int = Field(default=1, ge=1)
    """Programs at the same time, of each worker."""

    @model_validator(mode="after")
    def _voice_is_used(self) -> Self:
        if len(self.voices) > 1 and not any("{voice}" in argument for argument in self.arguments):
            raise ValueError("there are several voices, but no argument holds {voice}")
        return self


def command_facts(config: CommandConfig) -> TeacherFacts:
    """What it is.

    Raises:
        MissingRequirementError: there is no such program.
    """
    program = Path(_program(config.arguments[0]))
    tree = config.model_dump(mode="json", exclude={"concurrency", "timeout_s"})
    digest = hashlib.sha256(repr(sorted(tree.items())).encode() + program.read_bytes())
    return TeacherFacts(
        config.name, digest.hexdigest()[:16], config.licence, config.voices, config.language, config.concurrency
    )


class Command:
    """Runs the program once for each line.

    Raises:
        MissingRequirementError: there is no such program.
    """

    def __init__(self, config: CommandConfig) -> None:
        self.config, self._path = config, _program(config.arguments[0])

    def speak(self, line: Line) -> Audio:
        """See :class:`BlackBox`."""
        with tempfile.TemporaryDirectory(prefix="retort-command-") as name:
            folder = Path(name)
            (folder / "text.txt").write_text(line.text, encoding="utf-8")
            # A text that begins with a dash would be taken for an option.
            text = f" {line.text}" if line.text.startswith("-") else line.text
            values = (text, str(folder / "text.txt"), line.voice, str(line.seed), str(folder / "output.wav"))
            arguments = [_filled(argument, values) for argument in self.config.arguments[1:]]
            given = self._has("{text}") or self._has("{text_file}")
            sound = _run_again([self._path, *arguments], "" if given else line.text, self.config.timeout_s)
            if self._has("{output}"):
                output = folder / "output.wav"
                sound = output.read_bytes() if output.is_file() else b""
            return read_audio(sound)

    def settings(self, line: Line) -> Mapping[str, JsonValue]:
        """See :class:`BlackBox`."""
        return {"arguments": list(self.config.arguments), "seed": line.seed}

    def _has(self, place: str) -> bool:
        return any(place in argument for argument in self.config.arguments)


def _filled(argument: str, values: Sequence[str]) -> str:
    """The argument with its places filled in, in one pass: what is filled in may look like a place."""
    if not argument:
        return ""
    found = [
        (argument.index(place), place, value) for place, value in zip(_PLACES, values, strict=True) if place in argument
    ]
    if not found:
        return argument
    start, place, value = min(found)
    return argument[:start] + value + _filled(argument[start + len(place) :], values)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingRequirementError(f"{name}: there is no such program on this machine's PATH; install it")
    return found


class _Killed(Exception):  # noqa: N818 (it is told to nobody)
    """Somebody else ended the program."""


def _run_again(arguments: Sequence[str], stdin: str, timeout_s: float) -> bytes:
    """Standard output of a program, which is run again when somebody kills it: that tells nothing of the line.

    Ray kills what a worker has started before it ends the worker, which would otherwise commit a verdict in its last
    moment; the pauses outlast it.

    Raises:
        Unspoken: it failed, took too long, or was killed each time.
    """
    for pause_s in _KILLED_S:
        with contextlib.suppress(_Killed):
            return _run(arguments, stdin, timeout_s)
        time.sleep(pause_s)
    try:
        return _run(arguments, stdin, timeout_s)
    except _Killed as fault:
        times = len(_KILLED_S) + 1
        raise Unspoken("teacher_killed", f"{fault}, {times} times; is there memory enough for it?") from None


def _run(arguments: Sequence[str], stdin: str, timeout_s: float) -> bytes:
    """Standard output of a program, which ends with all that it started.

    Raises:
        Unspoken: it failed, or took too long.
        _Killed: a signal that programs do not send to themselves ended it, or what a shell ran in it.
    """
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(stdin.encode(), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise Unspoken("teacher_too_slow", f"{arguments[0]} took more than {timeout_s:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if -process.returncode in _FROM_OUTSIDE or process.returncode - 128 in _FROM_OUTSIDE:
        raise _Killed(f"{arguments[0]} was killed ({process.returncode})")
    if process.returncode != 0:
        said = errors.decode("utf-8", errors="replace").strip()[-_SHOWN:]
        raise Unspoken("teacher_failed", f"{arguments[0]} ended with {process.returncode}: {said or 'it said nothing'}")
    return output
