"""The zero-shot model: padding, durations, the prior, gradients of predictors, strides, and sizes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.data.phone_mel_stream import PhoneMelBatch
from retort.errors import ConfigError, DataError
from retort.models.codec_lm import count_parameters
from retort.models.weights import load_codec_lm, load_zero_shot, save_model
from retort.models.zero_shot.config import FeatureScales
from retort.models.zero_shot.encoders import phone_means, strided
from retort.models.zero_shot.model import Spoken, TrainingOutput, ZeroShot
from retort.models.zero_shot.presets import ZeroShotPreset, ZeroShotPresetName, zero_shot_config
from retort.models.zero_shot.voices import StoredVoice, read_voices, write_voices
from retort.models.zero_shot_lineage import SelfDistilled, ZeroShotLineage
from retort.nn.phone_conditions import SpokenPhones, VoicePrompt, voice_prompts
from retort.nn.phone_numbers import phone_numbers
from tests.methods.zero_shot_toys import INVENTORY, MEL, TOY, forwarded, some_model, toy_stream

LINEAGE = ZeroShotLineage(
    method="zero_shot_pretrain", phones=INVENTORY, voice="en-us", language="en", mel=MEL, timbre_encoder="toy",
    data_fingerprint="m", durations_fingerprint="d",
)  # fmt: skip


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> PhoneMelBatch:
    """Rows of unequal length."""
    found = toy_stream(tmp_path_factory.mktemp("toys")).batch(0)
    assert len({int(n) for n in found.mask_BT.sum(1)}) > 1
    return found


def alone(batch: PhoneMelBatch, row: int) -> PhoneMelBatch:
    """One row without padding."""
    P, T = int(batch.spoken.mask_BP[row].sum()), int(batch.mask_BT[row].sum())
    S, one = int(batch.voice.mask_BS[row].sum()), slice(row, row + 1)
    spoken = SpokenPhones(*(getattr(batch.spoken, name)[one, :P] for name in SpokenPhones.__dataclass_fields__))
    voice = VoicePrompt(batch.voice.mel_BSM[one, :S], batch.voice.mask_BS[one, :S], batch.voice.timbre_BE[one])
    mels = (batch.source_BTM[one, :T], batch.target_BTM[one, :T], batch.mask_BT[one, :T])
    return PhoneMelBatch(spoken, voice, *mels, batch.speaker_B[one], batch.swapped_B[one], batch.row_B[one])


def doubled(value: Any) -> Any:
    """The same with numbers of 64 bits."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return type(value)(*(doubled(getattr(value, name)) for name in value.__dataclass_fields__))


def noised(model: ZeroShot, batch: PhoneMelBatch, noise: Tensor, *, predictor_grad: float = 0.1) -> TrainingOutput:
    out: TrainingOutput = model(
        batch.spoken, batch.voice, batch.source_BTM, batch.mask_BT, noise, predictor_grad=predictor_grad
    )
    return out


