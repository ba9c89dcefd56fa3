import base64
import dataclasses
import hashlib
import html.parser
import re

import pytest
import torch

from retort.audio.files import read_audio
from retort.errors import DataError
from retort.evaluation import sounds
from retort.evaluation.confidence import ConfidenceAccumulator
from retort.evaluation.report import write_report
from retort.evaluation.results import (
    BootstrapConfig,
    Expected,
    Pair,
    SystemInfo,
    failed_item,
    read_summary,
    summarise,
    write_summary,
)
from retort.evaluation.sounds import AudioSample

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'
RATE = 8000
SYSTEMS = [
    SystemInfo("teacher", "teacher", "none", "codec_lm", {"parameters": 1_300_000_000, "tokens_per_second": 63.0}),
    SystemInfo(
        "student", "student", "cfg_distill", "codec_lm", {"parameters": 500_000_000, "tokens_per_second": 121.0}
    ),
    SystemInfo("control", "control", "pretrain", "codec_lm"),
]


class Page(html.parser.HTMLParser):
    """What a browser would see: elements, addresses, text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open_tags = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in {"meta", "img", "br", "line", "circle", "path", "audio", "link"}:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        if tag in {"audio", "line", "circle", "path"}:
            return
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.text += data

    def values(self, tag, name):
        return [value for found, attribute, value in self.attributes if (found, attribute) == (tag, name)]


def rows(count, text="one two three"):
    errors = {"teacher": 1, "student": 0, "control": 0}
    return [
        dataclasses.replace(
            failed_item(system, Expected(f"u{i}", text if i == 0 else "one two three")),
            hypothesis=text if i == 0 else "one two",
            substitutions=0,
            deletions=wrong * (i % 2),
            wer=wrong * (i % 2) / 3,
            failure=False,
            failure_reasons=(),
            error=None,
            recogniser="asr",
        )
        for system, wrong in errors.items()
        for i in range(count)
    ]


def sample(utterance, system, seconds=0.5):
    samples = 0.3 * torch.sin(torch.arange(int(seconds * RATE)) / 3)
    return AudioSample(utterance, system, samples, RATE)


def make(folder, *, count=10, text="one two three", samples=(), note="Smoke tier: not comparable."):
    accumulator = ConfidenceAccumulator(2)
    accumulator.add(torch.randn(1, 6, 2, 9), torch.ones(1, 2, 6, dtype=torch.bool))
    confidence = {"teacher, guided": accumulator.result(), "student": accumulator.result()}
    pairs = [Pair("teacher", "student"), Pair("control", "student")]
    summary = summarise(
        rows(count, text),
        SYSTEMS,
        pairs,
        note=note,
        environment={"torch": "2", "fingerprints": {"codec": "sha256:abc"}},
        confidence=confidence,
        bootstrap=BootstrapConfig(num_resamples=100),
    )
    folder.mkdir(exist_ok=True)
    write_summary(folder / "summary.json", summary)
    path = write_report(folder, read_summary(folder / "summary.json"), summary.items, samples=samples)
    return path.read_text(encoding="utf-8")


def test_the_page_says_what_was_measured(tmp_path):
    page = Page(make(tmp_path, samples=[sample("u1", "student"), sample("u1", "teacher")]))
    assert page.open_tags == []
    for words in ("Smoke tier: not comparable.", "cfg_distill", "1.3B", "1.92", "fingerprints.codec", "sha256:abc"):
        assert words in page.text
    assert "student makes fewer word errors than teacher" in page.text
    assert "teacher, guided" in page.text


def test_a_control_that_is_as_good_is_said_plainly(tmp_path):
    page = Page(make(tmp_path))
    assert (
        "control, a control, is not shown to be worse than student: this run does not show that the method helps"
        in page.text
    )


def test_transcripts_are_text_wherever_they_stand(tmp_path):
    text = make(tmp_path, text=HOSTILE, samples=[sample("u0", "student")], note=HOSTILE)
    page = Page(text)
    assert "script" not in page.tags
    assert all(not name.startswith("on") for _, name, _ in page.attributes)
    assert HOSTILE in page.text
    assert len(page.values("img", "src")) == 1


def test_nothing_is_fetched_and_the_policy_fits_the_page(tmp_path):
    text = make(tmp_path, samples=[sample("u1", "student")])
    page = Page(text)
    addresses = [value for _, name, value in page.attributes if name in {"src", "href", "srcset", "action"}]
    assert addresses
    assert all(address.startswith(("data:", "#")) or address == "listen.html" for address in addresses)
    assert "link" not in page.tags
    assert not re.search(r"url\(|@import", text)
    assert all(name != "style" for _, name, _ in page.attributes)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(value for value in page.values("meta", "content") if "default-src" in value)
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy


def test_players_hold_the_sound_in_the_order_of_the_systems(tmp_path):
    page = Page(make(tmp_path, samples=[sample("u1", s) for s in ("control", "student", "teacher")]))
    sounds = page.values("audio", "src")
    assert len(sounds) == len(page.values("img", "src")) == 3
    assert page.values("img", "alt") == [f"Spectrogram of {system}" for system in ("teacher", "student", "control")]
    decoded = read_audio(base64.b64decode(sounds[0].removeprefix("data:audio/wav;base64,")))
    assert decoded.sample_rate == RATE
    assert torch.allclose(decoded.samples_N, sample("u1", "teacher").samples_N, atol=1e-4)


def test_sound_without_a_row_or_with_broken_samples_still_plays(tmp_path):
    broken = AudioSample("u1", "elsewhere", torch.full((RATE,), float("nan")), RATE)
    assert len(Page(make(tmp_path, samples=[broken])).values("audio", "src")) == 1


def test_too_much_sound_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sounds, "MAX_SOUND_BYTES", 20_000)
    samples = [sample(f"u{i}", system) for i in range(4) for system in ("teacher", "student")]
    page = Page(make(tmp_path, samples=samples))
    assert len(page.values("audio", "src")) == 2
    assert "3 more sentences did not fit" in page.text


def test_a_full_report_stays_below_twenty_megabytes(tmp_path):
    samples = [sample(f"u{i}", s, seconds=60.0) for i in range(10) for s in ("teacher", "student", "control")]
    make(tmp_path, samples=samples)
    assert 10_000_000 < (tmp_path / "report.html").stat().st_size < 20_000_000


def test_few_utterances_show_no_interval(tmp_path):
    page = Page(make(tmp_path, count=3))
    assert "n too small" in page.text
    assert not re.search(r"\[\d", page.text)


def test_a_bare_summary_of_the_contract_is_enough(tmp_path):
    """Only the fields that the contract names, all that may be null null."""
    names = "method family parameters guidance_scale speaker_similarity entropy top1_probability tokens_per_second"
    empty = dict.fromkeys([*names.split(), "rtf", "nfe", "peak_memory_mb", "wer_ci95"])
    system = {"name": "only", "utterances": 1, "wer_corpus": 0.0, "wer_mean": 0.0, "failure_rate": 0.0, **empty}
    path = write_report(tmp_path, {"systems": [system], "comparisons": [], "environment": {}}, [])
    page = Page(path.read_text())
    assert "No comparisons were asked for." in page.text
    assert page.open_tags == []


@pytest.mark.parametrize("finding", ["a is better.", {"tone": "good", "text": "a is better."}])
def test_findings_of_earlier_versions_are_shown(tmp_path, finding):
    system = {"name": "a", "utterances": 1, "wer_corpus": 0.0, "wer_mean": 0.0, "failure_rate": 0.0, "wer_ci95": None}
    system |= dict.fromkeys(("method", "family", "parameters"))
    tree = {"systems": [system], "comparisons": [], "environment": {}, "findings": [finding]}
    assert "a is better." in write_report(tmp_path, tree, []).read_text()


def test_speed_has_intervals_where_there_are_some_and_the_noise_floor_beside_it(tmp_path):
    row = {
        "method": None,
        "family": "codec_lm",
        "utterances": 9,
        "wer_corpus": 0.1,
        "wer_mean": 0.1,
        "failure_rate": 0.0,
        "wer_ci95": [0.0, 0.2],
    }
    known = {"tokens_per_second_ci95": [99.0, 102.0], "rtf": 0.1, "rtf_ci95": None, "nfe": 2}
    systems = [
        {"name": "t", "role": "teacher", **row, "tokens_per_second": 100.0, **known},
        {"name": "near", "role": "student", **row, "tokens_per_second": 104.0, "rtf": 0.1},
        {"name": "far", "role": "student", **row, "tokens_per_second": 120.0, "rtf": 0.1},
    ]
    floor = {"system": "t", "ratios": {"tokens_per_second": {"ratio": 1.0, "ci95": None, "factor": 1.05}}}
    tree = {"systems": systems, "comparisons": [], "environment": {}}
    speed = Page(write_report(tmp_path, {**tree, "speed_noise_floor": floor}, []).read_text()).text
    assert "[99.0, 102.0]" in speed
    assert "t, opened twice, differs from itself by up to: Tokens/s 5.0 %" in speed
    assert re.findall(r"\d\.\d\d\N{MULTIPLICATION SIGN}(?:, equal)?", speed) == [
        "1.00\N{MULTIPLICATION SIGN}", "1.04\N{MULTIPLICATION SIGN}, equal", "1.20\N{MULTIPLICATION SIGN}",
    ]  # fmt: skip
    assert speed.count("n too small") == 1, "the rounds of the teacher's RTF; summaries of old have none"
    old = Page(write_report(tmp_path, tree, []).read_text()).text
    assert "opened twice" not in old
    assert "equal" not in old[old.index("Speed and size", old.index("Paired")) :]


def test_the_same_run_gives_the_same_page(tmp_path):
    torch.manual_seed(0)
    first = make(tmp_path / "a", samples=[sample("u1", "student")])
    torch.manual_seed(0)
    assert make(tmp_path / "b", samples=[sample("u1", "student")]) == first


def test_a_summary_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="no systems"):
        write_report(tmp_path, {"systems": [], "comparisons": [], "environment": {}}, [])
