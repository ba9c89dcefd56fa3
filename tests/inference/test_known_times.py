"""Durations from times that are known: laws of the frames, and grids whose phones are others than ours."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.data.utterance import Utterance
from retort.errors import DataError
from retort.inference.aligning import Misaligned, PlausibilityConfig
from retort.inference.known_times import Grid, in_frames, spans_of
from retort.inference.text_grids import TextGrids, read_grid
from retort.text.espeak import Span, Speech, phones_of_all, speak

praatio = pytest.importorskip("praatio", reason="the extra [text_grids] is not installed")

RATE = 80.0
ANY = PlausibilityConfig(max_phone_s=60.0, max_shortest_ratio=1.0)
TEXT = "The well known bridge, closed again. Nobody knew!"


def said(text: str = TEXT) -> Speech:
    return speak(text, voice="en-us", words_per_minute=170)


def grid_of(speech: Speech, *, split: int = 1) -> Grid:
    """What an aligner would write of espeak-ng's speech, with words in small letters and other names of phones.

    A word's phones are every ``split``-th of ours, so that there are fewer of them.
    """
    words = [
        Span("".join(c for c in word.label.lower() if c.isalpha()), word.start_s, word.end_s) for word in speech.words
    ]
    phones: list[Span] = []
    for word in words:
        own = [p for p in speech.phones if p.label and word.start_s <= p.start_s < word.end_s]
        kept = own[::split]
        ends = [*(p.start_s for p in kept[1:]), own[-1].end_s]
        phones += [Span(f"AH{n}", p.start_s, end) for n, (p, end) in enumerate(zip(kept, ends, strict=True))]
    return Grid(words, phones)


def write_grid(path: Path, grid: Grid, *, kind: str = "long_textgrid", prefix: str = "") -> None:
    from praatio import textgrid

    path.parent.mkdir(parents=True, exist_ok=True)
    made = textgrid.Textgrid()
    end_s = max(span.end_s for span in (*grid.words, *grid.phones))
    for name, spans in (("words", grid.words), ("phones", grid.phones)):
        entries = [(span.start_s, span.end_s, span.label or "sil") for span in spans]
        made.addTier(textgrid.IntervalTier(f"{prefix}{name}", entries, 0, end_s))
    made.save(str(path), kind, includeBlankSpaces=True)


def starts_of(labels: Sequence[str], frames: Sequence[int]) -> list[float]:
    starts, place = [], 0
    for label, count in zip(labels, frames, strict=True):
        starts += [place / RATE] if label else []
        place += count
    return starts


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.floats(0.02, 0.4)), min_size=1, max_size=12),
    st.floats(0.0, 0.3),
    st.integers(0, 40),
)
def test_frames_fill_the_recording_and_begin_where_the_times_do(
    parts: list[tuple[str, float]], begin_s: float, after: int
) -> None:
    spans, now = [], begin_s
    for label, seconds in parts:
        spans.append(Span(label, now, now + seconds))
        now += seconds
    if not any(label for label, _ in parts):
        spans.append(Span("a", now, now + 0.1))
        now += 0.1
    num_frames = int(now * RATE) + 1 + after
    found = in_frames(spans, num_frames, RATE, ANY)
    assert sum(found.frames) == num_frames
    assert min(found.frames) >= 1
    assert [label for label in found.labels if label] == [span.label for span in spans if span.label]
    assert not any(a == b == "" for a, b in zip(found.labels, found.labels[1:], strict=False))
    wanted = [span.start_s for span in spans if span.label]
    for start, told in zip(starts_of(found.labels, found.frames), wanted, strict=True):
        assert abs(start - told) <= 1.0 / RATE + 1e-6


def test_phones_shorter_than_a_frame_get_one_and_too_many_are_refused() -> None:
    short = [Span("a", 0.1, 0.101), Span("b", 0.101, 0.102), Span("c", 0.102, 0.2)]
    found = in_frames(short, 20, RATE, ANY)
    assert found.labels == ("", "a", "b", "c", "")
    assert found.frames[1:3] == (1, 1)
    with pytest.raises(Misaligned) as refused:
        in_frames(short, 3, RATE, ANY)
    assert refused.value.code == "other_recording"
    with pytest.raises(Misaligned) as refused:
        in_frames([Span("a", 0.0, 0.001), Span("b", 0.001, 0.002), Span("c", 0.002, 0.003)], 2, RATE, ANY)
    assert refused.value.code == "too_many_phones"
    with pytest.raises(Misaligned) as refused:
        in_frames([Span("a", 0.0, 0.9)], 80, RATE, PlausibilityConfig())
    assert refused.value.code == "long_phone"


def test_a_grid_of_espeaks_own_times_gives_its_phones_back() -> None:
    speech = said()
    found = spans_of(grid_of(speech), speech)
    own = [span for span in speech.phones if span.label]
    assert [span.label for span in found] == [span.label for span in own]
    assert tuple(span.label for span in found) == phones_of_all([TEXT], voice="en-us")[0]
    for ours, theirs in zip(found, own, strict=True):
        assert ours.start_s == pytest.approx(theirs.start_s, abs=1e-6)


def test_fewer_phones_of_a_grid_are_shared_within_their_word() -> None:
    speech = said()
    grid = grid_of(speech, split=2)
    found = spans_of(grid, speech)
    assert [span.label for span in found] == [span.label for span in speech.phones if span.label]
    starts = [span.start_s for span in found]
    assert starts == sorted(starts)
    for word in grid.words:
        inside = [span for span in found if word.start_s - 1e-6 <= span.start_s < word.end_s - 1e-6]
        own = [p for p in speech.phones if p.label and word.start_s <= p.start_s < word.end_s]
        assert len(inside) == len(own)
    # Every second edge is one that the grid knows.
    known = {round(span.start_s, 6) for span in grid.phones}
    assert len(known & {round(start, 6) for start in starts}) >= len(grid.phones) // 2


def test_words_that_are_cut_otherwise_are_the_same_and_other_words_are_refused() -> None:
    speech = said()
    grid = grid_of(speech)
    at = next(n for n, word in enumerate(grid.words) if word.label == "well")
    joined = Span("wellknown", grid.words[at].start_s, grid.words[at + 1].end_s)
    words = [*grid.words[:at], joined, *grid.words[at + 2 :]]
    assert [s.label for s in spans_of(replace(grid, words=words), speech)] == [
        p.label for p in speech.phones if p.label
    ]
    for other, told in (
        ([*grid.words[:at], Span("badly", 0.1, 0.2), *grid.words[at + 1 :]], "'well"),
        (grid.words[:-1], "'knew"),
        ([*grid.words, Span("more", 9.0, 9.1)], "'more'"),
    ):
        with pytest.raises(Misaligned, match=told) as refused:
            spans_of(replace(grid, words=other), speech)
        assert refused.value.code == "other_words"


@pytest.mark.parametrize("kind", ["long_textgrid", "short_textgrid"])
@pytest.mark.parametrize("prefix", ["", "ada - "])
def test_a_written_grid_is_read_as_it_was(tmp_path: Path, kind: str, prefix: str) -> None:
    grid = grid_of(said())
    write_grid(tmp_path / "x.TextGrid", grid, kind=kind, prefix=prefix)
    found = read_grid(tmp_path / "x.TextGrid")
    for name in ("words", "phones"):
        ours, theirs = getattr(found, name), getattr(grid, name)
        assert [span.label for span in ours if span.label] == [span.label for span in theirs if span.label]
        starts = [span.start_s for span in theirs if span.label]
        assert [span.start_s for span in ours if span.label] == pytest.approx(starts, abs=1e-4)


def utterance(name: str, audio: Path | bytes = b"", speaker: str = "ada") -> Utterance:
    return Utterance(name, TEXT, speaker, "en", audio)


def test_grids_are_found_by_id_by_recording_and_by_speaker(tmp_path: Path) -> None:
    grid = grid_of(said())
    for name in ("u1", "ada/take", "eve/take", "clip"):
        write_grid(tmp_path / f"{name}.TextGrid", grid)
    grids = TextGrids(tmp_path)
    assert grids.of(utterance("u1")).words
    assert grids.of(utterance("other", Path("wavs/clip.wav"))).words
    assert grids.of(utterance("take")).words
    for wanted, code in ((utterance("nobody"), "no_grid"), (utterance("take", speaker="bob"), "several_grids")):
        with pytest.raises(Misaligned) as refused:
            grids.of(wanted)
        assert refused.value.code == code
    before = grids.fingerprint()
    (tmp_path / "u1.TextGrid").write_text("")
    assert TextGrids(tmp_path).fingerprint() != before
    with pytest.raises(DataError, match=r"no \.TextGrid files there"):
        TextGrids(tmp_path / "ada" / "none")


@pytest.mark.parametrize(
    "content", ["", "File type = 'ooTextFile'\n", "\x00\x01", 'Object class = "TextGrid"\nxmin = a\n']
)
def test_a_file_that_is_no_grid_is_a_reject(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.TextGrid").write_text(content)
    with pytest.raises(Misaligned) as refused:
        read_grid(tmp_path / "x.TextGrid")
    assert refused.value.code == "bad_grid"


def test_a_grid_without_phones_says_which_tiers_there_are(tmp_path: Path) -> None:
    from praatio import textgrid

    made = textgrid.Textgrid()
    made.addTier(textgrid.IntervalTier("words", [(0.0, 1.0, "one")], 0, 1.0))
    made.save(str(tmp_path / "x.TextGrid"), "long_textgrid", includeBlankSpaces=True)
    with pytest.raises(Misaligned, match="no tier is called phones; there are words"):
        read_grid(tmp_path / "x.TextGrid")
