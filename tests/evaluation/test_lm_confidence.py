"""Confidence of systems as they are decoded: guided ones from guided logits, against the guided teacher."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retort.data.batches import CodebookLayout, teacher_forced
from retort.data.tokens import TokenSet, write_shard
from retort.evaluation.confidence import ConfidenceAccumulator
from retort.evaluation.judge import System, TestStrings
from retort.evaluation.lm_confidence import measure_confidence
from retort.inference.decoding import CodecLMDecoding
from retort.inference.opening import open_speaker
from retort.inference.speech import SpeechEngine
from retort.nn.guidance import TwoTermGuidance
from tests.inference.speaking import speaking_model

SCALE = 3.0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_guided_system_is_as_sure_as_its_guided_logits(tmp_path: Path, batch_size: int) -> None:
    path = speaking_model(tmp_path)
    data = path.parent / "data"
    rows = [replace(row, id=f"t{row.id}", split="test") for row in TokenSet.open(data).split("train")]
    write_shard(data / "part-1.parquet", rows)
    strings, speaker = TestStrings(data, split="test", count=4), open_speaker(path)
    assert isinstance(speaker, SpeechEngine)
    guided = CodecLMDecoding(guidance=TwoTermGuidance(scale=SCALE))
    systems = [
        System("plain", "model", speaker=speaker),
        System("guided", "model", speaker=speaker, decoding=guided),
        System("recordings", "recordings"),
    ]
    found = measure_confidence(strings, systems, teacher="guided", batch_size=batch_size)
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
