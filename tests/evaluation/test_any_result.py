"""Whatever a system delivers is a row with its reasons: no result of one string ends an evaluation."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retort.audio.files import wav_bytes
from retort.data.tokens import TokenRow, TokenSet, write_shard
from retort.errors import ConfigError, DataError
from retort.evaluation.asr import PocketSphinxConfig, open_recogniser
from retort.evaluation.hearing import hear
from retort.evaluation.items import Expected, ItemResult
from retort.evaluation.judge import Judge, System, TestStrings
from retort.evaluation.layer_importance import scored_wer
from retort.evaluation.mel_distance import with_distances
from retort.evaluation.report import write_report
from retort.evaluation.results import SystemInfo, summarise
from retort.evaluation.scoring import Scorers, score_item
from retort.evaluation.speaker import Resemblyzer, embed
from retort.evaluation.speed import Measured, SpeedCase, measure_speed
from retort.evaluation.turns import Turns
from retort.inference.decoding import Decoding
from retort.inference.opening import open_speaker
from retort.inference.speaker import Request, Spoken, Timing
from retort.orchestration.evaluate.pieces import Piece, sounds_of
from retort.orchestration.evaluate.worker import EvaluationWorker
from retort.store.artifact import describe_artifact, write_artifact
from tests.evaluation.judging import RATE, Echo, Loudness, row, scorers, token_set
from tests.evaluation.test_bad_sets import add_sounds
from tests.evaluation.test_turns import by_system
from tests.inference.speaking import speaking_model

LOW = 4000
TONE_N = torch.sin(torch.arange(RATE) * 0.2)
SOUNDS_OF = {
    "quiet": wav_bytes(TONE_N * 10 ** (-44 / 20), RATE),
    "silent": wav_bytes(TONE_N * 10 ** (-70 / 20), RATE),
    "nothing": wav_bytes(torch.zeros(RATE), RATE),
    "constant": wav_bytes(torch.full((RATE,), 0.4), RATE),
    "long": wav_bytes(0.3 * torch.sin(torch.arange(130 * LOW) * 0.2), LOW),
    "token": wav_bytes(0.3 * TONE_N[:400], RATE),
    "sample": wav_bytes(0.3 * TONE_N[1:2], RATE),
    "clipped": wav_bytes(torch.sign(TONE_N), RATE),
    "empty": wav_bytes(torch.zeros(0), RATE),
    "bytes": b"",
    "text": b"this is no sound",
    "cut": wav_bytes(0.3 * TONE_N, RATE)[:-1000],
}
HEARD = ("quiet", "silent", "nothing", "constant", "long", "token", "sample", "clipped")


def test_a_piece_without_a_sound_to_keep_makes_its_folder_on_a_node_that_has_none(tmp_path: Path) -> None:
    data = token_set(tmp_path / "data", [row("u0", "a", "test", torch.ones(2, 4).long())])
    add_sounds(data, {"another": b""})
    judge = Judge(TestStrings(data, split="test", count=1), scorers(), max_frames=10, seed=0)
    piece = Piece(tmp_path / "another node" / "pieces", "recordings", 1)
    piece.write(judge.judge(System("recordings", "recordings"), ["u0"]), kept=(), keeps_mels=False)
    assert [(item.id, item.failure_reasons) for item in piece.read(None)] == [("u0", ("missing",))]


@pytest.mark.parametrize("real", [False, True], ids=["stand-ins", "pocketsphinx and Resemblyzer"])
def test_whatever_a_recording_is_it_is_a_row_and_its_sound_is_in_the_report(tmp_path: Path, real: bool) -> None:
    data = token_set(tmp_path / "data", [row(name, "a", "test", torch.ones(2, 4).long()) for name in SOUNDS_OF])
    add_sounds(data, SOUNDS_OF)
    given = scorers()
    if real:
        given = Scorers(open_recogniser(PocketSphinxConfig(words=("one", "two"), noise_gate_db=30.0)), Resemblyzer())
    judge = Judge(TestStrings(data, split="test", count=len(SOUNDS_OF)), given, max_frames=10, seed=0)
    verdicts = judge.judge(System("recordings", "recordings"), list(SOUNDS_OF))
    piece = Piece(tmp_path / "result", "recordings", 0)
    piece.write(verdicts, kept=list(SOUNDS_OF), keeps_mels=True)
    items = {item.id: item for item in piece.read(None)}
    assert list(items) == list(SOUNDS_OF)
    for name in set(SOUNDS_OF) - set(HEARD):
        assert items[name].failure_reasons == ("error",)
        assert (items[name].wer, items[name].deletions) == (1.0, 1)
    errors = [str(items[name].error).partition(":")[0] for name in ("empty", "bytes", "text", "cut")]
    assert errors == ["empty", "empty", "unreadable", "truncated"]
    reasons = {name: items[name].failure_reasons for name in HEARD}
    assert all("silence" in reasons[name] for name in ("silent", "nothing"))
    assert "silence" not in reasons["quiet"]
    assert "too_long" in reasons["long"]
    assert all("too_short" in reasons[name] for name in ("token", "sample"))
    assert "clipping" in reasons["clipped"]
    assert {sample.id: sample.samples_N.numel() for sample in sounds_of(tmp_path / "result", list(items.values()))} == {
        **dict.fromkeys(HEARD, RATE), "long": 130 * LOW, "token": 400, "sample": 1,
    }  # fmt: skip
    summary = summarise(list(items.values()), [SystemInfo("recordings", "reference")])
    page = write_report(tmp_path, summary.tree(), summary.items, samples=sounds_of(tmp_path / "result", summary.items))
    assert page.read_text().count("<audio controls") == len(HEARD)
    (told,) = summary.tree()["systems"]
    assert (told["utterances"], told["failures"]["error"]) == (12, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_model(tmp_path_factory.mktemp("any"))


def judge_of(folder: Path, model: Path, changes: dict[str, Callable[[TokenRow], TokenRow]]) -> Judge:
    """Of rows like the model's own, each changed in its way, and one that is not, ``good``."""
    tokens = TokenSet.open(model.parent / "data")
    first: TokenRow = tokens[0]
    rows = [dataclasses.replace(change(first), id=name, split="test") for name, change in changes.items()]
    token_set(folder, [*tokens, dataclasses.replace(tokens[1], id="good", split="test"), *rows])
    (folder / "codec").symlink_to(model.parent / "data" / "codec")
    (folder / "tokens.json").write_text((model.parent / "data" / "tokens.json").read_text())
    return Judge(TestStrings(folder, split="test", count=len(rows) + 1), scorers(), max_frames=8, seed=0)


