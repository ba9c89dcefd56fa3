# ruff: noqa: RUF001
"""Texts of which the model can read a part: what it left out is told with the answer, before its first byte."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from retort.serving.backends import Ask, LocalBackend
from retort.serving.requests import unread_characters
from retort.serving.settings import ServeConfig
from retort.serving.speaking import Snippet
from tests.inference.speaking import speaking_model
from tests.patience import HANG_S
from tests.serving.running import api_of, backends, running, settings

HEADER = "x-unread-characters"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    """Of utterances that end by themselves."""
    plain = settings(speaking_model(tmp_path_factory.mktemp("unread"), mean_frames=12.0))
    return plain.replace(models=[model.replace(part_characters=12) for model in plain.models[:1]])


@pytest.fixture(scope="module")
def made(config: ServeConfig) -> dict[str, LocalBackend]:
    return backends(config)


@pytest.fixture(scope="module")
def client(config: ServeConfig, made: dict[str, LocalBackend]) -> Iterator[httpx.Client]:
    with running(api_of(config, made)) as url, httpx.Client(base_url=url, timeout=HANG_S) as client:
        yield client


def spoken(client: httpx.Client, text: str, **fields: Any) -> httpx.Response:
    return client.post("/v1/audio/speech", json={"model": "tiny", "voice": "s0", "input": text, "seed": 3, **fields})


@pytest.mark.parametrize(
    "form", [{"response_format": "wav"}, {"response_format": "pcm"}, {"response_format": "wav", "stream_format": "sse"}]
)
def test_what_was_left_out_is_named_in_a_header_and_in_the_log(
    client: httpx.Client, form: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="retort.serving"):
        told, plain = spoken(client, "one 你好, 你 ж", **form), spoken(client, "one two", **form)
    assert (told.status_code, told.headers[HEADER]) == (200, "U+4F60, U+597D, U+0436")
    assert (plain.status_code, HEADER in plain.headers) == (200, False)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("retort.serving")]
    assert messages == ["tiny cannot read these characters of a request, and left them out: 你 好 ж"]


@pytest.mark.parametrize(
    "text", ["one two, one. 你好世界。 one two.", "你好世界。 one two, one. One.", "one. One, one. 你好世界。"]
)
def test_parts_that_are_left_out_whole_are_named_too(client: httpx.Client, text: str) -> None:
    told = spoken(client, text, response_format="pcm")
    assert told.status_code == 200
    assert set(told.headers[HEADER].split(", ")) >= {"U+4F60", "U+597D", "U+4E16", "U+754C"}


@pytest.mark.parametrize("text", ["你好，世界", "привет", "こんにちは", "مرحبا"])
@pytest.mark.parametrize("form", [{}, {"response_format": "pcm", "stream_format": "sse"}], ids=["whole", "stream"])
def test_what_holds_nothing_to_read_stays_refused(client: httpx.Client, text: str, form: dict[str, str]) -> None:
    refused = spoken(client, text, **form)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
    assert HEADER not in refused.headers


def test_only_the_first_piece_tells(made: dict[str, LocalBackend]) -> None:
    async def said() -> list[Snippet]:
        return [piece async for piece in made["tiny"].speak(Ask("one two. Ж one, two. Ж one.", "s0", 3))]

    pieces = asyncio.run(said())
    assert len(pieces) > 1
    assert [piece.unread for piece in pieces] == ["ж"] + [""] * (len(pieces) - 1)


def test_a_header_stays_short_and_plain() -> None:
    assert unread_characters("") == {}
    (header,) = unread_characters("".join(map(chr, range(0x4E00, 0x4E00 + 4000)))).values()
    assert header.isascii()
    assert len(header) < 200
    assert header.startswith("U+4E00, U+4E01, ")
    assert header.endswith("U+4E13, ...")
    assert list(unread_characters("\N{GOTHIC LETTER AHSA}\n").values()) == ["U+10330, U+000A"]
