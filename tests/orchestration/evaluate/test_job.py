"""What an evaluation refuses before it starts anything."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.config import load_tree, validate
from retort.data.tokens import TokenSet
from retort.errors import ConfigError, DataError
from retort.evaluation.items import Expected, failed_item
from retort.evaluation.judge import TestStrings
from retort.evaluation.lm_confidence import Sureness
from retort.evaluation.medians import Median
from retort.evaluation.noise_floor import Ratio
from retort.evaluation.report import write_report
from retort.evaluation.results import BootstrapConfig, SystemInfo, read_summary, summarise
from retort.evaluation.speed import Measured, SpeedCase
from retort.models.weights import load_zero_shot
from retort.orchestration.cluster import ray_session
from retort.orchestration.evaluate import job
from retort.orchestration.evaluate.job import _with_speed, run_evaluate
from retort.orchestration.evaluate.kept import drop_what_changed
from retort.orchestration.evaluate.system_facts import describe_system, note_of
from retort.orchestration.evaluate.tasks import BestTask, Judged, PlainTask
from retort.orchestration.evaluate.worker import EvaluationWorker
from retort.orchestration.progress import QuietProgress
from retort.run_config import EvaluateConfig
from retort.store.artifact import read_artifact
from tests.contracts.evaluation_toys import write_strings
from tests.evaluation.leaking import tilted_rows, write_tilted
from tests.inference.speaking import speaking_model, speaking_zero_shot
from tests.orchestration.tiny_runs import WORDS, write_teacher, write_token_set


def config(output: Path, data: Path, systems: list[dict[str, object]], **changes: object) -> EvaluateConfig:
    tree = load_tree(Path("jobs/configs/demo.yaml"))["jobs"][-1]
    tree |= {"output": str(output), "data": str(data), "systems": systems, "comparisons": [], "num_strings": 3}
    tree |= {"confidence_teacher": None, "temperatures": None, **changes}
    return validate(tree, EvaluateConfig, where="test")


def model(path: Path, **changes: object) -> dict[str, object]:
    return {"name": "m", "kind": "model", "role": "teacher", "model": str(path), **changes}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("evaluate")
    data = write_token_set(root / "data")
    return data, write_teacher(root / "teacher", data)


def test_more_strings_than_there_are_is_refused(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    data, _ = folders
    asked = config(tmp_path / "out", data, [{"name": "r", "kind": "recordings"}], num_strings=999)
    with pytest.raises(DataError, match="num_strings asks for 999"):
        run_evaluate(asked, QuietProgress())


def test_guidance_that_the_model_was_not_trained_for_is_refused(tmp_path: Path) -> None:
    student = speaking_model(tmp_path, distilled=True)
    guided = model(student, decoding={"kind": "codec_lm", "guidance": {"kind": "two_term", "scale": 1.5}})
    asked = config(tmp_path / "out", tmp_path / "data", [guided], split="train", num_strings=2)
    strings = TestStrings(tmp_path / "data", split="train", count=2)
    with pytest.raises(ConfigError, match="guide twice"):
        describe_system(asked.systems[0], asked, strings)


THREE_TERMS = {"kind": "three_term", "first_scale": 1.5, "second_scale": 2.5, "partial": "no_text"}


@pytest.mark.parametrize("role", ["teacher", "student", "control"])
def test_role_and_guidance_in_the_summary_are_those_of_the_run_file(tmp_path: Path, role: str) -> None:
    folder = speaking_model(tmp_path, trained_drops=("no_text", "null"))
    guided = model(folder, name="three", role=role, decoding={"kind": "codec_lm", "guidance": THREE_TERMS})
    asked = config(tmp_path / "out", tmp_path / "data", [guided, model(folder)], split="train", num_strings=2)
    strings = TestStrings(tmp_path / "data", split="train", count=2)
    rows = [failed_item(name, expected) for name in ("three", "m") for expected in strings.expected]
    infos = [describe_system(system, asked, strings) for system in asked.systems]
    summary = summarise(rows, infos, bootstrap=BootstrapConfig(num_resamples=100)).tree()
    three, plain = summary["systems"]
    names = ("role", "guidance_scale", "guidance_text", "guidance_speaker")
    assert [three[name] for name in names] == [role, None, 2.5, 1.5]
    assert [plain[name] for name in names] == ["teacher", 1.0, None, None]
    page = write_report(tmp_path / "report", summary, rows).read_text()
    assert f'three<br><span class="tag">{role}</span>' in page
    assert "Guidance by the text" in page
    assert "Guidance by the voice" in page


def test_the_noise_floor_is_of_one_models_weights_in_two_openings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = speaking_model(tmp_path)
    write_strings(tmp_path / "strings", tmp_path / "data", seed=1)
    systems = [{"name": "r", "kind": "resynthesis"}, model(folder), model(folder, name="n")]
    asked = config(tmp_path / "out", tmp_path / "strings", systems)
    given: dict[str, object] = {}

    def measure(cases: dict[str, SpeedCase], again: SpeedCase, **_: object) -> Iterator[str | Measured]:
        given.update(cases, again=again)
        yield Measured()

    monkeypatch.setattr("retort.orchestration.evaluate.worker.measure_all", measure)
    assert [*EvaluationWorker(asked.model_dump(mode="json"), 1).speed()] == ["opening the models", Measured()]
    first, again = given["m"], given["again"]
    assert isinstance(first, SpeedCase)
    assert isinstance(again, SpeedCase)
    assert list(given) == ["m", "n", "again"], "what does not speak has no speed"
    assert again.speaker is not first.speaker
    assert again.speaker.facts.fingerprint == first.speaker.facts.fingerprint
    assert (again.request, again.decoding) == (first.request, first.decoding)


def test_what_was_timed_is_in_the_summary_with_its_interval_and_the_floor_beside_it() -> None:
    figures = {"rtf": Median(0.5, (0.4, 0.6)), "nfe": Median(2.0, (2.0, 2.0)), "rtf_batch1": Median(0.9, None)}
    measured = Measured({"a": figures}, "a", {"rtf": Ratio(1.0, (0.9, 1.1), 1.2)})
    infos = [_with_speed(SystemInfo(name, "teacher"), measured, {"a": 7.0}) for name in "ab"]
    rows = [failed_item(name, Expected("u", "one")) for name in "ab"]
    tree = summarise(rows, infos, bootstrap=BootstrapConfig(num_resamples=100)).tree()
    a, b = tree["systems"]
    assert (a["rtf"], a["rtf_ci95"], a["rtf_batch1"], a["rtf_batch1_ci95"]) == (0.5, [0.4, 0.6], 0.9, None)
    assert (a["nfe"], a["peak_memory_mb"], b["rtf"]) == (2.0, 7.0, None)
    assert [name for name in (*a, *b) if name in ("nfe_ci95", "memory_ci95")] == []
    assert "rtf_ci95" not in b
    ratios = {"rtf": {"ratio": 1.0, "ci95": [0.9, 1.1], "factor": 1.2}}
    assert tree["speed_noise_floor"] == {"system": "a", "ratios": ratios}


def test_leakage_is_for_zero_shot_models_and_told_in_the_report(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    data, teacher = folders
    zero_shot = speaking_zero_shot(tmp_path)
    rows = tilted_rows(load_zero_shot(zero_shot).lineage.phones, ("s0", "s1"), each=10, split="test")
    mels = write_tilted(tmp_path / "mels", zero_shot, rows)
    leakage = {"mels": str(mels), "num_utterances": 20, "num_revoiced": 0}
    asked = cheap(tmp_path / "out", data, [model(teacher), model(zero_shot, name="z")], leakage=leakage)
    with pytest.raises(ConfigError, match="leakage is for zero-shot models, and no system is one"):
        run_evaluate(asked.replace(systems=asked.systems[:1]), QuietProgress())
    few = cheap(tmp_path / "few", data, [model(zero_shot, name="z")], leakage={**leakage, "num_utterances": 21})
    with pytest.raises(DataError, match=r"has 20 test rows; leakage\.num_utterances asks for 21"):
        run_evaluate(few, QuietProgress())
    for changes, message in (({"num_revoiced": 2}, "needs a `speaker_encoder`"), ({"num_revoiced": 21}, "lower it")):
        with pytest.raises(ConfigError, match=message):
            cheap(tmp_path / "odd", data, [model(zero_shot, name="z")], leakage={**leakage, **changes})
    strings = TestStrings(data, split="test", count=3)
    infos = [describe_system(system, asked, strings) for system in asked.systems]
    assert [info.timbre_encoder for info in infos] == [None, "resemblyzer-0.1"]
    heard = asked.replace(speaker_encoder={"kind": "resemblyzer"})
    assert "resemblyzer-0.1 judges voices, and z learned from it: their likeness by it is no proof" in str(
        note_of(heard, infos)
    )
    assert "is no proof" not in str(note_of(heard, infos[:1])) + str(note_of(asked, infos))
    assert job._leaking(asked) == ["z"]
    leak = EvaluationWorker(asked.model_dump(mode="json"), 1).leakage("z")
    rows_of_items = [failed_item(info.name, expected) for info in infos for expected in strings.expected]
    found = job.Found(infos, Judged(rows_of_items, {}, {}), Sureness({}), None, leaks=[leak])
    summary = job.summary_of(asked, strings, found).tree()
    assert summary["leakage"]["systems"] == [leak.tree()]
    page = write_report(tmp_path / "report", summary, rows_of_items).read_text()
    assert "What content tells of the speaker" in page
    again = write_report(tmp_path / "again", {**summary, "leakage": None}, rows_of_items).read_text()
    assert 'id="leakage"' not in again


def test_a_model_of_another_codec_is_refused_with_both_fingerprints(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    data, _ = folders
    other = speaking_model(tmp_path)
    ours, theirs = (TokenSet.open(folder).description.codec_fingerprint for folder in (data, tmp_path / "data"))
    with pytest.raises(DataError, match=theirs) as error:
        run_evaluate(config(tmp_path / "out", data, [model(other)]), QuietProgress())
    assert ours in str(error.value)


def test_systems_and_comparisons_must_be_named_consistently(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    data, _teacher = folders
    reference = {"name": "r", "kind": "recordings"}
    with pytest.raises(ConfigError, match="names must differ"):
        config(tmp_path, data, [reference, reference])
    with pytest.raises(ConfigError, match="the systems are"):
        config(tmp_path, data, [reference], comparisons=[["r", "ghost"]])
    with pytest.raises(ConfigError, match="path of a system"):
        config(tmp_path, data, [{"name": "m", "kind": "model", "role": "student"}])


@pytest.mark.ray
@pytest.mark.slow
def test_a_pool_that_does_not_fit_is_as_large_as_fits(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """An actor without room would take its share of the pieces and never begin."""
    data, _ = folders
    asked = cheap(tmp_path / "out", data, [{"name": "r", "kind": "resynthesis"}], batch_size=1, pool={"size": 3})
    with ray_session(num_cpus=1):
        assert run_evaluate(asked, QuietProgress())["systems"].keys() == {"r"}
    summary = json.loads((tmp_path / "out" / "result" / "summary.json").read_text())
    assert [system["utterances"] for system in summary["systems"]] == [3]


def cheap(output: Path, data: Path, systems: list[dict[str, object]], **changes: object) -> EvaluateConfig:
    light = {"speed": None, "speaker_encoder": None, "num_resamples": 100, "pool": {"size": 1}, "batch_size": 2}
    light |= {"recognisers": [{"kind": "pocketsphinx", "words": list(WORDS)}], "naturalness": [], "prosody": None}
    return config(output, data, systems, **{**light, **changes})


def figures(output: Path) -> dict[str, object]:
    """What an evaluation says of its systems; when and where does not count."""
    return {
        system["name"]: system for system in json.loads((output / "result" / "summary.json").read_text())["systems"]
    }


def late(output: Path) -> set[bool]:
    rows = read_summary(output / "result" / "summary.json")["comparisons"]
    return {row["is_margin_late"] for row in rows if row["margin"] is not None}


@pytest.mark.ray
@pytest.mark.slow
def test_a_finished_evaluation_goes_on_with_another_system(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    data, teacher = folders
    resynthesis, lm = {"name": "r", "kind": "resynthesis"}, model(teacher)
    with ray_session(num_cpus=1):
        run_evaluate(cheap(tmp_path / "out", data, [resynthesis]), QuietProgress())
        pieces = sorted((tmp_path / "out" / "pieces").glob("r-*.jsonl"))
        before = [path.stat().st_mtime_ns for path in pieces]
        assert len(pieces) == 2
        asked = {"comparisons": [["r", "m"]], "margins": {"wer": 0.5}}
        more = cheap(tmp_path / "out", data, [lm, resynthesis], **asked)
        assert list(run_evaluate(more, QuietProgress())["systems"]) == ["m", "r"]
        assert [path.stat().st_mtime_ns for path in pieces] == before, "what was judged is not judged again"
        run_evaluate(more.replace(output=tmp_path / "whole"), QuietProgress())
    assert figures(tmp_path / "out") == figures(tmp_path / "whole")
    assert (late(tmp_path / "out"), late(tmp_path / "whole")) == ({True}, {False}), "a margin after the first report"
    judged = read_artifact(tmp_path / "out" / "result").info
    assert judged.inputs["model of m"] == read_artifact(teacher).fingerprint
    assert judged.metrics["first_margins"] == {"wer": 0.03}, "of the run file of before"
    names = [sorted(p.name for p in (tmp_path / o / "result" / "audio").iterdir()) for o in ("out", "whole")]
    assert names[0] == names[1] != []
    with pytest.raises(ConfigError, match="'m' is in its report"):
        run_evaluate(cheap(tmp_path / "out", data, [resynthesis]), QuietProgress())


def test_pieces_that_were_judged_otherwise_do_not_get_between(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    data, teacher = folders
    systems = [{"name": "r", "kind": "resynthesis"}, model(teacher)]
    names = [
        "r-0000.jsonl",
        "m-0000.jsonl",
        "m-0000.mels.safetensors",
        "r--u001.wav",
        "m--u001.wav",
        "m-0000-0000.jsonl",
    ]

    def left(config: EvaluateConfig) -> set[str]:
        drop_what_changed(tmp_path / "pieces", config)
        return {path.name for path in (tmp_path / "pieces").iterdir()} - {"judged.json"}

    def judged() -> None:
        for name in names:
            (tmp_path / "pieces" / name).touch()

    first = cheap(tmp_path, data, systems)
    assert left(first) == set()
    judged()
    assert left(first.replace(num_resamples=200, margins={"wer": 0.1})) == set(names), "none of it is judging"
    warmer = model(teacher, decoding={"kind": "codec_lm", "sampler": {"temperature": 0.5}})
    of_r = {"r-0000.jsonl", "r--u001.wav", "m-0000-0000.jsonl"}
    assert left(cheap(tmp_path, data, [systems[0], warmer])) == of_r
    judged()
    assert left(cheap(tmp_path, data, [systems[0]])) == of_r, "a system that is gone is in no report"
    judged()
    assert left(cheap(tmp_path, data, [systems[0]], seed=9)) == {*names} - {"r-0000.jsonl", "r--u001.wav"}
    (tmp_path / "pieces" / "judged.json").unlink()
    assert left(first) == set(), "nobody knows under what they were judged"


def test_what_an_earlier_version_did_not_measure_is_judged_again(
    tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = folders
    for prosody, stays in (({"strings": 3}, False), (None, True)):
        asked = cheap(tmp_path, data, [{"name": "r", "kind": "resynthesis"}], prosody=prosody)
        with monkeypatch.context() as earlier:
            earlier.setattr("retort.orchestration.evaluate.kept.MEASURES", ("f0_spread",))
            drop_what_changed(tmp_path / "pieces", asked)
        (tmp_path / "pieces" / "r-0000.jsonl").touch()
        drop_what_changed(tmp_path / "pieces", asked)
        assert (tmp_path / "pieces" / "r-0000.jsonl").exists() == stays


def test_what_a_program_said_before_it_changed_is_dropped(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    program = tmp_path / "speak"

    def left(*, contents: str, timeout_s: float = 9.0) -> bool:
        program.write_text(contents)
        program.chmod(0o755)
        teacher = {"kind": "command", "arguments": [str(program)], "name": "p", "licence": "ours"}
        system = {"name": "t", "kind": "black_box", "role": "reference"}
        asked = cheap(tmp_path, folders[0], [{**system, "teacher": {**teacher, "timeout_s": timeout_s}}])
        drop_what_changed(tmp_path / "pieces", asked)
        was_there = (tmp_path / "pieces" / "t-0000.jsonl").is_file()
        (tmp_path / "pieces" / "t-0000.jsonl").touch()
        return was_there

    assert not left(contents="one")
    assert left(contents="one")
    assert left(contents="one", timeout_s=5.0), "how long it may take says nothing of what it says"
    assert not left(contents="other")


def test_pieces_of_a_system_whose_name_no_file_can_have_are_dropped_too(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    data, teacher = folders
    plain = cheap(tmp_path, data, [{**model(teacher), "name": "Our/Model"}])
    pieces = tmp_path / "pieces"
    drop_what_changed(pieces, plain)
    files = [PlainTask("Our/Model", 0, ()).piece(pieces).lines, BestTask("Our/Model", 0.5, 0, ()).piece(pieces).lines]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    drop_what_changed(pieces, plain)
    assert all(file.is_file() for file in files)
    drop_what_changed(pieces, plain.replace(seed=9))
    assert not any(file.is_file() for file in files)
