"""The image is made by the Makefile's targets from files that exist."""

import re
from pathlib import Path

import pytest

import retort
from tests.k8s.rendering import K8S, ROOT, one, overlay, pods

DOCKERFILE = (K8S / "Dockerfile").read_text()
WITHOUT_CONTINUATIONS = re.sub(r"\s*\\\n\s*", " ", DOCKERFILE)


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", WITHOUT_CONTINUATIONS, flags=re.MULTILINE)


def test_steps_are_targets_of_the_makefile_after_the_machine_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    steps = instructions("RUN")
    machine, ours = steps[:2], steps[2:]
    assert machine[0].startswith("apt-get update && apt-get install")
    assert machine[1].startswith("useradd --uid 1000 ")
    assert len(ours) >= 2
    assert [step for step in ours if not (step.startswith("make ") and step.removeprefix("make ") in targets)] == []


@pytest.mark.parametrize("copied", instructions("COPY"))
def test_what_is_copied_exists(copied: str) -> None:
    *sources, target = copied.removeprefix("--chown=1000:1000 ").split()
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert target == "./" or sources == [target]


def test_what_an_installation_reads_is_copied() -> None:
    copied = {source for line in instructions("COPY") for source in line.split()[1:-1]}
    assert copied >= {"pyproject.toml", "constraints.txt", "Makefile", "README.md", "platform", "jobs"}


def test_the_operator_finds_what_it_calls_and_the_commands_are_on_the_path() -> None:
    installed = instructions("RUN")[0].split()
    assert {"bash", "wget", "make", "g++"} <= set(installed)
    assert f"PATH={instructions('WORKDIR')[0]}/.venv/bin:$PATH" in instructions("ENV")[0]
    python = re.search(r"python:(\d+)\.(\d+)", instructions("FROM")[0])
    assert python is not None
    assert (int(python[1]), int(python[2])) >= (3, 11)


def test_it_runs_as_whom_the_pods_run() -> None:
    assert instructions("USER") == ["1000:1000"]
    for _, pod in pods(one(overlay("gpu"), "RayCluster")):
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (1000, 1000)
    assert f"-t retort:{retort.__version__} ." in DOCKERFILE


def test_nothing_is_fetched_from_outside_the_registries() -> None:
    assert re.findall(r"https?://|\bcurl\b|ADD ", DOCKERFILE) == []
    assert Path(K8S / "Dockerfile.dockerignore").is_file()
