import sys
from pathlib import Path

import numpy as np
import pytest

from retort.config import validate
from retort.errors import ConfigError, MissingRequirementError
from retort.inference.black_box.callable import CallableConfig, CallableTeacher, callable_facts
from retort.inference.black_box.teacher import Line, Unspoken

MODULE = """
import numpy as np
def make(frequency=200.0):
    def speak(text, *, voice, seed):
        if "unspeakable" in text:
            raise ValueError("it has no sound")
        samples = 0.1 * np.sin(2 * np.pi * frequency * np.arange(8000) / 16000)
        return (samples * np.nan if "broken" in text else samples), 16000
    return speak
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution that brings a teacher, as an installer leaves it."""
    name = f"speaking_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    info = tmp_path / f"{name}-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
    (info / "top_level.txt").write_text(name + "\n")
    (info / "RECORD").write_text(f"{name}.py,,\n")
    (info / "entry_points.txt").write_text(f"[retort.teachers]\n{name}-tone = {name}:make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def config_of(**changes):
    return validate({"kind": "callable", "licence": "ours", **changes}, CallableConfig, where="test")


def test_an_entry_point_and_a_function_of_an_installed_package_speak(installed):
    for named in ({"entry_point": f"{installed}-tone"}, {"function": f"{installed}:make"}):
        config = config_of(**named, settings={"frequency": 100.0})
        facts = callable_facts(config)
        assert facts.name == f"{installed}:make of {installed} 2.5"
        assert facts.fingerprint != callable_facts(config_of(**named)).fingerprint
        audio = CallableTeacher(config).speak(Line("hello", "default", 1))
        spectrum = np.abs(np.fft.rfft(audio.samples_N.numpy()))
        assert spectrum.argmax() * 16000 / 8000 == pytest.approx(100, abs=3)


def test_what_it_cannot_say_is_one_texts_fault(installed):
    teacher = CallableTeacher(config_of(function=f"{installed}:make"))
    for text, code in (("unspeakable", "refused_by_teacher"), ("broken", "non_finite")):
        with pytest.raises(Unspoken) as caught:
            teacher.speak(Line(text, "default", 1))
        assert caught.value.code == code


def test_nothing_that_merely_lies_about_is_called(tmp_path, monkeypatch):
    """Neither a module of the folder where the job runs, nor one of PYTHONPATH, nor of the standard library."""
    (tmp_path / "lying_about.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for function in ("lying_about:make", "subprocess:run", "os:system"):
        with pytest.raises(ConfigError, match="no installed package brings"):
            CallableTeacher(config_of(function=function))
    assert not Path("ran").exists()
    assert "lying_about" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"entry_point": "nobody"}, ConfigError, "no installed package has it"),
        ({"function": "{}:absent"}, ConfigError, "has no 'absent'"),
        ({"function": "{}:make", "settings": {"pitch": 1}}, ConfigError, "does not take these settings.*pitch"),
        ({"function": "{}.inner:make"}, MissingRequirementError, "cannot be imported"),
        ({}, ConfigError, "give entry_point or function"),
        ({"function": "a:b", "entry_point": "c"}, ConfigError, "give entry_point or function"),
        ({"function": "a b"}, ConfigError, "function"),
    ],
)
def test_mistakes_are_told(installed, changes, error, message):
    named = {key: value.format(installed) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(error, match=message):
        CallableTeacher(config_of(**named))
