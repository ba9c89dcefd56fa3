from pathlib import Path

import pytest
import torch

from retort.audio.mel import MelConfig
from retort.data.phone_mels import PhoneMelSet
from retort.errors import DataError
from retort.evaluation.bootstrap import Interval
from retort.evaluation.leakage import (
    Leak,
    LeakageConfig,
    check_set,
    leakage_findings,
    leakage_tree,
    mean_content,
    measure_leakage,
    sources_of,
)
from retort.evaluation.speaker_probe import Probed, likeness, probe_speakers
from retort.inference.zero_shot_making import ZeroShotMaker
from retort.models.zero_shot.model import ZeroShot
from retort.nn.phone_conditions import voice_prompts
from tests.evaluation.leaking import tilted_rows, write_tilted
from tests.inference.speaking import speaking_zero_shot
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
    assert (clean.chance, clean.speakers, len(clean.right)) == (0.25, 4, 120)
    assert sum(clean.right) / 120 == pytest.approx(clean.accuracy)
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
    assert (found.share_nearer_prompt, found.utterances) == (1.0, 20)
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


class MeanSpectrum:
    """A speaker encoder that hears how bright a sound is."""

    name, smoke_tier = "mean spectrum", True

    def embed(self, samples_N, sample_rate):
        spectrum_F = torch.stft(samples_N, 256, return_complex=True, window=torch.hann_window(256)).abs().mean(1)
        return torch.nn.functional.normalize(spectrum_F.clamp(min=1e-6).log(), dim=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model whose voices are s0 and s1, and a set of them and of one that it has never heard."""
    root = tmp_path_factory.mktemp("leaking")
    model = speaking_zero_shot(root)
    maker = ZeroShotMaker.open(model)
    rows = tilted_rows(maker.loaded.lineage.phones, ("s0", "s1", "x"), each=8)
    rows += tilted_rows(maker.loaded.lineage.phones, ("s0", "s1"), each=3, split="test", seed=1)
    return maker, PhoneMelSet.open(write_tilted(root / "mels", model, rows))


def asked(**changes):
    return LeakageConfig(**{"mels": Path("m"), "split": "train", "num_utterances": 18, "folds": 3, **changes})


def test_sources_are_the_same_rows_for_every_model_and_more_of_them_hold_the_fewer(world):
    _, mels = world
    few, many = (sources_of(mels, asked(num_utterances=count)) for count in (18, 24))
    assert [row.id for row in many][:18] == [row.id for row in few]
    assert {row.split for row in many} == {"train"}
    with pytest.raises(DataError, match=r"m has 6 test rows; leakage\.num_utterances asks for 18"):
        sources_of(mels, asked(split="test"))
    with pytest.raises(DataError, match="fewer than 4 folds"):
        sources_of(mels, asked(split="test", num_utterances=6, folds=4))


def test_a_model_is_probed_and_its_sources_said_again_in_seen_and_unseen_voices(world):
    maker, mels = world
    leak = measure_leakage("m", maker, mels, MeanSpectrum(), asked(num_revoiced=6), num_resamples=RESAMPLES, seed=0)
    rows = sources_of(mels, asked())
    content_UD = mean_content(maker.model, maker.loaded.lineage.phones, rows)
    alone = probe_speakers(
        content_UD, [r.speaker for r in rows], [r.id for r in rows], folds=3, num_resamples=RESAMPLES
    )
    assert leak.probed == alone
    assert set(leak.likeness) == {"seen", "unseen"}
    assert sum(like.utterances for like in leak.likeness.values()) == 6
    tree = leak.tree()
    assert (tree["probe_accuracy"], tree["utterances"], tree["speakers"]) == (alone.accuracy, 18, 3)
    assert [row["voices"] for row in tree["revoiced"]] == list(leak.likeness)
    deaf = measure_leakage("m", maker, mels, None, asked(), num_resamples=RESAMPLES, seed=0)
    assert (deaf.likeness, deaf.probed) == ({}, alone)


def test_what_is_said_again_follows_source_durations_and_voice_in_any_company(world):
    maker, mels = world
    first, second = mels[0], mels[1]
    phones = torch.tensor([maker.numbers(first.phones), maker.numbers(second.phones)])
    mel_BTM, frames_BP = torch.stack([first.mel_TM, second.mel_TM]), torch.stack([first.frames_P, second.frames_P])
    voice = voice_prompts([row.mel_TM[:30] for row in (second, first)], [second.timbre_E, first.timbre_E])
    both_BTM = maker.model.revoice(phones, mel_BTM, frames_BP, voice)
    assert both_BTM.shape == (2, 40, MelConfig().num_mels)
    other = voice_prompts([first.mel_TM[:30]], [first.timbre_E])
    alone = maker.model.revoice(phones[1:], mel_BTM[1:], frames_BP[1:], other)
    assert torch.allclose(alone[0], both_BTM[1], atol=1e-4)
    assert not torch.allclose(maker.model.revoice(phones[:1], mel_BTM[:1], frames_BP[:1], other)[0], both_BTM[0])


def test_a_set_of_other_mels_voices_or_phones_is_refused(world):
    maker, mels = world
    lineage, told = maker.loaded.lineage, mels.description
    check_set("m", lineage, told)
    for changes, message in (
        ({"mel": MelConfig(hop_samples=160)}, "the mel differs: system m was made with"),
        ({"timbre_encoder": "other"}, "the timbre encoder differs: system m was made with resemblyzer-0.1"),
        ({"phones": ("zz",)}, "system m does not know its phones zz"),
    ):
        with pytest.raises(DataError, match=message):
            check_set("m", lineage, told.replace(**changes))


def leak_of(name, right):
    return Leak(name, Probed(sum(right) / len(right), Interval(0.1, 0.9, len(right)), 0.5, 2, tuple(right)), {})


def test_pairs_of_models_are_compared_by_the_same_utterances_and_told():
    often, seldom = leak_of("often", [True] * 40), leak_of("seldom", [True, False] * 20)
    pairs = [("often", "seldom"), ("seldom", "often"), ("often", "recordings"), ("often", "often")]
    tree = leakage_tree([often, seldom], pairs, num_resamples=RESAMPLES)
    first, second, third = tree["differences"]
    assert (first["difference"], first["utterances"]) == (-0.5, 40)
    assert first["ci95"][1] < 0 < second["ci95"][0]
    assert third["difference"] == 0
    good, bad, neutral = leakage_findings(tree)
    assert (good.tone, bad.tone, neutral.tone) == ("good", "bad", "neutral")
    assert good.text.startswith("seldom lets less of the speaker into its content than often: from seldom's content")
    assert "50.0 % of 40 recordings" in good.text
    assert "lets more" in bad.text
    assert "may be chance" in neutral.text
    few = leakage_tree([leak_of("a", [True]), leak_of("b", [False])], [("a", "b")])
    assert leakage_findings(few)[0].text.endswith("n too small to judge.")
    assert leakage_tree([], pairs) is None
    assert leakage_findings(None) == ()
