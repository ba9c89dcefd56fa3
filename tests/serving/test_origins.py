"""Other websites in a visitor's browser: what they may not do, what this server's own page may, and foreign hosts."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import torch

from retort.serving.local import with_hosts
from retort.serving.settings import ServeConfig, ServedModel
from retort.serving.speaking import Snippet
from tests.patience import HANG_MS, comes, patient
from tests.serving.running import Stub, api_of_stub, running
from tests.serving.test_api import body

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "https://evil.example"


def tone() -> Stub:
    return Stub(Snippet(0.1 * torch.ones(2400), "said"))


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://127.0.0.1:1"}, {"Origin": "file://"}, {"Origin": EVIL, "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://[", "Sec-Fetch-Site": "none"}, {"Origin": ""},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/audio/speech"), ("POST", "/v1/audio/voices"), ("DELETE", "/v1/audio/voices/voice_1"),
        ("POST", "/v1/audio/detect"),
    ],
)  # fmt: skip
def test_what_another_website_sends_is_refused(method: str, path: str, headers: dict[str, str]) -> None:
    stub = tone()
    with running(api_of_stub(stub)) as url:
        answer = httpx.request(method, url + path, json=body(1), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site")
        assert 'retort_requests_total{model="",status="403"} 1.0' in httpx.get(f"{url}/metrics").text
    assert not stub.asks


def test_clients_and_this_servers_own_page_are_not_refused() -> None:
    with running(api_of_stub(tone())) as url:
        port = url.rpartition(":")[2]
        for headers in (
            {},
            {"Sec-Fetch-Mode": "cors"},  # Node's clients
            {"Origin": url, "Sec-Fetch-Site": "same-origin"},
            {"Sec-Fetch-Site": "none"},
            {"Origin": "https://tts.example.com", "Host": "tts.example.com"},  # behind a proxy with TLS
            {"Origin": f"http://localhost:{port}", "Host": f"LOCALHOST:{port}"},
        ):
            assert httpx.post(f"{url}/v1/audio/speech", json=body(1), headers=headers).status_code == 200, headers


def test_a_website_that_is_listed_may_do_all_and_reads_the_answer() -> None:
    with running(api_of_stub(tone(), cors_origins=["https://app.example"])) as url:
        asked = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
        wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        before = httpx.options(f"{url}/v1/audio/speech", headers=asked | wish)
        answer = httpx.post(f"{url}/v1/audio/speech", json=body(1), headers=asked)
        other = httpx.post(f"{url}/v1/audio/speech", json=body(1), headers={"Origin": EVIL})
    assert (before.status_code, answer.status_code, other.status_code) == (200, 200, 403)
    assert {a.headers["access-control-allow-origin"] for a in (before, answer)} == {"https://app.example"}
    assert "X-Seed" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in other.headers
    with running(api_of_stub(tone(), cors_origins=["*"])) as url:
        assert httpx.post(f"{url}/v1/audio/speech", json=body(1), headers={"Origin": EVIL}).status_code == 200
    with running(api_of_stub(tone())) as url:
        unlisted = httpx.options(f"{url}/v1/audio/speech", headers=asked | wish)
    assert "access-control-allow-origin" not in unlisted.headers


@pytest.mark.parametrize(
    ("host", "is_taken"),
    [
        ("127.0.0.1", True), ("127.0.0.1:8000", True), ("[::1]:8000", True), ("[::1]", True), ("localhost:8000", True),
        ("192.0.2.7:80", True), ("retort", True), ("tts.localhost", True), ("host.docker.internal:8000", True),
        ("tts.example.com", True), ("TTS.example.com:8000", True), ("evil.example", False),
        ("evil.example:8000", False),        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False), ("evil.example.", False),
        ("tts.example.com.evil.example", False), ("internal.evil.example", False),
    ],
)  # fmt: skip
def test_a_foreign_host_is_refused_where_hosts_are_listed(host: str, is_taken: bool) -> None:
    with running(api_of_stub(tone(), hosts=["tts.example.com"])) as url:
        statuses = [
            httpx.get(f"{url}/v1/models", headers={"Host": host}).status_code,
            httpx.post(f"{url}/v1/audio/speech", json=body(1), headers={"Host": host}).status_code,
        ]
    assert statuses == ([200, 200] if is_taken else [421, 421])
    with running(api_of_stub(tone())) as url:
        assert httpx.get(f"{url}/v1/models", headers={"Host": host}).status_code == 200, "none is listed"


@pytest.mark.parametrize(
    ("host", "listed", "expected"),
    [
        ("127.0.0.1", None, ()), ("127.0.0.53", None, ()), ("localhost", None, ()), ("::1", None, ()),
        ("0.0.0.0", None, None), ("192.0.2.7", None, None), ("127.0.0.1", ["tts.example.com"], ("tts.example.com",)),
    ],
)  # fmt: skip
def test_at_a_loopback_address_foreign_hosts_are_refused_without_a_word_in_the_file(
    host: str, listed: list[str] | None, expected: tuple[str, ...] | None
) -> None:
    models = (ServedModel(name="tiny", path=Path()),)
    config = with_hosts(ServeConfig(models=models, host=host).replace(hosts=listed))
    assert config.hosts == expected
    with running(api_of_stub(tone(), hosts=config.hosts)) as url:
        status = httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"}).status_code
    assert status == (200 if expected is None else 421)


def test_the_page_is_shown_in_no_other_page() -> None:
    with running(api_of_stub(tone())) as url:
        page = httpx.get(url)
    assert page.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert page.headers["x-frame-options"] == "DENY"


ATTACK = """<!doctype html><title>evil</title>
<iframe id="frame" src="{target}/"></iframe>
<form id="form" method="post" action="{target}/v1/audio/voices" enctype="multipart/form-data" target="hidden">
<input name="name" value="mine"></form><iframe name="hidden"></iframe>
<script>
const speech = {{ model: "tiny", voice: "s0", input: "one" }};
(async () => {{
  const tries = [
    ["plain", {{ method: "POST", mode: "no-cors", body: JSON.stringify(speech) }}],
    ["json", {{ method: "POST", headers: {{ "Content-Type": "application/json" }}, body: JSON.stringify(speech) }}],
    ["blob", {{ method: "POST", mode: "no-cors", body: new Blob([JSON.stringify(speech)]) }}],
  ];
  const outcomes = {{}};
  for (const [name, options] of tries) {{
    try {{ const answer = await fetch("{target}/v1/audio/speech", options); outcomes[name] = answer.type; }}
    catch (error) {{ outcomes[name] = "failed"; }}
  }}
  document.getElementById("form").submit();
  window.outcomes = outcomes;
}})();
</script>"""


@contextmanager
def website(targets: list[str]) -> Iterator[str]:
    """Somebody else's, of another origin and site: at 127.0.0.1, where the server that it tries is called localhost."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = ATTACK.format(target=targets[0]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("is_listed", [False, True])
def test_a_website_in_a_real_browser_gets_nothing_unless_it_is_listed(is_listed: bool) -> None:
    from playwright.sync_api import sync_playwright

    stub, targets = tone(), [""]
    with (
        website(targets) as site,
        running(api_of_stub(stub, cors_origins=[site] if is_listed else [])) as url,
        sync_playwright() as playwright,
    ):
        targets[0] = url.replace("127.0.0.1", "localhost")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=HANG_MS)
        page = patient(browser.new_page())
        page.goto(site)
        page.wait_for_function("window.outcomes !== undefined")
        outcomes = page.evaluate("window.outcomes")
        assert comes(lambda: 'status="403"} ' in httpx.get(f"{url}/metrics").text), "the form's, uploads are off"
        assert comes(lambda: page.frames[1].url.startswith("chrome-error:"))
        browser.close()
    assert outcomes == {"plain": "opaque", "json": "cors" if is_listed else "failed", "blob": "opaque"}
    assert len(stub.asks) == is_listed
