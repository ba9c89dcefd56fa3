"""From a judged model to a version in the registry."""

import json
import shutil
from pathlib import Path

import pytest

from retort import cli
from retort.errors import ConfigError, DataError, QualityGateError
from retort.inference.synthesizer import Synthesizer
from retort.orchestration.promote import promote
from retort.serving.local import registry_config
from retort.store.artifact import read_artifact
from retort.store.registry import Registry
from retort.store.results import result_of
from tests.inference.speaking import speaking_model
from tests.orchestration.promotions import write_evaluation


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return speaking_model(tmp_path)


@pytest.fixture
def good(tmp_path: Path, model: Path) -> Path:
    return write_evaluation(tmp_path / "good", {"m": model}, wrong=6)


def test_a_good_model_is_served_with_a_card_that_says_what_it_is(tmp_path: Path, model: Path, good: Path) -> None:
    registry = tmp_path / "registry"
    summary = promote(model, "small", evaluation=good, registry=registry)
    assert (summary["name"], summary["version"], summary["figures"]["wer"]) == ("small", 1, 0.1)
    card = Registry(registry).card("small")
    low, high = card["figures"]["wer"]["ci95"]
    assert low < 0.1 < high
    assert card["model"]["fingerprint"] == Synthesizer.open(model).loaded.fingerprint
    assert (card["scorers"][0], card["utterances"], card["note"]) == ("asr", 60, "mini-scale")
    assert all("passed" in line for line in card["gate"])
    text = (Path(summary["path"]) / "card.md").read_text()
    assert "| WER, corpus, % | 10.0 |" in text
    assert "mini-scale" in text

    config = registry_config(registry)
    assert config is not None
    (served,) = config.models
    assert (served.name, served.path, config.default_model) == ("small", registry / "small" / "1", "small")
    assert served.decoding.sampler.temperature == 0.7, "as it was judged"
    assert Synthesizer.open(result_of(registry / "small")).loaded.fingerprint == card["model"]["fingerprint"]


def test_below_the_gate_nothing_changes_and_older_versions_stay(
    tmp_path: Path, model: Path, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = tmp_path / "registry"
    promote(model, "small", evaluation=good, registry=registry)
    (tmp_path / "worse").mkdir()
    worse = speaking_model(tmp_path / "worse", weights_seed=1)
    judged = write_evaluation(tmp_path / "bad", {"m": worse}, wrong=16)
    options = ["--as", "small", "--evaluation", str(judged), "--registry", str(registry)]
    code = cli.run(["promote", str(worse), *options])
    err = capsys.readouterr().err
    assert code == QualityGateError.exit_code == 7
    assert "wer<=0.3: not passed (wer is 0.2667, with 95 % confidence no worse than 0.3" in err
    assert (Registry(registry).versions("small"), Registry(registry).current("small").version) == ([1], 1)

    assert cli.run(["promote", str(worse), *options, "--gate", "wer<=50%", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 2
    assert Registry(registry).versions("small") == [1, 2]
    newest = registry_config(registry)
    assert newest is not None
    assert newest.models[0].path.name == "2"
    # What was there before can be put into use again, by the same command.
    assert promote(model, "small", evaluation=good, registry=registry)["version"] == 1
    assert Registry(registry).current("small").version == 1


def test_the_evaluation_must_be_of_this_model(tmp_path: Path, model: Path, good: Path) -> None:
    registry = tmp_path / "registry"
    (tmp_path / "other").mkdir()
    other = speaking_model(tmp_path / "other", weights_seed=1)
    with pytest.raises(DataError, match=r"judged 0 systems with the model .*evaluate it first"):
        promote(other, "small", evaluation=good, registry=registry)
    twice = write_evaluation(tmp_path / "twice", {"a": model, "b": model, "c": other, "d": tmp_path / "gone"}, wrong=0)
    with pytest.raises(DataError, match=r"judged 2 systems .*--system: a, b"):
        promote(model, "small", evaluation=twice, registry=registry)
    with pytest.raises(DataError, match="no system 'c'"):
        promote(model, "small", evaluation=twice, system="c", registry=registry)
    assert promote(model, "small", evaluation=twice, system="b", registry=registry)["version"] == 1


def test_figures_of_the_model_that_lay_there_before_pass_no_gate(tmp_path: Path, model: Path) -> None:
    judged = write_evaluation(tmp_path / "judged", {"m": model}, wrong=0, best=({"m": 0.4}, 0))
    was = read_artifact(model).fingerprint
    shutil.rmtree(model)
    (tmp_path / "again").mkdir()
    shutil.copytree(speaking_model(tmp_path / "again", weights_seed=1), model)
    for name in ("m", "m@best"):
        with pytest.raises(DataError, match=f"judged {was} as {name}, .* another model's; evaluate it again"):
            promote(model, "small", evaluation=judged, system=name, registry=tmp_path / "registry")
    assert not (tmp_path / "registry").exists()


def test_a_model_is_served_at_the_temperature_that_was_chosen_for_it_where_that_is_asked(
    tmp_path: Path, model: Path
) -> None:
    registry = tmp_path / "registry"
    judged = write_evaluation(tmp_path / "judged", {"m": model}, wrong=6, best=({"m": 0.4}, 3))
    assert promote(model, "plain", evaluation=judged, registry=registry)["figures"]["wer"] == 0.1
    found = promote(model, "best", evaluation=judged, system="m@best", registry=registry)
    assert found["figures"]["wer"] == 0.05
    config = registry_config(registry)
    assert config is not None
    assert {served.name: served.decoding.sampler.temperature for served in config.models} == {"plain": 0.7, "best": 0.4}
    under_one_name = [
        promote(model, "plain", evaluation=judged, system=name, registry=registry)["version"]
        for name in ("m@best", "m", "m@best")
    ]
    assert under_one_name == [2, 1, 2]
    config = registry_config(registry)
    assert config is not None
    assert {served.decoding.sampler.temperature for served in config.models} == {0.4}
    with pytest.raises(DataError, match=r"no system 'm@0.4' .*it has m, m@best"):
        promote(model, "best", evaluation=judged, system="m@0.4", registry=registry)
    with pytest.raises(DataError, match=r"no system 'm@best' .*it has m$"):
        promote(
            model, "best", evaluation=write_evaluation(tmp_path / "x", {"m": model}, wrong=0), system="m@best",
            registry=registry,
        )  # fmt: skip


def test_options_that_do_not_fit_are_refused(tmp_path: Path, model: Path, good: Path) -> None:
    registry = tmp_path / "registry"
    with pytest.raises(ConfigError, match="chooses among the trials of a sweep"):
        promote(model, "small", best="fastest", evaluation=good, registry=registry)
    with pytest.raises(ConfigError, match="name what judged it"):
        promote(model, "small", registry=registry)
    with pytest.raises(ConfigError, match="holds a result of kind evaluation, promote a sweep or a model"):
        promote(good, "small", registry=registry)
    with pytest.raises(ConfigError, match="is not a gate"):
        promote(model, "small", evaluation=good, gate="fastest", registry=registry)
    with pytest.raises(DataError, match="no such folder"):
        promote(tmp_path / "absent", "small", registry=registry)
    assert registry_config(registry) is None


@pytest.mark.parametrize("name", ["my model", "a/b", "..", ".hidden", "-x", "", "x" * 129, "modèle"])
def test_a_name_that_no_registry_takes_is_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="is no name for a model: names are letters, digits"):
        promote(tmp_path / "nothing", name, registry=tmp_path / "registry")
    assert list(tmp_path.iterdir()) == []
