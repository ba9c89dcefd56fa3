"""Confidence of systems as they are decoded: guided ones from guided logits, against the guided teacher."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retort.data.batches import CodebookLayout, teacher_forced
from retort.data.tokens import TokenSet, write_shard
from retort.evaluation.confidence import ConfidenceAccumulator
from retort.evaluation.items import failed_item
from retort.evaluation.judge import System, TestStrings
from retort.evaluation.lm_confidence import FromTarget, measure_confidence
from retort.evaluation.metrics import TARGET_KL
from retort.evaluation.results import BootstrapConfig, Pair, SystemInfo, summarise
from retort.inference.decoding import CodecLMDecoding
from retort.inference.opening import open_speaker
from retort.inference.speech import SpeechEngine
from retort.nn.guidance import TwoTermGuidance
from tests.inference.speaking import speaking_model

SCALE = 3.0


def toys(root: Path) -> tuple[TestStrings, list[System]]:
    """Four strings, a model with and without guidance, and recordings."""
    path = speaking_model(root)
    data = path.parent / "data"
    rows = [replace(row, id=f"t{row.id}", split="test") for row in TokenSet.open(data).split("train")]
    write_shard(data / "part-1.parquet", rows)
    speaker, guided = open_speaker(path), CodecLMDecoding(guidance=TwoTermGuidance(scale=SCALE))
    return TestStrings(data, split="test", count=4), [
        System("plain", "model", speaker=speaker),
        System("guided", "model", speaker=speaker, decoding=guided),
        System("recordings", "recordings"),
    ]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_guided_system_is_as_sure_as_its_guided_logits(tmp_path: Path, batch_size: int) -> None:
    strings, systems = toys(tmp_path)
    speaker = systems[0].speaker
    assert isinstance(speaker, SpeechEngine)
    measured = measure_confidence(strings, systems, teacher="guided", batch_size=batch_size)
    found = measured.confidence
    assert set(found) == {"plain", "guided"}
    model = speaker.synthesizer.loaded.model
    layout = CodebookLayout(model.config.codebook_size, model.config.codebook_delays)
    sums = {name: ConfidenceAccumulator(2) for name in found}
    for row in strings.rows.values():  # one by one, with both conditions in passes of their own
        batch = teacher_forced([row], [strings.prompt_for(row)], layout)
        with torch.no_grad():
            full, null = (
                model(batch.conditions.dropped(text=dropped, speaker=dropped), batch.inputs_BKS)
                for dropped in (False, True)
            )
        taught = null + SCALE * (full - null)
        for name, logits in (("plain", full), ("guided", taught)):
            sums[name].add(logits, batch.mask_BKS, teacher_BSKV=taught)
    for name, total in sums.items():
        expected = total.result()
        assert found[name].tokens == expected.tokens
        assert found[name].entropy == pytest.approx(expected.entropy, rel=1e-3)
        assert found[name].top1 == pytest.approx(expected.top1, rel=1e-3)
        assert found[name].kl == pytest.approx(expected.kl, rel=1e-3, abs=1e-5)
    assert found["guided"].entropy < found["plain"].entropy
    assert found["plain"].kl > 0.001
    assert measured.untouched == "plain"
    for name, rows in measured.from_target.items():  # the same distance, told utterance by utterance
        assert set(rows) == set(strings.rows)
        total = sum(row.nats for row in rows.values()) / sum(row.tokens for row in rows.values())
        assert total == pytest.approx(found[name].kl, rel=1e-5, abs=1e-7)


def test_each_utterance_is_told_how_far_from_the_target_the_model_is_on_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strings, systems = toys(tmp_path)
    measured = measure_confidence(strings, systems, teacher="guided", batch_size=3)
    items = [failed_item(name, expected) for name in ("plain", "guided", "recordings") for expected in strings.expected]
    told = measured.told_of(items)
    assert [item.values for item in told if item.system == "recordings"] == [{}] * 4
    infos = [SystemInfo(name, "teacher") for name in ("plain", "guided", "recordings")]
    pairs, bootstrap = [Pair("plain", "guided", TARGET_KL)], BootstrapConfig(num_resamples=99)
    summary = summarise(told, infos, pairs, bootstrap=bootstrap)
    plain, guided, recordings = summary.systems
    assert plain[TARGET_KL] == pytest.approx(measured.confidence["plain"].kl, rel=1e-5)
    assert guided[TARGET_KL] == pytest.approx(0.0, abs=1e-6)
    assert recordings[TARGET_KL] is None
    assert summary.comparisons[0]["difference"] == pytest.approx(guided[TARGET_KL] - plain[TARGET_KL])
    broken = replace(measured, from_target={"plain": {items[0].id: FromTarget(float("nan"), 3)}})
    assert broken.told_of(items)[0] == items[0], "what is no number is no distance"
    assert "plain: the KL from the target is no number on 1 of 1 strings" in caplog.text


@pytest.mark.parametrize(("teacher", "untouched"), [("guided", "plain"), ("plain", None), (None, None)])
def test_only_a_guided_target_has_an_untouched_copy(tmp_path: Path, teacher: str | None, untouched: str | None) -> None:
    strings, systems = toys(tmp_path)
    measured = measure_confidence(strings, systems, teacher=teacher, batch_size=4)
    assert measured.untouched == untouched
    assert all(bool(rows) is (teacher is not None) for rows in measured.from_target.values())
    if untouched is not None:
        others = [system for system in systems if system.name != untouched]
        assert measure_confidence(strings, others, teacher=teacher, batch_size=4).untouched is None
