"""Pictures of a report, made by hand: SVG charts that follow the page's colours, and spectrograms as small PNGs.

Nothing here needs a plotting library, and no picture refers to anything outside itself. Colours are the page's classes
``c0`` to ``c7``; dashes tell the series apart where colours do not.
"""

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

NUM_COLOURS = 8

_WIDTH, _LEFT, _RIGHT = 480, 48, 20
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_FLOOR_DB = -80.0
_LETTER, _LINE, _LABEL = 7.5, 8.0, 16  # how wide a letter of a label may be; how far it is moved; how high it is
# Anchors of a perceptually even ramp from near black over blue-green to pale yellow, in steps of a quarter.
_RAMP = ((13, 8, 35), (60, 40, 120), (33, 120, 140), (95, 190, 110), (250, 240, 170))


@dataclass(frozen=True)
class Estimate:
    """A value with its interval (None where there is none), drawn in colour ``series``."""

    label: str
    value: float
    low: float | None
    high: float | None
    series: int


@dataclass(frozen=True)
class Line:
    """Values over equally spaced places; None leaves a gap."""

    label: str
    values: Sequence[float | None]
    series: int


@dataclass(frozen=True)
class Point:
    """A place in the plane, drawn as a dot of ``radius`` in colour ``series``."""

    label: str
    x: float
    y: float
    series: int
    radius: float = 6.0


def data_uri(mime: str, content: bytes) -> str:
    """``content`` as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def interval_chart(rows: Sequence[Estimate], *, title: str) -> str:
    """Dots with whiskers, one row per estimate, in percent, on an axis that starts at zero."""
    step, top = 40, 8
    height = top + step * len(rows) + 30
    reach = max([row.value if row.high is None else max(row.high, row.value) for row in rows], default=0.0)
    ticks = _ticks(reach)
    scale = (_WIDTH - 16 - _RIGHT) / max(ticks[-1], 1e-9)
    parts = []
    for tick in ticks:
        x = 16 + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 24}"/>')
        parts.append(_text(x, height - 8, f"{100 * tick:g}", anchor="middle"))
    for index, row in enumerate(rows):
        y = top + step * index + 28
        colour = f"c{row.series % NUM_COLOURS}"
        if row.low is not None and row.high is not None:
            x1, x2 = 16 + row.low * scale, 16 + row.high * scale
            parts.append(f'<line class="{colour} whisker" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{colour} dot" cx="{16 + row.value * scale:.1f}" cy="{y}" r="5"/>')
        parts.append(_text(16, y - 11, f"{row.label}  {100 * row.value:.1f} %", css="row"))
    return _svg(height, title, parts)


def line_chart(lines: Sequence[Line], *, title: str, ticks: Sequence[str], x_label: str, y_max: float) -> str:
    """Lines with dots over the places named by ``ticks``; y runs from 0 to at least ``y_max``."""
    top, bottom, height = 12, 40, 230
    marks = _ticks(y_max)
    parts = _y_axis(marks, top, height - bottom)
    for place, tick in enumerate(ticks):
        parts.append(_text(_place(place, len(ticks)), height - bottom + 16, tick, anchor="middle"))
    parts.append(_text(_WIDTH / 2, height - 6, x_label, anchor="middle", css="axis"))
    for line in lines:
        spots = [
            None if value is None else (_place(i, len(ticks)), _height(value, marks[-1], top, height - bottom))
            for i, value in enumerate(line.values)
        ]
        parts += _stroke(spots, line.series, dots=True)
    return _svg(height, title, parts)


def histogram_chart(lines: Sequence[Line], *, title: str, x_label: str) -> str:
    """Outlines of histograms over 0 to 1; values are shares of each bin."""
    top, bottom, height = 12, 40, 190
    peak = max([value for line in lines for value in line.values if value is not None], default=1.0)
    marks = _ticks(peak)
    parts = _y_axis(marks, top, height - bottom, percent=True)
    inner = _WIDTH - _LEFT - _RIGHT
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_text(_LEFT + tick * inner, height - bottom + 16, f"{tick:g}", anchor="middle"))
    parts.append(_text(_WIDTH / 2, height - 6, x_label, anchor="middle", css="axis"))
    for line in lines:
        spots: list[tuple[float, float] | None] = []
        for i, value in enumerate(line.values):
            y = _height(value or 0.0, marks[-1], top, height - bottom)
            spots += [(_LEFT + edge / len(line.values) * inner, y) for edge in (i, i + 1)]
        parts += _stroke(spots, line.series, dots=False)
    return _svg(height, title, parts)


def line_key(series: int) -> str:
    """A piece of a chart's line, for its legend."""
    return f'<svg class="line-key" viewBox="0 0 36 8" aria-hidden="true">{_line(series, "M1 4 L35 4")}</svg>'


