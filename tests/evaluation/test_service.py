"""A service as a system: our own server's figures are those of its model, and what it does not deliver is a failure."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response

from retort.audio.files import wav_bytes
from retort.config import validate
from retort.errors import ConfigError, DataError, StorageError
from retort.evaluation.asr import PocketSphinxConfig, open_recogniser
from retort.evaluation.items import ItemResult
from retort.evaluation.judge import Judge, System, TestStrings
from retort.evaluation.prosody import ProsodyConfig
from retort.evaluation.scoring import Scorers
from retort.evaluation.service import BlackBoxService, Service, ServiceConfig
from retort.inference.black_box.command import CommandConfig
from retort.inference.opening import open_speaker
from retort.inference.speaker import Request, Spoken
from retort.run_config import SystemConfig
from tests.evaluation.asked import TEXTS, WORDS, own_server, service_config, world
from tests.evaluation.judging import scorers
from tests.inference.test_endpoint import TONE, refusal
from tests.inference.test_endpoint import Service as Server
from tests.serving.running import running

WHOLE = len(TEXTS)
SEED = 0
"""With which every utterance of these has a first frame; a service would try another seed for one without."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return world(tmp_path_factory.mktemp("service"))


def strings_of(folders: tuple[Path, Path]) -> TestStrings:
    return TestStrings(folders[0], split="test", count=WHOLE)


def system(url: str, **changes: Any) -> System:
    return System("s", "endpoint", service=Service(service_config(url, **changes), None))


def row_of(item: ItemResult) -> dict[str, Any]:
    """All but the name, and what only whoever has the codes knows: how many they are, whether they go in circles."""
    reasons = tuple(reason for reason in item.failure_reasons if reason != "repeat")
    unknown = {"system": "", "tokens": None, "has_eos": None}
    return {**dataclasses.asdict(item), **unknown, "failure_reasons": reasons, "failure": bool(reasons)}


def test_our_own_server_has_the_figures_of_its_model(folders: tuple[Path, Path]) -> None:
    strings = strings_of(folders)
    ear = open_recogniser(PocketSphinxConfig(words=WORDS))
    judge = Judge(strings, Scorers(ear), max_frames=400, seed=SEED, prosody=ProsodyConfig(strings=2, samples=2))
    ids = list(strings.rows)
    here = [verdict.item for verdict in judge.judge(System("m", "model", open_speaker(folders[1])), ids)]
    assert all(item.has_eos for item in here), "a guard would cut what has no end"
    assert len({item.audio_sha256 for item in here}) == WHOLE
    assert any(item.hypothesis for item in here)
    assert sum("sample_spread" in item.values for item in here) == 2
    with own_server(folders[1]) as url:
        for response_format in ("wav", "pcm", "flac"):
            asked = system(url, response_format=response_format, concurrency=8)
            there = [verdict.item for verdict in judge.judge(asked, ids)]
            assert [row_of(item) for item in there] == [row_of(item) for item in here], response_format


def test_what_a_service_does_not_deliver_is_a_failed_row_with_its_reason(folders: tuple[Path, Path]) -> None:
    strings = strings_of(folders)
    judge = Judge(strings, scorers(), max_frames=400, seed=3)
    answers = [
        refusal(400, "not that word"), Response(b"<html>"), Response(b""), refusal(503, "busy"), refusal(503, "busy"),
        Response(wav_bytes(0.0 * TONE, 24_000)), Response(json.dumps({"error": {"message": "no"}}), 422),
    ]  # fmt: skip
    server = Server(*answers)
    with running(server.api) as url:
        # One after the other, so that it is known which answer is whose.
        asked = system(url, concurrency=1, max_attempts=2)
        items = [verdict.item for verdict in judge.judge(asked, list(strings.rows))]
    assert [item.id for item in items] == list(strings.rows), "every row is there"
    told = [item.error or "" for item in items]
    for text, said in zip(told, ("not that word", "unreadable", "empty", "503 busy", "", "no"), strict=False):
        assert said in text
    assert ["error" in item.failure_reasons for item in items] == [True] * 4 + [False, True, False, False]
    assert "silence" in items[4].failure_reasons, "a bad sound is judged as any other"
    assert all(item.wer == 1.0 and item.audio_sha256 is None for item in items[:4])
    assert all(item.duration_s == pytest.approx(0.5) for item in (items[4], *items[6:]))


def test_a_service_that_answers_nothing_is_away_and_one_that_refuses_the_key_ends_it(
    folders: tuple[Path, Path],
) -> None:
    """Rows that blame the texts for it would stay in the report."""
    requests = [Request(text, "s0", 1) for text in TEXTS]
    gone = Service(service_config("http://127.0.0.1:9", max_attempts=1), None)
    with pytest.raises(StorageError, match="goes on where it stopped"):
        gone.speak(requests)
    assert isinstance(gone.speak(requests[:1])[0], StorageError), "one line may be the service's poison"
    strings = strings_of(folders)
    with running(Server(*[refusal(401)] * 8).api) as url, pytest.raises(ConfigError, match="refuses the key"):
        Judge(strings, scorers(), max_frames=9, seed=0).judge(system(url), list(strings.rows))


