"""Jobs for Prometheus, and a dashboard that asks for nothing that is not there."""

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from retort.cli import run
from retort.orchestration.job_metrics import exposition
from retort.orchestration.outputs_seen import outputs_in
from retort.serving.metrics import Metrics
from tests.orchestration.test_outputs_seen import fail, finish, output

DASHBOARD = Path(__file__).parents[2] / "serve" / "grafana.json"


def test_what_is_written_is_what_is_seen(tmp_path: Path) -> None:
    finish(output(tmp_path / "a"))
    fail(output(tmp_path / "b"))
    assert run(["ls", str(tmp_path), "--prometheus", str(tmp_path / "jobs.prom")]) == 0
    samples = {
        (sample.name, sample.labels["output"].rpartition("/")[2], sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families((tmp_path / "jobs.prom").read_text())
        for sample in family.samples
    }
    assert samples["retort_job_state", "a", "finished"] == samples["retort_job_state", "b", "failed"] == 1
    assert sum(value for (name, where, _), value in samples.items() if name == "retort_job_state" and where == "a") == 1
    assert samples["retort_job_step", "a", None] == 30
    assert samples["retort_job_steps", "a", None] == 100
    assert samples["retort_job_loss", "b", None] == 1.0
    assert ("retort_job_checkpoint_step", "a", None) not in samples


def test_the_dashboard_asks_for_metrics_that_exist(tmp_path: Path) -> None:
    finish(output(tmp_path / "a"))
    text = Metrics().text().decode() + exposition(outputs_in(tmp_path)).decode()
    known = set(re.findall(r"^# TYPE (\w+)", text, flags=re.MULTILINE))
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    names = {name for expr in asked for name in re.findall(r"\bretort_\w+", expr)}
    assert len(asked) >= 10
    assert {name.removesuffix("_bucket") for name in names} - known == set()
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
