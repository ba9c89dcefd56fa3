"""Who judges an evaluation: those that are installed, and how it is said that one had a part in what it judges."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from retort.config import load_tree, validate
from retort.errors import ConfigError
from retort.evaluation import wheels
from retort.evaluation.asr import PocketSphinxConfig, recogniser_name
from retort.evaluation.results import SystemInfo, summarise
from retort.evaluation.wheels import DISTILLMOS, DNSMOS, WHISPER_EXTRA, WHISPER_WEIGHTS, missing
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.orchestration.evaluate.listeners import listeners_of, with_part
from retort.orchestration.evaluate.scorers import with_installed
from retort.orchestration.evaluate.system_facts import note_of
from retort.orchestration.evaluate.tasks import PlainTask
from retort.orchestration.evaluate.worker import EvaluationWorker
from retort.run_config import EvaluateConfig
from retort.store.artifact import describe_artifact, write_artifact
from tests.evaluation.judging import add_recordings, row, token_set

SPHINX = {"kind": "pocketsphinx", "words": ["one", "two"], "noise_gate_db": 35.0}
WHISPER = {"kind": "faster_whisper", "if_installed": True}
GUESSES = [{"kind": "distillmos", "if_installed": True}, {"kind": "dnsmos", "if_installed": True}]
LINEAGE: dict[str, Any] = {"method": "cfg_distill", "codec_fingerprint": "c", "text_fingerprint": "t"}


def evaluation(root: Path, **changes: object) -> EvaluateConfig:
    tree = {
        "output": str(root / "out"), "data": str(root / "data"), "num_strings": 3, "num_resamples": 100,
        "systems": [{"name": "recordings", "kind": "recordings"}], "speed": None,
        "recognisers": [SPHINX, WHISPER], "naturalness": GUESSES,
    }  # fmt: skip
    tree = {key: value for key, value in {**tree, **changes}.items() if value is not None or key == "speed"}
    return validate(tree, EvaluateConfig, where="test")


def lacking(*modules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = wheels.importlib.util.find_spec
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None if name in modules else find(name))


def test_what_is_not_installed_is_left_out_and_said_with_the_cure(tmp_path, monkeypatch):
    lacking("faster_whisper", "speechmos", monkeypatch=monkeypatch)
    config, said = with_installed(evaluation(tmp_path))
    assert [scorer.kind for scorer in config.listening] == ["pocketsphinx"]
    assert "dnsmos" not in [scorer.kind for scorer in config.naturalness]
    assert "faster_whisper did not judge: faster_whisper is not installed; pip install 'retort[whisper]'" in said[0]
    assert "Words were heard by pocketsphinx." in said[0]
    note = note_of(config, [], said)
    assert note is not None
    assert said[0] in note


def test_what_is_asked_of_the_only_recogniser_left_is_asked_without_its_label(tmp_path, monkeypatch):
    lacking("faster_whisper", monkeypatch=monkeypatch)
    metrics = (None, "wer@pocketsphinx", "wer@faster_whisper")
    config, _ = with_installed(
        evaluation(
            tmp_path, margins={"wer@pocketsphinx": 0.1, "wer@faster_whisper": 0.2, "failure_rate": 0.3},
            systems=[{"name": name, "kind": "recordings"} for name in "rs"], confidence_teacher=None,
            comparisons=[{"a": "r", "b": "s", "metric": metric} for metric in metrics],
        )
    )  # fmt: skip
    assert config.margins == {"wer": 0.1, "wer@faster_whisper": 0.2, "failure_rate": 0.3}
    assert [pair.metric for pair in config.comparisons] == [None, "wer", "wer@faster_whisper"]


def test_only_what_is_embedded_is_called_so(tmp_path):
    config = evaluation(tmp_path, recognisers=[{"kind": "faster_whisper"}])
    heard, seen = {"kind": "pocketsphinx"}, {"kind": "resemblyzer"}
    for changes, embedded in (
        ({"recognisers": [heard], "speaker_encoder": None}, "the embedded recogniser;"),
        ({"speaker_encoder": seen}, "the embedded speaker encoder;"),
        ({"recognisers": [heard], "speaker_encoder": seen}, "the embedded recogniser and speaker encoder;"),
    ):
        assert f"scored by {embedded}" in str(note_of(config.replace(**changes), []))
    assert "embedded" not in str(note_of(config.replace(speaker_encoder=None), []))


def test_what_must_be_there_is_not_left_out_and_nobody_at_all_is_refused(tmp_path, monkeypatch):
    lacking("faster_whisper", monkeypatch=monkeypatch)
    asked = evaluation(tmp_path, recognisers=[SPHINX, {"kind": "faster_whisper"}], naturalness=None)
    assert with_installed(asked) == (asked, ())
    with pytest.raises(ConfigError, match="no recogniser is left: faster_whisper is not installed"):
        with_installed(evaluation(tmp_path, recognisers=[WHISPER]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recogniser": SPHINX}, "give one `recogniser`, or several `recognisers`, and not both"),
        ({"recognisers": None}, "who listens?"),
        ({"recognisers": [SPHINX, SPHINX]}, "their labels must differ.*give them a `label` each"),
        ({"naturalness": [GUESSES[0], GUESSES[0]]}, "twice"),
        ({"margins": {"wer@ctc": 0.1}}, "'wer@ctc' names no recogniser of several; there are pocketsphinx, faster_wh"),
        ({"recognisers": [SPHINX], "margins": {"wer@pocketsphinx": 0.1}}, "one recogniser has no label"),
        ({"margins": {"rtf@pocketsphinx": 0.1}}, "unknown figure"),
    ],
)
def test_who_listens_is_told_once_and_by_names_that_differ(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        evaluation(tmp_path, **changes)


def test_one_recogniser_stands_as_it_did_and_labels_may_be_given(tmp_path):
    one = evaluation(tmp_path, recognisers=None, recogniser=SPHINX)
    assert [scorer.kind for scorer in one.listening] == ["pocketsphinx"]
    two = evaluation(tmp_path, recognisers=[SPHINX, {**SPHINX, "label": "open", "words": None}],
                     margins={"wer@open": 0.1})  # fmt: skip
    assert two.margins == {"wer@open": 0.1}


NEEDED = missing((*WHISPER_EXTRA, *WHISPER_WEIGHTS, *DISTILLMOS, *DNSMOS))


@pytest.mark.skipif(NEEDED is not None, reason=str(NEEDED))
def test_a_worker_lets_everybody_judge_and_naturalness_some(tmp_path):
    torch.manual_seed(0)
    tokens = token_set(tmp_path / "tokens", [row(f"u{i}", "a", "test", torch.ones(2, 4).long()) for i in range(3)])
    add_recordings(tokens, {f"u{i}": 0.1 for i in range(3)})
    info = describe_artifact("tokens", "data", "1", inputs={}, config={})
    write_artifact(tmp_path / "data", info, lambda folder: shutil.copytree(tokens, folder, dirs_exist_ok=True))
    config = evaluation(tmp_path, naturalness_strings=2)
    folder = tmp_path / "pieces"
    folder.mkdir()
    task = PlainTask("recordings", 0, ("u0", "u1", "u2"))
    EvaluationWorker(config.model_dump(mode="json"), 1).judge(task, str(folder), [])
    items = task.piece(folder).read(None)
    names = [recogniser_name(scorer) for scorer in config.listening]
    assert all([found.recogniser for found in item.heard.values()] == names for item in items)
    assert all(item.recogniser == names[0] and names[1] in item.scorers for item in items)
    assert sorted(len(item.values) for item in items) == [0, 5, 5]
    (system,) = summarise(items, [SystemInfo("recordings", "reference")]).systems
    assert (system["distillmos_utterances"], system["dnsmos_utterances"]) == (2, 2)
    assert system["wer_corpus@faster_whisper"] is not None


def model_of(root: Path, config: dict[str, Any]) -> Path:
    return write_artifact(root, describe_artifact("model", "m", "1", inputs={}, config=config), lambda _: None).path


def test_recognisers_that_chose_filtered_or_judged_a_sweep_are_known(tmp_path):
    name = recogniser_name(PocketSphinxConfig(words=("one", "two"), noise_gate_db=35.0))
    assert listeners_of(tmp_path, CodecLMLineage(**LINEAGE)) == {}
    assert listeners_of(tmp_path, CodecLMLineage(**LINEAGE, selected_by=name)) == {name: "chose the layers"}
    filtered = {"filters": {"max_wer": 0.3, "recogniser": SPHINX}}
    synthetic = write_artifact(
        tmp_path / "synthetic" / "result", describe_artifact("logits", "s", "1", inputs={}, config=filtered),
        lambda _: None,
    )  # fmt: skip
    student = model_of(tmp_path / "student", {"method": {"synthetic": str(synthetic.path.parent)}, "steps": 3})
    assert listeners_of(student, CodecLMLineage(**LINEAGE)) == {name: "filtered the data"}
    both = {name: "chose the layers and filtered the data"}
    assert listeners_of(student, CodecLMLineage(**LINEAGE, selected_by=name)) == both, "each part is told"
    assert with_part(both, name, "filtered the data") == both, "once"
    sweep = load_tree(Path("tune_configs/demo.yaml"))
    winner = model_of(tmp_path / "sweep" / "trials" / "0003" / "student", {})
    (tmp_path / "sweep" / "run.yaml").write_text(yaml.safe_dump(sweep))
    assert set(listeners_of(winner, CodecLMLineage(**LINEAGE)).values()) == {"judged the sweep"}


@pytest.mark.parametrize("alone", [True, False])
def test_a_judge_with_a_part_in_a_system_is_never_the_only_one_without_a_warning(tmp_path, alone):
    config = evaluation(tmp_path, recognisers=[SPHINX] if alone else [SPHINX, {"kind": "pocketsphinx", "label": "b"}])
    name = recogniser_name(config.listening[0])
    note = note_of(config, [SystemInfo("s", "student", listeners={name: "chose the layers"})])
    assert note is not None
    assert f"{name} chose the layers of s" in note
    assert ("No other recogniser listened: add one to `recognisers`" in note) is alone
    assert "No other" not in str(note_of(config, [SystemInfo("s", "student")]))
