"""What kustomize makes of k8s/: the real one, which kubectl has built in."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.patience import HANG_S

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = tuple(sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml")))
KUBECTL = Path(sys.executable).parent / "kubectl"
RAY_KINDS = ("RayCluster", "RayJob", "RayService", "RayCronJob")

Manifest = dict[str, Any]


@cache
def _rendered(folder: Path) -> str:
    command = [str(KUBECTL), "kustomize", str(folder)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=HANG_S).stdout
    return json.dumps(list(yaml.load_all(text, Loader=yaml.CSafeLoader)))


def render(folder: Path) -> list[Manifest]:
    """The manifests of a kustomization, anew each time: whoever changes one changes a copy."""
    return json.loads(_rendered(folder))  # type: ignore[no-any-return]


def overlay(name: str) -> list[Manifest]:
    return render(K8S / "overlays" / name)


def one(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The manifest of this kind (and name, where there are several)."""
    found = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def named(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pods(value: Any, place: str = "") -> Iterator[tuple[str, Manifest]]:
    """Every pod's specification in a manifest, with the path to it."""
    if isinstance(value, dict):
        if isinstance(value.get("containers"), list):
            yield place, value
            return
        for key, item in value.items():
            yield from pods(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from pods(item, f"{place}[{index}]")


def clusters(manifest: Manifest) -> list[Manifest]:
    """The specification of the Ray cluster that a custom resource has, or none."""
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "RayCluster":
            return [spec]
        case "RayJob":
            return [spec["rayClusterSpec"]] if "rayClusterSpec" in spec else []
        case "RayService":
            return [spec["rayClusterConfig"]]
        case "RayCronJob":
            return [spec["jobTemplate"]["rayClusterSpec"]] if "rayClusterSpec" in spec["jobTemplate"] else []
    return []
