import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from retort.data.logit_cache import DEFAULT_ENCODING, decode_top_k, encode_top_k
from retort.data.prompts import Prompt
from retort.data.synthetic import (
    SAMPLED,
    SYNTHETIC_FILE,
    TARGETS,
    SyntheticDescription,
    SyntheticSet,
    forced_record,
    forced_schema,
    sampled_record,
    sampled_schema,
)
from retort.data.tokens import TokenRow, TokenSetDescription
from retort.errors import DataError
from retort.losses.divergence import top_k_of
from retort.nn.guidance import NoGuidance, TwoTermGuidance
from retort.nn.top_k import TopK

TOKENS = TokenSetDescription(
    codec_fingerprint="mel_rvq-1", text_fingerprint="t1", text_vocabulary_size=30, num_codebooks=2, codebook_size=16,
    sample_rate=16000, frame_rate=40.0,
)  # fmt: skip
DESCRIPTION = SyntheticDescription(
    teacher_fingerprint="codec_lm-1",
    data_fingerprint="d1",
    tokens=TOKENS,
    delays=(0, 1),
    guidance=TwoTermGuidance(scale=1.5),
    coefficients=dict(TwoTermGuidance(scale=1.5).build().coefficients),
    temperature=1.0,
    top_k=8,
    encoding=DEFAULT_ENCODING,
    sampler={"temperature": 0.9, "top_k": None, "top_p": None},
    prompt_max_frames=120,
    precision="fp32",
    seed=7,
    code_version="0.1.0",
)


def _encoded(seed, T):
    logits = torch.randn(1, T + 1, 2, 17, generator=torch.Generator().manual_seed(seed)) * 3
    top = top_k_of(logits, 8)
    return encode_top_k(TopK(top.ids[0], top.log_probs[0], top.log_tail[0]), codebook_size=16)


def _row(name, T):
    codes = torch.arange(2 * T).view(2, T) % 16
    return TokenRow(name, "one two", (3, 4), "anna", "train", codes, T / 40)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path)


def write(tmp_path):
    """Three forced and two sampled rows, in shards whose order is not that of the ids."""
    (tmp_path / SYNTHETIC_FILE).write_text(DESCRIPTION.model_dump_json())
    (tmp_path / TARGETS).mkdir()
    (tmp_path / SAMPLED).mkdir()
    forced = [forced_record(f"u{i}", Prompt("u9", 9, 0.25), _encoded(i, 5 + i), DESCRIPTION) for i in (2, 0, 1)]
    pq.write_table(pa.Table.from_pylist(forced[:2], schema=forced_schema()), tmp_path / TARGETS / "part-00000.parquet")
    pq.write_table(pa.Table.from_pylist(forced[2:], schema=forced_schema()), tmp_path / TARGETS / "part-00001.parquet")
    sampled = [sampled_record(_row(f"s{i}", 4 + i), None, _encoded(10 + i, 4 + i), 99, DESCRIPTION) for i in (1, 0)]
    pq.write_table(pa.Table.from_pylist(sampled, schema=sampled_schema()), tmp_path / SAMPLED / "part-00000.parquet")
    return tmp_path


def _equal(a, b):
    return torch.equal(a.ids, b.ids) and torch.equal(a.log_probs, b.log_probs) and torch.equal(a.log_tail, b.log_tail)


def test_what_was_written_is_read(folder):
    opened = SyntheticSet.open(folder)
    assert opened.description == DESCRIPTION
    assert set(opened.teacher_forced) == {"u0", "u1", "u2"}
    assert _equal(opened.teacher_forced["u1"], decode_top_k(_encoded(1, 6)))
    assert [row.id for row in opened.sampled] == ["s0", "s1"]
    assert [row.split for row in opened.sampled] == ["train", "train"]
    assert torch.equal(opened.sampled[1].codes_KT, _row("s1", 5).codes_KT)
    assert _equal(opened.sampled_targets["s0"], decode_top_k(_encoded(10, 4)))
    with pytest.raises(KeyError):
        opened.teacher_forced["s0"]


def test_every_row_says_what_it_was_made_with(folder):
    for part, kind, seed in ((TARGETS, "teacher_forced", 7), (SAMPLED, "sampled", 99)):
        for record in pq.read_table(folder / part).to_pylist():
            assert record["kind"] == kind
            assert record["teacher_fingerprint"] == "codec_lm-1"
            assert record["guidance"] == '{"full": 1.5, "null": -0.5}'
            assert '"temperature": 0.9' in record["sampler"]
            assert record["seed"] == seed
            assert record["code_version"] == "0.1.0"


def test_lookup_serves_real_and_sampled_rows_by_index(folder):
    opened = SyntheticSet.open(folder)
    rows = [_row("u2", 7), opened.sampled[0], _row("u0", 5)]
    lookup = opened.lookup(rows)
    assert len(lookup) == 3
    assert list(lookup) == [0, 1, 2]
    assert _equal(lookup[0], opened.teacher_forced["u2"])
    assert _equal(lookup[1], opened.sampled_targets["s0"])
    with pytest.raises(KeyError):
        lookup[3]
    with pytest.raises(DataError, match="no targets for 1 of 2 rows, the first is 'u7'"):
        opened.lookup([_row("u0", 5), _row("u7", 5)])


def test_targets_made_for_something_else_are_refused_with_both_values(folder):
    opened = SyntheticSet.open(folder)
    fits = {
        "data_fingerprint": "d1", "guidance": TwoTermGuidance(scale=1.5), "temperature": 1.0, "prompt_max_frames": 120,
    }  # fmt: skip
    opened.refuse_unfit(**fits)
    for change, message in (
        ({"data_fingerprint": "d2"}, "token set d1, this run asks for d2"),
        ({"guidance": NoGuidance()}, '"null": -0.5.*"full": 1.0'),
        ({"temperature": 2.0}, "temperature 1.0, this run asks for 2.0"),
        ({"prompt_max_frames": 50}, "prompt_max_frames 120, this run asks for 50"),
    ):
        with pytest.raises(DataError, match=message):
            opened.refuse_unfit(**{**fits, **change})


def test_an_id_that_appears_twice_is_refused(folder):
    shard = folder / TARGETS / "part-00000.parquet"
    (folder / TARGETS / "part-00002.parquet").write_bytes(shard.read_bytes())
    with pytest.raises(DataError, match="2 ids appear twice"):
        SyntheticSet.open(folder)


def test_a_set_without_sampled_rows_is_fine_and_another_folder_is_refused(folder, tmp_path):
    (folder / SAMPLED / "part-00000.parquet").unlink()
    assert len(SyntheticSet.open(folder).sampled) == 0
    with pytest.raises(DataError, match="not a synthetic set"):
        SyntheticSet.open(tmp_path / "elsewhere")
    (folder / SYNTHETIC_FILE).write_text("{}")
    with pytest.raises(DataError, match="not of this version"):
        SyntheticSet.open(folder)


def test_a_damaged_cell_is_refused_when_it_is_read(folder):
    shard = folder / TARGETS / "part-00001.parquet"
    record = pq.read_table(shard).to_pylist()[0]
    record["top_k"] = record["top_k"][:-1] + bytes([record["top_k"][-1] ^ 1])
    pq.write_table(pa.Table.from_pylist([record], schema=forced_schema()), shard)
    opened = SyntheticSet.open(folder)
    with pytest.raises(DataError, match="damaged"):
        opened.teacher_forced["u1"]
