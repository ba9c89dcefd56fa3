"""The judge, through which every claim passes: prompts, voices, missing recordings, and seeds."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retort.audio.files import Audio, in_16_bits
from retort.data.tokens import TokenRow, TokenSet, write_shard
from retort.errors import DataError
from retort.evaluation.items import Expected
from retort.evaluation.judge import Judge, System, TestStrings
from retort.inference.decoding import CodecLMDecoding
from retort.inference.opening import open_speaker
from retort.inference.speaker import Request, Speaker
from retort.inference.voices import CODES, Voice
from retort.nn.guidance import TwoTermGuidance
from retort.nn.random import seed_of
from tests.evaluation.judging import add_recordings, row, scorers, token_set
from tests.inference.speaking import speaking_model, speaking_zero_shot

PLAN = st.lists(
    st.tuples(st.sampled_from(["train", "test"]), st.sampled_from(["a", "b", "c"]), st.integers(1, 60), st.booleans()),
    min_size=1,
    max_size=12,
)
"""Of each row: its split, its speaker, its frames, and whether it repeats the codes of the one before."""


def rows_of(plan: list[tuple[str, str, int, bool]]) -> list[TokenRow]:
    rows: list[TokenRow] = []
    for number, (split, speaker, frames, repeats) in enumerate(plan):
        codes_KT = torch.randint(8, (2, frames), generator=torch.Generator().manual_seed(number))
        codes_KT = rows[-1].codes_KT if repeats and rows else codes_KT
        rows.append(row(f"u{number:02d}", speaker, split, codes_KT))
    return rows


@given(PLAN, st.sampled_from(["train", "test"]))
def test_a_prompt_is_another_utterance_of_the_speaker_and_never_the_row_itself(
    plan: list[tuple[str, str, int, bool]], split: str
) -> None:
    rows = rows_of(plan)
    with tempfile.TemporaryDirectory() as folder:
        data = token_set(Path(folder), rows)
        asked = TestStrings(data, split=split, count=0)
        strings = TestStrings(data, split=split, count=len(asked._others))
    for wanted in strings.rows.values():
        assert wanted.split == split
        prompt_KP = strings.prompt_for(wanted)
        others = [other.codes_KT for other in rows if other.speaker == wanted.speaker and other.id != wanted.id]
        if prompt_KP is not None:
            assert any(prompt_KP is other or torch.equal(prompt_KP, other) for other in others)
        mine = [other for other in others if not torch.equal(other, wanted.codes_KT)]
        if prompt_KP is not None and len(mine) == len(others):
            assert not torch.equal(prompt_KP, wanted.codes_KT)
        has_voice = wanted.speaker in strings.voices and not torch.equal(
            strings.voices[wanted.speaker], wanted.codes_KT
        )
        assert prompt_KP is not None or not has_voice, "whoever has a voice is asked for in it"


def test_strings_are_chosen_the_same_way_every_time_and_too_few_are_told(tmp_path: Path) -> None:
    data = token_set(tmp_path, rows_of([("test", "a", 4, False)] * 9))
    chosen = list(TestStrings(data, split="test", count=4).rows)
    assert chosen == list(TestStrings(data, split="test", count=4).rows) == sorted(chosen)
    assert set(chosen) < set(TestStrings(data, split="test", count=6).rows), "more strings keep the fewer"
    assert TestStrings(data, split="test", count=9).expected == [Expected(f"u{n:02d}", "one", "a") for n in range(9)]
    with pytest.raises(DataError, match="9 test rows, num_strings asks for 10"):
        TestStrings(data, split="test", count=10)


LOUDNESS = {"u00": 0.1, "u01": 0.2, "u02": 0.3, "u03": 0.4, "u04": 0.5}


@pytest.fixture
def recorded(tmp_path: Path) -> Judge:
    """Four recordings of ``a``, one of ``b``; the recording of u05 is missing."""
    plan = [("test", "a", 4, False)] * 4 + [("test", "b", 4, False), ("test", "a", 4, False)]
    data = token_set(tmp_path, rows_of(plan))
    add_recordings(data, LOUDNESS)
    strings = TestStrings(data, split="test", count=6)
    return Judge(strings, scorers(tells_voices=True), max_frames=10, seed=0)


RECORDINGS = System("recordings", "recordings")


def test_a_recordings_own_embedding_never_takes_part_in_its_voice(recorded: Judge) -> None:
    """Each recording is a direction of its own: the cosine to the others is 0, with itself among them it is not."""
    items = {v.item.id: v.item for v in recorded.judge(RECORDINGS, list(recorded.strings.rows))}
    for name in ("u00", "u01", "u02", "u03"):
        assert items[name].speaker_similarity == 0.0
    assert items["u04"].speaker_similarity is None, "its speaker has no other recording"
    voice_E = recorded.voice(recorded.strings.rows["u00"])
    assert voice_E is not None
    assert voice_E.nonzero().flatten().tolist() == [20, 30, 40], "all the others"
    assert float(voice_E.norm()) == pytest.approx(1.0)


def test_nor_does_a_training_rows_own_embedding(tmp_path: Path) -> None:
    """Judged on the training part, a row would be near to itself."""
    made = rows_of([("train", "s0", 3 + i, False) for i in range(4)])
    rows = [replace(one, speaker_embedding=tuple(torch.eye(4)[i].tolist())) for i, one in enumerate(made)]
    strings = TestStrings(token_set(tmp_path, rows), split="train", count=3)
    for one in strings.rows.values():
        voice_E = strings.embedding_for(one)
        assert voice_E is not None
        assert float(voice_E.norm()) == pytest.approx(1.0)
        assert voice_E[int(one.id[1:])] == 0.0
        assert int((voice_E > 0.5).sum()) == 3, "all the others of its speaker"
    assert strings.embedding_for(replace(made[0], speaker="nobody")) is None


def test_a_missing_recording_is_a_row_whose_words_are_all_wrong(recorded: Judge) -> None:
    verdicts = recorded.judge(RECORDINGS, ["u05", "u00"])
    missing, there = (verdict.item for verdict in verdicts)
    assert (missing.id, missing.failure, missing.failure_reasons, missing.wer) == ("u05", True, ("missing",), 1.0)
    assert verdicts[0].samples_N.numel() == 0
    assert (there.wer, there.duration_s, verdicts[1].sample_rate) == (0.0, 1.0, 16_000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_model(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def speaker(model: Path) -> Speaker:
    return open_speaker(model)


@pytest.fixture(scope="module")
def judge(model: Path) -> Judge:
    """Of the model's own token set: four rows of two speakers, of which two are their voices."""
    data = model.parent / "data"
    rows = [replace(row, id=f"t{row.id}", split="test") for row in TokenSet.open(data).split("train")]
    write_shard(data / "part-1.parquet", rows)
    return Judge(TestStrings(data, split="test", count=4), scorers(), max_frames=12, seed=5)


