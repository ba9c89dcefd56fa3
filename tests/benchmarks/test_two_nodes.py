"""How the benchmark of two nodes moves a tour, and how it compares; the run itself is in tests/e2e."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import two_nodes
from benchmarks.moved_tour import moved
from benchmarks.tour_run import TourRun, table
from retort.config import Config, load_config, load_tree, validate
from retort.errors import ConfigError
from retort.location import RemotePath
from retort.orchestration.outputs import with_paths
from retort.run_config import DemoConfig
from tests.orchestration.promotions import write_evaluation

RUN_FILES = ("benchmarks/two_nodes.yaml", "jobs/configs/demo.yaml", "jobs/configs/demo_prune.yaml")


def paths_of(config: Config) -> list[Path]:
    found: list[Path] = []

    def note(name: str, path: Path, is_location: bool) -> Path:
        found.append(path)
        return path

    with_paths(config, note)
    return found


@pytest.mark.parametrize("file", RUN_FILES)
@pytest.mark.parametrize("root", [RemotePath("s3:", "bucket", "x"), Path("/some/where")], ids=["store", "folder"])
def test_every_path_of_a_moved_tour_lies_below_the_new_root_and_reads_what_it_read(file: str, root: Path) -> None:
    tour = load_config(Path(file), DemoConfig)
    there = moved(tour, root)
    before, after = paths_of(tour), paths_of(there)
    assert len(before) == len(after) >= 10
    assert all(path.is_relative_to(root) for path in after)
    pairs = set(zip(before, after, strict=True))
    assert len({old for old, _ in pairs}) == len({new for _, new in pairs}) == len(pairs), "one place for each"
    assert moved(there, root) == there


def test_what_no_job_writes_is_refused_by_name() -> None:
    jobs = load_tree(Path("benchmarks/two_nodes.yaml"))["jobs"]

    def tour(*chosen: dict[str, Any]) -> DemoConfig:
        return validate({"job": "demo", "output": "runs/t", "jobs": list(chosen)}, DemoConfig, where="test")

    with pytest.raises(ConfigError, match=r"jobs\.0\.data: no earlier job of this tour writes runs/two_nodes/corpus"):
        moved(tour(jobs[1], jobs[0]), Path("/x"))
    with pytest.raises(ConfigError, match=r"jobs\.0\.corpus\.path: .* writes /data/LJSpeech"):
        moved(tour({**jobs[0], "corpus": {"kind": "ljspeech", "path": "/data/LJSpeech"}}), Path("/x"))


def test_word_errors_are_compared_utterance_by_utterance(tmp_path: Path) -> None:
    evaluation = load_tree(Path("benchmarks/two_nodes.yaml"))["jobs"][-1]
    runs = []
    for name, wrong in (("a", 3), ("b", 3), ("c", 4)):
        tree = {"job": "demo", "output": "runs/t", "jobs": [{**evaluation, "output": str(tmp_path / name)}]}
        tour = validate(tree, DemoConfig, where="test")
        runs.append(TourRun(tour, tmp_path, {}, tmp_path / "registry").figures)
        write_evaluation(tmp_path / name, {"m": tmp_path / "model"}, wrong=wrong)
    a, b, c = ({row.partition(": ")[2]: value for row, value in figures().items()} for figures in runs)
    assert a["wer_corpus of m"] == "0.050000"
    assert table(a, b)[1] == 0
    text, differing = table(a, c)
    assert differing == 4, text  # three figures, and what was heard; nothing was said in these
    assert "| 60 utterances of m |" in text


def test_the_table_counts_what_differs_or_is_missing() -> None:
    text, differing = table({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})
    assert differing == 2
    assert text.splitlines()[2:] == [
        "| a | 1 | 1 | same |",
        "| b | 2 | 3 | DIFFERS |",
        "| c | (absent) | 4 | DIFFERS |",
    ]


def test_a_run_in_place_must_be_finished(tmp_path: Path) -> None:
    jobs = load_tree(Path("benchmarks/two_nodes.yaml"))["jobs"][:1]
    jobs[0]["output"] = str(tmp_path / "corpus")
    (tmp_path / "tour.yaml").write_text(yaml.safe_dump({"job": "demo", "output": str(tmp_path), "jobs": jobs}))
    with pytest.raises(SystemExit, match="corpus holds no finished result; run the tour first"):
        two_nodes.main(["--config", str(tmp_path / "tour.yaml"), "--in-place", "--kill-during", ""])
