"""Signed statements about speech: compact JWS (RFC 7515) with Ed25519 (RFC 8037), which other tools can check."""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.errors import ConfigError, MissingRequirementError

_MAX_TOKEN = 4096


@dataclass(frozen=True)
class Statement:
    """A statement that was found.

    Attributes:
        claims: what it says.
        key_id: of the key that signed it, as it says itself.
        is_valid: whether a known key signed it; None where the key is not known.
    """

    claims: Mapping[str, Any]
    key_id: str
    is_valid: bool | None


class Signer:
    """Signs with an Ed25519 key of a PEM file: ``openssl genpkey -algorithm ed25519 -out FILE``.

    Raises:
        ConfigError: the file is no such key.
        MissingRequirementError: ``cryptography`` is not installed.
    """

    def __init__(self, key_file: Path) -> None:
        self._key: Any = _read_key(key_file, is_public=False)
        self.public_key = self._key.public_key()
        self.key_id = _key_id(self.public_key)

    def sign(self, claims: Mapping[str, Any]) -> str:
        """The token."""
        header = {"alg": "EdDSA", "typ": "JWT", "kid": self.key_id}
        body = f"{_packed(_json(header))}.{_packed(_json(claims))}"
        return f"{body}.{_packed(self._key.sign(body.encode()))}"


class Verifier:
    """Checks tokens against known public keys; the algorithm is never the token's to choose.

    Args:
        keys: public keys of ``cryptography``.
    """

    def __init__(self, keys: Sequence[Any]) -> None:
        self._keys = {_key_id(key): key for key in keys}

    def read(self, token: str) -> Statement | None:
        """What a token says, or None where it is none."""
        from cryptography.exceptions import InvalidSignature

        body, _, signature = token.rpartition(".")
        header, _, claims = body.partition(".")
        if len(token) > _MAX_TOKEN:
            return None
        try:
            kept, said = json.loads(_unpacked(header)), json.loads(_unpacked(claims))
            signed = _unpacked(signature)
        except (ValueError, binascii.Error, RecursionError):
            return None
        if not isinstance(kept, dict) or not isinstance(said, dict) or kept.get("alg") != "EdDSA":
            return None
        key_id = str(kept.get("kid", ""))[:64]
        if key_id not in self._keys:
            return Statement(said, key_id, None)
        try:
            self._keys[key_id].verify(signed, body.encode())
        except InvalidSignature:
            return Statement(said, key_id, False)
        return Statement(said, key_id, True)


def read_public_key(path: Path) -> Any:
    """A public key of a PEM file: ``openssl pkey -in KEY -pubout -out FILE``.

    Raises:
        ConfigError: the file is no such key.
        MissingRequirementError: ``cryptography`` is not installed.
    """
    return _read_key(path, is_public=True)


def _read_key(path: Path, *, is_public: bool) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingRequirementError("signatures need a library; run: pip install cryptography") from error
    kind = ed25519.Ed25519PublicKey if is_public else ed25519.Ed25519PrivateKey
    cure = "openssl pkey -in KEY -pubout" if is_public else "openssl genpkey -algorithm ed25519"
    try:
        pem = path.read_bytes()
        key = serialization.load_pem_public_key(pem) if is_public else serialization.load_pem_private_key(pem, None)
    except OSError as error:
        raise ConfigError(f"{path}: the key cannot be read: {error.strerror}; make one with `{cure}`") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without the cause: what a parser says of a broken key may quote it.
        raise ConfigError(f"{path}: not an Ed25519 key in PEM without a password; make one with `{cure}`") from None
    if not isinstance(key, kind):
        raise ConfigError(f"{path}: a key of another algorithm; make one with `{cure}`")
    return key


def _key_id(public_key: Any) -> str:
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]


def _json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, separators=(",", ":"), sort_keys=True).encode()


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unpacked(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
