"""What a denoiser's speaker does beyond the contract of all speakers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retort.audio.griffin_lim import griffin_lim
from retort.audio.mel_rvq import without_soft_floor
from retort.errors import ConfigError, DataError
from retort.inference.decoding import CodecLMDecoding, MelDiffusionDecoding
from retort.inference.diffusion_sampling import AncestralSolver, DDIMSolver, IntervalSolver, sample, start_noise
from retort.inference.diffusion_speaker import DiffusionSpeaker
from retort.inference.mel_making import noise_seed
from retort.inference.opening import Room, open_speaker
from retort.inference.sampling import SamplerConfig
from retort.inference.speaker import NEVER_HEARD, Request, Sound, Wish
from retort.inference.speech import GuardConfig
from retort.models.latents import latents_of
from retort.models.mel_denoise import guided_denoise
from retort.nn.diffusion_guidance import ConstantGuidance, NoDiffusionGuidance, RampedGuidance
from retort.nn.mel_conditions import pad_conditions
from tests.inference.speaker_contract import samples
from tests.inference.speaking import STUDENT, speaking_denoiser, speaking_model

PATIENT = GuardConfig(extra_seconds=9.0, max_repeat_seconds=9.0, retries=0)
FEW = MelDiffusionDecoding(solver=DDIMSolver(num_steps=3))


def opened(folder: Path, guard: GuardConfig = PATIENT) -> DiffusionSpeaker:
    speaker = open_speaker(folder, room=Room(slots=3, max_seconds=0.5, max_text_tokens=100, guard=guard))
    assert isinstance(speaker, DiffusionSpeaker)
    return speaker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_denoiser(tmp_path_factory.mktemp("denoiser"))


@pytest.fixture(scope="module")
def speaker(folder: Path) -> DiffusionSpeaker:
    return opened(folder)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> DiffusionSpeaker:
    return opened(speaking_denoiser(tmp_path_factory.mktemp("student"), **STUDENT))


def request(seed: int = 3, who: str = "s0") -> Request:
    return Request("one two", who, seed)


def stepped(speaker: DiffusionSpeaker) -> list[list[Sound]]:
    steps = []
    while speaker.num_active:
        steps.append(speaker.step())
    return steps


def test_the_sound_is_that_of_the_whole_way_done_by_hand(speaker: DiffusionSpeaker) -> None:
    decoding = MelDiffusionDecoding(solver=DDIMSolver(num_steps=3), guidance=RampedGuidance(scale=2.0))
    (spoken,) = speaker.speak([request()], speaker.decoding(decoding), max_seconds=0.5)
    synthesizer, lm, codec = speaker.synthesizer, speaker.synthesizer.lm, speaker.synthesizer.codec
    (written,) = lm.speak([request()], CodecLMDecoding(), max_frames=20)
    assert torch.equal(spoken.codes, written.codes), "the codec LM's own"
    model, frames = synthesizer.loaded.model, 2 * written.codes.shape[1]
    with torch.no_grad():
        latents = latents_of(lm.loaded.model, lm.conditions([request()], CodecLMDecoding()), [written.codes])
        voice_MP = codec.decode_log_mel(lm.voices["s0"])
        voice_PM = (voice_MP.exp() + codec.config.soft_floor).log().T
        conditions = pad_conditions(latents, [voice_PM], [frames], model.config.num_mels)
        denoise = guided_denoise(model, conditions, RampedGuidance(scale=2.0), 3)
        noise = start_noise([noise_seed(3)], [frames], model.config.num_mels)
        x_BTM = sample(denoise, DDIMSolver(num_steps=3), noise, schedule=model.config.schedule)
    mel_TM = model.denormalise(x_BTM[0])
    assert torch.equal(spoken.mel_TM, mel_TM)
    sound = griffin_lim(without_soft_floor(mel_TM, codec.config).T, codec.config.mel, num_iterations=2)
    assert torch.equal(spoken.samples_N, sound)


def test_a_mel_is_the_same_in_any_company(speaker: DiffusionSpeaker) -> None:
    decoding = speaker.decoding(MelDiffusionDecoding(solver=AncestralSolver(num_steps=3)))
    (alone,) = speaker.speak([request()], decoding, max_seconds=0.3)
    others = speaker.speak([request(9, "s1"), request(), request(7)], decoding, max_seconds=0.3)
    assert torch.equal(others[1].mel_TM, alone.mel_TM)
    assert not torch.equal(others[2].mel_TM[:4], alone.mel_TM[:4])


def test_rows_of_one_batch_differ_by_rounding_alone(speaker: DiffusionSpeaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where utterances are denoised together; one of them leaves."""
    decoding, requests = speaker.decoding(FEW), [request(1), request(2, "s1"), request(3)]
    alone = speaker.speak(requests, decoding, max_seconds=0.3)
    monkeypatch.setattr(type(speaker.synthesizer), "rows_at_once", 8)
    for one, other in zip(alone, speaker.speak(requests, decoding, max_seconds=0.3), strict=True):
        assert torch.equal(one.codes, other.codes)
        torch.testing.assert_close(one.mel_TM, other.mel_TM, atol=1e-3, rtol=0)
    tickets = [speaker.add(Wish(request(), FEW)) for _ in range(3)]
    while speaker._lm.num_active:  # they say the same, so they are written at the same step
        speaker.step()
    assert {sound.ticket for sound in speaker.step()} == set(tickets)
    speaker.cancel(tickets[1])
    later = [sound for step in stepped(speaker) for sound in step]
    assert {sound.ticket for sound in later if sound.samples_N.numel()} == {tickets[0], tickets[2]}