def test_speakers_are_asked_for_by_the_voices_that_the_file_gives_them() -> None:
    server = Server()
    requests = [Request("one", speaker, 7) for speaker in ("ann", "bob", "eve")]
    for changes, voices in (
        ({}, ["ann", "bob", "eve"]),
        ({"voice": "alloy"}, ["alloy"] * 3),
        ({"voices": {"bob": "echo"}}, ["ann", "echo", "eve"]),
        ({"voices": {"bob": "echo"}, "voice": "alloy"}, ["alloy", "echo", "alloy"]),
    ):
        server.seen.clear()
        with running(server.api) as url:
            Service(service_config(url, concurrency=1, send_seed=False, **changes), None).speak(requests)
        assert [body["voice"] for _, body in server.seen] == voices
        assert all("seed" not in body for _, body in server.seen)


def test_as_many_are_asked_at_once_as_the_file_says() -> None:
    server = Server(*[0.2] * 9)
    with running(server.api) as url:
        said = Service(service_config(url, concurrency=3), None).speak([Request("one", "a", n) for n in range(9)])
    assert 2 <= server.most_at_once <= 3
    assert len(said) == 9


BASE = {"base_url": "http://host/v1", "model": "m"}
OTHERS: dict[str, Any] = {
    "base_url": "http://other/v1", "model": "n", "response_format": "flac", "send_seed": True, "extra": {"speed": 2.0},
    "voices": {"a": "b"}, "voice": "v", "api_key_env": "KEY", "api_key_file": "key", "max_per_minute": 1.0,
    "timeout_s": 1.0, "deadline_s": 1.0, "max_attempts": 1, "concurrency": 1,
}  # fmt: skip
OF_THE_ASKING = {
    "api_key_env", "api_key_file", "max_per_minute", "timeout_s", "deadline_s", "max_attempts", "concurrency"
}  # fmt: skip


@pytest.mark.parametrize("field", ServiceConfig.model_fields)
def test_every_field_either_decides_what_is_said_or_how_it_is_asked_for(field: str) -> None:
    plain = validate(BASE, ServiceConfig, where="test")
    other = validate({**BASE, field: OTHERS[field]}, ServiceConfig, where="test")
    assert other != plain
    assert (other.asked != plain.asked) is (field not in OF_THE_ASKING)


SPEAKER = """
import sys, wave
text, voice, seed, output = sys.argv[1:]
if "mute" in text:
    sys.exit("it has no sound")
with wave.open(output, "wb") as file:
    file.setparams((1, 2, 16000, 0, "NONE", ""))
    loud = {"ann": 40, "s1": 80}[voice]
    file.writeframes(b"".join((loud * (n * int(seed) % 100)).to_bytes(2, "little") for n in range(8000)))
"""


def program(folder: Path) -> CommandConfig:
    (folder / "speak.py").write_text(SPEAKER)
    arguments = [sys.executable, str(folder / "speak.py"), "{text}", "{voice}", "{seed}", "{output}"]
    tree = {"kind": "command", "arguments": arguments, "name": "loud 1", "licence": "ours", "voices": ["ann", "s1"]}
    return validate(tree, CommandConfig, where="test")


def test_a_teacher_of_this_machine_speaks_in_the_rows_voice_or_in_its_first_one(tmp_path: Path) -> None:
    teacher = BlackBoxService(program(tmp_path))
    own, other, mute = teacher.speak([Request("one", "s1", 3), Request("one", "s0", 3), Request("mute", "s1", 3)])
    assert isinstance(own, Spoken)
    assert isinstance(other, Spoken)
    assert (own.sample_rate, own.samples_N.numel()) == (16_000, 8000)
    assert float(own.samples_N.max()) == pytest.approx(2 * float(other.samples_N.max()), rel=0.01)
    assert isinstance(mute, DataError)
    assert "it has no sound" in str(mute)


def test_a_teacher_is_judged_like_any_other_system(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    strings = strings_of(folders)
    judge = Judge(strings, scorers(), max_frames=400, seed=3)
    asked = System("t", "black_box", service=BlackBoxService(program(tmp_path)))
    items = [verdict.item for verdict in judge.judge(asked, list(strings.rows))]
    assert [item.id for item in items] == list(strings.rows)
    assert all(item.error is None and item.duration_s == pytest.approx(0.5) for item in items)


def test_a_system_that_is_a_teacher_says_which_and_no_other_does(tmp_path: Path) -> None:
    teacher = program(tmp_path).model_dump(mode="json")
    tree = {"name": "t", "kind": "black_box", "role": "control", "teacher": teacher}
    decides = {key: value for key, value in teacher.items() if key not in ("timeout_s", "concurrency")}
    assert validate(tree, SystemConfig, where="test").said_by["teacher"] == decides
    for changes in ({"teacher": None}, {"kind": "endpoint"}, {"kind": "recordings"}):
        with pytest.raises(ConfigError):
            validate({**tree, **changes}, SystemConfig, where="test")
