"""The key for a speech service, from where a run file says that it is: it goes nowhere but into requests."""

import os

from retort.errors import ConfigError
from retort.inference.endpoint import EndpointConfig


def api_key_of(config: EndpointConfig) -> str | None:
    """The key, read on the node that asks.

    Raises:
        ConfigError: the variable is not set, or the file holds none.
    """
    if config.api_key_env is not None:
        key = os.environ.get(config.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"api_key_env: {config.api_key_env} is not set; export it here, and on a cluster on every node, or "
                "name a file that every node sees in api_key_file"
            )
        return _fit(key, config.api_key_env)
    if config.api_key_file is None:
        return None
    try:
        lines = config.api_key_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file: {config.api_key_file} cannot be read: {error}") from None
    key = lines[0].strip() if lines else ""
    if not key:
        raise ConfigError(f"api_key_file: the first line of {config.api_key_file} is empty; it is to be the key")
    return _fit(key, str(config.api_key_file))


def _fit(key: str, source: str) -> str:
    """The key, if a header can hold it; it is not repeated."""
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"what {source} holds is no key: it has blanks, or characters that no header can hold")
    return key
