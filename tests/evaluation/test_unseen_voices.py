"""Seen and unseen voices are told apart: whose figures they are, and that nothing is told where there is one kind."""

import dataclasses
from pathlib import Path

import pytest

from retort.evaluation.items import ItemResult
from retort.evaluation.report import write_report
from retort.evaluation.results import BootstrapConfig, SystemInfo, summarise
from retort.evaluation.unseen_voices import by_voices
from tests.evaluation.test_results import row

FAST = BootstrapConfig(num_resamples=200)
SYSTEMS = [SystemInfo("teacher", "teacher"), SystemInfo("student", "student")]
SPEAKERS = ("old", "new", "older", "newer", None)


def rows() -> list[ItemResult]:
    """Each speaker says two strings; only what the student says in a new voice is misheard."""
    found = []
    for system in SYSTEMS:
        for number in range(10):
            speaker = SPEAKERS[number % len(SPEAKERS)]
            is_new = speaker in ("new", "newer") and system.name == "student"
            found.append(
                row(system.name, number, errors=int(is_new), similarity=0.2 if is_new else 0.8, speaker=speaker)
            )
    return found


def test_the_figures_of_a_kind_are_those_of_its_rows_alone() -> None:
    items = rows()
    found = by_voices(items, SYSTEMS, {"old", "older"}, FAST)
    assert [(r["system"], r["voices"], r["utterances"]) for r in found] == [
        ("teacher", "seen", 4), ("teacher", "unseen", 4), ("student", "seen", 4), ("student", "unseen", 4),
    ]  # fmt: skip
    for told in found:
        speakers = {"old", "older"} if told["voices"] == "seen" else {"new", "newer"}
        own = [item for item in items if item.speaker in speakers and item.system == told["system"]]
        (alone,) = summarise(own, [SystemInfo(told["system"], "student")], bootstrap=FAST).systems
        assert {key: alone[key] for key in told if key not in ("system", "voices")} == {
            key: value for key, value in told.items() if key not in ("system", "voices")
        }
    assert [told["speaker_similarity"] for told in found] == pytest.approx([0.8, 0.8, 0.8, 0.2])
    assert found[3]["wer_corpus"] > 0.0 == found[2]["wer_corpus"]


@pytest.mark.parametrize("trained", [set(), {"old", "new", "older", "newer"}])
def test_where_all_voices_are_of_one_kind_nothing_is_told(trained: set[str]) -> None:
    assert by_voices(rows(), SYSTEMS, trained, FAST) == ()


def test_the_report_has_a_row_for_each_system_and_kind(tmp_path: Path) -> None:
    items = rows()
    summary = summarise(items, SYSTEMS, bootstrap=FAST)
    voices = by_voices(summary.items, SYSTEMS, {"old", "older"}, FAST)
    page = write_report(tmp_path, dataclasses.replace(summary, voices=voices).tree(), items).read_text()
    table = page[page.index('id="voices"') :]
    assert table[: table.index("</section>")].count('<td class="left">unseen</td>') == 2
    assert 'id="voices"' not in write_report(tmp_path / "plain", summary.tree(), items).read_text()
