"""Pruning as a job: a useless layer is found, failures count, nothing is measured twice, and the result speaks."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml

from retort.config import validate
from retort.data.tokens import TokenSet
from retort.errors import ConfigError, DataError
from retort.inference.opening import open_speaker
from retort.inference.speaker import Request
from retort.inference.synthesizer import save_speaking_model
from retort.methods.layer_pruning import WHOLE
from retort.methods.layer_table import Measured, Selection, describe
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.layer_choice import LayerChoice
from retort.models.presets import tiny
from retort.models.weights import load_codec_lm
from retort.orchestration.cluster import ray_session
from retort.orchestration.prune.job import run_prune
from retort.orchestration.prune.worker import INFLUENCE, SCORES, PruneWorker, Sweep
from retort.run_config import PruneConfig
from retort.store.artifact import describe_artifact, write_artifact
from retort.store.results import result_of
from tests.orchestration.tiny_runs import WORDS, Lines, killing_an_actor_after, run_and_kill_the_driver, write_token_set

USELESS, LAYERS = 2, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prune")
    write_speaking_teacher(root / "teacher", write_token_set(root / "data"))
    return root


def write_speaking_teacher(folder: Path, data: Path, **lineage: Any) -> None:
    """A random teacher one of whose layers writes nothing."""
    description = TokenSet.open(data).description
    shape = tiny((description.text_vocabulary_size, description.num_codebooks, description.codebook_size))
    torch.manual_seed(0)
    model = CodecLM(shape.replace(num_layers=LAYERS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.blocks[USELESS].attention.out.weight.zero_()
        model.blocks[USELESS].feed_forward.down.weight.zero_()
    values = {
        "method": "pretrain",
        "codec_fingerprint": description.codec_fingerprint,
        "text_fingerprint": description.text_fingerprint,
        "trained_drops": ("null",),
        **lineage,
    }
    info = describe_artifact("model", "teacher", "1", inputs={}, config={})
    write_artifact(
        folder / "result", info, lambda target: save_speaking_model(target, model, CodecLMLineage(**values), data)
    )


def tree_of(made: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "job": "prune",
        "output": str(output),
        "teacher": str(made / "teacher"),
        "data": str(made / "data"),
        "split": "train",
        "num_strings": 8,
        "recogniser": {"kind": "pocketsphinx", "words": list(WORDS)},
        "max_frames": 12,
        "batch_size": 4,
        "num_resamples": 100,
        **changes,
    }


def config_of(made: Path, output: Path, **changes: Any) -> PruneConfig:
    config: PruneConfig = validate(tree_of(made, output, **changes), PruneConfig, where="test")
    return config


def worker_of(made: Path, *, left_out: tuple[int, ...], ids: int = 8, **changes: Any) -> PruneWorker:
    config = config_of(made, made / "none", **changes)
    config = config.replace(teacher=result_of(config.teacher), data=result_of(config.data))
    names = TokenSet.open(config.data).split("train").column("id")
    probe = Sweep(present=tuple(range(LAYERS)), left_out=left_out, pieces=())
    worker = PruneWorker(config.model_dump(mode="json"), probe.model_dump_json())
    known = [name for name in names if name in worker.strings.rows][:ids]
    worker.sweep = probe.replace(pieces=[known])
    return worker


def test_a_useless_layer_costs_no_word_in_no_string(made: Path) -> None:
    worker = worker_of(made, left_out=(WHOLE, USELESS, 0))
    whole, useless, first = (worker.work(n).tables[SCORES].to_pylist() for n in range(3))
    assert [row["wer"] for row in useless] == [row["wer"] for row in whole]
    assert [row["failed"] for row in useless] == [row["failed"] for row in whole]
    assert max(row["kl"] for row in useless) < 1e-6
    assert min(row["kl"] for row in first) > 1e-4
    influence = worker.work(0).tables[INFLUENCE].to_pylist()
    assert len(influence) == 8 * LAYERS
    assert max(row["block_influence"] for row in influence if row["layer"] == USELESS) < 1e-6
    assert min(row["block_influence"] for row in influence if row["layer"] != USELESS) > 1e-6


def test_a_model_that_never_ends_counts_as_failed_in_every_string(made: Path) -> None:
    rows = worker_of(made, left_out=(1,), max_frames=1).work(0).tables[SCORES].to_pylist()
    assert len(rows) == 8
    cut = [row for row in rows if row["failed"]]
    assert len(cut) >= 6
    assert {row["scored_wer"] for row in cut} == {1.0}
    assert all(row["scored_wer"] <= 1.0 for row in rows)


def test_a_string_counts_the_same_in_any_batch(made: Path) -> None:
    together = worker_of(made, left_out=(0,)).work(0).tables[SCORES].to_pylist()
    alone = worker_of(made, left_out=(0,), ids=1).work(0).tables[SCORES].to_pylist()
    assert alone[0] | {"kl": 0} == together[0] | {"kl": 0}
    assert alone[0]["kl"] == pytest.approx(together[0]["kl"], rel=1e-3)


def rows_of(wer: dict[int, list[float]]) -> list[dict[str, Any]]:
    return [
        {"left_out": layer, "id": f"u{i}", "wer": value, "scored_wer": value, "failed": value == 1.0, "kl": value / 2}
        for layer, values in wer.items()
        for i, value in enumerate(values)
    ]


def test_the_table_holds_every_ranking_its_intervals_and_its_stability(made: Path) -> None:
    wer = {WHOLE: [0.0, 0.1] * 10, 0: [1.0] * 20, 1: [0.2, 0.3] * 10, 2: [0.1, 0.2] * 10, 3: [0.9, 1.0] * 10}
    influence = [
        {"layer": layer, "id": f"u{i}", "block_influence": 0.1 * (LAYERS - layer)}
        for layer in range(LAYERS)
        for i in range(20)
    ]
    measured = Measured.gather(range(LAYERS), rows_of(wer), influence)
    config = config_of(made, made / "none")
    choice = LayerChoice(
        teacher_fingerprint="t", num_layers=LAYERS, criterion="wer", num_kept=2, kept={"wer": {2: (0, 3)}},
        recogniser="r",
    )  # fmt: skip
    table = describe(Selection(config.method, config.split, config.num_resamples, config.seed), choice, [measured])
    assert table["rankings"]["wer"] == [2, 1, 3, 0]
    assert table["rankings"]["block_influence"] == [3, 2, 1, 0]
    row = table["layers"][1]
    assert row["wer"] == pytest.approx(0.25)
    assert row["wer_above_teacher"] == pytest.approx(0.2)
    assert row["wer_ci95"][0] < 0.25 < row["wer_ci95"][1]
    assert table["teacher"]["wer"] == pytest.approx(0.05)
    assert table["layers"][0]["failure_rate"] == 1.0
    stable = table["stability"]["wer"]
    assert stable["removed_probability"] == {"0": 0.0, "1": 1.0, "2": 1.0, "3": 0.0}
    assert stable["same_layers_probability"] == 1.0
    assert table["stability"]["block_influence"]["kendall_tau_with_wer"] == pytest.approx(0.0, abs=0.4)
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"split": "test"}, ConfigError, "split"),
        ({"split": "validation"}, DataError, "0 validation rows"),
        (
            {"decoding": {"guidance": {"kind": "two_term", "scale": 2.0, "against": "no_text"}}},
            ConfigError,
            "guidance against no_text",
        ),
        ({"method": {"keep_ratio": 0.1}}, ConfigError, "fewer than forced_keep"),
        ({"method": {"forced_keep": [7]}}, ConfigError, "names the layers"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_ray_starts(
    made: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_prune(config_of(made, tmp_path / "out", **changes), Lines())
    assert not ray.is_initialized()


def test_a_teacher_of_another_codec_is_refused(made: Path, tmp_path: Path) -> None:
    write_speaking_teacher(tmp_path / "teacher", result_of(made / "data"), codec_fingerprint="other-1")
    with pytest.raises(DataError, match="other-1"):
        run_prune(config_of(made, tmp_path / "out", teacher=str(tmp_path / "teacher")), Lines())


@pytest.mark.ray
def test_killed_driver_and_killed_actor_change_nothing_and_the_pruned_model_speaks(made: Path, tmp_path: Path) -> None:
    changes = {"batch_size": 1, "num_strings": 4, "method": {"criterion": "kl", "removal": "greedy"}}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree_of(made, tmp_path / "driver", **changes)))
    done = run_and_kill_the_driver("prune", file, tmp_path / "driver" / "work", records=3)
    assert not (tmp_path / "driver" / "result").exists()
    lines = Lines()
    with ray_session(num_cpus=4):
        summary = run_prune(config_of(made, tmp_path / "driver", **changes), lines)
        with killing_an_actor_after(2, tmp_path / "actor" / "work") as killed:
            again = run_prune(config_of(made, tmp_path / "actor", **changes), Lines())
    assert len(killed) == 1
    assert int(lines.lines[0].split(": ")[1].split()[0]) >= done
    tables = [json.loads((result_of(tmp_path / name) / "importance.json").read_text()) for name in ("driver", "actor")]
    assert tables[0] == tables[1]
    assert summary["fingerprint"] == again["fingerprint"]
    assert not (tmp_path / "driver" / "work").exists()
    assert [sweep["present"] for sweep in tables[0]["sweeps"]] == [[0, 1, 2, 3], [0, 1, 3]]
    assert summary["kept"] == [0, 3]
    pruned, teacher = load_codec_lm(result_of(tmp_path / "driver")), load_codec_lm(result_of(made / "teacher"))
    assert pruned.lineage.method == "layer_pruning"
    assert (pruned.lineage.kept_layers, pruned.lineage.selected_by) == ((0, 3), None)
    assert pruned.lineage.teacher_fingerprint == teacher.fingerprint
    assert pruned.lineage.trained_drops == ("null",)
    assert torch.equal(pruned.model.blocks[1].attention.qkv.weight, teacher.model.blocks[3].attention.qkv.weight)
    speaker = open_speaker(result_of(tmp_path / "driver"))
    said = speaker.speak([Request("one", "s0", 0)], speaker.decoding(None), max_seconds=0.1)
    assert said[0].samples_N.numel() <= 0.15 * speaker.sample_rate
    assert run_prune(config_of(made, tmp_path / "driver", **changes), Lines()) == summary
