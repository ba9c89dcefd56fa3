"""ERes2NetV2: its size, its front-end beside Kaldi's, its file, and the way from mels to timbres."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from retort.audio.mel import MelConfig, log_mel
from retort.errors import DataError
from retort.models.codec_lm import count_parameters
from retort.models.zero_shot.eres2net import ERes2NetTimbre, ERes2NetV2, kaldi_fbank
from retort.models.zero_shot.timbre import ERes2NetTimbreConfig, open_timbre_encoder, timbre_encoder_name
from tests.models.test_timbre import MEL, TEXTS, mels, recording


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones, with statistics as trained batch norms have them."""
    torch.manual_seed(0)
    network = ERes2NetV2()
    path = tmp_path_factory.mktemp("eres2net") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return path


def test_it_is_of_the_published_size_and_names() -> None:
    with torch.device("meta"):
        network = ERes2NetV2()
    assert count_parameters(network) / 1e6 == pytest.approx(17.8, abs=0.1)
    names = set(network.state_dict())
    published = {
        "conv1.weight", "bn1.running_mean", "layer1.0.convs.1.weight", "layer1.0.shortcut.0.weight",
        "layer2.0.bns.0.weight", "layer3.5.fuse_models.0.local_att.3.bias", "layer3_ds.weight",
        "fuse34.local_att.4.running_var", "seg_1.weight",
    }  # fmt: skip
    assert published <= names
    assert not any("fuse_models" in name for name in names if name.startswith(("layer1", "layer2")))


def test_features_are_those_of_kaldi() -> None:
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    samples = recording(TEXTS[0])
    expected = kaldi.fbank(samples[None], num_mel_bins=80, sample_frequency=16000, dither=0.0)
    torch.testing.assert_close(kaldi_fbank(samples), expected, rtol=1e-3, atol=2e-2)


def test_features_of_mels_are_near_those_of_recordings(weights: Path) -> None:
    """After the mean over time is taken from both, as the network hears them, in frames that hold speech."""
    samples = recording(TEXTS[1])
    encoder = ERes2NetTimbre(weights, MEL)
    powers, valid = encoder._bridge.powers(log_mel(samples, MEL).T[None], torch.ones(1, 1 + len(samples) // 200) > 0)
    ours, theirs = powers[0].clamp_min(1e-7).log(), kaldi_fbank(samples)
    count = min(len(ours), len(theirs))
    ours, theirs = ours[:count], theirs[:count]
    loud = theirs.mean(1) > theirs.mean()
    assert bool(valid.all())
    ours, theirs = ours[loud] - ours[loud].mean(0), theirs[loud] - theirs[loud].mean(0)
    correlation = torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]
    assert float(correlation) > 0.85


def test_gradients_reach_the_mel_and_padding_changes_nothing(weights: Path) -> None:
    config = ERes2NetTimbreConfig(path=weights)
    encoder = open_timbre_encoder(config, MEL)
    assert encoder.name == timbre_encoder_name(config)
    given, mask = mels([recording(TEXTS[0])[:12000]])
    longer, longer_mask = mels([recording(TEXTS[0])[:12000]], extra=200)
    given.requires_grad_()
    found = encoder.of_mels(given, mask)
    torch.testing.assert_close(encoder.of_mels(longer, longer_mask), found, rtol=1e-3, atol=1e-5)
    found[0, :5].sum().backward()
    assert given.grad is not None
    assert bool(given.grad[mask].any())
    assert found.shape == (1, encoder.dim)
    torch.testing.assert_close(found.detach().norm(dim=1), torch.ones(1))
    assert encoder.embed(recording(TEXTS[0])[:12000], 16000).shape == (encoder.dim,)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no weights of ERes2NetV2"):
        timbre_encoder_name(ERes2NetTimbreConfig(path=tmp_path / "missing.ckpt"))
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"no weights of ERes2NetV2: .*; give the file of a 3D-Speaker checkpoint"):
        ERes2NetTimbre(tmp_path / "other.safetensors", MelConfig())
    (tmp_path / "broken.ckpt").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no weights of ERes2NetV2"):
        ERes2NetTimbre(tmp_path / "broken.ckpt", MelConfig())


def test_it_pools_the_deviation_of_a_sample_as_its_checkpoints_do(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ERes2NetV2().eval()
    pooled: list[torch.Tensor] = []
    monkeypatch.setattr(network.fuse34, "forward", lambda x, _: x[..., : network.width])
    monkeypatch.setattr(network.seg_1, "forward", lambda x: pooled.append(x) or x)
    seen: list[torch.Tensor] = []
    network.layer4.register_forward_hook(lambda _, __, out: seen.append(out))
    for width in (4, 1):
        network.width = width  # type: ignore[assignment]
        with torch.no_grad():
            network(torch.randn(1, 64, 80, generator=torch.Generator().manual_seed(0)))
        deviation = pooled[-1][0].chunk(2)[1]
        frames = seen[-1][0, ..., :width]
        variance = frames.var(-1, correction=1) if width > 1 else torch.zeros(frames.shape[:-1])
        wanted = (variance + 1e-8).sqrt()
        torch.testing.assert_close(deviation, wanted.flatten(), rtol=1e-3, atol=1e-6)