def trade_off_chart(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> str:
    """Labelled dots in the plane, both axes from zero; y in percent."""
    top, bottom = 26, 40
    height = max(260, top + bottom + 2 * _LABEL * len(points))  # so that every label finds a place of its own
    x_marks, y_marks = _ticks(max(p.x for p in points)), _ticks(max(p.y for p in points))
    parts = _y_axis(y_marks, top, height - bottom, percent=True)
    inner = _WIDTH - _LEFT - _RIGHT
    for tick in x_marks:
        anchor = "end" if tick == x_marks[-1] else "middle"
        parts.append(_text(_LEFT + tick / x_marks[-1] * inner, height - bottom + 16, f"{tick:g}", anchor=anchor))
    parts.append(_text(_WIDTH / 2, height - 6, x_label, anchor="middle", css="axis"))
    parts.append(_text(8, 14, y_label, css="axis"))
    spots = [
        (_LEFT + p.x / x_marks[-1] * inner, _height(p.y, y_marks[-1], top, height - bottom), p.radius) for p in points
    ]
    taken = [_Box(x - r, y - r, x + r, y + r) for x, y, r in spots]
    room = _Box(_LEFT, top, _WIDTH, height - bottom)
    for point, (x, y, radius) in sorted(zip(points, spots, strict=True), key=lambda pair: pair[1][1]):
        box, anchor = _free_spot(point.label, x, y, radius, taken, room)
        taken.append(box)
        edge = box.left if anchor == "start" else box.right
        middle = (box.top + box.bottom) / 2
        if abs(middle - y) > _LINE:  # too far to tell whose it is
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{edge:.1f}" y1="{y:.1f}" y2="{middle:.1f}"/>')
        parts.append(f'<circle class="c{point.series % NUM_COLOURS} dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')
        parts.append(_text(edge, middle + 4, point.label, anchor=anchor, css="row"))
    return _svg(height, title, parts)


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "_Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def holds(self, other: "_Box") -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


def _free_spot(
    label: str, x: float, y: float, radius: float, taken: Sequence[_Box], room: _Box
) -> tuple[_Box, Literal["start", "end"]]:
    """Where a dot's label covers nothing: beside it, or else the nearest line above or below; and its anchor."""
    wide = _LETTER * len(label)
    tries: list[tuple[_Box, Literal["start", "end"]]] = []
    for step in range(2 * int((room.bottom - room.top) / _LINE)):
        middle = y + _LINE * ((step + 1) // 2) * (1 if step % 2 else -1)
        right, left = x + radius + 4, x - radius - 4
        above, below = middle - _LABEL / 2, middle + _LABEL / 2
        tries.append((_Box(right, above, right + wide, below), "start"))
        tries.append((_Box(left - wide, above, left, below), "end"))
    free = (found for found in tries if room.holds(found[0]) and not any(found[0].meets(other) for other in taken))
    return next(free, tries[0])


def spectrogram_png(samples_N: Tensor, sample_rate: int, *, width: int = 320, height: int = 96) -> bytes:
    """Log spectrogram of mono samples [N] as a PNG with a palette; low frequencies at the bottom, loudest is bright."""
    samples_N = torch.nan_to_num(samples_N.detach().cpu().float().flatten(), nan=0.0, posinf=0.0, neginf=0.0)
    size = 2 ** max(6, round(math.log2(0.032 * sample_rate)))
    padded = torch.nn.functional.pad(samples_N, (0, max(size - samples_N.numel(), 0)))
    hop = max(padded.numel() // width, 1)
    spectrum_FT = torch.stft(
        padded, size, hop, window=torch.hann_window(size), center=True, pad_mode="constant", return_complex=True
    ).abs()
    level_FT = 20.0 * torch.log10(spectrum_FT.clamp_min(1e-9))
    loudest = float(level_FT.max())
    # Relative to the loudest point, except that digital silence stays dark.
    shade_FT = ((level_FT - max(loudest, -60.0)) / -_FLOOR_DB + 1.0).clamp(0.0, 1.0)
    # The loudest of each cell rather than its mean: harmonics narrower than a row stay visible.
    picture = torch.nn.functional.adaptive_max_pool2d(shade_FT[None], (height, width))[0]
    return png((picture.flip(0) * 255.0).round().to(torch.uint8))


def png(shades_HW: Tensor) -> bytes:
    """Encode uint8 shades [H, W] as a PNG in the colours of the ramp."""
    height, width = shades_HW.shape
    palette = b"".join(bytes(_ramp(shade / 255.0)) for shade in range(256))
    rows = b"".join(b"\x00" + bytes(row.tolist()) for row in shades_HW)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _ramp(shade: float) -> tuple[int, int, int]:
    place = shade * (len(_RAMP) - 1)
    index = min(int(place), len(_RAMP) - 2)
    part = place - index
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(_RAMP[index], _RAMP[index + 1], strict=True))
    return red, green, blue


def _ticks(reach: float) -> list[float]:
    """Round numbers from 0 to just beyond ``reach``."""
    if not reach > 0.0:
        return [0.0, 1.0]
    size = 10.0 ** math.floor(math.log10(reach))
    step = next(size * part for part in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 2.5) if reach / (size * part) <= 5.0)
    return [step * i for i in range(math.ceil(reach / step - 1e-9) + 1)]


def _place(index: int, count: int) -> float:
    inner = _WIDTH - _LEFT - _RIGHT
    return _LEFT + inner * (index + 0.5) / max(count, 1)


def _height(value: float, peak: float, top: float, bottom: float) -> float:
    return bottom - (bottom - top) * value / max(peak, 1e-9)


def _y_axis(marks: Sequence[float], top: float, bottom: float, *, percent: bool = False) -> list[str]:
    parts = []
    for mark in marks:
        y = _height(mark, marks[-1], top, bottom)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{100 * mark:g} %" if percent else f"{mark:g}", anchor="end"))
    return parts


def _stroke(spots: Sequence[tuple[float, float] | None], series: int, *, dots: bool) -> list[str]:
    path, pen_is_down = [], False
    for spot in spots:
        if spot is not None:
            path.append(f"{'L' if pen_is_down else 'M'}{spot[0]:.1f} {spot[1]:.1f}")
        pen_is_down = spot is not None
    parts = [_line(series, " ".join(path))] if path else []
    if dots:
        colour = f"c{series % NUM_COLOURS}"
        parts += [f'<circle class="{colour} dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in filter(None, spots)]
    return parts


def _line(series: int, path: str) -> str:
    # Whenever the colours begin again, the dashes are others: no two of the first 32 series look the same.
    dash = _DASHES[(series + series // NUM_COLOURS) % len(_DASHES)]
    return f'<path class="c{series % NUM_COLOURS} line" stroke-dasharray="{dash or "none"}" d="{path}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "tick") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    name = html.escape(title, quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{name}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )
