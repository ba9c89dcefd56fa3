"""Import each module of the package in a process of its own, and say what that changed. Run by ``test_imports``.

Standard output is one JSON object: module to the list of its faults. The processes are forked after the libraries that
the core may use are loaded, so each takes milliseconds.
"""

import importlib
import importlib.abc
import json
import logging
import os
import pkgutil
import random
import socket
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from packaging.requirements import Requirement

import retort

CORE_LIBRARIES = {"torch", "numpy", "pydantic", "pyyaml", "safetensors"}
EDGE = ("retort.orchestration", "retort.serving", "retort.cli", "retort.__main__")
"""What may need every library of the project."""


class Blocker(importlib.abc.MetaPathFinder):
    """Makes the project's other libraries look as if they were not installed."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Refuse a blocked name; leave the others to the next finder."""
        del path, target
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
        return None


def blocked_names() -> set[str]:
    """The top-level modules of every library in pyproject.toml that is not the core's."""
    wanted = {_normal(Requirement(line).name) for line in metadata.requires("retort") or ()} | {"resemblyzer"}
    wanted -= CORE_LIBRARIES
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if {_normal(owner) for owner in owners} & wanted
    } | {"resemblyzer"}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def state() -> dict[str, Any]:
    """What an import must leave alone."""
    root = logging.getLogger()
    return {
        "os.environ": dict(os.environ),  # noqa: TID251 (that it stays as it is, is what is checked)
        "the root logger": (root.level, len(root.handlers), root.disabled, logging.root.manager.disable),
        "the warning filters": list(warnings.filters),
        "sys.path": list(sys.path),
        "the working folder": os.getcwd(),  # noqa: PTH109 (compared as it is)
        "Python's random state": random.getstate(),
        "numpy's random state": str(np.random.get_state()),
        "torch's random state": torch.get_rng_state().tolist(),
        "torch's settings": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
        "CUDA": torch.cuda.is_initialized(),
    }


def no_network(*_: object, **__: object) -> NoReturn:
    """Stands in for every way out."""
    raise OSError("the network was asked for at import")


def faults_of(name: str, blocked: set[str]) -> list[str]:
    """Import one module; returns what is wrong with that."""
    if not name.startswith(EDGE):
        sys.meta_path.insert(0, Blocker(blocked))
    for function in ("connect", "connect_ex", "bind", "sendto"):
        setattr(socket.socket, function, no_network)
    socket.getaddrinfo = no_network
    before = state()
    try:
        importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is the finding)
        return [f"{type(error).__name__}: {error}"]
    after = state()
    return [f"changes {what}" for what in before if before[what] != after[what]]


def in_child(name: str, blocked: set[str]) -> list[str]:
    """:func:`faults_of` in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(2, 1)
        os.write(writer, json.dumps(faults_of(name, blocked)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return list(json.loads(answer)) if answer else ["the process died"]


if __name__ == "__main__":
    modules = [info.name for info in pkgutil.walk_packages(retort.__path__, "retort.")] if len(sys.argv) == 1 else []
    names = blocked_names()
    json.dump({name: in_child(name, names) for name in modules or sys.argv[1:]}, sys.stdout)
