"""Weights in the layout of ``forward.c``: panels of 16 outputs, inputs in order; see the head of that file.

Both axes are padded with zeros to multiples of 32.
"""

import ctypes
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

WeightFormat = Literal["fp32", "bf16", "int8"]
"""Number format of the weights; activations are fp32 between the products, and sums are fp32 (int8: exact integers)."""

LANES, GROUP = 16, 32


@dataclass(frozen=True)
class PackedMatrix:
    """One weight matrix, packed; the tensors own the memory that C reads.

    Attributes:
        panels: weights, see ``forward.c``.
        scales: for int8, fp32 [outputs / 16, inputs / 32, 16]; else None.
        bias: fp32, one per padded output, or None.
        inputs: number of inputs, padded.
        outputs: number of outputs, padded.
    """

    panels: Tensor
    scales: Tensor | None
    bias: Tensor | None
    inputs: int
    outputs: int

    @property
    def num_bytes(self) -> int:
        """Bytes that one pass over the matrix reads."""
        scales = 0 if self.scales is None else self.scales.numel() * self.scales.element_size()
        return self.panels.numel() * self.panels.element_size() + scales


def padded(size: int) -> int:
    """The next multiple of 32."""
    return -(-size // GROUP) * GROUP


def pad_last(values: Tensor) -> Tensor:
    """Zeros after the last axis, to a multiple of 32, in fp32."""
    return functional.pad(values.detach().float().cpu(), (0, padded(values.shape[-1]) - values.shape[-1])).contiguous()


def pack(weight_OI: Tensor, bias_O: Tensor | None, weight_format: WeightFormat) -> PackedMatrix:
    """Pack ``y = weight x + bias``; int8 rounds the weights of 32 inputs at a time to 127 steps of the largest one."""
    weight = pad_last(weight_OI)
    weight = functional.pad(weight, (0, 0, 0, padded(weight.shape[0]) - weight.shape[0]))
    O, I = weight.shape  # noqa: E741
    scales = None
    if weight_format == "int8":
        groups = weight.view(O, I // GROUP, GROUP)
        step = groups.abs().amax(2).clamp_min(1e-30) / 127
        weight = (groups / step[:, :, None]).round().view(O, I)
        scales = step.view(O // LANES, LANES, I // GROUP).transpose(1, 2).contiguous()
    bias = None if bias_O is None else pad_last(bias_O)
    blocks = weight.view(O // LANES, LANES, I)
    if weight_format == "fp32":
        return PackedMatrix(blocks.transpose(1, 2).contiguous(), None, bias, I, O)
    pairs = blocks.view(O // LANES, LANES, I // 2, 2).transpose(1, 2)
    dtype = torch.bfloat16 if weight_format == "bf16" else torch.int8
    return PackedMatrix(pairs.to(dtype).contiguous(), scales, bias, I, O)


def pack_gate_up(weight_OI: Tensor, weight_format: WeightFormat) -> PackedMatrix:
    """Pack the fused gate and up projections with their panels in turns, so that one thread has both."""
    gate, up = (_pad_rows(pad_last(part)) for part in weight_OI.detach().chunk(2))
    I = gate.shape[1]  # noqa: E741
    turns = torch.stack([gate.view(-1, LANES, I), up.view(-1, LANES, I)], dim=1)
    return pack(turns.reshape(-1, I), None, weight_format)


def _pad_rows(weight_OI: Tensor) -> Tensor:
    return functional.pad(weight_OI, (0, 0, 0, padded(weight_OI.shape[0]) - weight_OI.shape[0]))


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's memory begins, for C; the caller keeps the tensor alive."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
