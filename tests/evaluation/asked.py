"""Our own server, and what it must say: a model with random weights, its test strings, and the application."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from retort.config import validate
from retort.data.tokens import TokenSet, write_shard
from retort.evaluation.service import ServiceConfig
from retort.store.artifact import describe_artifact, write_artifact
from tests.inference.speaking import AT_24_KHZ, speaking_model
from tests.serving.running import api_of, backends, running, settings

TEXTS = ("one two", "three", "four five six", "seven", "eight nine", "zero", "two three four", "six")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPHINX = {"kind": "pocketsphinx", "words": list(WORDS)}


def world(root: Path, *, end: str = "") -> tuple[Path, Path]:
    """A committed token set with test rows of two speakers, and a model of it that ends by itself at 24 kHz.

    ``end`` is what its texts end in.
    """
    root.mkdir(parents=True, exist_ok=True)
    model = speaking_model(root, mean_frames=20, codec_config=AT_24_KHZ)
    like = next(iter(TokenSet.open(root / "data").split("train")))
    generator = torch.Generator().manual_seed(1)
    rows = [
        replace(
            like, id=f"t{number}", text=text + end, speaker=f"s{number % 2}", split="test",
            codes_KT=torch.randint(8, (2, 20 + number), generator=generator),
        )
        for number, text in enumerate(TEXTS)
    ]  # fmt: skip
    write_shard(root / "data" / "part-1.parquet", rows)
    info = describe_artifact("tokens", "data", "1", inputs={}, config={})
    data = root / "data"
    return write_artifact(
        root / "tokens" / "result", info, lambda target: shutil.copytree(data, target, dirs_exist_ok=True)
    ).path, model


@contextmanager
def own_server(model: Path, *, slots: int = 4, **changes: object) -> Iterator[str]:
    """The application over one model, called ``tiny``; gives its address."""
    config = settings(model, **changes)
    served = (config.models[0].replace(slots=slots),)
    config = config.replace(models=served)
    made = backends(config)
    try:
        with running(api_of(config, made)) as url:
            yield url
    finally:
        for backend in made.values():
            backend.speaking.stop()


def service_config(url: str, **changes: Any) -> ServiceConfig:
    """How the server is asked; its seeds are ours."""
    tree = {"base_url": f"{url}/v1", "model": "tiny", "send_seed": True, **changes}
    return validate(tree, ServiceConfig, where="test")
