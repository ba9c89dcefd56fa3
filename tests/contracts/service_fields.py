"""Every field of how a service is asked, and of a long text: another value of it, and what comes of that."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from retort.audio.files import wav_bytes
from retort.evaluation.long_text import LongTextConfig
from retort.evaluation.service import Service, ServiceConfig
from retort.inference.black_box.command import CommandConfig
from retort.inference.speaker import Request
from retort.run_config import SystemConfig
from tests.contracts.evaluation_toys import Case, World, evaluated, model, of_systems
from tests.inference.test_endpoint import Service as Server
from tests.serving.running import running

SERVICE = ServiceConfig(base_url="http://127.0.0.1:1/v1", model="a", voices={"v0": "ann"})
_WHEN = "how fast and how long, never what: tests/inference/test_endpoint.py"
_KEY = "whose key, never what is said: tests/orchestration/test_api_key.py"
REASONS_OF_SERVICES = {
    **dict.fromkeys(("concurrency", "max_per_minute", "timeout_s", "deadline_s", "max_attempts"), _WHEN),
    **dict.fromkeys(("api_key_env", "api_key_file"), _KEY),
}


def of_service(world: World, service: Any, folder: Path) -> Any:
    """What a service is asked for two lines, whichever comes first, and where it is said to be."""
    server = Server()
    with running(server.api) as url:
        asked = service.replace(base_url=f"{url}/v1", max_attempts=1)
        Service(asked, None).speak([Request("one", "v0", 3), Request("two", "v1", 4)])
    return service.asked["base_url"], sorted(json.dumps(body, sort_keys=True) for _, body in server.seen)


def of_its_system(world: World, system: Any, folder: Path) -> Any:
    return system.name, of_service(world, system.endpoint, folder)


def of_long_text(world: World, config: Any, folder: Path) -> Any:
    return evaluated(of_systems(world, model("lm", world / "model"), long_text=config.model_dump(mode="json")), folder)


def teacher(world: World, name: str) -> CommandConfig:
    """A program whose sounds are as long as its name."""
    file = world.root / f"{name}.wav"
    file.write_bytes(wav_bytes(0.1 * torch.sin(0.3 * torch.arange(1000.0 * len(name))), 16_000))
    return CommandConfig(kind="command", arguments=("cat", str(file)), name=name, licence="ours")


SERVICE_CASES: dict[str, Callable[[World], Case]] = {
    "service": lambda world: Case(
        SERVICE,
        {
            "base_url": "http://127.0.0.1:2/v1",
            "model": "b",
            "response_format": "flac",
            "send_seed": True,
            "extra": {"speed": 1.1},
            "voices": {"v0": "bob"},
            "voice": "carl",
        },
        of_service,
    ),
    "system of a service": lambda world: Case(
        SystemConfig(name="a", kind="endpoint", role="teacher", endpoint=SERVICE),
        {"endpoint": SERVICE.replace(model="b")},
        of_its_system,
    ),
    "system of a teacher": lambda world: Case(
        SystemConfig(name="a", kind="black_box", role="control", teacher=teacher(world, "one")),
        {"teacher": teacher(world, "other")},
        lambda world, system, folder: evaluated(of_systems(world, system.model_dump(mode="json")), folder),
    ),
    "long text": lambda world: Case(
        LongTextConfig(minutes=0.02, part_characters=20), {"minutes": 0.05, "part_characters": 9}, of_long_text
    ),
    "harder": lambda world: Case(
        of_systems(world, model("lm", world / "model")),
        {"slices": ("cut_prompt",), "long_text": LongTextConfig(minutes=0.02)},
        lambda world, config, folder: evaluated(config, folder),
    ),
}
