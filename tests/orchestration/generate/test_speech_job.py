import json
from collections import Counter

import pytest
import torch
import yaml

from retort.audio.files import read_audio
from retort.config import validate
from retort.data.readers import read_corpus
from retort.data.readers_parquet import ParquetConfig
from retort.data.utterance import Utterance
from retort.errors import ConfigError, DataError, MissingRequirementError, StorageError
from retort.inference.black_box.hibari import Hibari, HibariConfig, hibari_facts
from retort.inference.black_box.teacher import Line
from retort.orchestration.cluster import ray_session
from retort.orchestration.generate.speech_job import run_generate_speech
from retort.orchestration.prepare.job import run_prepare
from retort.run_config import PrepareConfig
from retort.store.artifact import read_artifact
from retort.store.results import result_of
from tests.orchestration.generate.speech_runs import COMMAND, in_process, records_of, speech_config, tree_of
from tests.orchestration.tiny_runs import Lines, killing_an_actor_after, run_and_kill_the_driver

HIBARI = {"kind": "hibari"}


def rejects_of(output):
    lines = (result_of(output) / "rejects.jsonl").read_text().splitlines()
    return {reject["id"]: reject for reject in map(json.loads, lines)}


def lines_file(path, *lines):
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def of_files(tmp_path, *lines, test=()):
    texts = {"kind": "files", "train": lines_file(tmp_path / "train.txt", *lines)}
    return texts | ({"test": lines_file(tmp_path / "test.txt", *test)} if test else {})


def test_the_corpus_is_one_that_prepare_reads_and_every_row_says_where_it_comes_from(tmp_path):
    summary = in_process(speech_config(tmp_path / "out"))
    assert summary["asked"] == summary["rows"] == 13
    assert summary["rows_by_split"] == {"train": 10, "validation": 1, "test": 2}
    found = list(read_corpus(ParquetConfig(kind="parquet", path=result_of(tmp_path / "out") / "corpus")))
    assert all(isinstance(row, Utterance) for row in found)
    assert [row.id for row in found] == [f"speech-{number:06d}" for number in range(13)]
    assert Counter(row.split for row in found) == {"train": 10, "validation": 1, "test": 2}
    records = records_of(tmp_path / "out")
    for row in found:
        audio, record = read_audio(row.audio), records[row.id]
        assert audio.duration_s == pytest.approx(row.duration_s) == pytest.approx(0.3 * len(row.text.split()))
        assert row.speaker == record["voice"]
        assert (record["teacher"], record["licence"]) == ("tones 1", "made for a test")
        assert json.loads(record["settings"])["arguments"][-1] == "{voice}"
    assert {row.speaker for row in found} == {"low", "high"}
    artifact = read_artifact(result_of(tmp_path / "out"))
    assert artifact.info.inputs == {"teacher": records["speech-000000"]["teacher_fingerprint"]}


def test_what_breaks_a_rule_is_counted_by_reason(tmp_path):
    texts = of_files(
        tmp_path, "one two", "please whisper", "shout loudly", "fail now", "garbage", "hold this", test=["hold this"]
    )  # fmt: skip
    teacher = {**COMMAND, "arguments": [*COMMAND["arguments"][:2], "--voice", "{voice}"]}
    summary = in_process(speech_config(tmp_path / "out", teacher, texts=texts))
    expected = {"held_out_text": 1, "silent": 1, "clipped": 1, "teacher_failed": 1, "unreadable": 1}
    assert summary["dropped"] == expected
    assert {row["text"] for row in records_of(tmp_path / "out").values()} == {"one two", "hold this"}
    details = {reject["code"]: reject["detail"] for reject in rejects_of(tmp_path / "out").values()}
    assert "ended with 1: no such voice" in details["teacher_failed"]


@pytest.mark.parametrize(
    ("filters", "code"),
    [
        ({"stability": {"max_s_per_word": 0.1, "pause_s": 0.0}}, "too_long"),
        ({"stability": {"min_s_per_word": 0.4}}, "too_short"),
        ({"min_lufs": -10.0}, "too_quiet"),
        ({"max_lufs": -40.0}, "too_loud"),
        ({"max_wer": 0.5, "recogniser": {"kind": "pocketsphinx", "words": ["zero"]}}, "wer"),
    ],
)
def test_each_filter_drops_by_its_name(tmp_path, filters, code):
    config = speech_config(tmp_path / "out", texts=of_files(tmp_path, "one two", "three four"), filters=filters)
    with pytest.raises(DataError, match=rf"none of 2 recordings is left \({{'{code}': 2}}\)"):
        in_process(config)


def test_a_program_that_takes_too_long_is_ended_and_a_text_is_no_option(tmp_path):
    arguments = [*COMMAND["arguments"], "--text", "{text}"]
    teacher = {**COMMAND, "arguments": arguments, "timeout_s": 5.0}
    texts = of_files(tmp_path, "sleep now", "--help", "{seed} {voice}")
    summary = in_process(speech_config(tmp_path / "out", teacher, texts=texts))
    assert summary["dropped"] == {"teacher_too_slow": 1}
    assert {row["text"] for row in records_of(tmp_path / "out").values()} == {"--help", "{seed} {voice}"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"teacher": {**COMMAND, "arguments": ["no-such"], "voices": ["a"]}}, MissingRequirementError, "no-such:"),
        ({"texts": {"kind": "files", "train": "nowhere.txt"}}, DataError, "nowhere.txt: no such file"),
        ({"teacher": {"kind": "hibari", "voices": ["emma"]}}, ConfigError, "emma.*is not in the wheel"),
        ({"teacher": {"kind": "hibari", "voices": ["nobody"]}}, ConfigError, "hibari has no 'nobody'"),
    ],
)  # fmt: skip
def test_what_cannot_speak_is_refused_before_ray_starts(tmp_path, changes, error, message):
    if changes.get("teacher", {}).get("kind") == "hibari":
        pytest.importorskip("hibari", reason="the extra [english] is not installed")
    with pytest.raises(error, match=message):
        run_generate_speech(speech_config(tmp_path / "out", **changes), Lines())


