"""The page, in a real browser, without any outside address."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from retort.audio.files import wav_bytes
from retort.serving.settings import ServeConfig, VoiceUploads
from tests.inference.speaking import speaking_model, speaking_zero_shot
from tests.patience import HANG_MS, patient
from tests.serving.running import api_of, backends, running, settings
from tests.serving.test_api import good_seed

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

WATCH_THE_SOUND = """
window.sounds = [];
const Real = window.AudioContext;
let opened = 0;
window.AudioContext = class extends Real {
  number = opened++;
  note(what) { window.sounds.push([what, this.number]); }
  createBufferSource() {
    const source = super.createBufferSource();
    this.note("source");
    source.addEventListener("ended", () => this.note("heard"));
    return source;
  }
  close() {
    this.note("closed");
    return super.close();
  }
};
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_type_choose_hear_and_compare(tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    config = settings(speaking_model(tmp_path))
    made = backends(config)
    seed = good_seed(made["tiny"])
    with running(api_of(config, made)) as address, sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=HANG_MS)
        page = patient(browser.new_page())
        asked: list[str] = []
        faults: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.add_init_script(WATCH_THE_SOUND)
        page.goto(address)
        page.wait_for_selector("body[data-ready=true]")
        a, b = (page.locator(f"[data-side={side}]") for side in "ab")
        assert a.locator(".model").input_value() == "tiny"
        assert b.locator(".model").input_value() == "other"
        page.fill("#text", "one two")
        page.fill("#seed", str(seed))
        page.click("#both")
        for side in (a, b):
            expect(side.locator(".rtf")).to_have_text(re.compile(r"\d"))
            expect(side.locator(".first")).to_contain_text("ms")
            assert float(side.locator(".length").inner_text().split()[0]) > 0.5
            assert side.locator(".used").inner_text() == str(seed)
            assert side.locator("audio").get_attribute("src").startswith("blob:")
            assert side.locator(".fault").inner_text() == ""
        assert a.locator(".length").inner_text() == b.locator(".length").inner_text(), "one model under two names"
        page.wait_for_function("window.sounds.filter(([what]) => what === 'closed').length === 2")
        sounds = page.evaluate("window.sounds")
        assert sounds == sorted(sounds, key=lambda sound: sound[1]), "the second is asked for when the first is heard"
        for number in (0, 1):
            events = [what for what, context in sounds if context == number]
            assert events[-1] == "closed"
            assert events.count("heard") == events.count("source") > 0
        page.fill("#text", "!?")
        a.locator(".speak").click()
        expect(a.locator(".fault")).to_contain_text("nothing to say")
        browser.close()
    assert faults == []
    assert all(url.startswith((address, "blob:")) for url in asked)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    """A model that takes voices, and a server that lets clients add them."""
    folder = tmp_path_factory.mktemp("clone")
    return settings(speaking_zero_shot(folder), voice_uploads=VoiceUploads(folder=folder / "voices"))


def fill_in(page: "Page", sample: Path) -> None:
    """All but the consent."""
    page.fill("#add [name=name]", "Ada")
    page.set_input_files("#add [name=audio_sample]", str(sample))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_voice_is_added_with_consent_and_heard(clone: ServeConfig, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    assert clone.voice_uploads is not None
    sample, kept = tmp_path / "sample.wav", clone.voice_uploads.folder
    sample.write_bytes(wav_bytes(0.1 * torch.sin(0.06 * torch.arange(32_000)), 16_000))
    faults: list[str] = []
    with running(api_of(clone, backends(clone))) as address, sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=HANG_MS)
        page = patient(browser.new_page())
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        page.wait_for_selector("body[data-ready=true]")
        expect(page.locator("#statement")).to_have_text(clone.voice_uploads.consent_statement)
        fill_in(page, sample)
        page.click("#add button")
        assert page.locator("#add [name=agreed]").evaluate("box => !box.validity.valid")
        assert not list(kept.glob("voice_*")), "nothing is sent without consent"
        page.check("#add [name=agreed]")
        page.click("#add button")
        side = page.locator("[data-side=a]")
        expect(side.locator(".voice option:checked")).to_have_text("Ada")
        side.locator(".speak").click()
        expect(side.locator(".rtf")).to_have_text(re.compile(r"\d"))
        assert side.locator(".fault").inner_text() == ""
        fill_in(page, sample)
        page.check("#add [name=agreed]")
        page.click("#add button")
        expect(page.locator("#add .fault")).to_contain_text("a voice of this name exists")
        browser.close()
    assert faults == []
    assert len(list(kept.glob("voice_*"))) == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_server_that_takes_no_voices_asks_for_none(clone: ServeConfig) -> None:
    from playwright.sync_api import sync_playwright

    config = clone.replace(voice_uploads=None)
    with running(api_of(config, backends(config))) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=HANG_MS)
        page = patient(browser.new_page())
        page.goto(address)
        page.wait_for_selector("body[data-ready=true]")
        assert not page.locator("#add").is_visible()
        browser.close()