@pytest.mark.parametrize(
    ("decoding", "passes"),
    [
        (None, 80),
        (FEW, 3),
        (MelDiffusionDecoding(solver=DDIMSolver(num_steps=5), guidance=RampedGuidance(scale=3.0)), 10),
        (MelDiffusionDecoding(solver=DDIMSolver(num_steps=5), guidance=ConstantGuidance(scale=1.0)), 5),
    ],
)
def test_evaluations_of_the_network_are_counted(
    speaker: DiffusionSpeaker, decoding: MelDiffusionDecoding | None, passes: int
) -> None:
    rows: list[int] = []
    hook = speaker.synthesizer.loaded.model.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    timing = speaker.time([request(), request(4)], speaker.decoding(decoding), seconds=0.2)
    hook.remove()
    assert timing.figures["nfe"] == passes
    assert sum(rows) == 2 * passes
    assert timing.figures["diffusion_rtf"] == pytest.approx(2 * timing.figures["diffusion_seconds"] / timing.audio_s)
    assert timing.figures["diffusion_rtf"] < timing.rtf


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (MelDiffusionDecoding(guidance=RampedGuidance(scale=2.0)), "guide twice"),
        (MelDiffusionDecoding(solver=DDIMSolver(num_steps=8)), "knows 4 steps, 8 were asked for"),
        (MelDiffusionDecoding(solver=AncestralSolver(num_steps=4)), "sampled by solver ddim, not by ancestral"),
        (CodecLMDecoding(), "is a mel_diffusion, its decoding was given as kind: codec_lm"),
    ],
)
def test_a_student_is_decoded_in_its_own_way(
    student: DiffusionSpeaker, decoding: MelDiffusionDecoding | CodecLMDecoding, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        student.decoding(decoding)
    with pytest.raises(ConfigError, match=message):
        student.add(Wish(request(), decoding))
    own = student.decoding(None)
    assert (own.solver, own.guidance) == (DDIMSolver(num_steps=4), NoDiffusionGuidance())
    assert student.abilities.guidance_scales == ()
    assert student.num_free == 3


def test_a_teacher_takes_no_intervals_and_a_codec_lm_no_mels(speaker: DiffusionSpeaker, folder: Path) -> None:
    with pytest.raises(ConfigError, match="only students of intervals"):
        speaker.decoding(MelDiffusionDecoding(solver=IntervalSolver(num_steps=4)))
    with pytest.raises(ConfigError, match="is a codec_lm, its decoding was given as kind: mel_diffusion"):
        open_speaker(folder / "lm").decoding(FEW)


def test_a_foreign_codec_lm_is_refused_with_both_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("lm")))
    with pytest.raises(DataError, match="has no lm/"):
        open_speaker(copy)
    shutil.copytree(speaking_model(tmp_path, weights_seed=1), copy / "lm")
    needed = json.loads((copy / "config.json").read_text())["lineage"]["lm_fingerprint"]
    with pytest.raises(DataError, match=needed) as error:
        open_speaker(copy)
    assert open_speaker(copy / "lm").facts.fingerprint in str(error.value)


