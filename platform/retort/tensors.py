"""What every file of weights is asked before its numbers are used: names, shapes, and whether they are numbers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from retort.errors import DataError

_SHOWN = 3


def check_shapes(
    where: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, cure: str
) -> None:
    """Compare names and shapes of weights with what a configuration asks for.

    Raises:
        DataError: names or shapes differ; the first few are named.
    """
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is unexpected" for name in found if name not in expected]
    faults += [
        f"{name} has shape {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if faults:
        raise DataError(f"{where}: {_shown(faults)}; {cure}")


def check_values(where: str, weights: Mapping[str, Tensor], *, cure: str) -> None:
    """Refuse weights that are not numbers.

    Raises:
        DataError: the first few tensors that hold NaN or infinity are named, each with how many.
    """
    faults = [f"{name} {said}" for name, tensor in weights.items() if (said := not_finite(tensor))]
    if faults:
        raise DataError(f"{where}: {_shown(faults)}; {cure}")


def not_finite(tensor: Tensor) -> str:
    """How many values are NaN or infinite, in words; nothing if none is."""
    if tensor.is_meta or bool(torch.isfinite(tensor).all()):
        return ""
    nans = int(torch.isnan(tensor).sum())
    infinite = int(torch.isinf(tensor).sum())
    kinds = [f"{count} {kind}" for count, kind in ((nans, "NaN"), (infinite, "infinite")) if count]
    return f"holds {' and '.join(kinds)} of {tensor.numel()} values"


def check_cast(weights: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """What a cast from fp32 would break, in words: numbers too large, or a tensor all of whose numbers become zero."""
    faults = []
    for name, tensor in weights.items():
        cast = tensor.to(dtype)
        lost = int((~torch.isfinite(cast)).sum())
        if lost:
            faults.append(
                f"{name} has {lost} of {tensor.numel()} values beyond it, up to {float(tensor.abs().max()):.4g}"
            )
        elif tensor.any() and not cast.any():
            faults.append(f"{name} would be all zero, its values are at most {float(tensor.abs().max()):.4g}")
    return _shown(faults)


def _shown(faults: list[str]) -> str:
    more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more
