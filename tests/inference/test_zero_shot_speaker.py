import shutil
from dataclasses import replace

import pytest
import torch

from retort.audio.files import Audio
from retort.errors import ConfigError, DataError
from retort.inference.decoding import CodecLMDecoding, ZeroShotDecoding
from retort.inference.inversion import carry_vocoder
from retort.inference.opening import Room, open_speaker
from retort.inference.speaker import Request, Wish
from retort.inference.speech import GuardConfig
from retort.inference.zero_shot_making import ZeroShotMaker
from retort.inference.zero_shot_speaker import PROMPT
from retort.models.vocoder_lineage import VocoderLineage
from retort.models.weights import load_zero_shot, save_model
from retort.models.zero_shot.eres2net import ERes2NetV2
from retort.models.zero_shot.timbre import (
    ERes2NetTimbreConfig,
    ResemblyzerTimbreConfig,
    carry_timbre_encoder,
    open_timbre_encoder,
    timbre_encoder_name,
)
from tests.inference.speaking import speaking_zero_shot
from tests.methods.vocoder_toys import TOY, toy_vocoder

LOOSE = GuardConfig(extra_seconds=9.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return speaking_zero_shot(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def speaker(folder):
    return open_speaker(folder, room=Room(slots=3, max_seconds=4.0, guard=LOOSE))


def said(speaker, text="one two", seed=3, *, voice=None, **decoding):
    request = Request(text, "s0", seed, voice)
    return speaker.speak([request], speaker.decoding(ZeroShotDecoding(**decoding)), max_seconds=4.0)[0]


def steps(speaker):
    sounds = []
    while speaker.num_active:
        sounds += speaker.step()
    return sounds


def first_sound(speaker):
    """All steps until one gives samples."""
    sounds = speaker.step()
    while not sounds[-1].samples_N.numel():
        sounds += speaker.step()
    return sounds


def recording(hz, seconds=1.0):
    t = torch.arange(int(16_000 * seconds)) / 16_000
    return Audio(sum(0.1 * torch.sin(2 * torch.pi * k * hz * t) for k in (1, 2, 3)), 16_000)


def test_a_voice_is_the_beginning_of_its_recording_and_the_timbre_of_all_of_it(speaker, folder):
    longest = ZeroShotMaker.open(folder).prompt_max_frames
    voice = speaker.voice_of(recording(120.0))
    assert {name: tuple(value.shape) for name, value in voice.tensors.items()} == {
        "prompt": (longest, 80), "timbre": (256,)
    }  # fmt: skip
    assert float(voice.tensors["timbre"].norm()) == pytest.approx(1.0, abs=1e-4)
    other = speaker.voice_of(recording(300.0))
    assert not torch.equal(said(speaker, voice=voice).samples_N, said(speaker, voice=other).samples_N)
    at_8_khz = recording(120.0)
    again = speaker.voice_of(Audio(at_8_khz.samples_N[::2], 8_000))
    assert torch.allclose(again.tensors["timbre"], voice.tensors["timbre"], atol=0.2)
    with pytest.raises(DataError, match="no voice"):
        speaker.voice_of(Audio(torch.zeros(16_000), 16_000))


def test_a_vocoder_in_the_folder_makes_its_sound_streamed_or_whole(folder, speaker, tmp_path):
    mel = load_zero_shot(folder).lineage.mel
    vocoder = toy_vocoder(TOY.replace(mel=mel))
    save_model(tmp_path / "vocoder", vocoder, VocoderLineage(method="vocoder_pretrain", corpus_digest="c"))
    shutil.copytree(folder, tmp_path / "model")
    carry_vocoder(tmp_path / "vocoder", tmp_path / "model")
    through = open_speaker(tmp_path / "model", room=Room(slots=3, max_seconds=4.0, guard=LOOSE))
    assert through.facts.vocoder_parameters == sum(p.numel() for p in vocoder.parameters()) > 0
    assert speaker.facts.vocoder_parameters == 0
    assert (through.facts.fingerprint, through.facts.parameters) == (
        speaker.facts.fingerprint,
        speaker.facts.parameters,
    )
    found, plain = said(through), said(speaker)
    torch.testing.assert_close(found.mel_TM, plain.mel_TM)
    assert found.samples_N.shape == plain.samples_N.shape
    assert not torch.allclose(found.samples_N, plain.samples_N, atol=1e-3)
    assert torch.equal(said(through).samples_N, found.samples_N)
    through.add(Wish(Request("one two", "s0", 3), through.decoding(None), is_streamed=True))
    streamed = torch.cat([sound.samples_N for sound in steps(through)])
    assert torch.equal(streamed, said(through, noise_scale=ZeroShotDecoding().noise_scale).samples_N)


def test_tempo_makes_it_shorter_and_without_noise_every_seed_says_the_same(speaker):
    slow, fast = (len(said(speaker, tempo=tempo).mel_TM) for tempo in (0.5, 2.0))
    assert slow > 1.5 * fast
    still = [said(speaker, seed=seed, noise_scale=0.0) for seed in (1, 2)]
    assert torch.equal(still[0].samples_N, still[1].samples_N)
    assert not torch.equal(said(speaker, seed=1).samples_N, said(speaker, seed=2).samples_N)


def test_the_sound_is_that_of_its_mel_and_a_hop_for_each_frame(speaker):
    spoken = said(speaker)
    assert spoken.samples_N.numel() == len(spoken.mel_TM) * 200
    assert (spoken.has_eos, spoken.codes, spoken.sample_rate) == (True, None, 16_000)


def test_who_waits_for_a_first_sound_goes_before_who_has_something_to_hear(speaker):
    first = speaker.add(Wish(Request("one two three four five", "s0", 1), ZeroShotDecoding(tempo=0.25)))
    first_sound(speaker)
    second = speaker.add(Wish(Request("six", "s1", 2), None))
    assert {sound.ticket for sound in first_sound(speaker)} == {second}
    assert {sound.ticket for sound in steps(speaker)} >= {first}


def test_what_lasts_longer_than_its_text_may_is_cut_and_said_to_be_too_long(folder):
    strict = open_speaker(folder, room=Room(guard=GuardConfig(seconds_per_character=0.001, extra_seconds=0.1)))
    strict.add(Wish(Request("one two three", "s0", 1), None))
    last = steps(strict)[-1]
    assert last.outcome == "too_long"
    assert last.samples_N.numel() <= 0.12 * 16_000


def test_a_mel_that_is_no_numbers_has_no_sound(folder):
    broken = open_speaker(folder)
    with torch.no_grad():
        next(broken.maker.model.decoder.parameters()).fill_(torch.nan)
    assert not said(broken).samples_N.numel()
    broken.add(Wish(Request("one", "s0", 1), None))
    assert steps(broken)[-1].outcome == "not_a_number"


def test_decodings_of_other_families_and_guidance_are_refused(speaker):
    with pytest.raises(ConfigError, match="is a zero_shot"):
        speaker.decoding(CodecLMDecoding())
    with pytest.raises(ConfigError, match="not guided"):
        speaker.decoding_at(2.0)


def test_what_is_counted_is_the_model_and_beside_it_the_frozen_encoder(speaker):
    facts = speaker.facts
    assert (facts.family, facts.lineage.method) == ("zero_shot", "zero_shot_pretrain")
    assert facts.parameters == sum(p.numel() for p in speaker.maker.model.parameters())
    encoder = open_timbre_encoder(ResemblyzerTimbreConfig(), speaker.maker.mel)
    assert facts.frozen_parameters == sum(p.numel() for p in encoder._network.parameters())


def test_a_recording_is_brought_to_the_loudness_of_those_that_were_trained_on(speaker, tmp_path):
    levelled = open_speaker(speaking_zero_shot(tmp_path, target_lufs=-23.0))
    loud = recording(120.0)
    quiet = Audio(0.05 * loud.samples_N, loud.sample_rate)
    as_it_is, levelled_prompts = (
        [one.voice_of(audio).tensor(PROMPT, one.voice_space) for audio in (loud, quiet)] for one in (speaker, levelled)
    )
    assert float((as_it_is[0] - as_it_is[1]).abs().max()) > 2.0
    torch.testing.assert_close(*levelled_prompts, atol=1e-3, rtol=0)
    assert levelled.voice_space != speaker.voice_space


def test_a_model_of_another_timbre_encoder_takes_no_recordings_but_its_own_voices(tmp_path):
    other = open_speaker(speaking_zero_shot(tmp_path, timbre_encoder="other-1"))
    assert said(other).samples_N.numel()
    assert not other.abilities.takes_voices
    with pytest.raises(DataError, match=r"timbre encoder differs.*other-1.*resemblyzer-0\.1"):
        other.voice_of(recording(120.0))


def test_a_model_whose_encoder_is_a_file_carries_it_and_can_be_told_new_voices(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(ERes2NetV2().state_dict(), tmp_path / "weights.safetensors")
    encoder = ERes2NetTimbreConfig(path=tmp_path / "weights.safetensors")
    folder = speaking_zero_shot(tmp_path, timbre_encoder=timbre_encoder_name(encoder), timbre_dim=192)
    without = open_speaker(folder)
    assert without.facts.frozen_parameters == 0
    assert not without.abilities.takes_voices
    with pytest.raises(DataError, match=r"timbre encoder differs.*its folder then carries it"):
        without.voice_of(recording(120.0))
    carry_timbre_encoder(encoder, folder)
    (tmp_path / "weights.safetensors").unlink()
    cloning = open_speaker(folder)
    assert cloning.facts.frozen_parameters == sum(p.numel() for p in ERes2NetV2().parameters())
    assert cloning.abilities.takes_voices
    voices = [cloning.voice_of(recording(hertz)) for hertz in (120.0, 220.0)]
    first, other = (said(cloning, voice=voice) for voice in voices)
    assert first.samples_N.numel()
    assert not torch.equal(first.mel_TM, other.mel_TM)
    assert cloning.time([Request("one", "s0", 1)], ZeroShotDecoding(), seconds=0.5).figures["timbre_seconds"] > 0.0


def test_a_folder_without_its_voices_cannot_speak(folder, tmp_path):
    for file in folder.iterdir():
        if file.is_file() and file.name != "voices.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"voices\.json"):
        open_speaker(tmp_path)


def test_a_text_in_letters_that_it_cannot_read_is_refused_and_parts_of_one_are_told(speaker):
    with pytest.raises(DataError, match="nothing to speak"):
        speaker.check(Wish(Request("...", "s0", 1), None))
    reading = speaker.read("two 你")
    assert (reading.num_letters, reading.num_unread_letters) == (4, 1)
    assert replace(reading, ids=()) != reading