@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_padding_never_changes_what_is_valid(batch: PhoneMelBatch, stride: int, patch: int) -> None:
    # In fp64: the normalisation of a few equal frames makes rounding large.
    batch, model = doubled(batch), some_model(TOY.replace(style_stride=stride, patch_frames=patch)).double()
    noise = torch.randn(*batch.spoken.phones_BP.shape, TOY.latent_dim, generator=torch.Generator().manual_seed(2))
    together = noised(model, batch, noise)
    assert not bool(together.mel_BTM[~batch.mask_BT].any())
    assert not bool(together.kl_BCP.transpose(1, 2)[~batch.spoken.mask_BP].any())
    for row in range(len(batch.row_B)):
        own = alone(batch, row)
        P, T = own.spoken.phones_BP.shape[1], own.mask_BT.shape[1]
        single = noised(model, own, noise[row : row + 1, :P])
        torch.testing.assert_close(together.mel_BTM[row, :T], single.mel_BTM[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.kl_BCP[row, :, :P], single.kl_BCP[0], rtol=1e-5, atol=1e-6)
        for name in ("log_frames_BP", "log_f0_BP", "voiced_BP", "energy_BP"):
            ours, theirs = getattr(together.predicted, name)[row, :P], getattr(single.predicted, name)[0]
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_values_beyond_the_masks_are_not_looked_at(batch: PhoneMelBatch) -> None:
    model = some_model()
    prompt = batch.voice.mel_BSM.masked_fill(~batch.voice.mask_BS[..., None], 1e4)
    source = batch.source_BTM.masked_fill(~batch.mask_BT[..., None], 1e4)
    other = replace(batch, source_BTM=source, voice=replace(batch.voice, mel_BSM=prompt))
    ours, theirs = (forwarded(model, given) for given in (batch, other))
    assert isinstance(ours, TrainingOutput)
    assert isinstance(theirs, TrainingOutput)
    torch.testing.assert_close(ours.mel_BTM, theirs.mel_BTM)


def test_what_is_said_comes_of_source_prompt_timbre_and_phones(batch: PhoneMelBatch) -> None:
    """Each input is heard; the target is not."""
    model = some_model()
    changed = {
        "source_BTM": replace(batch, source_BTM=batch.source_BTM + torch.randn_like(batch.source_BTM)),
        "prompt": replace(batch, voice=replace(batch.voice, mel_BSM=batch.voice.mel_BSM + 1.0)),
        "timbre": replace(batch, voice=replace(batch.voice, timbre_BE=-batch.voice.timbre_BE)),
        "pitch": replace(batch, spoken=replace(batch.spoken, log_f0_BP=batch.spoken.log_f0_BP + 0.3)),
        "energy": replace(batch, spoken=replace(batch.spoken, energy_BP=batch.spoken.energy_BP + 1.0)),
    }
    first = forwarded(model, batch).mel_BTM  # type: ignore[attr-defined]
    for name, other in changed.items():
        assert not torch.allclose(first, forwarded(model, other).mel_BTM), name  # type: ignore[attr-defined]
    silent = replace(batch, target_BTM=torch.zeros_like(batch.target_BTM))
    assert torch.equal(first, forwarded(model, silent).mel_BTM)  # type: ignore[attr-defined]


def test_predictors_pass_on_the_stated_share_of_their_gradient(batch: PhoneMelBatch) -> None:
    def gradient(share: float) -> Tensor:
        model = some_model()
        noise = torch.zeros(*batch.spoken.phones_BP.shape, TOY.latent_dim)
        said = noised(model, batch, noise, predictor_grad=share)
        (said.predicted.log_frames_BP * batch.spoken.mask_BP).square().sum().backward()
        found = model.linguistic.embedding.weight.grad
        return torch.zeros(1) if found is None else found

    whole = gradient(1.0)
    assert bool(whole.any())
    torch.testing.assert_close(gradient(0.1), 0.1 * whole, rtol=1e-4, atol=1e-6)
    assert not bool(gradient(0.0).any())


def spoken_by(model: ZeroShot, batch: PhoneMelBatch, **given: object) -> Spoken:
    seeds = torch.arange(len(batch.row_B)) + 5
    return model.synthesise(batch.spoken.phones_BP, batch.voice, seeds, **given)  # type: ignore[arg-type]


def test_forced_durations_are_kept_and_others_are_predicted(batch: PhoneMelBatch) -> None:
    model, frames = some_model(), batch.spoken.frames_BP
    forced = spoken_by(model, batch, frames_BP=frames, tempo=3.0)
    assert torch.equal(forced.frames_BP, frames)
    assert torch.equal(forced.mask_BT, batch.mask_BT)
    assert not bool(forced.mel_BTM[~forced.mask_BT].any())
    free = spoken_by(model, batch)
    assert bool((free.frames_BP[batch.spoken.mask_BP] >= 1).all())
    assert not bool(free.frames_BP[~batch.spoken.mask_BP].any())
    assert torch.equal(free.mask_BT.sum(1), free.frames_BP.sum(1))
    assert bool((spoken_by(model, batch, tempo=0.5).frames_BP.sum(1) > free.frames_BP.sum(1)).all())


def test_the_prior_is_drawn_by_the_row_and_scaled(batch: PhoneMelBatch) -> None:
    model, frames = some_model(), batch.spoken.frames_BP
    one, same = (spoken_by(model, batch, frames_BP=frames).mel_BTM for _ in range(2))
    assert torch.equal(one, same)
    own = alone(batch, 1)
    single = model.synthesise(own.spoken.phones_BP, own.voice, torch.tensor([6]), frames_BP=own.spoken.frames_BP)
    torch.testing.assert_close(single.mel_BTM[0], one[1, : single.mel_BTM.shape[1]], rtol=1e-4, atol=1e-5)
    other = model.synthesise(own.spoken.phones_BP, own.voice, torch.tensor([7]), frames_BP=own.spoken.frames_BP)
    assert not torch.allclose(other.mel_BTM, single.mel_BTM)
    quiet = [
        model.synthesise(own.spoken.phones_BP, own.voice, torch.tensor([seed]), noise_scale=0.0).mel_BTM
        for seed in (1, 2)
    ]
    assert torch.equal(*quiet)


def test_speech_of_the_prior_is_that_of_a_posterior_at_the_same_latents(batch: PhoneMelBatch) -> None:
    """What the flow makes of a posterior's sample, its inverse turns back into the same content."""
    model = some_model()
    mask = batch.spoken.mask_BP[:, None]
    said = model.linguistic(batch.spoken.phones_BP, mask)
    z = torch.randn(*batch.spoken.phones_BP.shape, TOY.latent_dim).transpose(1, 2) * mask
    noise = model.content.flow(z, said, mask)
    torch.testing.assert_close(
        model.content.speak(said, noise.transpose(1, 2), mask), said + model.content.fuse(z), rtol=1e-4, atol=1e-5
    )


def test_divergence_is_that_of_normal_distributions_on_average() -> None:
    """With the flow at its start, the mean over noise is the closed form of two Gaussians."""
    torch.manual_seed(0)
    model = ZeroShot(TOY)
    rows = 4000
    said, heard = torch.randn(1, TOY.dim, 1).expand(rows, -1, -1), torch.randn(1, TOY.dim, 1).expand(rows, -1, -1)
    content = model.content(said, heard, torch.randn(rows, 1, TOY.latent_dim), torch.ones(rows, 1, 1).bool())
    mean, log_scale = model.content.posterior(heard[:1]).chunk(2, dim=1)
    expected = 0.5 * (mean.square() + (2 * log_scale).exp()) - log_scale - 0.5
    torch.testing.assert_close(content.kl_BCP.mean(0), expected[0], rtol=0.1, atol=0.05)


def test_phone_means_are_means_over_their_frames() -> None:
    frames = torch.tensor([[2, 1, 3, 0], [1, 1, 1, 4]])
    mask = torch.arange(7) < frames.sum(1)[:, None]
    pairs = torch.randn(2, 4, 3)
    fine = pairs.repeat_interleave(2, 1)[:, :7]
    found = phone_means(pairs, mask, frames)
    for row in range(2):
        start = 0
        for phone, count in enumerate(frames[row].tolist()):
            expected = fine[row, start : start + count].mean(0) if count else torch.zeros(3)
            torch.testing.assert_close(found[row, :, phone], expected)
            start += count


def test_a_stride_of_a_prompt_averages_what_is_valid() -> None:
    mels = [torch.randn(7, 2), torch.randn(4, 2)]
    prompt = voice_prompts(mels, [torch.zeros(1)] * 2)
    made, mask = strided(pad_sequence([*mels], batch_first=True) + 0.0, prompt.mask_BS, 3)
    assert mask.tolist() == [[True, True, True], [True, True, False]]
    torch.testing.assert_close(made[0, 2], mels[0][6])
    torch.testing.assert_close(made[1, 1], mels[1][3])
    torch.testing.assert_close(made[0, 0], mels[0][:3].mean(0))


@pytest.mark.parametrize(
    ("name", "millions"), [("zero_shot_tiny", 3.0), ("zero_shot_small", 7.0), ("zero_shot_paper", 22.5)]
)
def test_presets_keep_within_their_sizes(name: ZeroShotPresetName, millions: float) -> None:
    config = zero_shot_config(
        ZeroShotPreset(name=name), num_phones=100, num_mels=80, timbre_dim=256, scales=FeatureScales()
    )
    with torch.device("meta"):
        count = count_parameters(ZeroShot(config)) / 1e6
    assert 0.3 * millions < count <= millions


def test_unknown_phones_are_named() -> None:
    assert phone_numbers(["", "a", "s"], INVENTORY) == [1, 2, 5]
    with pytest.raises(ValueError, match="unknown phones: q"):
        phone_numbers(["a", "q"], INVENTORY)


def test_a_folder_brings_model_lineage_and_voices(tmp_path: Path, batch: PhoneMelBatch) -> None:
    model = some_model()
    save_model(tmp_path, model, LINEAGE)
    voices = [StoredVoice(name, torch.randn(4 + n, 8), torch.randn(6)) for n, name in enumerate(("x/y", "ada"))]
    write_voices(tmp_path, voices)
    loaded = load_zero_shot(tmp_path)
    assert loaded.lineage == LINEAGE
    assert loaded.fingerprint.startswith("zero_shot-")
    frames = batch.spoken.frames_BP
    assert torch.equal(
        spoken_by(loaded.model, batch, frames_BP=frames).mel_BTM, spoken_by(model, batch, frames_BP=frames).mel_BTM
    )
    found = read_voices(tmp_path)
    assert list(found) == ["x/y", "ada"]
    assert torch.equal(found["ada"].prompt_SM, voices[1].prompt_SM)
    with pytest.raises(ConfigError, match="a model of the family zero_shot, and a codec_lm is needed"):
        load_codec_lm(tmp_path)
    (tmp_path / "voices.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="the voices are damaged"):
        read_voices(tmp_path)


def test_a_lineage_says_what_a_student_is_of() -> None:
    distilled = SelfDistilled(
        teacher_fingerprint="t", swaps_fingerprint="s", sigma=0.8, direction="synth_source", init="teacher"
    )
    assert LINEAGE.teacher_fingerprint is None
    assert LINEAGE.replace(method="self_distill", self_distilled=distilled).teacher_fingerprint == "t"
    with pytest.raises(ValueError, match="do not fit"):
        LINEAGE.replace(method="self_distill")
