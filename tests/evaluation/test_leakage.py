import pytest
import torch

from retort.errors import DataError
from retort.evaluation.leakage import likeness, mean_content, probe_speakers
from retort.models.zero_shot.model import ZeroShot
from tests.methods.zero_shot_toys import INVENTORY, SPEAKERS, TOY, toy_row

D, RESAMPLES = 12, 500


def utterances(leak, *, speakers=4, each=30, seed=0):
    """Content that moves with the speaker by ``leak`` standard deviations."""
    generator = torch.Generator().manual_seed(seed)
    who = [s for s in range(speakers) for _ in range(each)]
    own_SD = torch.randn(speakers, D, generator=generator)
    content_UD = torch.randn(len(who), D, generator=generator) + leak * own_SD[who]
    return content_UD, [f"s{s}" for s in who], [f"u{u:03d}" for u in range(len(who))]


def test_a_probe_names_speakers_that_leak_and_is_at_chance_where_nothing_does():
    leaking = probe_speakers(*utterances(3.0), num_resamples=RESAMPLES)
    clean = probe_speakers(*utterances(0.0), num_resamples=RESAMPLES)
    assert leaking.accuracy > 0.97
    assert leaking.interval.low > 0.9
    assert (clean.chance, clean.speakers, clean.utterances) == (0.25, 4, 120)
    assert clean.interval.low < clean.chance < clean.interval.high


def test_accuracy_grows_with_what_leaks():
    found = [probe_speakers(*utterances(leak), num_resamples=RESAMPLES).accuracy for leak in (0.0, 0.4, 1.0, 3.0)]
    assert found == sorted(found)


def test_neither_order_nor_scale_changes_what_is_found():
    content_UD, speakers, ids = utterances(0.7)
    plain = probe_speakers(content_UD, speakers, ids, num_resamples=RESAMPLES)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1)).tolist()
    moved = probe_speakers(
        100.0 * content_UD[order] + 7.0, [speakers[u] for u in order], [ids[u] for u in order], num_resamples=RESAMPLES
    )
    assert moved.accuracy == pytest.approx(plain.accuracy, abs=0.01)
    assert probe_speakers(content_UD, speakers, ids, num_resamples=RESAMPLES) == plain


def test_too_few_speakers_or_utterances_are_refused():
    content_UD, _, ids = utterances(1.0, speakers=1)
    with pytest.raises(DataError, match="needs two of them"):
        probe_speakers(content_UD, ["s0"] * len(ids), ids)
    content_UD, speakers, ids = utterances(1.0, each=4)
    with pytest.raises(DataError, match="s0 has 4 utterances, fewer than 5 folds"):
        probe_speakers(content_UD, speakers, ids)


def test_likeness_tells_the_voice_that_was_asked_for_from_the_sources():
    generator = torch.Generator().manual_seed(2)
    prompt_UE, source_UE = (torch.randn(20, 16, generator=generator) for _ in range(2))
    found = likeness(prompt_UE + 0.3 * source_UE, prompt_UE, source_UE, num_resamples=RESAMPLES)
    assert found.to_prompt > found.to_source
    assert found.gain.low > 0
    assert found.share_nearer_prompt == 1.0
    turned = likeness(source_UE, prompt_UE, source_UE, num_resamples=RESAMPLES)
    assert turned.gain.high < 0
    assert turned.to_source == pytest.approx(1.0)
    with pytest.raises(DataError, match="no utterances to compare"):
        likeness(prompt_UE[:0], prompt_UE[:0], source_UE[:0])


def test_the_content_of_a_row_is_its_own_and_the_probe_finds_the_speaker_that_an_untrained_encoder_lets_through():
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    model = ZeroShot(TOY).eval()
    with torch.no_grad():
        model.content.posterior.weight.mul_(20.0)
    rows = [toy_row(n, SPEAKERS[n % 2], generator, num_phones=12) for n in range(60)]
    content_UD = mean_content(model, INVENTORY, rows)
    assert content_UD.shape == (60, TOY.dim)
    assert torch.allclose(mean_content(model, INVENTORY, rows[5:6])[0], content_UD[5], atol=1e-6)
    found = probe_speakers(content_UD, [row.speaker for row in rows], [row.id for row in rows], num_resamples=RESAMPLES)
    assert found.interval.low > found.chance