def test_what_a_model_cannot_say_is_its_row_and_the_others_say_what_they_say_alone(tmp_path: Path, model: Path) -> None:
    changes: dict[str, Callable[[TokenRow], TokenRow]] = {
        "mute": lambda row: dataclasses.replace(row, text="..."),
        "stranger": lambda row: dataclasses.replace(row, speaker="nobody"),
        "other": lambda row: row,
    }
    judge, system = judge_of(tmp_path, model, changes), System("m", "model", open_speaker(model))
    found = {v.item.id: v for v in judge.judge(system, ["mute", "good", "stranger", "other"])}
    assert [found[name].item.failure_reasons for name in ("mute", "stranger")] == [("error",)] * 2
    assert "no voice 'nobody'; this model has s0, s1" in str(found["stranger"].item.error)
    assert found["mute"].item.error
    for name in ("good", "other"):
        (alone,) = judge.judge(system, [name])
        assert found[name].item == alone.item
    assert found["good"].item.tokens
    assert scored_wer(found["mute"].item) == 1.0, "so that pruning counts it, too"


def test_codes_that_are_none_and_rows_without_any_are_rows(tmp_path: Path, model: Path) -> None:
    changes: dict[str, Callable[[TokenRow], TokenRow]] = {
        "foreign": lambda row: dataclasses.replace(row, codes_KT=torch.full((2, 4), 99)),
        "none": lambda row: dataclasses.replace(row, codes_KT=torch.zeros(2, 0).long()),
        "one": lambda row: dataclasses.replace(row, codes_KT=row.codes_KT[:, :1]),
    }
    judge = judge_of(tmp_path, model, changes)
    items = {v.item.id: v.item for v in judge.judge(System("r", "resynthesis"), [*changes, "good"])}
    assert items["foreign"].failure_reasons == ("error",)
    assert "do not fit" in str(items["foreign"].error)
    assert items["none"].tokens == 0
    assert {"too_short", "silence"} <= set(items["none"].failure_reasons)
    assert items["one"].tokens == 1
    assert not items["good"].error