def heard(judge: Judge, system: System, size: int) -> list[tuple[str, str, int | None]]:
    ids = list(judge.strings.rows)
    verdicts = [v for begin in range(0, len(ids), size) for v in judge.judge(system, ids[begin : begin + size])]
    return [(v.item.id, str(v.item.audio_sha256), v.item.tokens) for v in verdicts]


def test_a_zero_shot_model_says_the_strings_of_a_token_set_in_the_voices_of_its_prompts(
    judge: Judge, tmp_path: Path
) -> None:
    speaker = open_speaker(speaking_zero_shot(tmp_path))
    strings, ids = judge.strings, list(judge.strings.rows)
    verdicts = judge.judge(System("zero_shot", "model", speaker), ids)
    for verdict, asked in zip(verdicts, strings.rows.values(), strict=True):
        prompt_KP = strings.prompt_for(asked)
        assert prompt_KP is not None
        voice = speaker.voice_of(Audio(strings.codec.decode(prompt_KP), strings.codec.sample_rate))
        request = Request(asked.text, "nobody", seed_of(5, asked.id), voice)
        (alone,) = speaker.speak([request], speaker.decoding(None), max_seconds=12 / strings.description.frame_rate)
        assert torch.equal(verdict.samples_N, in_16_bits(alone.samples_N))
        assert verdict.mel_TM is not None
        assert verdict.item.error is None


def test_a_model_without_its_speaker_encoder_speaks_in_its_own_voices(judge: Judge, tmp_path: Path) -> None:
    deaf = open_speaker(speaking_zero_shot(tmp_path, timbre_encoder="other-1"))
    own = [one for one in judge.strings.rows.values() if one.speaker in deaf.voices]
    assert own
    assert all(judge.strings.voice_for(one, deaf) is None for one in own)
    for verdict in judge.judge(System("zero_shot", "model", deaf), [one.id for one in own]):
        assert verdict.item.error is None
        assert verdict.samples_N.numel()


class _Listener:
    """Takes recordings, and codes of no codec."""

    voice_space = "recordings"
    abilities = SimpleNamespace(takes_voices=True)

    def voice_of(self, audio: Audio) -> Voice:
        """The recording itself."""
        return Voice(self.voice_space, {"samples": audio.samples_N})