def test_one_is_written_while_another_is_denoised(speaker: DiffusionSpeaker) -> None:
    assert speaker.abilities.streams == "by_sentence"
    long_one, short_one = speaker.add(Wish(request(1), FEW)), speaker.add(Wish(request(2), FEW, max_seconds=0.1))
    steps = stepped(speaker)
    parts = {t: [s for step in steps for s in step if s.ticket == t] for t in (long_one, short_one)}
    assert samples(parts[long_one]).numel() > samples(parts[short_one]).numel() > 0
    turns = [{sound.ticket for sound in step} for step in steps]
    begins, ends = turns.index({short_one}), max(i for i, turn in enumerate(turns) if short_one in turn)
    assert any(long_one in turn for turn in turns[begins:ends])
    assert any(long_one in turn for turn in turns[ends:])


def test_a_sentence_can_leave_at_any_step(speaker: DiffusionSpeaker) -> None:
    wish = Wish(request(), FEW, max_seconds=0.1)
    speaker.add(wish)
    total = len(stepped(speaker))
    assert total > 3 + 4, "solver and codec LM"
    for taken in range(total):
        ticket = speaker.add(wish)
        for _ in range(taken):
            speaker.step()
        speaker.cancel(ticket)
        assert (speaker.num_active, speaker.num_free) == (0, 3)
        assert speaker.step() == []
    speaker.add(wish)
    assert len(stepped(speaker)) == total


def test_who_has_something_to_hear_waits_for_who_has_nothing(speaker: DiffusionSpeaker) -> None:
    now = speaker.clock()
    assert not speaker.can_wait(now + 60)
    silent = speaker.add(Wish(request(), FEW), heard_until=NEVER_HEARD)
    assert speaker.can_wait(now + 60)
    assert not speaker.can_wait(now)
    speaker.cancel(silent)


def test_a_runaway_is_tried_again_before_it_is_denoised(folder: Path) -> None:
    """At temperature 0 every attempt says the same."""
    speaker = opened(folder, PATIENT.replace(retries=2))
    passes: list[int] = []
    speaker.synthesizer.loaded.model.register_forward_hook(lambda *_: passes.append(1))
    greedy = MelDiffusionDecoding(
        solver=DDIMSolver(num_steps=3), lm=CodecLMDecoding(sampler=SamplerConfig(temperature=0.0))
    )
    speaker.add(Wish(replace(request(), text="one"), greedy, max_seconds=0.05))
    sounds = [sound for step in stepped(speaker) for sound in step]
    assert (sounds[-1].outcome, sounds[-1].attempt) == ("too_long", 2)
    assert len(passes) == 3, "of the last attempt alone"


def test_what_is_not_a_number_makes_no_sound(folder: Path) -> None:
    speaker = opened(folder)
    speaker.synthesizer.loaded.model.patch_out.bias.data.fill_(float("nan"))
    speaker.add(Wish(request(), FEW))
    sounds = [sound for step in stepped(speaker) for sound in step]
    assert sounds[-1].outcome == "not_a_number"
    assert not samples(sounds).numel()