class Breaks:
    """Fails as libraries do, on sounds of one length."""

    name, smoke_tier = "breaks", True

    def __init__(self, fault: Exception, length: int) -> None:
        self.fault, self.length = fault, length

    def transcribe(self, samples_N: Tensor, sample_rate: int) -> str:
        return "one" if samples_N.numel() != self.length else self._fail()

    def embed(self, samples_N: Tensor, sample_rate: int) -> Tensor:
        return torch.ones(3) if samples_N.numel() != self.length else self._fail()

    def _fail(self) -> None:  # type: ignore[return]
        raise self.fault


FAULTS = (RuntimeError("kernel size"), ValueError("too short"), IndexError("bounds"), DataError("no words"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_judge_that_fails_on_one_sound_has_judged_the_others(fault: Exception) -> None:
    breaks = Breaks(fault, 7)
    short, fine = (
        score_item("m", Expected("u", "one"), Spoken(0.3 * TONE_N[:length], RATE), Scorers(breaks), voice_E=None)
        for length in (7, RATE)
    )
    assert (short.failure_reasons, short.wer, fine.wer) == (("error",), 1.0, 0.0)
    assert str(fault) in str(short.error)
    short, fine = (
        score_item(
            "m",
            Expected("u", "one"),
            Spoken(0.3 * TONE_N[:length], RATE),
            Scorers(Echo(), breaks),
            voice_E=torch.ones(3),
        )
        for length in (7, RATE)
    )
    assert (short.speaker_similarity, short.wer) == (None, 0.0)
    assert str(fault) in str(short.error)
    assert (fine.speaker_similarity, fine.error) == (pytest.approx(1.0), None)


def test_a_fault_of_the_run_file_ends_it_all_the_same() -> None:
    for ask in (hear, embed):
        with pytest.raises(ConfigError, match="no such word"):
            ask(Breaks(ConfigError("no such word"), 7), torch.ones(7), RATE)  # type: ignore[arg-type]


def test_a_voice_that_is_not_numbers_is_none() -> None:
    class Silent(Loudness):
        def embed(self, samples_N: Tensor, sample_rate: int) -> Tensor:
            return torch.full((101,), torch.nan)

    spoken = Spoken(0.3 * TONE_N, RATE)
    item = score_item("m", Expected("u", "one"), spoken, Scorers(Echo(), Silent()), voice_E=torch.ones(101))
    assert item.speaker_similarity is None
    json.dumps(dataclasses.asdict(item), allow_nan=False)


@pytest.mark.parametrize("rate", [4_000, 16_000, 192_000])
def test_the_shortest_sounds_leave_the_recogniser_hearing(rate: int) -> None:
    recogniser = open_recogniser(PocketSphinxConfig(words=("one", "two"), noise_gate_db=30.0))
    first = recogniser.transcribe(0.3 * TONE_N, RATE)
    for length in (0, 1, 2, 3, 5, 10, 47, 160, 400):
        recogniser.transcribe(0.3 * torch.ones(length), rate)
    assert recogniser.transcribe(0.3 * TONE_N, RATE) == first


def test_a_sound_that_breaks_off_the_recogniser_breaks_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    recogniser = open_recogniser(PocketSphinxConfig(words=("one", "two")))
    first = recogniser.transcribe(0.3 * TONE_N, RATE)

    class Broken:
        """The decoder, which fails in the middle of an utterance."""

        def __init__(self, decoder: object) -> None:
            self.decoder = decoder

        def __getattr__(self, name: str) -> object:
            return getattr(self.decoder, name)

        def process_raw(self, *_: object, **__: object) -> None:
            raise IndexError("Out of bounds on buffer access")

    with monkeypatch.context() as patch:
        patch.setattr(recogniser, "_decoder", Broken(recogniser._decoder))  # type: ignore[attr-defined]
        with pytest.raises(DataError, match="cannot hear 16000 samples at 16000 Hz: IndexError: Out of bounds"):
            hear(recogniser, 0.3 * TONE_N, RATE)
    assert hear(recogniser, 0.3 * TONE_N, RATE) == first


def test_a_mel_that_one_of_two_systems_lacks_or_that_is_not_numbers_has_no_distance() -> None:
    def item(name: str) -> ItemResult:
        return score_item("m", Expected(name, "one"), Spoken(0.3 * TONE_N, RATE), scorers())

    mel_TM = torch.zeros(4, 3)
    mels = {"both": mel_TM + 1, "mine": mel_TM, "odd": mel_TM * torch.nan}
    found = with_distances([item(name) for name in ("both", "mine", "theirs", "odd")], mels, {
        "both": mel_TM, "theirs": mel_TM, "odd": mel_TM,
    })  # fmt: skip
    assert [("mel_distance" in one.values) for one in found] == [True, False, False, False]


def test_what_makes_no_sound_has_no_speed_and_the_others_have_theirs() -> None:
    class Timed:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def decoding(self, wanted: Decoding | None) -> Decoding | None:
            return wanted

        def time(self, requests: object, decoding: object, *, seconds: float) -> Timing:
            return Timing(compute_s=1.0, sound_s=1.0, audio_s=self.seconds)

    cases = {str(s): SpeedCase(Timed(s), Request("one", "s0", 0)) for s in (0.0, 4.0)}  # type: ignore[arg-type]
    found = by_system(measure_speed(cases, batch_size=2, seconds=4.0, turns=Turns(2, 1e-9, 99.0)))
    assert found == {"0.0": [None, None], "4.0": [{"rtf": 0.5}] * 2}


def test_a_longest_string_without_a_voice_leaves_the_models_their_speed(tmp_path: Path, model: Path) -> None:
    """It is a failure of the evaluation's rows; here it would end all of it, after the work."""
    tokens = TokenSet.open(model.parent / "data")
    stranger = dataclasses.replace(tokens[0], id="t", text="one one one", text_ids=(4,) * 11, speaker="x", split="test")

    def fill(folder: Path) -> None:
        shutil.copytree(model.parent / "data", folder, dirs_exist_ok=True)
        write_shard(folder / "part-1.parquet", [stranger])

    data = write_artifact(tmp_path / "data", describe_artifact("tokens", "t", "1", inputs={}, config={}), fill).path
    tree = {
        "output": str(tmp_path / "out"), "data": str(data), "num_strings": 1, "recogniser": {"kind": "pocketsphinx"},
        "systems": [{"name": "m", "kind": "model", "role": "teacher", "model": str(model)}], "max_frames": 4,
        "speed": {"batch_sizes": [1, 2], "num_frames": 4, "rounds": 1, "window_s": 1e-6},
    }  # fmt: skip
    *_, measured = EvaluationWorker(tree, 1).speed()
    assert isinstance(measured, Measured)
    assert {"rtf", "rtf_batch1", "first_audio_s"} <= set(measured.figures["m"])
