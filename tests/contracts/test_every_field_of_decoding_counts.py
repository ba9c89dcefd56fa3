"""Every field of how a model is decoded: changing it changes what is heard, on toys that speak."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest

from retort.config import Config
from retort.inference.decoding import CodecLMDecoding, Decoding, MelDiffusionDecoding, ZeroShotDecoding
from retort.inference.diffusion_sampling import AncestralSolver, DDIMSolver, DPMSolver, IntervalSolver, Solver
from retort.inference.opening import Room, open_speaker
from retort.inference.sampling import SamplerConfig
from retort.inference.speaker import Speaker
from retort.nn.diffusion_guidance import ConstantGuidance, DiffusionGuidance, NoDiffusionGuidance, RampedGuidance
from retort.nn.guidance import GuidanceConfig, NoGuidance, ThreeTermGuidance, TwoTermGuidance
from tests.contracts.test_every_field_counts import changing_nothing
from tests.inference.speaker_contract import SLOTS
from tests.inference.speaker_contract import Case as Speaking
from tests.inference.speaking import speaking_denoiser, speaking_model, speaking_zero_shot

DROPS = ("null", "no_text", "no_speaker")
SPEAKERS: dict[str, Callable[[Path], Path]] = {
    "teacher": lambda root: speaking_model(root, gain=30.0, trained_drops=DROPS),
    "student_of_scales": lambda root: speaking_model(root, gain=30.0, distilled=True, guidance_scales=(1.0, 1.5)),
    "denoiser": speaking_denoiser,
    "zero_shot": speaking_zero_shot,
    "student_of_intervals": lambda root: speaking_denoiser(
        root, takes=("interval",), method="interval_distill", teacher_fingerprint="m-0", solver="interval"
    ),
}


@dataclass(frozen=True)
class Case:
    """Another value of some fields of ``plain``, heard from a speaker.

    Attributes:
        speaker: one of ``SPEAKERS``.
        plain: what is changed.
        values: field to another value.
        decoding: the whole decoding that it is a part of.
    """

    speaker: str
    plain: Config
    values: Mapping[str, Any] = field(default_factory=dict)
    decoding: Callable[[Any], Decoding] = lambda config: config


def of_lm(guidance: Any) -> CodecLMDecoding:
    return CodecLMDecoding(guidance=guidance)


def of_solver(solver: Solver) -> MelDiffusionDecoding:
    return MelDiffusionDecoding(solver=solver)


def of_denoiser(guidance: Any) -> MelDiffusionDecoding:
    return MelDiffusionDecoding(solver=DDIMSolver(num_steps=3), guidance=guidance)


WARM = SamplerConfig(temperature=1.5)
CASES = (
    Case(
        "teacher",
        SamplerConfig(),
        {"temperature": 0.5, "top_k": 2, "top_p": 0.3},
        lambda sampler: CodecLMDecoding(sampler=sampler),
    ),
    Case("teacher", CodecLMDecoding(), {"guidance": TwoTermGuidance(scale=3.0), "sampler": WARM}),
    Case("student_of_scales", CodecLMDecoding(scale=1.0), {"scale": 1.5}),
    Case("teacher", NoGuidance(), {}, of_lm),
    Case("teacher", TwoTermGuidance(scale=2.0), {"scale": 3.0, "against": "no_speaker"}, of_lm),
    Case(
        "teacher",
        ThreeTermGuidance(first_scale=1.5, second_scale=2.0),
        {"first_scale": 3.0, "second_scale": 3.0, "partial": "no_speaker"},
        of_lm,
    ),
    Case(
        "denoiser",
        of_solver(DDIMSolver(num_steps=3)),
        {"lm": CodecLMDecoding(sampler=WARM), "solver": DDIMSolver(num_steps=4), "guidance": ConstantGuidance(scale=2)},
    ),
    Case("denoiser", DDIMSolver(num_steps=3), {"num_steps": 4}, of_solver),
    Case("denoiser", AncestralSolver(num_steps=3), {"num_steps": 4}, of_solver),
    Case("denoiser", DPMSolver(num_steps=3), {"num_steps": 4}, of_solver),
    Case("student_of_intervals", IntervalSolver(num_steps=3), {"num_steps": 4}, of_solver),
    Case("denoiser", NoDiffusionGuidance(), {}, of_denoiser),
    Case("denoiser", ConstantGuidance(scale=2.0), {"scale": 3.0}, of_denoiser),
    Case("denoiser", RampedGuidance(scale=2.0), {"scale": 3.0}, of_denoiser),
    Case("zero_shot", ZeroShotDecoding(), {"noise_scale": 1.0, "tempo": 1.5}),
)
OF_ONE_MODEL = ("student_of_intervals",)
"""What these take, no other model takes."""


def kinds_in(annotation: Any) -> set[type[Config]]:
    """Every config that a field of this type can hold, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return {annotation}.union(*(kinds_in(field.annotation) for field in annotation.model_fields.values()))
    return set[type[Config]]().union(*map(kinds_in, get_args(annotation)))


def test_every_field_has_a_case() -> None:
    covered = {(type(case.plain), name) for case in CASES for name in case.values}
    kinds = kinds_in(Decoding)
    assert kinds == {type(case.plain) for case in CASES}
    assert covered == {(kind, name) for kind in kinds for name in kind.model_fields if name != "kind"}


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Speaker]:
    room = Room(slots=SLOTS, max_seconds=1.0)
    return {name: open_speaker(make(tmp_path_factory.mktemp(name)), room=room) for name, make in SPEAKERS.items()}


def heard(case: Case, speaker: Speaker, config: Config) -> list[bytes]:
    speaking = Speaking(speaker, case.decoding(config))
    return [samples_N.numpy().tobytes() for samples_N in speaking.said(*(speaking.request(seed) for seed in (3, 4)))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case.plain).__name__)
def test_every_field_is_heard(case: Case, speakers: dict[str, Speaker]) -> None:
    assert changing_nothing(case.plain, case.values, lambda config: heard(case, speakers[case.speaker], config)) == []


@pytest.mark.parametrize("union", [GuidanceConfig, Solver, DiffusionGuidance])
def test_every_kind_is_heard(union: Any, speakers: dict[str, Speaker]) -> None:
    """At the same strength and the same number of steps."""
    cases = [case for case in CASES if type(case.plain) in kinds_in(union) and case.speaker not in OF_ONE_MODEL]
    sounds = [heard(case, speakers[case.speaker], case.plain) for case in cases]
    assert len(cases) >= 3
    assert len(set(map(tuple, sounds))) == len(cases)
