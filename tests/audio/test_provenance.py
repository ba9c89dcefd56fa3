"""Signed statements and what is asked for: forged, foreign and altered ones are told apart."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from retort.audio.files import write_wav
from retort.audio.provenance import COMMENT, Provenance, ProvenanceConfig, token_in
from retort.audio.signatures import Signer, Verifier
from retort.config import validate
from retort.errors import ConfigError, DataError
from tests.audio.test_watermark import babble


def write_key(path: Path, key: Any = None, password: bytes | None = None) -> Path:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    made = key or ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    return path


def config(folder: Path, **changes: Any) -> ProvenanceConfig:
    (folder / "mark").write_text("0123456789abcdef")
    tree = {
        "signature": {"key_file": str(write_key(folder / "key.pem"))},
        "watermark": {"kind": "spread_spectrum", "key_file": str(folder / "mark")},
    }
    return validate({**tree, **changes}, ProvenanceConfig, where="the test")


def told(provenance: Provenance, seconds: float = 4.0) -> tuple[Any, np.ndarray[Any, Any]]:
    marking = provenance.begin(model="tiny")
    sound = np.rint(babble(seconds) * 32767).astype(np.int16)
    whole = np.concatenate([marking.push(sound[:5000], is_last=False), marking.push(sound[5000:], is_last=True)])
    return marking, whole.astype(np.float32) / 32768


def test_what_was_signed_and_marked_is_found_and_an_altered_sample_is_seen(tmp_path: Path) -> None:
    provenance = Provenance(config(tmp_path))
    marking, sound = told(provenance)
    findings = provenance.examine(marking.comment(is_whole=True), sound)
    assert findings.as_dict()["signature"]["valid"] is True
    assert findings.is_intact is True
    assert findings.watermark is not None
    assert findings.watermark.is_marked
    assert findings.statement is not None
    assert findings.statement.claims["synthetic"] is True
    sound[1000] += 4 / 32768
    altered = provenance.examine(marking.comment(is_whole=True), sound)
    assert altered.is_intact is False
    streamed = provenance.examine(marking.comment(), sound)
    assert streamed.is_intact is None
    assert streamed.is_marked


def test_a_statement_that_was_moved_to_other_sound_proves_nothing(tmp_path: Path) -> None:
    only_signed = config(tmp_path).replace(watermark=None)
    provenance = Provenance(only_signed)
    marking, _ = told(provenance)
    assert not provenance.examine(marking.comment(is_whole=True), babble(1.0, seed=5)).is_marked


def tokens(signer: Signer) -> dict[str, str]:
    good = signer.sign({"synthetic": True})
    head, claims, signature = good.split(".")

    def packed(tree: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(tree).encode()).rstrip(b"=").decode()

    return {
        "claims of another": f"{head}.{packed({'synthetic': False})}.{signature}",
        "no algorithm": f"{packed({'alg': 'none', 'kid': signer.key_id})}.{claims}.",
        "hmac with the public key": f"{packed({'alg': 'HS256', 'kid': signer.key_id})}.{claims}.{signature}",
        "a cut signature": good[:-4],
        "no signature": f"{head}.{claims}.",
        "two parts": f"{head}.{claims}",
        "not base64": f"{head}.{claims}.!!!",
        "a list": f"{packed([])}.{packed([])}.{signature}",
        "deep": f"{packed(0)}.{base64.urlsafe_b64encode(b'[' * 2000).decode()}.x",
        "long": good + "A" * 5000,
        "empty": "",
    }


def test_forged_tokens_are_never_valid(tmp_path: Path) -> None:
    signer = Signer(write_key(tmp_path / "key.pem"))
    verifier = Verifier([signer.public_key])
    good = verifier.read(signer.sign({"synthetic": True}))
    assert good is not None
    assert good.is_valid is True
    for name, token in tokens(signer).items():
        statement = verifier.read(token)
        assert statement is None or statement.is_valid is False, name


def test_a_key_that_nobody_gave_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    stranger = Signer(write_key(tmp_path / "stranger.pem"))
    provenance = Provenance(config(tmp_path))
    findings = provenance.examine(COMMENT + stranger.sign({"synthetic": True}), babble(1.0))
    assert findings.statement is not None
    assert findings.statement.is_valid is None
    assert not findings.is_marked
    public = tmp_path / "stranger.pub"
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(stranger.public_key.public_bytes(serialization.Encoding.PEM, form))
    signature = {"key_file": str(tmp_path / "key.pem"), "public_keys": [str(public)]}
    believing = Provenance(validate({"signature": signature}, ProvenanceConfig, where="the test"))
    assert believing.examine(COMMENT + stranger.sign({"synthetic": True}), babble(1.0)).is_marked


@pytest.mark.parametrize(
    ("changes", "kind", "cure"),
    [
        ({"signature": {"key_file": "gone.pem"}}, ConfigError, "openssl genpkey"),
        ({"signature": {"key_file": "text.pem"}}, ConfigError, "not an Ed25519 key"),
        ({"signature": {"key_file": "curve.pem"}}, ConfigError, "another algorithm"),
        ({"signature": {"key_file": "locked.pem"}}, ConfigError, "without a password"),
        ({"watermark": {"kind": "spread_spectrum", "key_file": "short"}}, ConfigError, "16 or more"),
        ({"watermark": {"kind": "spread_spectrum", "key_file": "gone"}}, ConfigError, "cannot be read"),
        ({"watermark": {"kind": "audioseal", "folder": "gone"}}, DataError, "not an AudioSeal card"),
        ({"notice": {"kind": "recording", "path": "gone.wav"}}, DataError, "no such file"),
        ({"signature": None, "watermark": None}, ConfigError, "asks for nothing"),
    ],
)
def test_what_cannot_be_done_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, kind: type[Exception], cure: str
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = "SECRET-THAT-NO-MESSAGE-HOLDS"
    Path("text.pem").write_text(f"-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n")
    write_key(Path("curve.pem"), ec.generate_private_key(ec.SECP256R1()))
    write_key(Path("locked.pem"), password=b"word")
    Path("short").write_text("short")
    with pytest.raises(kind, match=cure) as caught:
        Provenance(config(tmp_path, **changes))
    assert secret not in str(caught.value)


@pytest.mark.parametrize("kind", ["tones", "recording"])
def test_a_notice_comes_before_the_first_sample_and_only_once(tmp_path: Path, kind: str) -> None:
    import torch

    write_wav(tmp_path / "notice.wav", torch.from_numpy(babble(0.5, seed=3))[:12_000], 24_000)
    notice = {"kind": kind} if kind == "tones" else {"kind": kind, "path": str(tmp_path / "notice.wav")}
    plain, with_notice = (Provenance(config(tmp_path, watermark=None, notice=n)) for n in (None, notice))
    sound, noticed = told(plain)[1], told(with_notice)[1]
    more = len(noticed) - len(sound)
    assert more == (12_000 if kind == "recording" else 3 * 2_880)
    assert np.array_equal(noticed[more:], sound)
    assert np.abs(noticed[:more]).max() > 0.05


def test_the_statement_names_neither_text_nor_key(tmp_path: Path) -> None:
    provenance = Provenance(config(tmp_path))
    claims = json.loads(base64.urlsafe_b64decode(token_in(provenance.begin(model="m").comment()).split(".")[1] + "=="))
    assert set(claims) == {"iss", "synthetic", "iat", "model", "watermark"}


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree = {"signature": {"key_file": "a", "public_keys": ["b"]}, "watermark": {"kind": "audioseal", "folder": "c"}}
    made = validate(tree, ProvenanceConfig, where="the test").absolute()
    assert made.signature is not None
    paths = [made.signature.key_file, *made.signature.public_keys, made.watermark.folder]  # type: ignore[union-attr]
    assert paths == [tmp_path / name for name in "abc"]
