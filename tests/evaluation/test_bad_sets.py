"""Evaluation sets with holes: missing, silent and broken recordings, doubled ids, voices of another encoder."""

import dataclasses
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from retort.audio.files import wav_bytes
from retort.config import load_tree, validate
from retort.data.tokens import TokenRow, TokenSet
from retort.errors import ConfigError, DataError
from retort.evaluation.asr import PocketSphinxConfig, open_recogniser
from retort.evaluation.items import ItemResult
from retort.evaluation.judge import Judge, System, TestStrings
from retort.evaluation.metrics import METRICS
from retort.evaluation.model_card import card_text
from retort.evaluation.preference import check_gate, parse_gate
from retort.evaluation.results import BootstrapConfig, Pair, SystemInfo, summarise
from retort.evaluation.scoring import Scorers
from retort.evaluation.speaker import (
    Resemblyzer,
    ResemblyzerConfig,
    TransformersSpeakerConfig,
    encoder_name,
    open_speaker_encoder,
    similarity,
)
from retort.evaluation.wer import word_errors
from retort.orchestration.evaluate.job import run_evaluate
from retort.orchestration.progress import QuietProgress
from retort.run_config import EvaluateConfig
from retort.store.artifact import describe_artifact, write_artifact
from tests.evaluation.judging import RATE, Loudness, row, scorers, token_set

RECORDINGS = System("recordings", "recordings")


def some_rows(count: int, **changes: object) -> list[TokenRow]:
    return [
        dataclasses.replace(row(f"u{i:02d}", "a", "test", torch.ones(2, 4).long()), **changes) for i in range(count)
    ]


def add_sounds(folder: Path, sounds: dict[str, bytes]) -> None:
    (folder / "audio").mkdir()
    table = pa.Table.from_pylist([{"id": name, "wav": wav} for name, wav in sounds.items()])
    pq.write_table(table, folder / "audio" / "part-0.parquet")


def judged(folder: Path, sounds: dict[str, bytes], count: int, given: Scorers) -> dict[str, ItemResult]:
    add_sounds(token_set(folder, some_rows(count)), sounds)
    judge = Judge(TestStrings(folder, split="test", count=count), given, max_frames=10, seed=0)
    return {v.item.id: v.item for v in judge.judge(RECORDINGS, list(judge.strings.rows))}


TONE = wav_bytes(0.3 * torch.sin(torch.arange(RATE) * 0.2), RATE)
SILENCE = wav_bytes(torch.zeros(RATE), RATE)


def test_silent_recordings_are_flagged_and_hold_no_dog(tmp_path: Path) -> None:
    """The recogniser of the wheel, with its open vocabulary, which hears "dog" in silence if it is given any."""
    given = Scorers(open_recogniser(PocketSphinxConfig()), open_speaker_encoder(ResemblyzerConfig()))
    items = judged(tmp_path, {"u00": TONE, "u01": SILENCE, "u02": SILENCE}, 3, given)
    for name in ("u01", "u02"):
        assert items[name].hypothesis == ""
        assert items[name].wer == 1.0
        assert "silence" in items[name].failure_reasons
        assert items[name].speaker_similarity is None
    assert "silence" not in items["u00"].failure_reasons


def test_a_broken_recording_is_a_row_with_its_reason_and_stops_nothing(tmp_path: Path) -> None:
    sounds = {"u00": TONE, "u01": b"no sound", "u02": TONE[:-1000], "u03": wav_bytes(torch.zeros(0), RATE)}
    items = judged(tmp_path, sounds, 4, scorers(tells_voices=True))
    assert [items[name].failure_reasons for name in sounds] == [(), ("error",), ("error",), ("error",)]
    assert [(items[name].error or "").split(":")[0] for name in sounds] == ["", "unreadable", "truncated", "empty"]
    assert all(items[name].wer == 1.0 for name in ("u01", "u02", "u03"))


def test_doubled_ids_are_refused_by_everything_that_opens_the_set(tmp_path: Path) -> None:
    folder = token_set(tmp_path, some_rows(3))
    shutil.copy(folder / "part-0.parquet", folder / "part-1.parquet")
    with pytest.raises(DataError, match=r"3 of 6 rows have the id of another \(u00, u01, u02\)"):
        TokenSet.open(folder)


def evaluate(tmp_path: Path, data: Path, **changes: object) -> EvaluateConfig:
    tree = load_tree(Path("jobs/configs/demo.yaml"))["jobs"][-1]
    systems = [{"name": "recordings", "kind": "recordings"}]
    tree |= {"output": str(tmp_path / "out"), "data": str(data), "systems": systems, "comparisons": []}
    return validate({**tree, "confidence_teacher": None, "num_strings": 2, **changes}, EvaluateConfig, where="test")


