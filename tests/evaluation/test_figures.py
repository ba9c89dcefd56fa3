import itertools
import struct
import xml.etree.ElementTree as ET
import zlib

import pytest
import torch

from retort.evaluation import figures
from retort.evaluation.figures import Estimate, Line, Point

ESTIMATES = [Estimate("teacher", 0.2, 0.1, 0.3, 0), Estimate("student", 0.1, None, None, 1)]
LINES = [Line("teacher", [1.0, 2.0, None, 0.5], 0), Line("student", [0.5, None, 0.5, 0.25], 1)]


def charts(label="plain"):
    return {
        "interval": figures.interval_chart([Estimate(label, 0.2, 0.1, 0.3, 0)], title=label),
        "line": figures.line_chart(LINES, title=label, ticks=["1", "2", "3", label], x_label=label, y_max=2.0),
        "histogram": figures.histogram_chart([Line(label, [0.2, 0.8], 0)], title=label, x_label=label),
        "trade-off": figures.trade_off_chart([Point(label, 10.0, 0.1, 0)], title=label, x_label="x", y_label=label),
    }


def parse(svg):
    return ET.fromstring(svg)


@pytest.mark.parametrize("kind", ["interval", "line", "histogram", "trade-off"])
def test_charts_are_well_formed_and_escape_their_labels(kind):
    hostile = '<script>alert("1")</script>&'
    svg = charts(hostile)[kind]
    tree = parse(svg)
    assert tree.find("title").text == hostile
    assert "<script" not in svg
    # Nothing that a policy without inline style would drop, and nothing from outside.
    assert all("style" not in node.attrib and "href" not in node.attrib for node in tree.iter())


def test_interval_charts_place_values_on_a_scale_from_zero():
    tree = parse(figures.interval_chart(ESTIMATES, title="WER"))
    dots = [float(node.attrib["cx"]) for node in tree.iter("circle")]
    whiskers = [node for node in tree.iter("line") if "whisker" in node.attrib["class"]]
    zero = 16.0
    assert dots[0] - zero == pytest.approx(2 * (dots[1] - zero), abs=0.1)
    assert len(whiskers) == 1
    assert float(whiskers[0].attrib["x1"]) - zero == pytest.approx(dots[1] - zero, abs=0.1)


def test_missing_values_leave_a_gap():
    tree = parse(figures.line_chart(LINES, title="t", ticks=list("1234"), x_label="x", y_max=2.0))
    paths = [node.attrib["d"] for node in tree.iter("path")]
    assert [path.count("M") for path in paths] == [2, 2]
    assert len(list(tree.iter("circle"))) == 6


def test_many_lines_look_different_and_as_in_the_legend():
    lines = [Line(f"student_{i}", [1.0, 2.0], i) for i in range(32)]
    drawn = parse(figures.line_chart(lines, title="t", ticks=["1", "2"], x_label="x", y_max=2.0)).iter("path")
    looks = [(node.attrib["class"], node.attrib["stroke-dasharray"]) for node in drawn]
    assert len(set(looks)) == 32
    keys = [parse(figures.line_key(i)).find("path").attrib for i in range(32)]
    assert [(key["class"], key["stroke-dasharray"]) for key in keys] == looks


@pytest.mark.parametrize("count", [6, 24])
@pytest.mark.parametrize("height", [0.0, 0.1])
def test_labels_of_a_crowd_do_not_cover_each_other(count, height):
    crowd = [Point(f"student_{i}", 10.0, height, i) for i in range(count)]
    tree = parse(figures.trade_off_chart(crowd, title="t", x_label="x", y_label="y"))
    lines = sorted(float(node.attrib["y"]) for node in tree.iter("text") if node.attrib["class"] == "row")
    assert all(below - above >= 12 for above, below in itertools.pairwise(lines))


@pytest.mark.parametrize("place", range(60, 100, 3))
def test_a_label_has_room_in_a_wide_font_too(place):
    points = [Point("student_small", place, 0.1, 0), Point("s", 100.0, 0.5, 1)]
    tree = parse(figures.trade_off_chart(points, title="t", x_label="x", y_label="y"))
    label = next(node for node in tree.iter("text") if node.text == "student_small")
    starts = label.attrib["text-anchor"] == "start"
    assert float(label.attrib["x"]) + (13 * 7.5 if starts else 0) <= 480


@pytest.mark.parametrize("reach", [0.0, 1e-4, 0.07, 0.1, 0.99, 1.0, 3.3, 62.0, 1250.0])
def test_ticks_are_few_round_and_reach_far_enough(reach):
    ticks = figures._ticks(reach)
    assert ticks[0] == 0.0
    assert ticks[-1] >= reach
    assert 2 <= len(ticks) <= 6 + 1


def decode(content):
    """A PNG reader of a dozen lines, for the one kind that is written."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + size]
        (check,) = struct.unpack(">I", content[place + 8 + size : place + 12 + size])
        assert check == zlib.crc32(kind + body)
        chunks[kind] = body
        place += 12 + size
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, colour, len(chunks[b"PLTE"])) == (8, 3, 768)
    rows = zlib.decompress(chunks[b"IDAT"])
    assert len(rows) == height * (width + 1)
    return torch.tensor([list(rows[i * (width + 1) + 1 : (i + 1) * (width + 1)]) for i in range(height)])


def test_png_holds_exactly_the_shades():
    shades = torch.arange(60, dtype=torch.uint8).view(5, 12) * 4
    assert torch.equal(decode(figures.png(shades)), shades.long())


def test_a_tone_is_a_bright_row_at_its_frequency():
    rate = 16_000
    tone = 0.5 * torch.sin(2 * torch.pi * 2000 * torch.arange(rate) / rate)
    shades = decode(figures.spectrogram_png(tone, rate, width=100, height=80))
    assert shades.shape == (80, 100)
    brightest = int(shades[:, 50].argmax())
    # 2 kHz of 8 kHz is a quarter of the way up from the bottom row.
    assert abs(brightest - 60) <= 1
    assert shades[brightest, 50] > 200
    assert shades[10, 50] < 60


@pytest.mark.parametrize("samples", [torch.zeros(16_000), torch.zeros(0), torch.full((100,), float("nan"))])
def test_silence_is_dark_and_never_an_error(samples):
    assert int(decode(figures.spectrogram_png(samples, 16_000)).max()) == 0
