"""`retort say` marks what `retort detect` finds; exit codes say whether anything is proved."""

import json
from pathlib import Path

import pytest
import soundfile
import yaml

from retort.audio.marked_files import flac_with, read_marked, wav_header, wav_samples
from retort.cli import run
from tests.audio.test_provenance import config as provenance_config
from tests.inference.speaking import speaking_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_model(tmp_path_factory.mktemp("say"), mean_frames=60.0)


def serving_file(folder: Path, **changes: object) -> Path:
    tree = json.loads(provenance_config(folder).model_dump_json())
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"models": [{"name": "m", "path": "m"}], "provenance": {**tree, **changes}}))
    return path


def said(model: Path, out: Path, *more: str) -> int:
    # Random weights end when they like: one of a few seeds says something whole.
    return min(
        run(["say", "one two three", "-m", str(model), "-o", str(out), "--seed", str(s), *more]) for s in (1, 2, 3)
    )


def test_what_is_said_with_provenance_is_detected(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = serving_file(tmp_path), tmp_path / "out.wav"
    assert said(model, out, "--provenance", str(config)) == 0
    capsys.readouterr()
    assert run(["detect", str(out), "--config", str(config), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["signature"]["valid"] is True
    assert found["signature"]["intact"] is True
    assert soundfile.info(out).samplerate == 24_000
    assert run(["detect", str(out), "--config", str(config)]) == 0
    assert "marked as synthetic" in capsys.readouterr().out


def test_what_is_said_without_is_not_and_exit_code_7_says_so(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = serving_file(tmp_path), tmp_path / "out.wav"
    assert said(model, out) == 0
    assert run(["detect", str(out), "--config", str(config)]) == 7
    assert "nothing is proved" in capsys.readouterr().out


def test_nothing_is_said_when_the_mark_is_not_possible(model: Path, tmp_path: Path) -> None:
    config = serving_file(tmp_path, watermark={"kind": "audioseal", "folder": str(tmp_path / "gone")})
    out = tmp_path / "out.wav"
    assert run(["say", "one", "-m", str(model), "-o", str(out), "--provenance", str(config)]) in (3, 4)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "code"), [("gone.wav", None, 3), ("x.wav", b"nonsense", 3), ("x.mp3", b"", 3)]
)
def test_what_is_no_sound_is_an_error_and_not_a_verdict(
    tmp_path: Path, name: str, content: bytes | None, code: int
) -> None:
    config = serving_file(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run(["detect", str(tmp_path / name), "--config", str(config)]) == code


def test_a_serving_file_without_provenance_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text("models:\n- {name: m, path: m}\n")
    assert run(["detect", str(tmp_path / "x.wav"), "--config", str(tmp_path / "s.yaml")]) == 2
    assert "no `provenance`" in capsys.readouterr().err


@pytest.mark.parametrize("comment", ["", "a", "ab", "ünïcödé data", "x" * 3001])
def test_wav_headers_hold_any_comment(comment: str) -> None:
    body = b"\x01\x00\x02\x00" * 2000
    file = wav_header(4000, comment) + body
    assert wav_samples(file) == body
    assert int.from_bytes(file[4:8], "little") == len(file) - 8
    marked = read_marked(file, max_seconds=1)
    assert marked.comment == comment
    assert len(marked.samples_N) == 4000


def test_a_flac_comment_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.flac", [0.1, -0.1] * 4000, 24_000)
    plain = (tmp_path / "x.flac").read_bytes()
    noted = flac_with(flac_with(plain, "first"), "second one")
    marked = read_marked(noted, max_seconds=1)
    assert marked.comment == "second one"
    assert (marked.samples_N == read_marked(plain, max_seconds=1).samples_N).all()
    assert b"first" not in noted
