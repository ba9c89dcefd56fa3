"""Versions under a name."""

import json
from pathlib import Path

import pytest

from retort.errors import DataError, StorageError
from retort.store.artifact import Artifact, describe_artifact, read_artifact, write_artifact
from retort.store.lock import OutputLock
from retort.store.registry import Card, Registry, read_pointer


def model(folder: Path, weights: str) -> Artifact:
    def fill(target: Path) -> None:
        (target / "codec").mkdir()
        (target / "codec" / "config.json").write_text("{}")
        (target / "model.safetensors").write_text(weights)

    info = describe_artifact("model", "distill", "f-1", inputs={"teacher": "t"}, config={"a": 1}, metrics={"loss": 2.0})
    return write_artifact(folder, info, fill)


def card(text: str = "card") -> Card:
    return Card({"text": text}, text)


def test_a_new_version_is_used_and_the_old_one_stays(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    assert registry.names() == []
    first = registry.add("small", model(tmp_path / "a", "one"), card("1"), evaluation="e", system="s")
    second = registry.add("small", model(tmp_path / "b", "two"), card("2"), evaluation="e", system="s")
    assert [first.info.reference, second.info.reference] == ["small@1", "small@2"]
    assert second.info.inputs.keys() == {"teacher", "promoted", "evaluation", "system"}
    assert second.info.config == {"a": 1}
    assert registry.versions("small") == [1, 2]
    assert (registry.current("small").version, registry.card("small")) == (2, {"text": "2"})
    assert (read_artifact(first.path).path / "model.safetensors").read_text() == "one"
    assert (second.path / "codec" / "config.json").is_file()
    assert (second.path / "card.md").read_text() == "2"


def test_the_same_model_and_evaluation_come_back_as_the_version_that_they_are(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    one, two = model(tmp_path / "a", "one"), model(tmp_path / "b", "two")
    registry.add("small", one, card(), evaluation="e", system="s")
    registry.add("small", two, card(), evaluation="e", system="s")
    again = registry.add("small", one, card(), evaluation="e", system="s")
    assert (again.info.version, registry.current("small").version, registry.versions("small")) == ("1", 1, [1, 2])
    assert registry.add("small", one, card(), evaluation="other", system="s").info.version == "3"
    assert registry.add("small", one, card(), evaluation="e", system="guided").info.version == "4"


def test_a_version_can_be_promoted_under_another_name_without_its_old_card(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    first = registry.add("small", model(tmp_path / "a", "one"), card("1"), evaluation="e", system="s")
    other = registry.add("other", first, card("2"), evaluation="e", system="s")
    assert registry.names() == ["other", "small"]
    assert json.loads((other.path / "card.json").read_text()) == {"text": "2"}


def test_promotions_of_one_name_do_not_run_at_once(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    source = model(tmp_path / "a", "one")
    with OutputLock(tmp_path / "registry" / "small"), pytest.raises(StorageError, match="another run"):
        registry.add("small", source, card(), evaluation="e", system="s")
    assert registry.versions("small") == []


def test_what_is_not_there_or_damaged_is_told(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.add("small", model(tmp_path / "a", "one"), card(), evaluation="e", system="s")
    with pytest.raises(DataError, match="no model 'smal'; it has small"):
        registry.current("smal")
    with pytest.raises(DataError, match="names are letters"):
        registry.add("a/b", model(tmp_path / "b", "one"), card(), evaluation="e", system="s")
    assert read_pointer(tmp_path) is None
    pointer = tmp_path / "registry" / "small" / "current.json"
    for content in ('{"version": 7, "promoted_at": "x"}', '{"version": "x"}', "{"):
        pointer.write_text(content)
        with pytest.raises(DataError, match="promote the model again"):
            registry.current("small")
