import math

import pytest
import torch

from retort.errors import DataError
from retort.tensors import check_cast, check_shapes, check_values, not_finite


def test_values_that_are_no_numbers_are_counted() -> None:
    values = torch.ones(2, 5)
    assert not_finite(values) == ""
    values[0, :3] = math.nan
    values[1, 0] = -math.inf
    assert not_finite(values) == "holds 3 NaN and 1 infinite of 10 values"
    assert not_finite(values.half()) == not_finite(values.bfloat16()) == not_finite(values)
    bad = {f"w{i}": torch.full((2,), math.inf) for i in range(5)}
    with pytest.raises(DataError, match=r"^here: w0 holds 2 infinite of 2 values; w1 .*; w2 .* and 2 more; a cure$"):
        check_values("here", {"fine": torch.ones(3), **bad}, cure="a cure")
    check_values("here", {"fine": torch.ones(3), "whole": torch.arange(3)}, cure="")


def test_a_cast_that_breaks_values_is_told() -> None:
    weights = {"a": torch.tensor([1.0, 7e4, -1e5]), "b": torch.tensor([1e-9, -1e-9, 0.0]), "c": torch.zeros(2)}
    told = check_cast(weights, torch.float16)
    assert told == "a has 2 of 3 values beyond it, up to 1e+05; b would be all zero, its values are at most 1e-09"
    assert check_cast(weights, torch.bfloat16) == check_cast(weights, torch.float32) == ""
    assert "a has 1 of 1 values beyond it" in check_cast({"a": torch.tensor([3.4e38])}, torch.bfloat16)
    assert "a has 1 of 1 values" in check_cast({"a": torch.tensor([math.nan])}, torch.float32)


def test_names_and_shapes_are_compared() -> None:
    with pytest.raises(
        DataError, match=r"here: b is missing; c is unexpected; a has shape \(1,\) instead of \(2,\); do"
    ):
        check_shapes("here", {"a": (1,), "c": (1,)}, {"a": (2,), "b": (1,)}, cure="do")
    check_shapes("here", {"a": (1,)}, {"a": (1,)}, cure="do")
