from dataclasses import replace

import pytest

from retort.config import validate
from retort.data.digits import DIGIT_WORDS
from retort.data.english import EnglishTexts
from retort.data.tokens import TokenSet, write_shard
from retort.errors import ConfigError, DataError
from retort.evaluation.wer import score_text
from retort.orchestration.generate.plan import BATCHES_PER_CHUNK, GenerationPlan, plan_generation
from retort.orchestration.generate.speech_plan import plan_lines
from retort.run_config import GenerateConfig
from tests.orchestration.tiny_runs import write_token_set


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_token_set(tmp_path_factory.mktemp("data"), rows=40, held_out=12)


def _plan(data, **changes):
    tree = {
        "job": "generate", "output": "out", "teacher": "teacher", "data": str(data), "guidance": {"kind": "none"},
        "batch_size": 4, "num_sampled": 50, **changes,
    }  # fmt: skip
    return plan_generation(validate(tree, GenerateConfig, where="test"), TokenSet.open(data))


def _asks(plan):
    return [ask for chunk in plan.sampled for ask in chunk]


def test_every_training_row_is_asked_for_once_in_order_of_length(data):
    plan = _plan(data)
    train = TokenSet.open(data).split("train")
    places = [place for chunk in plan.forced for place in chunk]
    assert sorted(places) == list(range(40))
    lengths = [train[place].num_frames for place in places]
    assert lengths == sorted(lengths)
    assert {len(chunk) for chunk in plan.forced[:-1]} == {4 * BATCHES_PER_CHUNK}
    assert _plan(data, teacher_forced=False).forced == []


def test_asks_are_distinct_use_known_speakers_and_do_not_move(data):
    asks = _asks(_plan(data))
    assert sorted(ask.id for ask in asks) == [f"sampled-{i:07d}" for i in range(50)]
    assert {ask.speaker for ask in asks} == {"s0", "s1", "s2"}
    assert _asks(_plan(data)) == asks
    assert {ask.id: ask for ask in _asks(_plan(data, batch_size=7))} == {ask.id: ask for ask in asks}
    assert {ask.text for ask in _asks(_plan(data, seed=1))} <= {ask.text for ask in asks}
    assert _asks(_plan(data, seed=1)) != asks
    # More sequences are the same ones and some more.
    assert {a.id: (a.text, a.speaker) for a in asks}.items() <= {
        a.id: (a.text, a.speaker) for a in _asks(_plan(data, num_sampled=70))
    }.items()


def test_corpus_texts_are_the_training_texts_alone(data):
    tokens = TokenSet.open(data)
    train = set(tokens.split("train").column("text"))
    assert {ask.text for ask in _asks(_plan(data))} == train


def test_digit_texts_are_new_within_bounds_and_never_held_out(data):
    held_out = set(TokenSet.open(data).split("test").column("text"))
    asks = _asks(_plan(data, num_sampled=3000, texts={"kind": "digits", "min_digits": 2, "max_digits": 2}))
    texts = {ask.text for ask in asks}
    assert len(held_out) == 12
    assert not texts & held_out
    assert len(texts) == 100 - 12
    assert all(len(text.split()) == 2 and set(text.split()) <= set(DIGIT_WORDS) for text in texts)


def test_digits_that_are_all_held_out_are_refused(tmp_path):
    data = write_token_set(tmp_path, rows=2, held_out=0)
    tokens = TokenSet.open(data)
    rows = list(tokens)
    every = [replace(rows[0], id=f"t{i}", text=word, split="test") for i, word in enumerate(DIGIT_WORDS)]
    write_shard(data / "part-00000.parquet", [*rows, *every])
    with pytest.raises(DataError, match=r"raise texts\.max_digits"):
        _plan(data, texts={"kind": "digits", "min_digits": 1, "max_digits": 1})


def test_file_texts_leave_out_what_is_held_out(data, tmp_path):
    held_out = TokenSet.open(data).split("test").column("text")[0]
    (tmp_path / "texts.txt").write_text(f"a new text\n\n{held_out.upper()}!\nanother one\n")
    plan = _plan(data, texts={"kind": "file", "path": str(tmp_path / "texts.txt")})
    assert {ask.text for ask in _asks(plan)} == {"a new text", "another one"}
    assert [(reject.code, reject.where.rpartition(":")[2]) for reject in plan.rejects] == [("held_out_text", "3")]
    assert score_text(held_out) not in {score_text(ask.text) for ask in _asks(plan)}
    (tmp_path / "texts.txt").write_text(held_out)
    with pytest.raises(DataError, match="all of them held out"):
        _plan(data, texts={"kind": "file", "path": str(tmp_path / "texts.txt")})
    with pytest.raises(DataError, match="no such file"):
        _plan(data, texts={"kind": "file", "path": str(tmp_path / "none.txt")})


def test_a_plan_survives_its_file(data, tmp_path):
    plan = _plan(data)
    plan.write(tmp_path / "plan.json")
    assert GenerationPlan.read(tmp_path / "plan.json") == plan


def test_voices_that_are_held_out_say_test_lines_alone():
    texts, voices = EnglishTexts(kind="english", train=60, validation=10, test=60), ("a", "b", "c", "d")
    plain, _ = plan_lines(texts, voices, 0)
    lines, _ = plan_lines(texts, voices, 0, ["d", "b"])
    assert [(line.id, line.text, line.split) for line in lines] == [(p.id, p.text, p.split) for p in plain]
    said = {split: {line.voice for line in lines if line.split == split} for split in ("train", "validation", "test")}
    assert said == {"train": {"a", "c"}, "validation": {"a", "c"}, "test": set(voices)}
    # Whose test lines were whose does not depend on who is held out.
    assert [p for p in plain if p.split == "test"] == [line for line in lines if line.split == "test"]


def test_a_held_out_voice_that_would_say_nothing_is_refused():
    texts = EnglishTexts(kind="english", train=20, validation=2, test=0)
    with pytest.raises(ConfigError, match=r"held_out_voices: b would say nothing: .* there are 0; give more of them"):
        plan_lines(texts, ("a", "b"), 0, ["b"])


@pytest.mark.parametrize(("held_out", "told"), [(["e"], "no voice 'e'; it has a, b"), (["b", "a"], "no voice is left")])
def test_voices_that_cannot_be_held_out_are_refused(held_out, told):
    texts = EnglishTexts(kind="english", train=2, validation=0, test=0)
    with pytest.raises(ConfigError, match=f"held_out_voices: .*{told}"):
        plan_lines(texts, ("a", "b"), 0, held_out)
