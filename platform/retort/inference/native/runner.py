"""The runner for CPUs: one call into C advances every chosen slot, from embeddings to drawn tokens."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from retort.inference.native.model import MAX_BATCH, NativeModel
from retort.inference.native.packing import WeightFormat
from retort.inference.runner import MAX_CONDITIONS, Plan
from retort.models.codec_lm import CodecLM, CodecLMConfig

MAX_CODEBOOKS = 64


class _Slot(ctypes.Structure):
    _fields_ = (
        ("num_conditions", ctypes.c_int32),
        ("rows", ctypes.c_int32 * MAX_CONDITIONS),
        ("positions", ctypes.c_int32 * MAX_CONDITIONS),
        ("coefficients", ctypes.c_float * MAX_CONDITIONS),
        ("temperature", ctypes.c_float),
        ("top_p", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("may_end", ctypes.c_int32),
        ("step", ctypes.c_int32),
        ("end", ctypes.c_int32),
        ("has_ended", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("tokens", ctypes.c_int32 * MAX_CODEBOOKS),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("num_slots", ctypes.c_int32),
        ("slots", ctypes.c_void_p),
        ("chosen", ctypes.c_void_p),
        ("delays", ctypes.c_void_p),
        ("guided", ctypes.c_void_p),
    )


class NativeRunner:
    """A :class:`~retort.inference.runner.Runner` on :class:`NativeModel`: same seed, same bits, in any batch.

    Args:
        model: the weights, which are copied.
        weight_format: fp32, bf16, or int8 weights with exact integer sums.
        max_slots: utterances at once.
        max_conditions: rows that guidance may add up to.
        max_columns: longest condition and audio together.
        threads: CPU threads of a step.

    Raises:
        NoCompilerError: there is no C compiler here.
    """

    is_static = False

    def __init__(
        self,
        model: CodecLM,
        *,
        weight_format: WeightFormat,
        max_slots: int,
        max_conditions: int,
        max_columns: int,
        threads: int,
    ) -> None:
        self.max_slots, self.max_conditions = max_slots, max_conditions
        self._native = NativeModel(
            model,
            weight_format=weight_format,
            max_rows=max_slots * max_conditions,
            max_columns=max_columns,
            threads=threads,
        )
        self._slots = (_Slot * max_slots)()
        words_SW = torch.frombuffer(self._slots, dtype=torch.int32).view(max_slots, -1)
        self._tokens_SK = words_SW.narrow(1, _Slot.tokens.offset // 4, MAX_CODEBOOKS)  # what C writes, without copying
        delays = model.config.codebook_delays
        self._delays = (ctypes.c_int32 * len(delays))(*delays)
        self._fill = (ctypes.c_int32 * MAX_CODEBOOKS)(*([model.config.fill] * MAX_CODEBOOKS))

    @property
    def config(self) -> CodecLMConfig:
        """Shape of the model."""
        return self._native.config

    @property
    def max_columns(self) -> int:
        """Longest condition and audio together, in columns."""
        return self._native.max_columns

    @property
    def weight_format(self) -> WeightFormat:
        """Number format of the weights."""
        return self._native.weight_format

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one step reads."""
        return self._native.weight_bytes

    def warm_up(self) -> None:
        """The library is loaded and the weights are packed already."""

    def admit(self, slot: int, plan: Plan) -> None:
        """Run the conditions of a plan; see :meth:`Runner.admit`."""
        state = self._slots[slot]
        rows = [slot * self.max_conditions + i for i in range(len(plan.prefixes))]
        lengths = [prefix.shape[0] for prefix in plan.prefixes]
        self._native.forward(
            rows=[row for row, length in zip(rows, lengths, strict=True) for _ in range(length)],
            positions=[position for length in lengths for position in range(length)],
            embedded_CD=torch.cat(plan.prefixes),
            outputs=(),
        )
        state.num_conditions = len(rows)
        state.rows[: len(rows)], state.positions[: len(rows)] = rows, lengths
        state.coefficients[: len(rows)] = plan.coefficients
        state.temperature = plan.sampler.temperature
        state.top_p = 1.0 if plan.sampler.top_p is None else plan.sampler.top_p
        state.top_k = plan.sampler.top_k or 0
        state.may_end, state.has_ended, state.step, state.end = int(plan.may_end), 0, 0, plan.max_frames
        state.seed = plan.seed % 2**64
        ctypes.memmove(state.tokens, self._fill, ctypes.sizeof(self._fill))

    def step(self, slots: Sequence[int], *, keep_guided: bool = False) -> tuple[Tensor, Tensor | None]:
        """Advance the chosen slots by one step; see :meth:`Runner.step`."""
        at_once = MAX_BATCH // self.max_conditions
        K, size = self.config.num_codebooks, self.config.output_size
        guided = torch.empty(len(slots), K, size) if keep_guided else None
        for begin in range(0, len(slots), at_once):
            chosen = slots[begin : begin + at_once]
            self._step(chosen, None if guided is None else guided[begin : begin + at_once])
        return self._tokens_SK[list(slots), :K].long(), guided

    def _step(self, slots: Sequence[int], guided: Tensor | None) -> None:
        chosen = (ctypes.c_int32 * len(slots))(*slots)
        step = _Step(
            num_slots=len(slots),
            slots=ctypes.addressof(self._slots),
            chosen=ctypes.addressof(chosen),
            delays=ctypes.addressof(self._delays),
            guided=None if guided is None else guided.data_ptr(),
        )
        self._native.advance(step)
