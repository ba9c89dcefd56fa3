"""What a person types, what CI runs and what gets installed agree with each other."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import retort
from retort import cli
from retort.orchestration.jobs import JOBS

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def test_the_installed_command_is_this_command_line() -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name="retort")
    assert entry.load() is cli.main


def test_every_job_has_a_command_and_an_entry_script() -> None:
    commands = {
        command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback
    }
    assert set(JOBS) <= commands
    assert {script.stem for script in (ROOT / "jobs").glob("*.py")} == set(JOBS)


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    optional = [line for lines in PYPROJECT["project"]["optional-dependencies"].values() for line in lines]
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    for requirement in map(Requirement, [*PYPROJECT["project"]["dependencies"], *optional]):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_constraints_are_names_and_versions_alone() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in PINS)
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) for version in PINS.values())
    assert PINS["torch"] == PINS["torchaudio"], "they are one build"
    assert "retort" not in PINS


def test_resemblyzer_is_installed_in_the_pinned_version() -> None:
    assert f"Resemblyzer=={PINS['Resemblyzer']}" in (ROOT / "Makefile").read_text()


def test_ci_runs_what_a_person_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()


def test_the_package_is_the_command_line_too() -> None:
    for arguments, code in ((["--version"], 0), (["--help"], 0), (["prepare"], 2), (["nonsense"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "retort", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == code, done.stderr
        said = done.stdout + done.stderr
        assert (
            f"retort {retort.__version__}\n" == said
            if code == 0 and "version" in arguments[0]
            else "Usage: retort" in said
        )
        assert "__main__" not in said
