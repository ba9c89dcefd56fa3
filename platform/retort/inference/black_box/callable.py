"""Python code of an installed package as a teacher.

What is called must have been installed: an entry point of the group ``retort.teachers``, or ``package.module:name`` of
a package that an installed distribution brings. A module that merely lies in the folder where a job runs, or on
``PYTHONPATH``, is not called: whoever may write there is not whoever may install.
"""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, Literal, Self

import torch
from pydantic import Field, JsonValue, model_validator

from retort.audio.files import Audio, read_audio, wav_bytes
from retort.config import Config
from retort.errors import ConfigError, MissingRequirementError
from retort.inference.black_box.teacher import Line, TeacherFacts, Unspoken

GROUP = "retort.teachers"


class CallableConfig(Config):
    """A function that makes the teacher: called once in each worker with ``settings``, by name.

    What it returns is called with each line, as ``speak(text, voice=..., seed=...)``, and returns samples (one channel,
    -1..1, as numpy array or tensor) and their rate in Hz; it raises ``ValueError`` for a text that it cannot say.
    """

    kind: Literal["callable"]
    entry_point: str | None = None
    """Name of an entry point of the group ``retort.teachers``."""
    function: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """``package.module:name`` of an installed package."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    licence: str = Field(min_length=1)
    """What its owner lets you do with what it says; every row carries it."""
    voices: tuple[str, ...] = Field(default=("default",), min_length=1)
    language: str = "en"
    concurrency: int = Field(default=1, ge=1)
    """Lines that it is given at the same time, from several threads."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.entry_point is None) == (self.function is None):
            raise ValueError("give entry_point or function, and not both")
        return self


def callable_facts(config: CallableConfig) -> TeacherFacts:
    """What it is: the distribution that brings it, with its version. Nothing of it is imported.

    Raises:
        ConfigError: nothing that is installed has this name.
    """
    where, owner = _found(config)
    version = metadata.version(owner)
    tree = (where, owner, version, sorted(config.settings.items(), key=str))
    fingerprint = hashlib.sha256(repr(tree).encode()).hexdigest()[:16]
    name = f"{where} of {owner} {version}"
    return TeacherFacts(name, fingerprint, config.licence, config.voices, config.language, config.concurrency)


class CallableTeacher:
    """Calls it.

    Raises:
        ConfigError: it is not installed, has no such name, or does not take the settings.
        MissingRequirementError: something that it imports is not installed.
    """

    def __init__(self, config: CallableConfig) -> None:
        self.config = config
        where, _ = _found(config)
        module, _, name = where.partition(":")
        try:
            make = getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise MissingRequirementError(f"{where} cannot be imported: {error}; install what it needs") from error
        except AttributeError:
            raise ConfigError(f"{module} has no {name!r}; correct `function`") from None
        try:
            self._speak: Callable[..., tuple[Any, int]] = make(**config.settings)
        except TypeError as error:
            raise ConfigError(f"{where} does not take these settings: {error}") from error

    def speak(self, line: Line) -> Audio:
        """See :class:`BlackBox`."""
        try:
            samples, sample_rate = self._speak(line.text, voice=line.voice, seed=line.seed)
        except ValueError as error:
            raise Unspoken("refused_by_teacher", str(error)) from error
        samples_N = torch.as_tensor(samples).detach().cpu().float().flatten()
        if not bool(torch.isfinite(samples_N).all()):
            raise Unspoken("non_finite", "it returned NaN or infinite samples")
        return read_audio(wav_bytes(samples_N, int(sample_rate)))

    def settings(self, line: Line) -> Mapping[str, JsonValue]:
        """See :class:`BlackBox`."""
        return {**self.config.settings, "seed": line.seed}


def _found(config: CallableConfig) -> tuple[str, str]:
    """``module:name``, and the distribution that brings it."""
    if config.entry_point is not None:
        points = {point.name: point for point in metadata.entry_points(group=GROUP)}
        point = points.get(config.entry_point)
        if point is None or point.dist is None:
            there = ", ".join(sorted(points)) or "none at all"
            raise ConfigError(
                f"entry_point {config.entry_point!r}: no installed package has it in {GROUP}; there is {there}"
            )
        return point.value, point.dist.name
    assert config.function is not None
    package = config.function.partition(":")[0].partition(".")[0]
    owners = metadata.packages_distributions().get(package)
    if not owners:
        raise ConfigError(
            f"function {config.function!r}: no installed package brings {package!r}, and only what was installed is "
            "called; install it, as by pip install -e FOLDER"
        )
    return config.function, owners[0]