def embedded(folder: Path, encoder: str | None, size: int = 256) -> Path:
    voice = tuple(torch.nn.functional.normalize(torch.ones(size), dim=0).tolist())
    train = [dataclasses.replace(r, id=f"t{r.id}", split="train", speaker_embedding=voice) for r in some_rows(3)]
    return token_set(folder, [*train, *some_rows(2)], encoder=encoder)


def test_voices_of_another_encoder_are_refused_before_anything_starts(tmp_path: Path) -> None:
    info = describe_artifact("tokens", "t", "1", inputs={}, config={})
    data = write_artifact(tmp_path / "data", info, lambda folder: embedded(folder, "wavlm_sv:large") and None).path
    config = evaluate(tmp_path, data, speaker_encoder={"kind": "resemblyzer"})
    with pytest.raises(DataError, match=r"speaker_encoder is resemblyzer-0\.1, but .* by wavlm_sv:large") as error:
        run_evaluate(config, QuietProgress())
    assert error.value.exit_code == 3


def test_voices_of_the_same_encoder_or_of_none_are_not(tmp_path: Path) -> None:
    for number, name in enumerate((Resemblyzer.name, None)):
        strings = TestStrings(embedded(tmp_path / str(number), name), split="test", count=2)
        strings.refuse_other_encoder(Resemblyzer.name)
        voice_E = strings.embedding_for(strings.rows["u00"])
        assert voice_E is not None
        assert torch.allclose(voice_E, torch.full((256,), 1 / 16)), "the voice that is compared with"
    without = TestStrings(token_set(tmp_path / "x", some_rows(2), encoder="another"), split="test", count=2)
    without.refuse_other_encoder(Resemblyzer.name)
    assert without.embedding_for(without.rows["u00"]) is None, "nothing was embedded, so nothing is compared"


def test_voices_of_another_size_are_refused_where_nobody_wrote_down_whose_they_are(tmp_path: Path) -> None:
    data = embedded(tmp_path / "data", None, size=192)
    add_sounds(data, {"u00": TONE})
    given = Scorers(scorers().recogniser, Loudness())
    judge = Judge(TestStrings(data, split="test", count=2), given, max_frames=10, seed=0)
    with pytest.raises(ConfigError, match="of 101 and of 192 numbers are of different speaker encoders"):
        judge.judge(RECORDINGS, ["u00"])
    assert similarity(torch.ones(3), torch.ones(3)) == pytest.approx(1.0)


def test_the_name_of_an_encoder_is_known_without_loading_it(tmp_path: Path) -> None:
    assert encoder_name(ResemblyzerConfig()) == open_speaker_encoder(ResemblyzerConfig()).name
    assert encoder_name(TransformersSpeakerConfig(path=tmp_path / "base")) == "wavlm_sv:base"


def test_three_utterances_are_too_few_wherever_figures_are_shown(tmp_path: Path) -> None:
    items = judged(tmp_path, {f"u{i:02d}": TONE for i in range(3)}, 3, scorers())
    other = [dataclasses.replace(item, system="student") for item in items.values()]
    infos = [SystemInfo("recordings", "reference"), SystemInfo("student", "student")]
    summary = summarise(
        [*items.values(), *other], infos, [Pair("recordings", "student")], bootstrap=BootstrapConfig()
    ).tree()
    assert [system[f"{name}_ci95"] for system in summary["systems"] for name in ("wer", "failure_rate")] == [None] * 4
    assert all(row["ci95"] is None for row in summary["comparisons"])
    texts = [finding["text"] for finding in summary["findings"]]
    assert texts[0] == "3 utterances, 2 systems. n too small for intervals."
    assert any("n too small to judge" in text for text in texts[1:])
    assert [check.passed for check in check_gate(parse_gate("wer<=1, failure_rate<=1"), summary["systems"][0])] == [
        False,
        False,
    ]
    figures = {"wer": {"value": 0.0, "ci95": None}, "rtf": {"value": 0.1, "ci95": None}}
    card = {
        "name": "m", "note": None, "model": {}, "utterances": 3, "figures": figures, "scorers": [], "evaluation": "e",
        "gate": [], "sweep": None, "retort": "0",
    }  # fmt: skip
    shown = card_text(card)
    assert f"| {METRICS['wer'].label} | {METRICS['wer'].text(0.0)} | n too small |" in shown
    assert f"| {METRICS['rtf'].label} | {METRICS['rtf'].text(0.1)} |  |" in shown, "speed has no interval at all"


def test_an_empty_reference_counts_every_word_as_an_error_and_the_report_says_so() -> None:
    assert word_errors("…", "dog dog").wer == 2.0
    assert word_errors("…", "").wer == 0.0
    template = (Path(__file__).parents[2] / "platform/retort/evaluation/report.html.j2").read_text()
    assert "where the text has no words every word that is heard is one error" in template


def test_words_of_another_language_are_wrong_words() -> None:
    assert word_errors("one two three", "eins zwei drei").wer == 1.0
