"""The listening page: from disk, in a real browser, by keyboard; and what it saves is what the report reads."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.evaluation.items import Expected, failed_item
from retort.evaluation.listening import pairs_of, trials_of, write_listening_page
from retort.evaluation.sounds import AudioSample, fingerprint_of
from retort.evaluation.votes import preferences, read_votes
from tests.patience import HANG_MS, patient

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
RATE = 8000
PAIRS = [("teacher", "student"), ("control", "student")]
SYSTEMS = ("teacher", "student", "control")
EVIL = '</script><script>window.evil = 1</script><img src=x onerror="window.evil = 1">'


def samples(count: int = 2, seconds: float = 0.15) -> list[AudioSample]:
    sines = [0.3 * torch.sin(torch.arange(int(seconds * RATE)) * pitch) for pitch in (0.2, 0.3, 0.4)]
    return [AudioSample(f"u{i}", s, sine, RATE) for i in range(count) for s, sine in zip(SYSTEMS, sines, strict=True)]


def made(folder: Path, said: list[AudioSample] | None = None) -> Path:
    rows = [failed_item("teacher", Expected(f"u{i}", f"sentence {i} {EVIL}")) for i in range(2)]
    path = write_listening_page(folder, PAIRS, said or samples(), rows)
    assert path is not None
    return path


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    tree: dict[str, Any] = json.loads(found.group(1))
    return tree


def test_every_compared_pair_that_both_said_is_a_trial() -> None:
    said = [sample for sample in samples() if (sample.id, sample.system) != ("u1", "control")]
    assert trials_of(PAIRS, said) == [
        ("u0", "teacher", "student"), ("u1", "teacher", "student"), ("u0", "control", "student")
    ]  # fmt: skip
    rows = [{"a": a, "b": b} for a, b in [*PAIRS, ("student", "teacher"), PAIRS[0]]]
    assert pairs_of({"comparisons": rows}) == PAIRS


def test_nothing_to_compare_makes_no_page(tmp_path: Path) -> None:
    assert write_listening_page(tmp_path, [], samples(), []) is None
    assert write_listening_page(tmp_path, PAIRS, [], []) is None
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_named_by_what_can_be_heard() -> None:
    said = samples()
    assert fingerprint_of(said) == fingerprint_of(said[::-1])
    assert fingerprint_of(said) != fingerprint_of(said[1:])
    assert fingerprint_of(said) != fingerprint_of(samples(seconds=0.2))


def test_each_sound_is_inside_once_and_nothing_is_outside(tmp_path: Path) -> None:
    page = made(tmp_path)
    data = data_of(page)
    assert (len(data["trials"]), len(data["clips"])) == (4, 6)
    assert all(clip.startswith("data:audio/wav;base64,") for clip in data["clips"])
    text = page.read_text()
    assert text.count("<script") == text.count("</script") == 2
    around = re.sub(r'(?<=id="data">).*?(?=</script>)', "", text, flags=re.DOTALL)
    assert not re.search(r"https?://|src=|@import|url\(", around)
    assert [name for name in SYSTEMS if name in around] == [], "names are in the data alone"


@contextmanager
def opened(page: Path, folder: Path, **context: Any) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch_persistent_context(
            str(folder / "profile"), executable_path=CHROMIUM, args=arguments, timeout=HANG_MS, **context
        )
        tab = patient(browser.new_page())
        faults: list[str] = []
        asked: list[str] = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        tab.wait_for_selector("body[data-ready=true]")
        yield tab
        assert faults == []
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
        browser.close()


def wait_until_heard(tab: Any) -> None:
    tab.wait_for_selector("[data-vote='1'][aria-disabled=false]")


@in_a_browser
def test_votes_by_keyboard_are_saved_and_counted(tmp_path: Path) -> None:
    from playwright.sync_api import expect

    said = samples()
    page = made(tmp_path, said)
    with opened(page, tmp_path) as tab:
        assert tab.evaluate("window.evil") is None
        tab.focus("#begin")
        tab.keyboard.press("Enter")
        for number, key in enumerate(["1", "2", "0"], start=1):
            expect(tab.locator("#heading")).to_have_text(f"Pair {number} of 4")
            assert tab.evaluate("document.activeElement.id") == "heading"
            assert not any(name in tab.inner_text("main") for name in SYSTEMS), "blind until the end"
            wait_until_heard(tab)
            tab.keyboard.press(key)
        wait_until_heard(tab)
        tab.keyboard.press("Space")
        expect(tab.locator("#done")).to_be_visible()
        expect(tab.locator("#missing")).to_be_hidden()
        assert not any(name in tab.inner_text("main") for name in SYSTEMS)
        tab.keyboard.press("ArrowLeft")  # the last vote is changed
        expect(tab.locator("[data-vote='0']")).to_have_attribute("aria-pressed", "true")
        tab.keyboard.press("2")
        tab.click("#reveal")
        assert {"teacher", "student", "control"} <= set(re.findall(r"\w+", tab.inner_text("#results")))
        with tab.expect_download() as download:
            tab.click("#save")
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        totals = [int(n) for n in tab.locator("#counts td:not(:first-child)").all_inner_texts()]
        assert sum(totals) == 4

    (votes,) = read_votes([file], report=fingerprint_of(said), trials=trials_of(PAIRS, said))
    assert [(v.order, v.vote) for v in votes.votes] == [(1, 1), (2, 2), (3, 0), (4, 2)]
    assert {(v.utterance, frozenset((v.first, v.second))) for v in votes.votes} == {
        (u, frozenset((a, b))) for u, a, b in trials_of(PAIRS, said)
    }
    assert all(v.seconds > 0 and v.at >= votes.began for v in votes.votes)
    rows = preferences([votes], PAIRS)
    assert [row["prefer_a"] + row["no_preference"] + row["prefer_b"] for row in rows] == [2, 2]
    assert [[row["prefer_a"], row["no_preference"], row["prefer_b"]] for row in rows] == [totals[:3], totals[3:]]


@in_a_browser
def test_a_pair_must_be_heard_and_what_was_voted_outlives_the_page(tmp_path: Path) -> None:
    from playwright.sync_api import expect

    page = made(tmp_path, samples(seconds=1.0))
    with opened(page, tmp_path) as tab:
        tab.keyboard.press("1")
        expect(tab.locator("#start")).to_be_visible()  # nothing to vote on yet
        tab.click("#begin")
        tab.keyboard.press("1")
        expect(tab.locator("#status")).to_have_text("Hear both first; r plays them.")
        expect(tab.locator("#heading")).to_have_text("Pair 1 of 4")
        wait_until_heard(tab)
        tab.keyboard.press("1")
        expect(tab.locator("#heading")).to_have_text("Pair 2 of 4")
        tab.keyboard.press("ArrowRight")
        expect(tab.locator("#heading")).to_have_text("Pair 3 of 4")
        order = tab.evaluate("JSON.stringify(state.order)")
        tab.reload()
        tab.wait_for_selector("body[data-ready=true]")
        expect(tab.locator("#heading")).to_have_text("Pair 3 of 4")
        expect(tab.locator("#answered")).to_have_text("1 with a vote")
        assert tab.evaluate("JSON.stringify(state.order)") == order
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowRight")
        expect(tab.locator("#missing")).to_contain_text("3 of 4 pairs have no vote")
        tab.on("dialog", lambda dialog: dialog.accept())
        tab.click("#again")
        expect(tab.locator("#start")).to_be_visible()
        assert tab.evaluate("Object.keys(state.votes).length") == 0


@in_a_browser
def test_orders_and_sides_differ_between_listeners(tmp_path: Path) -> None:
    page = made(tmp_path, samples(count=2))
    with opened(page, tmp_path) as tab:
        orders = tab.evaluate("Array.from({length: 40}, () => fresh()).map((s) => s.order)")
        listeners = tab.evaluate("Array.from({length: 40}, () => fresh().listener)")
    assert len(set(listeners)) == 40
    assert all(sorted(turn["trial"] for turn in order) == [0, 1, 2, 3] for order in orders)
    firsts = [order[0]["trial"] for order in orders]
    swaps = [order[0]["swapped"] for order in orders]
    assert set(firsts) == {0, 1, 2, 3}
    assert set(swaps) == {True, False}


@in_a_browser
def test_every_control_has_a_name_and_can_be_reached_by_tab(tmp_path: Path) -> None:
    with opened(made(tmp_path), tmp_path) as tab:
        tab.click("#begin")
        wait_until_heard(tab)
        names = []
        for _ in range(12):
            tab.keyboard.press("Tab")
            focused = tab.evaluate("[document.activeElement.tagName, document.activeElement.innerText]")
            if focused[0] != "BUTTON":
                break
            names.append(focused[1])
        assert all(name.strip() for name in names)
        shown = tab.locator("button:visible").all_inner_texts()
        assert names == shown, "every button that is shown, in the order of the page"
        assert tab.locator("progress").get_attribute("aria-label")
        assert tab.locator("#status").get_attribute("aria-live") == "polite"
