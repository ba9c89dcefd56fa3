"""Ids and systems of any name from a corpus to the sounds in a report, and outputs of any name."""

import base64
import json
import re
from pathlib import Path

import pytest
import torch

from retort import cli
from retort.audio.files import wav_bytes
from retort.audio.mel_rvq import MelRVQConfig, fit_mel_rvq
from retort.config import load_tree, validate
from retort.data.references import plan_references
from retort.data.tokens import TokenSet
from retort.evaluation.items import read_results
from retort.evaluation.judge import TestStrings
from retort.evaluation.lm_confidence import Sureness
from retort.evaluation.results import SystemInfo
from retort.orchestration.cluster import ray_session
from retort.orchestration.evaluate import job
from retort.orchestration.evaluate.pieces import SOUNDS, Piece, sounds_of
from retort.orchestration.evaluate.tasks import Judged, PlainTask
from retort.orchestration.evaluate.worker import EvaluationWorker
from retort.orchestration.outputs import job_output
from retort.orchestration.prepare.worker import AUDIO, CODEC, REFERENCES, TEXT, TOKENS, PrepareWorker
from retort.orchestration.progress import QuietProgress
from retort.run_config import EvaluateConfig, PrepareConfig
from retort.store.artifact import describe_artifact, write_artifact
from retort.store.manifest import build_manifest
from retort.text.front_end import CharactersConfig, build_text_front_end
from tests.evaluation.judging import RATE, add_recordings, row, token_set
from tests.orchestration.tiny_runs import WORDS, tone

IDS = (
    "x" * 300, "x" * 299 + "y", "a\\b", "a/b", "/a", "\\\\server\\a", ".hidden", "a--b", "tab\tid", "Ü" * 200, "你好",
    "A", "a", "u01.wav", "a b", "a_b", "line\nid",
)  # fmt: skip
CLIMBING = ("..", "../../a", "nul\0id", "\x1b[2J")
"""What no corpus may say, and a token set from elsewhere may hold all the same."""
SYSTEMS = ("recordings", "Recordings", "a/b", "x" * 300)


def test_a_corpus_may_have_such_ids(tmp_path: Path) -> None:
    """Everything of ``prepare`` but its actors."""
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(0), RATE))
    rows = [{"id": name, "audio": "a.wav", "text": "one", "split": "test"} for name in IDS]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tree = {
        "job": "prepare", "output": "my tokens", "corpus": {"kind": "manifest", "path": str(tmp_path / "m.jsonl")},
        "codec": {"kind": "mel_rvq"}, "text": {"kind": "characters"},
    }  # fmt: skip
    config = validate(tree, PrepareConfig, where="test")
    plan_references(config.corpus, config.splits, tmp_path / REFERENCES, fit_utterances=1)
    fit_mel_rvq([tone(0, 1.0)], MelRVQConfig(num_codebooks=2, codebook_size=8, kmeans_iterations=2)).save(
        tmp_path / CODEC
    )
    assert isinstance(config.text, CharactersConfig)
    build_text_front_end(config.text).save(tmp_path / TEXT)
    done = PrepareWorker(config.model_dump(mode="json"), tmp_path).work(0)
    assert not done.rejects
    for table in (TOKENS, AUDIO):
        assert sorted(done.tables[table].column("id").to_pylist()) == sorted(IDS)


def evaluation(output: Path, data: Path, systems: tuple[str, ...], **changes: object) -> EvaluateConfig:
    tree = load_tree(Path("jobs/configs/demo.yaml"))["jobs"][-1]
    named = [{"name": name, "kind": "recordings"} for name in systems]
    tree |= {"output": str(output), "data": str(data), "systems": named, "comparisons": [], "confidence_teacher": None}
    tree |= {"speed": None, "speaker_encoder": None, "num_resamples": 100, "naturalness": [], "prosody": None}
    tree["recognisers"] = [{"kind": "pocketsphinx", "words": list(WORDS)}]
    return validate({**tree, **changes}, EvaluateConfig, where="test")


def heard(page: Path) -> list[bytes]:
    """The sounds in a report."""
    return [base64.b64decode(found) for found in re.findall(r'src="data:audio/wav;base64,([^"]+)"', page.read_text())]


