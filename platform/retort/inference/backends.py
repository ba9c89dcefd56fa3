"""Which runner decodes: C or torch, and in which number format; measured where the caller asks for the fastest."""

import copy
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from retort.inference.native.build import NoCompilerError, load_library
from retort.inference.native.packing import WeightFormat
from retort.inference.native.runner import MAX_CODEBOOKS, NativeRunner
from retort.inference.runner import Plan, Runner
from retort.inference.sampling import SamplerConfig
from retort.inference.torch_runner import TorchRunner
from retort.models.codec_lm import CodecLM
from retort.nn.precision import pick_dtype

DecodePrecision = Literal["fp32", "bf16", "int8", "auto", "fastest"]
"""``auto`` is bf16 where the device multiplies it, else fp32: the same everywhere of one kind, so results can be
repeated. ``fastest`` is measured when the model is opened, and may differ from machine to machine. int8 is for CPUs."""

_FORMATS: tuple[WeightFormat, ...] = ("fp32", "bf16", "int8")
_TIMED_COLUMNS, _TIMED_STEPS, _TIMED_ROUNDS = 128, 12, 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Capacity:
    """What a runner must hold: utterances at once, conditions of the guidance, columns, and CPU threads to use."""

    max_slots: int
    max_conditions: int
    max_columns: int
    threads: int

    def covers(self, other: "Capacity") -> bool:
        """Whether whatever fits ``other`` fits here."""
        return (
            self.max_slots >= other.max_slots
            and self.max_conditions >= other.max_conditions
            and self.max_columns >= other.max_columns
            and self.threads == other.threads
        )


def open_runner(model: CodecLM, capacity: Capacity, *, precision: DecodePrecision) -> Runner:
    """A runner for a model: in C on CPUs, in torch on GPUs and where nothing compiles C (which is logged).

    Raises:
        ValueError: int8 is asked for where only torch can run.
    """
    device = model.heads.weight.device
    if device.type == "cpu" and model.config.num_codebooks <= MAX_CODEBOOKS:
        try:
            return _native(model, capacity, precision)
        except NoCompilerError as error:
            _log.warning("decoding in torch, several times slower than in C: %s", error)
    if precision == "int8":
        raise ValueError("int8 weights need the C runner: a CPU and a C compiler")
    dtype = pick_dtype("auto" if precision == "fastest" else precision, device)
    fitting = model if model.heads.weight.dtype == dtype else copy.deepcopy(model).to(dtype)
    return TorchRunner(
        fitting.eval(),
        max_slots=capacity.max_slots,
        max_conditions=capacity.max_conditions,
        max_columns=capacity.max_columns,
    )


def _native(model: CodecLM, capacity: Capacity, precision: DecodePrecision) -> NativeRunner:
    load_library()
    match precision:
        case "fp32" | "bf16" | "int8":
            weight_format: WeightFormat = precision
        case "auto":
            weight_format = "bf16" if pick_dtype("auto") == torch.bfloat16 else "fp32"
        case "fastest":
            step_ms = measure_formats(model, capacity)
            weight_format = min(step_ms, key=lambda name: step_ms[name])
            timings = ", ".join(f"{name} {value:.2f} ms" for name, value in step_ms.items())
            _log.info("decoding in %s: a step of %d takes %s", weight_format, capacity.max_slots, timings)
    return NativeRunner(
        model,
        weight_format=weight_format,
        max_slots=capacity.max_slots,
        max_conditions=capacity.max_conditions,
        max_columns=capacity.max_columns,
        threads=capacity.threads,
    )


def measure_formats(model: CodecLM, capacity: Capacity) -> Mapping[WeightFormat, float]:
    """Milliseconds that a step of all slots takes in each number format, at its best, the formats taking turns."""
    prefix = torch.zeros(8, model.config.dim)
    plan = Plan(
        (prefix,) * capacity.max_conditions,
        (1.0,) + (0.0,) * (capacity.max_conditions - 1),
        SamplerConfig(),
        seed=0,
        max_frames=_TIMED_COLUMNS,
        may_end=False,
    )
    runners: dict[WeightFormat, NativeRunner] = {}
    for name in _FORMATS:
        runners[name] = NativeRunner(
            model,
            weight_format=name,
            max_slots=capacity.max_slots,
            max_conditions=capacity.max_conditions,
            max_columns=_TIMED_COLUMNS,
            threads=capacity.threads,
        )
    slots = list(range(capacity.max_slots))
    best = dict.fromkeys(_FORMATS, float("inf"))
    for _ in range(_TIMED_ROUNDS):
        for name, runner in runners.items():
            for slot in slots:
                runner.admit(slot, plan)
            for _ in range(_TIMED_STEPS):
                begin = time.perf_counter()
                runner.step(slots)
                best[name] = min(best[name], 1e3 * (time.perf_counter() - begin))
    return best
