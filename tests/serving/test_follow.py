"""What is promoted is served, also while the server runs."""

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from retort.inference.synthesizer import Synthesizer
from retort.orchestration.promote import promote
from retort.serving.local import Follower, registry_config, serving, wait_for_the_end
from tests.inference.speaking import speaking_model
from tests.orchestration.promotions import write_evaluation
from tests.patience import HANG_S, comes


def promote_new(root: Path, name: str, seed: int, registry: Path) -> str:
    """Promote a model with random weights; returns its fingerprint."""
    root.mkdir()
    model = speaking_model(root, weights_seed=seed)
    promote(model, name, evaluation=write_evaluation(root / "judged", {"m": model}, wrong=0), registry=registry)
    return Synthesizer.open(model).loaded.fingerprint


@pytest.mark.ray
@pytest.mark.slow
def test_the_registry_is_served_and_a_promotion_replaces_the_version_in_service(tmp_path: Path) -> None:
    registry, lines = tmp_path / "registry", list[str]()
    first = promote_new(tmp_path / "a", "small", 0, registry)
    config = registry_config(registry)
    assert config is not None
    config = config.replace(port=8714, drain_s=5.0)
    follower = Follower(registry, config, lines.append)
    with serving(config) as address:
        assert httpx.get(f"{address}/v1/models/small", timeout=HANG_S).json()["fingerprint"] == first
        follower()
        assert lines == [], "nothing has changed"
        second = promote_new(tmp_path / "b", "small", 1, registry)
        promote_new(tmp_path / "c", "unknown", 2, registry)
        follower()
        assert comes(lambda: httpx.get(f"{address}/v1/models/small").json()["fingerprint"] == second)
        assert lines == ["now serving small@2"]
        (registry / "small" / "current.json").write_text("{")
        follower()
        follower()
        assert len(lines) == 2, "a registry that cannot be read is told once, and changes nothing"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_does_not_wait_for_a_registry_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr("retort.serving.local._LOOK_S", 0.01)
    looked, before = [], {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    def look() -> None:
        looked.append(1)
        if len(looked) == 3:
            threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
            try:
                time.sleep(10_000)
            except Exception:  # noqa: BLE001 - as a store that tries again whatever happens
                looked.append(2)

    try:
        wait_for_the_end(look)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert looked == [1, 1, 1]
