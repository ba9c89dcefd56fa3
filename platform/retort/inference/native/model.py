"""A codec language model that runs in C: packed weights, static caches, one call per batch of columns."""

import ctypes
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from retort.inference.native.build import load_library
from retort.inference.native.packing import (
    PackedMatrix,
    WeightFormat,
    address,
    pack,
    pack_gate_up,
    pad_last,
    padded,
)
from retort.models.codec_lm import CodecLM
from retort.nn.transformer import Block

MAX_BATCH = 256
"""Columns of one call; longer ones are split."""
_FORMATS: tuple[WeightFormat, ...] = ("fp32", "bf16", "int8")


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", _Matrix),
        ("out", _Matrix),
        ("gate_up", _Matrix),
        ("down", _Matrix),
        ("attention_norm", ctypes.c_void_p),
        ("feed_forward_norm", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_dim")),
        *((name, ctypes.c_int32) for name in ("num_codebooks", "codebook_vocabulary", "precision")),
        *((name, ctypes.c_int32) for name in ("max_rows", "max_columns", "max_batch", "num_threads")),
        ("eps", ctypes.c_float),
        ("audio_embedding", ctypes.c_void_p),
        ("cosine", ctypes.c_void_p),
        ("sine", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("heads", _Matrix),
        ("layers", ctypes.POINTER(_Layer)),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_int32),
        ("embedded", ctypes.c_void_p),
        ("tokens", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("num_outputs", ctypes.c_int32),
        ("outputs", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
    )


class NativeModel:
    """A :class:`CodecLM` for inference on a CPU. A row's logits have the same bits in any batch.

    Args:
        model: whose weights are copied, in the packed layout.
        weight_format: number format of the weights; the keys and values are bf16 unless it is fp32.
        max_rows: sequences that are kept at once.
        max_columns: columns (condition and audio steps) of the longest one.
        threads: CPU threads of a call.

    Raises:
        NoCompilerError: the library cannot be built here.
        MemoryError: the buffers cannot be had.
    """

    def __init__(
        self, model: CodecLM, *, weight_format: WeightFormat, max_rows: int, max_columns: int, threads: int
    ) -> None:
        self._library = load_library()
        self._library.retort_new.restype = ctypes.c_void_p
        self.config, self.weight_format = model.config, weight_format
        self.max_rows, self.max_columns = max_rows, padded(max_columns)
        self._kept: list[Tensor] = []
        config, head_dim = model.config, model.config.head_size
        cosine, sine = model.rotary(self.max_columns, torch.device("cpu"))
        half = head_dim // 2
        heads = pack(model.heads.weight, None, weight_format)
        self._logits_stride = heads.outputs
        self.weight_bytes = heads.num_bytes
        layers = (_Layer * config.num_layers)(*(self._layer(block) for block in model.blocks))
        shape = _Model(
            dim=config.dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=head_dim,
            ffn_dim=config.ffn_dim,
            num_codebooks=config.num_codebooks,
            codebook_vocabulary=config.codebook_size + 2,
            precision=_FORMATS.index(weight_format),
            max_rows=max_rows,
            max_columns=self.max_columns,
            max_batch=MAX_BATCH,
            num_threads=threads,
            eps=model.norm.eps,
            audio_embedding=self._keep(model.audio_embedding.weight.detach().float().cpu()),
            cosine=self._keep(cosine[:, :half]),
            sine=self._keep(sine[:, :half]),
            norm=self._keep(pad_last(model.norm.weight)),
            heads=self._matrix(heads),
            layers=layers,
        )
        handle = self._library.retort_new(ctypes.byref(shape))
        if not handle:
            raise MemoryError(f"no memory or threads for {max_rows} rows of {max_columns} columns, {threads} threads")
        self._handle = ctypes.c_void_p(handle)
        self._finalizer = weakref.finalize(self, self._library.retort_free, self._handle)

    def forward(
        self,
        *,
        rows: Sequence[int],
        positions: Sequence[int],
        tokens_CK: Tensor | None = None,
        embedded_CD: Tensor | None = None,
        outputs: Sequence[int] | None = None,
    ) -> Tensor:
        """Fill cache columns, and give the logits [n, K, V + 1] after those named in ``outputs`` (default: all).

        Args:
            rows: cache row of each column; columns of one row are neighbours, in order.
            positions: where in its row each column goes; the columns before it must have been filled.
            tokens_CK: audio tokens of each column, or
            embedded_CD: its embedding.
            outputs: indices of the columns whose logits are wanted.
        """
        if (tokens_CK is None) == (embedded_CD is None):
            raise ValueError("give either tokens or embeddings")
        wanted = list(range(len(rows))) if outputs is None else list(outputs)
        logits = torch.empty(len(wanted), self._logits_stride)
        done = 0
        for begin in range(0, len(rows), MAX_BATCH):
            end = min(begin + MAX_BATCH, len(rows))
            here = [i - begin for i in wanted if begin <= i < end]
            self._call(
                rows[begin:end],
                positions[begin:end],
                None if tokens_CK is None else tokens_CK[begin:end].to(torch.int32).contiguous(),
                None if embedded_CD is None else embedded_CD[begin:end].float().contiguous(),
                here,
                logits[done : done + len(here)],
            )
            done += len(here)
        K, size = self.config.num_codebooks, self.config.output_size
        return logits[:, : K * size].reshape(-1, K, size)

    def advance(self, step: ctypes.Structure) -> None:
        """One step of decoding; ``step`` is the struct of that name in ``forward.c``."""
        if self._library.retort_step(self._handle, ctypes.byref(step)):
            raise ValueError(
                f"a slot of the step is out of the range of {self.max_rows} rows, {self.max_columns} columns"
            )

    def _call(
        self,
        rows: Sequence[int],
        positions: Sequence[int],
        tokens: Tensor | None,
        embedded: Tensor | None,
        outputs: Sequence[int],
        logits: Tensor,
    ) -> None:
        count = len(rows)
        row_array, position_array = (ctypes.c_int32 * count)(*rows), (ctypes.c_int32 * count)(*positions)
        output_array = (ctypes.c_int32 * max(1, len(outputs)))(*outputs)
        call = _Call(
            batch=count,
            embedded=address(embedded),
            tokens=address(tokens),
            rows=ctypes.addressof(row_array),
            positions=ctypes.addressof(position_array),
            num_outputs=len(outputs),
            outputs=ctypes.addressof(output_array),
            logits=address(logits),
        )
        if self._library.retort_forward(self._handle, ctypes.byref(call)):
            raise ValueError(
                f"a row, position or token is out of range: rows {min(rows)} to {max(rows)} of {self.max_rows}, "
                f"positions {min(positions)} to {max(positions)} of {self.max_columns}"
            )

    def _layer(self, block: torch.nn.Module) -> _Layer:
        assert isinstance(block, Block)
        attention, feed_forward = block.attention, block.feed_forward
        config, kept_format = self.config, torch.float32 if self.weight_format == "fp32" else torch.bfloat16
        cache = (self.max_rows, config.num_kv_heads, self.max_columns * config.head_size)
        matrices = {
            "qkv": pack(attention.qkv.weight, attention.qkv.bias, self.weight_format),
            "out": pack(attention.out.weight, None, self.weight_format),
            "gate_up": pack_gate_up(feed_forward.gate_up.weight, self.weight_format),
            "down": pack(feed_forward.down.weight, None, self.weight_format),
        }
        self.weight_bytes += sum(matrix.num_bytes for matrix in matrices.values())
        return _Layer(
            **{name: self._matrix(matrix) for name, matrix in matrices.items()},
            attention_norm=self._keep(pad_last(block.attention_norm.weight)),
            feed_forward_norm=self._keep(pad_last(block.feed_forward_norm.weight)),
            keys=self._keep(torch.zeros(cache, dtype=kept_format)),
            values=self._keep(torch.zeros(cache, dtype=kept_format)),
        )

    def _matrix(self, matrix: PackedMatrix) -> _Matrix:
        for tensor in (matrix.panels, matrix.scales, matrix.bias):
            if tensor is not None:
                self._kept.append(tensor)
        return _Matrix(
            panels=address(matrix.panels),
            scales=address(matrix.scales),
            bias=address(matrix.bias),
            inputs=matrix.inputs,
            outputs=matrix.outputs,
        )

    def _keep(self, tensor: Tensor) -> ctypes.c_void_p:
        self._kept.append(tensor.contiguous())
        return address(self._kept[-1])
