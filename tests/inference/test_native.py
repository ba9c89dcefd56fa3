"""The forward pass in C: against torch, in every number format, and the same bits in any batch."""

import os
import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retort.data.batches import conditions_for
from retort.inference.backends import Capacity, measure_formats, open_runner
from retort.inference.native import build
from retort.inference.native.model import NativeModel
from retort.inference.native.packing import WeightFormat
from retort.inference.native.runner import NativeRunner
from retort.inference.torch_runner import TorchRunner
from retort.models.codec_lm import CodecLM, CodecLMConfig
from tests.inference.plain_decoding import model

DRIFT: dict[WeightFormat, float] = {"fp32": 1e-5, "bf16": 2e-2, "int8": 2e-2}
"""Bound on the relative error of logits against fp32."""


def demo_sized(**changes: object) -> CodecLM:
    torch.manual_seed(1)
    shape = {
        "text_vocabulary_size": 40, "num_codebooks": 4, "codebook_size": 256, "dim": 192, "num_layers": 3,
        "num_heads": 3, "num_kv_heads": 3, "ffn_dim": 416,
    }  # fmt: skip
    lm = CodecLM(CodecLMConfig.model_validate({**shape, **changes})).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2)
    return lm


def in_c(lm: CodecLM, weight_format: WeightFormat = "fp32", *, rows: int = 8, threads: int = 1) -> NativeModel:
    return NativeModel(lm, weight_format=weight_format, max_rows=rows, max_columns=64, threads=threads)


def both(lm: CodecLM, native: NativeModel, *, S: int = 20) -> tuple[Tensor, Tensor]:
    """Teacher-forced logits [S, K, V + 1] of one row, by torch and by C."""
    given = conditions_for([[5, 6, 7]], [None], lm.config.num_codebooks)
    inputs = torch.randint(0, lm.config.codebook_size, (1, lm.config.num_codebooks, S))
    with torch.no_grad():
        expected = lm(given, inputs)[0]
        prefix = lm.embed_conditions(given)[0][0]
    C = prefix.shape[0]
    native.forward(rows=[2] * C, positions=list(range(C)), embedded_CD=prefix, outputs=())
    got = native.forward(rows=[2] * S, positions=list(range(C, C + S)), tokens_CK=inputs[0].T)
    return expected, got


def relative(expected: Tensor, got: Tensor) -> float:
    return float((expected - got).norm() / expected.norm())


@pytest.mark.parametrize("weight_format", DRIFT)
@pytest.mark.parametrize("changes", [{}, {"num_heads": 6, "num_kv_heads": 2, "qkv_bias": True}, {"ffn_dim": 200}])
def test_logits_are_those_of_torch_within_the_formats_drift(
    weight_format: WeightFormat, changes: dict[str, object]
) -> None:
    lm = demo_sized(**changes)
    expected, got = both(lm, in_c(lm, weight_format))
    assert 0 < relative(expected, got) < DRIFT[weight_format]


def test_shapes_that_are_no_multiples_of_sixteen() -> None:
    lm = model(3)
    expected, got = both(lm, in_c(lm))
    assert relative(expected, got) < 1e-5


@pytest.mark.parametrize("weight_format", DRIFT)
@pytest.mark.parametrize(("dim", "heads"), [(72, 3), (96, 3), (160, 2), (192, 1)])
def test_heads_of_any_size_attend_over_any_length(weight_format: WeightFormat, dim: int, heads: int) -> None:
    lm = demo_sized(dim=dim, num_heads=heads, num_kv_heads=heads)
    expected, got = both(lm, in_c(lm, weight_format), S=50)
    assert 0 < relative(expected, got) < DRIFT[weight_format]


@pytest.mark.parametrize("weight_format", DRIFT)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_column_has_the_same_bits_in_any_batch(weight_format: WeightFormat, threads: int) -> None:
    lm, columns = demo_sized(), 23
    tokens = torch.randint(0, 256, (columns, 4))
    one = in_c(lm, weight_format, rows=columns, threads=threads)
    alone = torch.cat([one.forward(rows=[r], positions=[0], tokens_CK=tokens[r : r + 1]) for r in range(columns)])
    for size in (2, 3, 5, 8, 9, 16, 23):
        native = in_c(lm, weight_format, rows=columns, threads=threads)
        rows = list(range(size))
        assert torch.equal(native.forward(rows=rows, positions=[0] * size, tokens_CK=tokens[:size]), alone[:size])


def test_a_prefix_in_one_call_or_column_by_column_is_the_same() -> None:
    lm = demo_sized()
    tokens = torch.randint(0, 256, (300, 4))[:50]
    whole, stepped = in_c(lm, "bf16"), in_c(lm, "bf16")
    at_once = whole.forward(rows=[0] * 50, positions=list(range(50)), tokens_CK=tokens)
    one_by_one = [stepped.forward(rows=[0], positions=[p], tokens_CK=tokens[p : p + 1]) for p in range(50)]
    assert torch.equal(at_once, torch.cat(one_by_one))


def test_more_columns_than_one_call_takes_are_split() -> None:
    lm = demo_sized()
    native = NativeModel(lm, weight_format="fp32", max_rows=10, max_columns=64, threads=1)
    tokens = torch.randint(0, 256, (600, 4))
    rows, positions = [r for r in range(10) for _ in range(60)], [p for _ in range(10) for p in range(60)]
    every = native.forward(rows=rows, positions=positions, tokens_CK=tokens)
    wanted = [3, 255, 256, 599]
    assert torch.equal(native.forward(rows=rows, positions=positions, tokens_CK=tokens, outputs=wanted), every[wanted])


def test_what_is_out_of_range_is_refused() -> None:
    native = in_c(demo_sized())
    token = torch.zeros(1, 4, dtype=torch.int64)
    for rows, positions, tokens in ([8], [0], token), ([0], [64], token), ([0], [-1], token), ([0], [0], token + 258):
        with pytest.raises(ValueError, match="out of range"):
            native.forward(rows=rows, positions=positions, tokens_CK=tokens)


def test_the_fastest_format_is_chosen_by_measuring(caplog: pytest.LogCaptureFixture) -> None:
    capacity = Capacity(max_slots=2, max_conditions=2, max_columns=64, threads=1)
    lm = demo_sized()
    assert set(measure_formats(lm, capacity)) == {"fp32", "bf16", "int8"}
    with caplog.at_level("INFO"):
        runner = open_runner(lm, capacity, precision="fastest")
    assert isinstance(runner, NativeRunner)
    assert f"decoding in {runner.weight_format}: a step of 2 takes fp32" in caplog.text


def test_without_a_compiler_torch_decodes_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    build.load_library.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    capacity = Capacity(max_slots=1, max_conditions=1, max_columns=64, threads=1)
    try:
        assert isinstance(open_runner(model(2), capacity, precision="auto"), TorchRunner)
        assert "no C compiler (cc, gcc or clang) on PATH" in caplog.text
        with pytest.raises(ValueError, match="int8 weights need the C runner"):
            open_runner(model(2), capacity, precision="int8")
        broken = tmp_path / "cc"
        broken.write_text("#!/bin/sh\necho no such flag >&2\nexit 3\n")
        broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
        with pytest.raises(build.NoCompilerError, match=r"ended with 3:\nno such flag"):
            build.load_library()
    finally:
        build.load_library.cache_clear()
