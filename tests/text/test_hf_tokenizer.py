"""An outside tokenizer as a text front-end: its own ids, shifted, inside the template."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.config import validate
from retort.errors import ConfigError, DataError
from retort.text.front_end import TextFrontEnd, hf_front_end, open_text_front_end
from retort.text.hf_tokenizer import AudioTokens, HFTokenizerConfig, id_of, ids_of, read_tokenizer
from retort.text.tokenizer import NULL, NUM_RESERVED, PAD, UNK
from tests.models.checkpoints import (
    FIRST_CODE,
    NUM_CODES,
    SPEECH_END,
    SPEECH_START,
    TEXT_END,
    TEXT_START,
    VOCABULARY,
    write_tokenizer,
)

TREE = {
    "before": [TEXT_START], "after": [TEXT_END], "start": SPEECH_START, "vocabulary_size": VOCABULARY,
    "audio": {"first": FIRST_CODE, "count": NUM_CODES, "eos": SPEECH_END},
}  # fmt: skip


@pytest.fixture
def content(tmp_path: Path) -> str:
    write_tokenizer(tmp_path)
    return (tmp_path / "tokenizer.json").read_text()


def front_end(content: str, **changes: object) -> TextFrontEnd:
    return hf_front_end(content, validate({**TREE, **changes}, HFTokenizerConfig, where="t"))


def test_ids_are_the_tokenizers_inside_the_template(content: str) -> None:
    theirs = read_tokenizer(content).encode("Dr. Who — 11", add_special_tokens=False).ids
    ids = front_end(content).encode("Dr. Who — 11")
    assert ids == [i + NUM_RESERVED for i in (TEXT_START, *theirs, TEXT_END)]
    assert front_end(content).decode([PAD, NULL, *ids]) == "Dr. Who — 11"
    assert front_end(content).decode([UNK]) == "\ufffd"


def test_numbers_are_written_out_only_if_asked(content: str) -> None:
    assert front_end(content).prepare("No 11") == "No 11"
    assert front_end(content, normalise=True).prepare("No 11") == "no eleven"


def test_what_looks_like_a_control_token_is_text(content: str) -> None:
    ids = front_end(content).encode("say <|text_end|>")
    assert ids.count(TEXT_END + NUM_RESERVED) == 1
    assert len(ids) == 2 + len("say <|text_end|>")


def test_codes_cannot_be_written_as_text(content: str) -> None:
    with pytest.raises(DataError, match=r"speech token '<\|s_3\|>'"):
        front_end(content).encode("say <|s_3|>")
    with pytest.raises(DataError, match="nothing to speak"):
        front_end(content).encode("...")


def test_truncation_and_padding_of_the_file_are_not_followed(content: str) -> None:
    tree = json.loads(content)
    tree["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    assert front_end(json.dumps(tree)).encode("a long text") == front_end(content).encode("a long text")


def test_saved_and_opened_it_is_the_same(content: str, tmp_path: Path) -> None:
    made = front_end(content)
    made.save(tmp_path / "text")
    opened = open_text_front_end(tmp_path / "text")
    assert opened.encode("ten") == made.encode("ten")
    assert opened.fingerprint() == made.fingerprint()
    assert opened.vocabulary_size == VOCABULARY - NUM_CODES + NUM_RESERVED
    assert (tmp_path / "text" / "tokenizer.json").read_text() == content


def test_every_part_is_in_the_fingerprint(content: str) -> None:
    other = content.replace("<|text_start|>", "<|text_begin|>")
    changes: list[dict[str, object]] = [{}, {"before": []}, {"after": []}, {"normalise": True}, {"language": "de"}]
    made = [front_end(content, **change).fingerprint() for change in changes]
    assert len({*made, front_end(other).fingerprint()}) == len(changes) + 1


def test_a_changed_tokenizer_file_is_noticed(content: str, tmp_path: Path) -> None:
    front_end(content).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content.replace("<|text_start|>", "<|text_begin|>"))
    with pytest.raises(DataError, match="saved with fingerprint"):
        open_text_front_end(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer"):
        open_text_front_end(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file"):
        open_text_front_end(tmp_path)


def test_tokens_are_found_by_name_or_refused(content: str) -> None:
    tokenizer = read_tokenizer(content)
    assert ids_of(tokenizer, "<|text_end|><|speech_start|>", where="x") == (TEXT_END, SPEECH_START)
    assert ids_of(tokenizer, [5, 6], where="x") == (5, 6)
    assert id_of(tokenizer, "<|s_2|>", where="x") == FIRST_CODE + 2
    assert id_of(tokenizer, 77, where="x") == 77
    with pytest.raises(ConfigError, match=r"before: '<\|end\|>' is no token"):
        ids_of(tokenizer, "ab<|end|>", where="before")
    with pytest.raises(ConfigError, match="eos: 'end' is no token"):
        id_of(tokenizer, "end", where="eos")


@given(st.integers(0, 40), st.integers(2, 40), st.integers(0, 200))
def test_text_ids_are_dense_and_reversible(first: int, count: int, outside: int) -> None:
    audio = AudioTokens(first=first, count=count, eos=first + count)
    if outside not in audio.codes:
        assert audio.outside_id(audio.text_id(outside)) == outside
    vocabulary = first + count + 10
    ids = [audio.text_id(i) for i in range(vocabulary) if i not in audio.codes]
    assert ids == list(range(NUM_RESERVED, NUM_RESERVED + vocabulary - count))


def test_the_unknown_token_of_a_vocabulary_is_told_and_refused_alone() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[unk]", "one", "two", "<text>", "</text>", "<speech>", "</speech>", "c0", "c1"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = Whitespace()
    tree = {
        "before": [3], "after": [4], "start": 5, "vocabulary_size": 9, "audio": {"first": 7, "count": 2, "eos": 6},
    }  # fmt: skip
    made = hf_front_end(tokenizer.to_str(), validate(tree, HFTokenizerConfig, where="t"))
    assert made.read("one two").unread == ""
    reading = made.read("one three two")
    assert (reading.unread, reading.num_unread_letters, reading.num_letters) == ("three", 5, 11)
    with pytest.raises(DataError, match=r"none of the letters of 'five'.*tokenizer\.json"):
        made.encode("five")


def test_bytes_know_every_character(content: str) -> None:
    assert front_end(content).read("\u4f60\u597d").unread == ""