def test_hibari_says_the_same_in_any_chunk_and_at_the_speed_of_the_line(tmp_path):
    pytest.importorskip("hibari", reason="the extra [english] is not installed")
    teacher = {**HIBARI, "speed": [0.8, 1.2]}
    first = in_process(speech_config(tmp_path / "a", teacher))
    in_process(speech_config(tmp_path / "b", teacher, chunk_size=3, pool={"size": 1}))
    in_process(speech_config(tmp_path / "c", teacher, seed=1))
    assert first["rows"] == 13
    a, b, c = (records_of(tmp_path / name) for name in "abc")
    assert {name: row["audio_bytes"] for name, row in a.items()} == {
        name: row["audio_bytes"] for name, row in b.items()
    }
    assert all(a[name]["audio_bytes"] != c[name]["audio_bytes"] for name in a)
    speeds = [json.loads(row["settings"])["speed"] for row in a.values()]
    assert len(set(speeds)) > 10
    assert all(0.8 <= speed <= 1.2 for speed in speeds)
    assert {row["sample_rate"] for row in a.values()} == {24_000}
    assert "Apache-2.0" in next(iter(a.values()))["licence"]


def test_shifted_voices_are_other_speakers_and_leave_the_unshifted_teacher_what_it_was(tmp_path):
    pytest.importorskip("hibari", reason="the extra [english] is not installed")
    plain, both = (HibariConfig(kind="hibari", voices=voices) for voices in (("heart",), ("heart", "heart@-4")))
    assert hibari_facts(plain).fingerprint != hibari_facts(both).fingerprint
    assert hibari_facts(plain).fingerprint == hibari_facts(plain.replace(voices=("heart@0",))).fingerprint
    assert hibari_facts(both).voices == ("heart", "heart@-4")
    says = Hibari(both)
    own, low = (says.speak(Line("some words", voice, 1)).samples_N for voice in both.voices)
    assert torch.equal(own, Hibari(plain).speak(Line("some words", "heart", 1)).samples_N)
    assert not torch.equal(own, low)
    with pytest.raises(ConfigError, match=r"'heart@nine': the shift after @ is a number of semitones from -6 to 6"):
        hibari_facts(plain.replace(voices=("heart@nine",)))


def test_hibari_whose_weights_are_not_its_own_is_refused(tmp_path, monkeypatch):
    voices = pytest.importorskip("hibari.voices", reason="the extra [english] is not installed")
    (tmp_path / voices.VOICES["emma"]["file"]).write_bytes(b"something else")
    config = speech_config(tmp_path / "out", {**HIBARI, "voices": ["heart", "emma"], "folder": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"file of 'emma' has SHA-256 .*fetch it again"):
        run_generate_speech(config, Lines())
    monkeypatch.setattr(voices, "ASSETS", str(tmp_path))
    for damage in (None, b"damaged"):
        if damage is not None:
            (tmp_path / "hibari.onnx").write_bytes(damage)
        with pytest.raises(StorageError, match=r"hibari-tts==0\.2\.1 again"):
            run_generate_speech(speech_config(tmp_path / "out", HIBARI), Lines())


@pytest.mark.ray
def test_killed_actor_and_killed_driver_leave_each_id_exactly_once_and_prepare_reads_them(tmp_path):
    changes = {"texts": {"kind": "english", "train": 40, "validation": 2, "test": 6, "max_words": 5}, "chunk_size": 2}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree_of(tmp_path / "driver", **changes)))
    run_and_kill_the_driver("generate", file, tmp_path / "driver" / "work", records=3)
    assert not (tmp_path / "driver" / "result").exists()
    with ray_session(num_cpus=2):
        run_generate_speech(speech_config(tmp_path / "driver", **changes), Lines())
        with killing_an_actor_after(2, tmp_path / "actor" / "work") as killed:
            run_generate_speech(speech_config(tmp_path / "actor", **changes), Lines())
        run_prepare(prepare_config(tmp_path / "tokens", tmp_path / "driver"), Lines())
    assert len(killed) == 1
    assert (rejects_of(tmp_path / "driver"), rejects_of(tmp_path / "actor")) == ({}, {})
    driver, actor = records_of(tmp_path / "driver"), records_of(tmp_path / "actor")
    assert sorted(driver) == [f"speech-{number:06d}" for number in range(48)]
    assert driver == actor
    assert read_artifact(result_of(tmp_path / "tokens")).info.metrics["rows_kept"] == 48


def prepare_config(output, speech):
    tree = {
        "job": "prepare", "output": str(output),
        "corpus": {"kind": "parquet", "path": str(result_of(speech) / "corpus")},
        "codec": {"kind": "mel_rvq", "num_codebooks": 1, "codebook_size": 8, "kmeans_iterations": 2},
        "text": {"kind": "characters"},
        "splits": {"allow_speaker_overlap": True},
    }  # fmt: skip
    return validate(tree, PrepareConfig, where="test")
