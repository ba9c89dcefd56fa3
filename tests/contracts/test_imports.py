"""Importing does nothing, and the core needs torch, numpy, pydantic, PyYAML and safetensors alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE, PACKAGE = Path(__file__).parent, Path(__file__).parents[2] / "platform" / "retort"


def import_alone(*modules: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, str(HERE / "import_alone.py"), *modules], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_every_module_imports_alone_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    faults = import_alone()
    files = {file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE or file.name != "__init__.py"}
    assert len(faults) == len(files), "every module was tried"
    assert {name: found for name, found in faults.items() if found} == {}


FORBIDDEN = {
    "import ray": "ModuleNotFoundError: ray is blocked",
    "from transformers import AutoModel": "ModuleNotFoundError: transformers is blocked",
    "import logging\nlogging.basicConfig()": "changes the root logger",
    "import os\nos.environ['X_RETORT'] = '1'": "changes os.environ",
    "import torch\ntorch.manual_seed(0)": "changes torch's random state",
    "import torch\ntorch.set_num_threads(3)": "changes torch's settings",
    "import socket\nsocket.create_connection(('127.0.0.1', 9))": "OSError: the network was asked for at import",
    "import os\nos.abort()": "the process died",
}


def test_what_is_forbidden_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, body in enumerate(FORBIDDEN):
        (tmp_path / f"faulty_{number}.py").write_text(body + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = import_alone(*(f"faulty_{number}" for number in range(len(FORBIDDEN))))
    assert list(found.values()) == [[fault] for fault in FORBIDDEN.values()]
