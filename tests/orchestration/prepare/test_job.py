import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from retort.audio.codec import open_codec
from retort.audio.files import read_audio, wav_bytes
from retort.config import validate
from retort.data.tokens import TokenSet
from retort.errors import ConfigError, DataError, MissingRequirementError
from retort.orchestration.cluster import ray_session
from retort.orchestration.prepare.job import run_prepare
from retort.run_config import PrepareConfig
from retort.store.artifact import read_artifact
from retort.store.results import result_of
from retort.text.front_end import open_text_front_end
from tests.orchestration.tiny_runs import Lines, add_bad_rows, tone, write_ljspeech

LJSPEECH = Path("../shared/data/ljspeech")
CODEC = {"kind": "mel_rvq", "num_codebooks": 2, "codebook_size": 16, "kmeans_iterations": 2}
# espeak-ng strings of one voice: half of them must still give the codec enough tokens.
DIGITS = {"kind": "digits", "num_strings": 40, "test_strings": 4, "validation_strings": 2, "max_digits": 3}


def _config(output, corpus, **changes):
    tree = {
        "job": "prepare", "output": str(output), "corpus": corpus, "codec": CODEC, "text": {"kind": "characters"},
        "splits": {"test_fraction": 0.2, "validation_fraction": 0.1}, **changes,
    }  # fmt: skip
    return validate(tree, PrepareConfig, where="test")


def _rows(output):
    return {row.id: row for row in TokenSet.open(result_of(output))}


def _bytes(output):
    """Everything but the record, which holds times and the configuration."""
    result = result_of(output)
    return {
        str(path.relative_to(result)): path.read_bytes()
        for path in result.rglob("*")
        if path.is_file() and path.name not in ("artifact.json", "MANIFEST.sha256", "COMMITTED")
    }


@pytest.fixture(scope="module")
def _ray():
    with ray_session(num_cpus=5):
        yield


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
class TestOnRay:
    def test_recordings_become_a_token_set_with_all_that_its_readers_need(self, tmp_path):
        if not LJSPEECH.is_dir():
            pytest.skip("../shared/data/ljspeech is not there")
        config = _config(
            tmp_path / "out", {"kind": "ljspeech", "path": str(LJSPEECH)}, speaker_encoder={"kind": "resemblyzer"},
            splits={"test_fraction": 0.3}, audio={"trim_silence_dbfs": -50.0},
        )  # fmt: skip
        summary = run_prepare(config, Lines())
        result = result_of(tmp_path / "out")
        tokens, codec = TokenSet.open(result), open_codec(result / "codec")
        front_end = open_text_front_end(result / "text")
        assert len(tokens) == summary["rows_kept"] == 5
        assert tokens.description.codec_fingerprint == codec.fingerprint() == summary["fingerprints"]["codec"]
        assert tokens.description.text_fingerprint == front_end.fingerprint() == summary["fingerprints"]["text"]
        for row in tokens:
            assert row.text_ids == tuple(front_end.encode(row.text))
            assert row.codes_KT.shape == (2, row.num_frames)
            assert row.num_frames == pytest.approx(row.duration_s * codec.frame_rate, abs=1)
            assert torch.tensor(row.speaker_embedding).norm() == pytest.approx(1.0, abs=1e-4)
        held_out = {row.id: row for row in tokens if row.split != "train"}
        sounds = {r["id"]: r["wav"] for r in pq.read_table(result / "audio").to_pylist()}
        assert set(sounds) == set(held_out)
        assert 0 < len(sounds) < 5
        for row_id, wav in sounds.items():
            audio = read_audio(wav)
            assert audio.sample_rate == codec.sample_rate
            assert (codec.encode(audio.samples_N) == held_out[row_id].codes_KT).float().mean() > 0.9
        assert summary["tokens"] == sum(row.codes_KT.numel() for row in tokens)
        assert summary["fingerprint"] == read_artifact(result).fingerprint
        json.dumps(summary)

    def test_bad_rows_are_rejected_with_codes_up_to_the_stated_fraction(self, tmp_path):
        codes = add_bad_rows(write_ljspeech(tmp_path / "corpus", 14))
        with (tmp_path / "corpus" / "metadata.csv").open("a") as file:
            file.write("T000|twice|twice\nB_text|🎉|🎉\n")
        (tmp_path / "corpus" / "wavs" / "B_text.wav").write_bytes(
            (tmp_path / "corpus" / "wavs" / "T001.wav").read_bytes()
        )
        corpus = {"kind": "ljspeech", "path": str(tmp_path / "corpus")}
        with pytest.raises(DataError, match=r"of 22 rows cannot be used \(.*: 1.*max_reject_fraction 0.3") as error:
            run_prepare(_config(tmp_path / "out", corpus, max_reject_fraction=0.3), Lines())
        assert error.value.exit_code == 3
        assert (tmp_path / "out" / "rejects.jsonl").is_file()
        # Rows that are mended before the next run are taken then, whoever refused them.
        for mended in ("B_gone", "B_silent"):
            del codes[mended]
            (tmp_path / "corpus" / "wavs" / f"{mended}.wav").write_bytes(wav_bytes(tone(9), 16000))
        lines = Lines()
        summary = run_prepare(_config(tmp_path / "out", corpus, max_reject_fraction=0.5), lines)
        text = (result_of(tmp_path / "out") / "rejects.jsonl").read_text()
        rejects = {reject["id"]: reject for reject in map(json.loads, text.splitlines())}
        expected = {**codes, "T000": "duplicate_id", "B_text": "unspeakable_text"}
        assert {name: reject["code"] for name, reject in rejects.items()} == expected
        assert rejects["B_nan"]["where"].endswith("B_nan.wav")
        assert set(_rows(tmp_path / "out")) == {f"T{i:03d}" for i in range(14)} | {"B_gone", "B_silent"}
        assert summary["rows_read"] == 22
        # The end of a good run shows the splits, and the first reject of each reason with its place.
        assert any(line.startswith("kept 16 of 22 rows; splits: ") for line in lines.lines)
        assert {line.split(" ")[1] for line in lines.lines if line.startswith("rejected: ")} == set(expected.values())
        assert all("B_" in line or "T000" in line for line in lines.lines if line.startswith("rejected: "))
        assert summary["rows_kept"] == 16
        assert sum(summary["rejected"].values()) == 6

    def test_digits_come_out_the_same_for_any_number_of_workers(self, tmp_path):
        for size in (1, 3):
            run_prepare(_config(tmp_path / str(size), DIGITS, pool={"size": size}), Lines())
        first = _bytes(tmp_path / "1")
        assert first == _bytes(tmp_path / "3")
        assert {"part-00000.parquet", "part-00001.parquet", "audio/part-00001.parquet", "tokens.json"} <= set(first)
        rows = _rows(tmp_path / "1")
        assert list(rows) == sorted(rows)
        assert len(rows) == 46
        held_out = {row.text for row in rows.values() if row.split == "test"}
        assert not held_out & {row.text for row in rows.values() if row.split == "train"}
        self._check_a_finished_run_is_left_alone(tmp_path)

    def _check_a_finished_run_is_left_alone(self, tmp_path):
        config, lines = _config(tmp_path / "1", DIGITS, pool={"size": 1}), Lines()
        summary = run_prepare(config, lines)
        assert lines.lines == [f"prepare: {config.output} is finished"]
        assert summary["rows_kept"] == 46
        with pytest.raises(ConfigError, match="max_duration_s"):
            run_prepare(config.replace(audio={"max_duration_s": 5.0}), Lines())


