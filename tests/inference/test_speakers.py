"""Every family's speaker keeps the contract; a new one is a case here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.errors import ConfigError
from retort.inference.decoding import CodecLMDecoding, MelDiffusionDecoding, ZeroShotDecoding
from retort.inference.diffusion_sampling import AncestralSolver, DPMSolver
from retort.inference.opening import Room, open_speaker
from retort.inference.speech import GuardConfig
from retort.nn.diffusion_guidance import ConstantGuidance, RampedGuidance
from retort.nn.guidance import TwoTermGuidance
from tests.inference.speaker_contract import LAWS, SLOTS, Case
from tests.inference.speaking import STUDENT, speaking_denoiser, speaking_model, speaking_zero_shot

PATIENT = GuardConfig(extra_seconds=9.0, max_repeat_seconds=9.0, retries=0)
MODELS: dict[str, dict[str, Any]] = {
    "teacher": {},
    "student": {"distilled": True},
    "student_of_scales": {"distilled": True, "guidance_scales": (1.0, 1.5)},
    "without_prompt": {"speaker_prompt": "none"},
}
DENOISERS: dict[str, dict[str, Any]] = {
    "mel_teacher": {},
    "mel_student": STUDENT,
    "mel_student_of_scales": {
        "takes": ("guidance",), "method": "guided_distill", "teacher_fingerprint": "m-0", "scale_range": (1.0, 3.0),
    },
    "mel_student_of_intervals": {
        "takes": ("interval",), "method": "interval_distill", "teacher_fingerprint": "m-0", "solver": "interval",
    },
}  # fmt: skip
DECODINGS = {
    "teacher": None,
    "guided": CodecLMDecoding(guidance=TwoTermGuidance(scale=1.5)),
    "student": None,
    "student_of_scales": CodecLMDecoding(scale=1.5),
    "without_prompt": None,
    "mel_guided": MelDiffusionDecoding(
        lm=CodecLMDecoding(guidance=TwoTermGuidance(scale=1.5)),
        solver=AncestralSolver(num_steps=3),
        guidance=RampedGuidance(scale=2.0),
    ),
    "mel_student": None,
    "mel_student_of_scales": MelDiffusionDecoding(solver=DPMSolver(num_steps=4), guidance=ConstantGuidance(scale=2.5)),
    "mel_student_of_intervals": None,
    "zero_shot": None,
    "zero_shot_fast": ZeroShotDecoding(noise_scale=1.0, tempo=1.5),
}
OF_ANOTHER_DECODING = {"guided": "teacher", "mel_guided": "mel_teacher", "zero_shot_fast": "zero_shot"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: speaking_model(tmp_path_factory.mktemp(name), gain=30.0, **of) for name, of in MODELS.items()}
    made["zero_shot"] = speaking_zero_shot(tmp_path_factory.mktemp("zero_shot"))
    return made | {name: speaking_denoiser(tmp_path_factory.mktemp(name), **of) for name, of in DENOISERS.items()}


@pytest.fixture(scope="module")
def cases(folders: dict[str, Path]) -> dict[str, Case]:
    opened = {}
    for name, decoding in DECODINGS.items():
        room = Room(slots=SLOTS, max_seconds=1.0, max_text_tokens=100, guard=PATIENT)
        speaker = open_speaker(folders[OF_ANOTHER_DECODING.get(name, name)], room=room)
        speaker.prepare(speaker.decoding(decoding))
        opened[name] = Case(speaker, decoding)
    return opened


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", DECODINGS)
def test_a_speaker_keeps(law: Callable[[Case], None], name: str, cases: dict[str, Case]) -> None:
    law(cases[name])
    assert cases[name].speaker.num_active == 0, "a law leaves nobody speaking"


def test_the_facts_are_those_of_the_folder(cases: dict[str, Case]) -> None:
    facts = cases["teacher"].speaker.facts
    assert (facts.family, facts.num_layers, facts.lineage.method) == ("codec_lm", 2, "pretrain")
    assert facts.parameters == sum(p.numel() for p in cases["teacher"].speaker.synthesizer.loaded.model.parameters())
    whole = cases["mel_student"].speaker
    pair = whole.synthesizer.loaded.model, whole.synthesizer.lm.loaded.model
    assert whole.facts.num_layers == sum(model.config.num_layers for model in pair)
    assert whole.facts.parameters > sum(p.numel() for p in pair[1].parameters())
    fingerprints = {name: case.speaker.facts.fingerprint for name, case in cases.items()}
    assert fingerprints["teacher"] == fingerprints["guided"] == fingerprints["student"], "of the weights alone"
    assert fingerprints["mel_guided"] == fingerprints["mel_student"] != fingerprints["teacher"]
    assert len(set(fingerprints.values())) == 7


@pytest.mark.parametrize(
    ("name", "decoding", "message"),
    [
        ("student", CodecLMDecoding(guidance=TwoTermGuidance(scale=2.0)), "guide twice"),
        ("teacher", CodecLMDecoding(guidance=TwoTermGuidance(scale=2.0, against="no_text")), "trained with those"),
        ("teacher", CodecLMDecoding(scale=1.5), "takes no guidance scale as an input"),
        ("student_of_scales", CodecLMDecoding(scale=2.0), r"one of \(1.0, 1.5\); got 2.0"),
        ("student_of_scales", None, "got None"),
    ],
)
def test_what_a_model_must_not_be_decoded_by_is_refused(
    name: str, decoding: CodecLMDecoding | None, message: str, cases: dict[str, Case]
) -> None:
    with pytest.raises(ConfigError, match=message):
        cases[name].speaker.decoding(decoding)


def test_passes_are_counted_by_decoding(cases: dict[str, Case]) -> None:
    for name, passes in (("teacher", 1), ("guided", 2), ("student_of_scales", 1)):
        case = cases[name]
        decoding = case.speaker.decoding(case.decoding)
        timing = case.speaker.time([case.request(seed) for seed in range(2)], decoding, seconds=0.5)
        assert timing.figures["nfe"] == passes
        tokens = 2 * 20 * 2  # utterances, frames, codebooks
        assert timing.figures["tokens_per_second"] * timing.compute_s == pytest.approx(tokens)
