from pathlib import Path

import pytest
import torch

from retort.errors import ConfigError, DataError
from retort.evaluation.speaker import (
    ResemblyzerConfig,
    TransformersSpeakerConfig,
    open_speaker_encoder,
    similarity,
)

FSDD = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "fsdd"


@pytest.fixture(scope="module")
def resemblyzer():
    return open_speaker_encoder(ResemblyzerConfig())


def voice(speaker, indices):
    """One recording of several digits by one speaker, long enough for a voice."""
    import soundfile

    paths = [path for i in indices for path in sorted(FSDD.glob(f"?_{speaker}_{i}.wav"))]
    if not FSDD.is_dir():
        pytest.skip("the recordings in ../shared/data are not here")
    return torch.cat([torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths])


def noise(seconds=1.0, seed=0):
    return 0.2 * torch.randn(int(16_000 * seconds), generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)


def test_embeddings_lie_on_the_unit_sphere_and_repeat(resemblyzer):
    first = resemblyzer.embed(noise(), 16_000)
    assert first.shape == (256,)
    assert float(first.norm()) == pytest.approx(1.0, abs=1e-5)
    resemblyzer.embed(noise(seed=3), 16_000)
    assert torch.equal(first, resemblyzer.embed(noise(), 16_000))
    assert similarity(first, first) == pytest.approx(1.0, abs=1e-5)


def test_a_voice_is_nearer_to_itself_than_to_others(resemblyzer):
    speakers = ("george", "jackson", "theo")
    early = {s: resemblyzer.embed(voice(s, range(5, 25)), 8000) for s in speakers}
    late = {s: resemblyzer.embed(voice(s, range(25, 45)), 8000) for s in speakers}
    for speaker in speakers:
        same = similarity(early[speaker], late[speaker])
        assert all(same > similarity(early[speaker], late[other]) for other in speakers if other != speaker)


@pytest.mark.parametrize("samples", [torch.zeros(16_000), torch.zeros(0), noise() * float("nan")])
def test_silence_has_no_voice(resemblyzer, samples):
    with pytest.raises(DataError, match="no voice"):
        resemblyzer.embed(samples, 16_000)


def test_a_very_short_word_still_has_a_voice(resemblyzer):
    assert torch.isfinite(resemblyzer.embed(noise(0.05), 16_000)).all()


def test_similarity_is_a_cosine():
    assert similarity(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])) == 0.0
    assert similarity(torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 0.0])) == -1.0


def write_wavlm_sv(folder, seed=0):
    import transformers

    torch.manual_seed(seed)
    config = transformers.WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8, 8, 8, 8, 8, 8),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        tdnn_dim=(8, 8, 8, 8, 24),
        xvector_output_dim=12,
    )
    model = transformers.WavLMForXVector(config).eval()
    model.save_pretrained(folder)
    features = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=True)
    features.save_pretrained(folder)
    return model, features


def test_wavlm_checkpoints_load_and_embed_as_transformers_does(tmp_path):
    model, features = write_wavlm_sv(tmp_path / "sv")
    encoder = open_speaker_encoder(TransformersSpeakerConfig(path=tmp_path / "sv"))
    samples = noise(1.0)
    found = encoder.embed(samples, 16_000)
    with torch.inference_mode():
        expected = model(**features(samples.numpy(), sampling_rate=16_000, return_tensors="pt")).embeddings[0]
    assert similarity(found, expected) == pytest.approx(1.0, abs=1e-5)
    assert float(found.norm()) == pytest.approx(1.0, abs=1e-5)
    assert encoder.embed(samples[:200], 16_000).shape == (12,)
    assert encoder.name == "wavlm_sv:sv"


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        open_speaker_encoder(TransformersSpeakerConfig(path=tmp_path / "nowhere"))
