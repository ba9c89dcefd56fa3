"""The page, in a real browser, without any outside address."""

import re
import shutil
from pathlib import Path

import pytest

from tests.inference.speaking import speaking_model
from tests.patience import HANG_MS, patient
from tests.serving.running import api_of, backends, running, settings
from tests.serving.test_api import good_seed

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