def test_a_corpus_that_is_mostly_missing_stops_before_any_worker_starts(tmp_path):
    write_ljspeech(tmp_path / "corpus", 6)
    for path in sorted((tmp_path / "corpus" / "wavs").iterdir())[:4]:
        path.unlink()
    lines = Lines()
    with pytest.raises(DataError, match=r"4 of 6 rows cannot be used \(missing_file: 4\)") as error:
        run_prepare(_config(tmp_path / "out", {"kind": "ljspeech", "path": str(tmp_path / "corpus")}), lines)
    example = str(error.value).splitlines()[1]
    assert example.strip().startswith("missing_file (4), as T000 at ")
    assert "metadata.csv:1: " in example
    assert example.endswith("T000.wav: no such file")
    # What was understood is told before the work starts.
    assert lines.lines[0] == "corpus: metadata.csv is id|text|normalised; say `columns` if that is wrong"
    assert lines.lines[1].startswith("corpus: 2 rows of 1 speakers in en; splits: ")
    assert len((tmp_path / "out" / "rejects.jsonl").read_text().splitlines()) == 4


def test_an_empty_corpus_is_refused(tmp_path):
    write_ljspeech(tmp_path / "corpus", 1)
    (tmp_path / "corpus" / "metadata.csv").write_text("")
    with pytest.raises(DataError, match="holds no rows"):
        run_prepare(_config(tmp_path / "out", {"kind": "ljspeech", "path": str(tmp_path / "corpus")}), Lines())


def test_a_voice_that_is_not_installed_is_said_first_of_all_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("retort.data.digits.is_installed", lambda: False)
    natural, lines = {**DIGITS, "voices": ["hibari", "hibari@-2"]}, Lines()
    # A front-end that is not there ends the run before any worker starts.
    stops = {"text": {"kind": "saved", "path": str(tmp_path / "none")}}
    with pytest.raises(DataError, match="none"):
        run_prepare(_config(tmp_path / "out", {**natural, "voices_without_hibari": ["en-us+f5"]}, **stops), lines)
    assert "not installed (pip install 'retort[english]'); espeak-ng's speak" in lines.lines[0]
    with pytest.raises(MissingRequirementError, match="hibari, hibari@-2: hibari is not installed"):
        run_prepare(_config(tmp_path / "other", natural, **stops), Lines())