def test_a_speaker_without_training_rows_is_heard_in_the_recording_that_is_kept(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model.parent / "data", tmp_path / "data", ignore=shutil.ignore_patterns("part-1.parquet"))
    known = list(TokenSet.open(tmp_path / "data").split("train"))
    rows = [replace(row, id=f"n{row.id}", split="test", speaker="new") for row in known[:3]]
    rows += [replace(known[2], id="z0", split="test")]
    write_shard(tmp_path / "data" / "part-2.parquet", rows)
    add_recordings(tmp_path / "data", {row.id: 0.1 * (number + 1) for number, row in enumerate(rows)})
    strings, listener = TestStrings(tmp_path / "data", split="test", count=4), cast("Speaker", _Listener())
    longest = max(rows[1:3], key=lambda row: row.num_frames)
    voice = strings.voice_for(strings.rows[rows[0].id], listener)
    assert voice is not None
    wanted = 0.1 * (rows.index(longest) + 1)
    assert torch.allclose(voice.tensors["samples"], torch.full((16_000,), wanted), atol=1e-3)
    alone = strings.voice_for(strings.rows["z0"], listener)
    assert alone is not None
    assert alone.tensors["samples"].std() > 0, "of training rows no recording is kept"
    cut = strings.voice_for(strings.rows[rows[0].id], listener, is_cut=True)
    assert cut is not None
    left = cut.tensors["samples"]
    assert 0 < left.numel() < 16_000
    assert torch.equal(left, voice.tensors["samples"][: left.numel()]), "cut, and not through the codec"


def test_every_system_says_the_same_strings_with_the_same_seeds_whatever_the_batch(
    judge: Judge, speaker: Speaker
) -> None:
    whole = heard(judge, System("a", "model", speaker), 4)
    assert [name for name, _, _ in whole] == sorted(judge.strings.rows)
    assert heard(judge, System("b", "model", speaker, CodecLMDecoding()), 4) == whole, "the plain way, said or not"
    for size in (1, 3):
        assert heard(judge, System("c", "model", speaker), size) == whole
    guided = System("d", "model", speaker, CodecLMDecoding(guidance=TwoTermGuidance(scale=3.0)))
    assert heard(judge, guided, 4) != whole
    assert heard(Judge(judge.strings, scorers(), max_frames=12, seed=6), System("a", "model", speaker), 4) != whole
    assert seed_of(5, "u0") != seed_of(6, "u0") != seed_of(6, "u1")


def test_what_a_system_says_is_what_its_speaker_says_in_the_rows_voice(judge: Judge, speaker: Speaker) -> None:
    row = judge.strings.rows["tu0"]
    prompt_KP = judge.strings.prompt_for(row)
    voice = judge.strings.voice_for(row, speaker)
    assert prompt_KP is not None
    assert voice is not None
    assert torch.equal(voice.tensors[CODES], prompt_KP)
    request = Request(row.text, row.speaker, seed_of(5, row.id), voice)
    (said,) = speaker.speak([request], speaker.decoding(None), max_seconds=12 / 40)
    (verdict,) = judge.judge(System("a", "model", speaker), ["tu0"])
    assert torch.equal(verdict.samples_N, in_16_bits(said.samples_N))
    assert verdict.item.tokens == 12 or verdict.item.has_eos


def test_a_speaker_of_another_space_gets_the_prompt_as_sound(judge: Judge, speaker: Speaker) -> None:
    """A second model's codec, say; here the space is the same by another name."""

    class Elsewhere:
        voice_space = "elsewhere"
        abilities = SimpleNamespace(takes_voices=True)

        def voice_of(self, audio: Audio) -> object:
            return audio

    row = judge.strings.rows["tu1"]
    prompt_KP = judge.strings.prompt_for(row)
    assert prompt_KP is not None
    given = judge.strings.voice_for(row, Elsewhere())  # type: ignore[arg-type]
    assert isinstance(given, Audio)
    assert torch.equal(given.samples_N, judge.strings.codec.decode(prompt_KP))


def test_resynthesis_is_the_rows_own_codes(judge: Judge) -> None:
    (verdict,) = judge.judge(System("resynthesis", "resynthesis"), ["tu2"])
    codes_KT = judge.strings.rows["tu2"].codes_KT
    assert torch.equal(verdict.samples_N, in_16_bits(judge.strings.codec.decode(codes_KT)))
    assert (verdict.item.tokens, verdict.item.has_eos) == (codes_KT.shape[1], None)