def test_every_id_of_every_system_is_a_row_and_a_sound(tmp_path: Path) -> None:
    """Everything of the job but its actors."""
    ids = (*IDS, *CLIMBING)
    rows = [row(name, "a/../b", "test", torch.ones(2, 4).long()) for name in ids]
    loudness = {name: 0.1 + 0.03 * number for number, name in enumerate(ids)}
    info = describe_artifact("tokens", "t", "1", inputs={}, config={})
    data = write_artifact(
        tmp_path / "data", info, lambda folder: add_recordings(token_set(folder, rows), loudness)
    ).path
    strings = TestStrings(data, split="test", count=len(ids))
    asked = evaluation(tmp_path / "my out", data, SYSTEMS, num_strings=len(ids), num_samples=len(ids))
    worker = EvaluationWorker(asked.model_dump(mode="json"), 1)
    with job_output(asked) as output:
        pieces = output / "pieces"
        (pieces / "audio").mkdir(parents=True)
        for name in SYSTEMS:
            worker.judge(PlainTask(name, 0, tuple(strings.rows)), str(pieces), list(ids))
        items = [item for name in SYSTEMS for item in Piece(pieces, name, 0).read(None)]
        infos = [SystemInfo(name, "reference") for name in SYSTEMS]
        artifact = job._write(
            asked,
            output,
            strings,
            job.Found(infos, Judged(items, {}, {}), Sureness({}), None),
            sounds=[pieces / SOUNDS],
        )
    assert {path.name for path in tmp_path.iterdir()} == {"data", "my out"}, "no id led out of its folder"
    assert artifact.info.reference == "my_out@1"
    kept = read_results(artifact.path / "results.jsonl")
    assert [(item.system, item.id) for item in kept] == [(name, one) for name in SYSTEMS for one in sorted(ids)]
    for sample, item in zip(sounds_of(artifact.path, kept), kept, strict=True):
        assert (sample.system, sample.id) == (item.system, item.id)
        assert float(sample.samples_N.max()) == pytest.approx(loudness[item.id], abs=1e-3)
        assert (artifact.path / str(item.audio_path)).is_file()
    sounds = [entry.path for entry in build_manifest(artifact.path).entries if entry.path.startswith("audio/")]
    assert len({path.casefold() for path in sounds}) == len(SYSTEMS) * len(ids)
    assert len(heard(artifact.path / "report.html")) == len(SYSTEMS) * len(ids)
    file = tmp_path / "report.yaml"
    file.write_text(f"job: report\nevaluation: {tmp_path}/my out\noutput: {tmp_path}/my report\n")
    assert cli.run(["report", str(file)]) == 0
    assert heard(tmp_path / "my report" / "report.html") == heard(artifact.path / "report.html")


@pytest.mark.ray
@pytest.mark.slow
def test_from_a_corpus_to_the_report_in_outputs_with_blanks(tmp_path: Path) -> None:
    sounds = {name: tone(number) for number, name in enumerate(IDS)}
    sounds["very quiet"] = tone(99) * 0.01
    (tmp_path / "corpus").mkdir()
    lines = []
    for number, (name, samples_N) in enumerate(sounds.items()):
        (tmp_path / "corpus" / f"{number}.wav").write_bytes(wav_bytes(samples_N, RATE))
        split = "train" if number % 2 else "test"
        lines.append({"id": name, "audio": f"{number}.wav", "text": "one two", "speaker": "S/1", "split": split})
    (tmp_path / "corpus" / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prepare = {
        "job": "prepare", "output": str(tmp_path / "my tokens"), "text": {"kind": "characters"}, "pool": {"size": 1},
        "corpus": {"kind": "manifest", "path": str(tmp_path / "corpus" / "m.jsonl")},
        "codec": {"kind": "mel_rvq", "num_codebooks": 2, "codebook_size": 8, "kmeans_iterations": 2},
        "splits": {"allow_speaker_overlap": True},
    }  # fmt: skip
    (tmp_path / "prepare.yaml").write_text(json.dumps(prepare))
    count = (len(sounds) + 1) // 2
    asked = evaluation(
        tmp_path / "my evaluation", tmp_path / "my tokens", ("original/1",), num_strings=count, num_samples=count,
        pool={"size": 1},
    )  # fmt: skip
    tree = asked.model_dump(mode="json")
    tree["systems"].append({"name": "through the codec", "kind": "resynthesis"})
    (tmp_path / "evaluate.yaml").write_text(json.dumps(tree))
    with ray_session(num_cpus=2):
        assert cli.run(["prepare", str(tmp_path / "prepare.yaml")]) == 0
        assert {r.id for r in TokenSet.open(tmp_path / "my tokens" / "result")} == set(sounds)
        assert cli.run(["evaluate", str(tmp_path / "evaluate.yaml")]) == 0
        again = job.run_evaluate(validate(tree, EvaluateConfig, where="test"), QuietProgress())
    assert again["missing"] == {}
    assert len(heard(tmp_path / "my evaluation" / "result" / "report.html")) == 2 * count
