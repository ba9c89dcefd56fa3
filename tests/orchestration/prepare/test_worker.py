# ruff: noqa: RUF001
"""The worker of ``prepare`` without a Ray: texts that the front-end cannot read."""

import pytest

from retort.audio.mel_rvq import MelRVQConfig, fit_mel_rvq
from retort.config import validate
from retort.data.references import plan_references
from retort.orchestration.prepare.told import told_languages, told_unread
from retort.orchestration.prepare.worker import CODEC, REFERENCES, TEXT, PrepareWorker
from retort.run_config import PrepareConfig
from retort.text.front_end import build_text_front_end
from tests.orchestration.tiny_runs import tone, write_ljspeech

TEXTS = {
    "T000": "one two three",
    "T001": "你好，世界",
    "T002": "say 你好 again and again",
    "T003": "привет, мир",
    "T004": "naïve café",
    "T005": "a 你好",
}


def _work(tmp_path, **changes):
    folder = write_ljspeech(tmp_path / "corpus", len(TEXTS))
    (folder / "metadata.csv").write_text("".join(f"{name}|{text}\n" for name, text in TEXTS.items()))
    tree = {
        "job": "prepare", "output": str(tmp_path / "out"), "corpus": {"kind": "ljspeech", "path": str(folder)},
        "codec": {"kind": "mel_rvq"}, "text": {"kind": "characters"}, **changes,
    }  # fmt: skip
    config = validate(tree, PrepareConfig, where="test")
    plan = plan_references(config.corpus, config.splits, tmp_path / REFERENCES, fit_utterances=1)
    codec_config = MelRVQConfig(num_codebooks=2, codebook_size=16, kmeans_iterations=2)
    fit_mel_rvq([tone(i, 1.0) for i in range(4)], codec_config).save(tmp_path / CODEC)
    build_text_front_end(config.text).save(tmp_path / TEXT)
    worker = PrepareWorker(config.model_dump(mode="json"), tmp_path)
    return config, plan, worker.work(0)


@pytest.mark.parametrize(
    ("changes", "rejected", "unread"),
    [
        ({}, {"T001", "T003", "T005"}, {"unread/你": 1, "unread/好": 1}),
        ({"max_unread_fraction": 0.05}, {"T001", "T002", "T003", "T005"}, {}),
        ({"max_unread_fraction": 0.7}, {"T001", "T003"}, {"unread/你": 2, "unread/好": 2}),
        ({"text": {"kind": "phonemes"}}, {"T001", "T003", "T005"}, {"unread/你": 1, "unread/好": 1}),
    ],
)
def test_rows_that_cannot_be_read_are_rejected_by_reason_and_the_rest_is_counted(tmp_path, changes, rejected, unread):
    _, _, result = _work(tmp_path, **changes)
    assert {reject.id for reject in result.rejects} == rejected
    assert {reject.code for reject in result.rejects} == {"unread_characters"}
    assert {name: count for name, count in result.numbers.items() if name.startswith("unread/")} == unread
    assert all("max_unread_fraction" in reject.detail for reject in result.rejects)
    kept = result.tables["tokens"].column("id").to_pylist()
    assert set(kept) == set(TEXTS) - rejected


def test_all_of_a_text_may_be_lost_where_the_run_file_says_so(tmp_path):
    _, _, result = _work(tmp_path, max_unread_fraction=1.0)
    assert not result.rejects


def test_what_cannot_be_read_is_told_with_a_cure_that_is_there(tmp_path):
    config, plan, _ = _work(tmp_path)
    (line,) = told_unread({"你": 3, "ß": 1}, config)
    assert "你 3, ß 1" in line
    assert "text.alphabet" in line
    assert not list(told_unread({}, config))
    assert not list(told_languages(plan.languages, config, "en-US"))
    (line,) = told_languages({"de": 4, "en_GB": 2}, config, "en")
    assert "4 in de;" in line
    assert "text.language" in line
