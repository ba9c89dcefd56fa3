"""Ray's token: whoever reads it runs code on the cluster, so it is made for its owner's eyes before Ray makes it."""

import contextlib
import os
import secrets
from pathlib import Path

_MODE = 0o600


def token_file() -> Path:
    """Where Ray looks for the token unless it is told one."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def ensure_private_token() -> None:
    """Make a token that its owner alone can read, where a Ray that starts here would make one that everybody can.

    Nothing happens where there is a token, or Ray asks for none. Where the place cannot be written, as in a pod with a
    read-only home, this process and what it starts have a token of their own that is on no disk.
    """
    is_told = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    is_off = os.environ.get("RAY_AUTH_MODE", "token").lower() != "token"
    if not is_told and not is_off:
        try:
            _make(token_file())
        except OSError:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _make(file: Path) -> None:
    if file.exists():
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    try:
        with os.fdopen(descriptor, "w") as opened:
            opened.write(secrets.token_hex(32))
        # It appears whole, and once: of several jobs that start at a time, all use the first one's.
        with contextlib.suppress(FileExistsError):
            os.link(beside, file)
    finally:
        beside.unlink()
