"""What every speaker keeps, whatever its family: the laws that evaluation and serving rely on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from retort.audio.files import Audio
from retort.errors import ConfigError
from retort.inference.decoding import Decoding
from retort.inference.speaker import Request, Sound, Speaker, Wish
from retort.inference.voices import Voice

SLOTS = 3


@dataclass(frozen=True)
class Case:
    """A family's speaker for the laws.

    Attributes:
        speaker: a real one, with three slots, and a guard that stops nothing before ``max_seconds`` and never tries
            again.
        decoding: one that its random weights bear; most families take the plain one.
        text: what it can say.
    """

    speaker: Speaker
    decoding: Decoding | None = None
    text: str = "one two"

    def request(self, seed: int = 3, text: str | None = None, *, who: int = 0) -> Request:
        """In one of its voices."""
        return Request(self.text if text is None else text, self.speaker.voices[who], seed)

    def said(self, *requests: Request, max_seconds: float = 0.5) -> list[Tensor]:
        """Samples of a batch."""
        decoding = self.speaker.decoding(self.decoding)
        return [spoken.samples_N for spoken in self.speaker.speak(requests, decoding, max_seconds=max_seconds)]

    def joined(self, *wishes: Wish) -> list[list[Sound]]:
        """Sounds of wishes that join one after the other, a step apart."""
        sounds: list[Sound] = []
        tickets = []
        for wish in wishes:
            tickets.append(self.speaker.add(wish))
            sounds += self.speaker.step()
        while self.speaker.num_active:
            sounds += self.speaker.step()
        return [[sound for sound in sounds if sound.ticket == ticket] for ticket in tickets]

    def wish(self, seed: int = 3, *, is_streamed: bool = True) -> Wish:
        """Of :meth:`request`."""
        return Wish(self.request(seed), self.decoding, is_streamed=is_streamed)


def samples(sounds: Sequence[Sound]) -> Tensor:
    """All of an utterance."""
    return torch.cat([sound.samples_N for sound in sounds])


def same_seed_same_samples_in_any_company(case: Case) -> None:
    """And another seed gives others."""
    wanted = case.request()
    alone = case.said(wanted)[0]
    assert alone.numel()
    others = case.request(9, f"{case.text} {case.text}"), case.request(4, who=-1)
    assert torch.equal(case.said(others[0], wanted, others[1])[1], alone)
    assert any(not torch.equal(case.said(case.request(seed))[0], alone) for seed in range(10, 14))


def streamed_is_whole_and_joined_is_batched(case: Case) -> None:
    """Three ways to the same samples."""
    whole, streamed, _ = case.joined(case.wish(is_streamed=False), case.wish(), case.wish(8))
    assert samples(streamed).numel()
    assert torch.equal(samples(streamed), samples(whole))
    assert sum(bool(sound.samples_N.numel()) for sound in whole) == 1
    longest_s = case.speaker.abilities.max_seconds
    assert torch.equal(case.said(case.request(), max_seconds=longest_s)[0], samples(whole))


def only_the_last_sound_says_how_it_ended(case: Case) -> None:
    """Whatever the end is."""
    for sounds in case.joined(case.wish(), case.wish(5, is_streamed=False)):
        assert [sound.outcome for sound in sounds[:-1]] == [None] * (len(sounds) - 1)
        assert sounds[-1].outcome is not None


def cancelled_ones_leave_and_the_others_do_not_notice(case: Case) -> None:
    """Also twice."""
    (alone,) = case.joined(case.wish(5))
    speaker = case.speaker
    gone, stays = speaker.add(case.wish(1)), speaker.add(case.wish(5))
    assert (speaker.num_active, speaker.num_free) == (2, SLOTS - 2)
    sounds = speaker.step()
    speaker.cancel(gone)
    speaker.cancel(gone)
    assert (speaker.num_active, speaker.num_free) == (1, SLOTS - 1)
    while speaker.num_active:
        later = speaker.step()
        assert {sound.ticket for sound in later} == {stays}
        sounds += later
    assert torch.equal(samples([sound for sound in sounds if sound.ticket == stays]), samples(alone))
    assert speaker.num_free == SLOTS


def warming_up_leaves_nothing_behind(case: Case) -> None:
    """Neither slots nor changes."""
    before = case.said(case.request())[0]
    case.speaker.warm_up()
    assert (case.speaker.num_active, case.speaker.num_free) == (0, SLOTS)
    assert torch.equal(case.said(case.request())[0], before)


def what_cannot_be_said_takes_no_slot(case: Case) -> None:
    """Voices that nobody has, and texts that are too long."""
    speaker = case.speaker
    with pytest.raises(ConfigError, match="eve"):
        speaker.add(Wish(replace(case.request(), speaker="eve"), case.decoding))
    too_long = Wish(case.request(text="one " * speaker.abilities.max_text_tokens), case.decoding)
    with pytest.raises(ConfigError):
        speaker.check(too_long)
    with pytest.raises(ConfigError):
        speaker.add(too_long)
    speaker.check(case.wish())
    assert (speaker.num_active, speaker.num_free) == (0, SLOTS)


def no_decoding_is_the_plain_one(case: Case) -> None:
    """And what is checked stays as it is."""
    speaker = case.speaker
    if case.decoding is None:
        plain = speaker.decoding(None)
        assert speaker.decoding(plain) == plain == speaker.decoding_at(1.0)
    else:
        assert speaker.decoding(case.decoding) == case.decoding


def it_can_do_what_it_says(case: Case) -> None:
    """Its abilities are true, and what it does not have, it refuses."""
    speaker, abilities = case.speaker, case.speaker.abilities
    scales = abilities.guidance_scales
    for scale in (1.5, 2.5) if scales is None else scales:
        speaker.decoding_at(scale)
    if scales is not None:
        with pytest.raises(ConfigError):
            speaker.decoding_at(max((*scales, 1.0)) + 0.5)
    recording = Audio(0.3 * torch.sin(0.2 * torch.arange(16_000)), 16_000)
    voice = speaker.voice_of(recording)
    assert voice.space == speaker.voice_space
    own_ones = [case.request(seed) for seed in range(8)]
    own, other = case.said(*own_ones), case.said(*(replace(request, voice=voice) for request in own_ones))
    changes = any(not torch.equal(a, b) for a, b in zip(own, other, strict=True))
    assert changes == abilities.takes_voices
    for limit_s in (0.2, abilities.max_seconds):
        lengths = [spoken.numel() / speaker.sample_rate for spoken in case.said(*own_ones, max_seconds=limit_s)]
        assert max(lengths) <= limit_s + 0.05
    if abilities.streams == "within_sentences":
        joined = case.joined(*(case.wish(seed) for seed in range(SLOTS)))
        assert any(sound.samples_N.numel() for sounds in joined for sound in sounds[:-1])


def a_voice_of_another_space_is_refused_with_both_named(case: Case) -> None:
    """However it comes in."""
    stranger = replace(case.request(), voice=Voice("elsewhere-1", {}))
    for refused in (lambda: case.said(stranger), lambda: case.speaker.add(Wish(stranger, case.decoding))):
        with pytest.raises(ConfigError, match="elsewhere-1") as error:
            refused()
        assert case.speaker.voice_space in str(error.value)


def its_timing_adds_up(case: Case) -> None:
    """Every utterance lasts as long as it is told to."""
    speaker = case.speaker
    timing = speaker.time([case.request(seed) for seed in range(3)], speaker.decoding(case.decoding), seconds=0.5)
    assert timing.audio_s == pytest.approx(3 * 0.5, abs=3 * 0.05)
    assert timing.rtf == pytest.approx((timing.compute_s + timing.sound_s) / timing.audio_s)
    assert min(timing.compute_s, timing.sound_s) > 0
    assert timing.figures
    assert all(value > 0 for value in timing.figures.values())
    assert speaker.num_free == SLOTS


LAWS: tuple[Callable[[Case], None], ...] = (
    same_seed_same_samples_in_any_company,
    streamed_is_whole_and_joined_is_batched,
    only_the_last_sound_says_how_it_ended,
    cancelled_ones_leave_and_the_others_do_not_notice,
    warming_up_leaves_nothing_behind,
    what_cannot_be_said_takes_no_slot,
    no_decoding_is_the_plain_one,
    it_can_do_what_it_says,
    a_voice_of_another_space_is_refused_with_both_named,
    its_timing_adds_up,
)
