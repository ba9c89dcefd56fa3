import pytest

from retort.config import validate
from retort.errors import ConfigError
from retort.inference.endpoint import EndpointConfig
from retort.orchestration.api_key import api_key_of

KEY = "SECRET-API-KEY-0123456789"


def config_of(**changes):
    return validate({"base_url": "https://host/v1", "model": "m", **changes}, EndpointConfig, where="test")


def test_a_key_comes_from_a_variable_or_the_first_line_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECH_KEY", f" {KEY}\n")
    (tmp_path / "key").write_text(f"{KEY}\nsomething else\n")
    assert api_key_of(config_of(api_key_env="SPEECH_KEY")) == KEY
    assert api_key_of(config_of(api_key_file=str(tmp_path / "key"))) == KEY
    assert api_key_of(config_of()) is None


@pytest.mark.parametrize(
    ("held", "message"), [("", "is empty"), ("two words", "is no key"), ("schlüssel", "is no key")]
)
def test_what_is_no_key_is_refused_and_not_repeated(tmp_path, monkeypatch, held, message):
    (tmp_path / "key").write_text(held + "\n")
    with pytest.raises(ConfigError, match=message) as caught:
        api_key_of(config_of(api_key_file=str(tmp_path / "key")))
    assert not held or held not in str(caught.value)
    monkeypatch.delenv("SPEECH_KEY", raising=False)
    with pytest.raises(ConfigError, match="SPEECH_KEY is not set"):
        api_key_of(config_of(api_key_env="SPEECH_KEY"))
    with pytest.raises(ConfigError, match="cannot be read"):
        api_key_of(config_of(api_key_file=str(tmp_path / "absent")))
