"""A causal convolutional decoder, run block by block with the state that each layer carries.

The layers are those of EnCodec's decoder (Defossez et al., arXiv 2210.13438): causal convolutions whose left edge is a
reflection of the first inputs, transposed convolutions trimmed on the right, an LSTM, and residual blocks. A layer
whose left edge is reflected gives nothing until it has seen as many inputs as it reflects.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class StreamedLayer(Protocol):
    """One layer with its state."""

    def push(self, x_1CT: Tensor) -> Tensor:
        """The outputs [1, C', T'] that these inputs complete; T' may be 0."""
        ...


class StreamedConv:
    """A causal convolution of stride 1.

    Args:
        conv: the convolution, without padding.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        self._conv = conv
        self._padding = (conv.kernel_size[0] - 1) * conv.dilation[0]
        self._tail: Tensor | None = None
        self._has_begun = self._padding == 0

    def push(self, x_1CT: Tensor) -> Tensor:
        """See :class:`StreamedLayer`."""
        if x_1CT.shape[2] == 0:
            return x_1CT.new_zeros(1, self._conv.out_channels, 0)
        held = x_1CT if self._tail is None else torch.cat([self._tail, x_1CT], dim=2)
        if not self._has_begun:
            if held.shape[2] <= self._padding:
                self._tail = held
                return held.new_zeros(1, self._conv.out_channels, 0)
            held = functional.pad(held, (self._padding, 0), mode="reflect")
            self._has_begun = True
        if self._padding:
            self._tail = held[:, :, -self._padding :]
        y: Tensor = self._conv(held)
        return y


class StreamedConvTranspose:
    """A transposed convolution whose kernel is twice its stride: each output comes from two inputs.

    Args:
        conv: the convolution; what it gives beyond ``stride`` outputs an input is trimmed.
    """

    def __init__(self, conv: nn.ConvTranspose1d) -> None:
        self._conv, self._stride = conv, conv.stride[0]
        if conv.kernel_size[0] != 2 * self._stride:
            raise ValueError(f"kernel {conv.kernel_size[0]} is not twice the stride {self._stride}")
        self._last: Tensor | None = None

    def push(self, x_1CT: Tensor) -> Tensor:
        """See :class:`StreamedLayer`."""
        if x_1CT.shape[2] == 0:
            return x_1CT.new_zeros(1, self._conv.out_channels, 0)
        held = x_1CT if self._last is None else torch.cat([self._last, x_1CT], dim=2)
        y: Tensor = self._conv(held)
        skipped = 0 if self._last is None else self._stride
        self._last = x_1CT[:, :, -1:]
        return y[:, :, skipped : y.shape[2] - self._stride]


class StreamedLSTM:
    """An LSTM over time, with a skip connection around it if ``has_skip``."""

    def __init__(self, lstm: nn.LSTM, *, has_skip: bool) -> None:
        self._lstm, self._has_skip = lstm, has_skip
        self._state: tuple[Tensor, Tensor] | None = None

    def push(self, x_1CT: Tensor) -> Tensor:
        """See :class:`StreamedLayer`."""
        if x_1CT.shape[2] == 0:
            return x_1CT
        x_T1C = x_1CT.permute(2, 0, 1)
        y_T1C, self._state = self._lstm(x_T1C, self._state)
        out: Tensor = y_T1C + x_T1C if self._has_skip else y_T1C
        return out.permute(1, 2, 0)


class StreamedResidual:
    """Two branches and their sum; the one that is ahead waits for the other."""

    def __init__(self, shortcut: StreamedLayer, block: StreamedLayer) -> None:
        self._shortcut, self._block = shortcut, block
        self._ahead: Tensor | None = None

    def push(self, x_1CT: Tensor) -> Tensor:
        """See :class:`StreamedLayer`."""
        short, deep = self._shortcut.push(x_1CT), self._block.push(x_1CT)
        held = short if self._ahead is None else torch.cat([self._ahead, short], dim=2)
        ready = deep.shape[2]
        self._ahead = held[:, :, ready:]
        return held[:, :, :ready] + deep


class StreamedPlain:
    """A layer that looks at one time step only, as an activation does."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def push(self, x_1CT: Tensor) -> Tensor:
        """See :class:`StreamedLayer`."""
        y: Tensor = self._layer(x_1CT)
        return y


class StreamedSequence:
    """Layers one after the other."""

    def __init__(self, layers: list[StreamedLayer]) -> None:
        self._layers = layers

    def push(self, x_1CT: Tensor) -> Tensor:
        """See :class:`StreamedLayer`."""
        for layer in self._layers:
            x_1CT = layer.push(x_1CT)
        return x_1CT


def streamed(layer: Any) -> StreamedLayer:
    """The streamed form of a layer of the ``encodec`` package, with a state of its own.

    Raises:
        TypeError: a layer that is not causal, or of another kind.
    """
    from encodec.modules import SConv1d, SConvTranspose1d
    from encodec.modules.lstm import SLSTM
    from encodec.modules.seanet import SEANetResnetBlock

    match layer:
        case SConv1d() if layer.causal and layer.conv.conv.stride[0] == 1:
            return StreamedConv(layer.conv.conv)
        case SConvTranspose1d() if layer.causal and layer.trim_right_ratio == 1.0:
            return StreamedConvTranspose(layer.convtr.convtr)
        case SLSTM():
            return StreamedLSTM(layer.lstm, has_skip=layer.skip)
        case SEANetResnetBlock():
            return StreamedResidual(streamed(layer.shortcut), streamed(layer.block))
        case nn.Sequential():
            return StreamedSequence([streamed(part) for part in layer])
        case nn.ELU() | nn.Identity():
            return StreamedPlain(layer)
    raise TypeError(f"{type(layer).__name__} has no streamed form here")
