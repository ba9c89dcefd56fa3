from pathlib import Path

import pytest
import torch
from encodec import EncodecModel
from pydantic import ValidationError
from safetensors.torch import save_file

from retort.audio.codec import EncodecConfig, open_codec
from retort.audio.encodec_codec import Encodec, load_encodec
from retort.errors import DataError, StorageError


def random_weights() -> dict[str, torch.Tensor]:
    """The 24 kHz model at full size; its codebooks are zero at birth, so they are filled here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = EncodecModel.encodec_model_24khz(pretrained=False).state_dict()
        return {name: torch.randn_like(t) if name.endswith("embed") else t.clone() for name, t in weights.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encodec") / "weights.th"
    torch.save(random_weights(), path)
    return path


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> Encodec:
    return load_encodec(EncodecConfig(checkpoint=checkpoint))


def sound(num_samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("bandwidth_kbps", "num_codebooks"), [(1.5, 2), (3.0, 4), (6.0, 8), (12.0, 16), (24.0, 32)])
def test_bandwidth_sets_the_codebooks(checkpoint: Path, bandwidth_kbps: float, num_codebooks: int) -> None:
    codec = load_encodec(EncodecConfig(checkpoint=checkpoint, bandwidth_kbps=bandwidth_kbps))
    assert codec.num_codebooks == num_codebooks
    assert codec.encode(sound(1000)).shape == (num_codebooks, 4)


@pytest.mark.parametrize(("num_samples", "num_tokens"), [(0, 0), (1, 1), (320, 1), (321, 2), (3200, 10)])
def test_length_law(codec: Encodec, num_samples: int, num_tokens: int) -> None:
    codes_KT = codec.encode(sound(num_samples))
    assert codes_KT.shape == (8, num_tokens)
    assert codes_KT.dtype == torch.int64
    assert codec.decode(codes_KT).shape == (num_tokens * 320,)
    assert (codec.sample_rate, codec.frame_rate, codec.codebook_size) == (24000, 75.0, 1024)


def test_codes_and_sound_equal_the_package(codec: Encodec) -> None:
    model = EncodecModel.encodec_model_24khz(pretrained=False)
    model.load_state_dict(random_weights())
    model.set_target_bandwidth(6.0)
    with torch.no_grad():
        frames = model.encode(sound(3200)[None, None])
        expected_N = model.decode(frames)[0, 0]
    assert torch.equal(codec.encode(sound(3200)), frames[0][0][0])
    assert len(codec.encode(sound(3200)).unique()) > 5
    assert torch.allclose(codec.decode(codec.encode(sound(3200))), expected_N, atol=1e-6)


@pytest.mark.parametrize("num_frames", [0, 1, 3, 4, 7, 8, 23])
def test_a_stream_gives_the_bits_of_the_whole_however_it_is_cut(codec: Encodec, num_frames: int) -> None:
    codes_KT = torch.randint(1024, (8, num_frames), generator=torch.Generator().manual_seed(num_frames))
    whole_N = codec.decode(codes_KT)
    assert whole_N.shape == (320 * num_frames,)
    for width in (1, 3, 5):
        stream = codec.stream()
        parts = [stream.push(codes_KT[:, at : at + width]) for at in range(0, num_frames, width)]
        assert torch.equal(torch.cat([*parts, stream.finish()]), whole_N)


@pytest.mark.parametrize("num_frames", [1, 5, 6, 7, 8, 30])
def test_short_and_long_utterances_sound_as_in_the_package(codec: Encodec, num_frames: int) -> None:
    codes_KT = torch.randint(1024, (8, num_frames), generator=torch.Generator().manual_seed(num_frames))
    with torch.no_grad():
        expected_N = codec._model.decode([(codes_KT[None], None)])[0, 0]
    assert torch.allclose(codec.decode(codes_KT), expected_N, atol=1e-5)


def test_sound_comes_after_eight_frames_and_stays(codec: Encodec) -> None:
    codes_KT = torch.randint(1024, (8, 30), generator=torch.Generator().manual_seed(1))
    stream = codec.stream()
    lengths = [len(stream.push(codes_KT[:, t : t + 1])) for t in range(30)]
    assert next(t for t, length in enumerate(lengths) if length) == 7
    assert sum(lengths) > 25 * 320


def test_safetensors_and_torch_files_give_the_same_codec(codec: Encodec, tmp_path: Path) -> None:
    save_file(random_weights(), tmp_path / "weights.safetensors")
    same = load_encodec(EncodecConfig(checkpoint=tmp_path / "weights.safetensors"))
    assert same.fingerprint() == codec.fingerprint()


def test_fingerprint_covers_weights_and_bandwidth(codec: Encodec, checkpoint: Path, tmp_path: Path) -> None:
    other = load_encodec(EncodecConfig(checkpoint=checkpoint, bandwidth_kbps=3.0))
    weights = random_weights()
    next(iter(weights.values()))[0] += 1e-3
    torch.save(weights, tmp_path / "other.pt")
    changed = load_encodec(EncodecConfig(checkpoint=tmp_path / "other.pt"))
    assert len({codec.fingerprint(), other.fingerprint(), changed.fingerprint()}) == 3


def test_saved_codec_opens_without_the_checkpoint(codec: Encodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    assert "weights.th" not in (tmp_path / "config.json").read_text()
    opened = open_codec(tmp_path)
    assert opened.fingerprint() == codec.fingerprint()
    assert torch.equal(opened.encode(sound(3200)), codec.encode(sound(3200)))


def test_loading_leaves_the_random_state_alone(checkpoint: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_encodec(EncodecConfig(checkpoint=checkpoint))
    assert torch.equal(torch.rand(1), expected)


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    weights = random_weights()
    first = next(iter(weights))
    weights["decoder.extra"] = torch.zeros(3)
    del weights[first]
    torch.save(weights, tmp_path / "a.th")
    with pytest.raises(DataError, match=rf"{first} is missing; decoder.extra is unexpected"):
        load_encodec(EncodecConfig(checkpoint=tmp_path / "a.th"))


class NotWeights:
    pass


@pytest.mark.parametrize("content", [NotWeights(), [torch.zeros(1)], {"state": {"a": torch.zeros(1)}}])
def test_files_that_are_not_plain_weights_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.th")
    with pytest.raises(DataError, match=r"a\.th"):
        load_encodec(EncodecConfig(checkpoint=tmp_path / "a.th"))


@pytest.mark.parametrize("name", ["a.th", "a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(1000)])
def test_broken_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_encodec(EncodecConfig(checkpoint=tmp_path / name))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_encodec(EncodecConfig(checkpoint=tmp_path / name))


def test_by_name_uses_the_cache_and_says_what_to_do_without_a_network(
    checkpoint: Path, codec: Encodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    # Port 9 discards: nothing answers there.
    monkeypatch.setattr("encodec.model.ROOT_URL", "http://127.0.0.1:9/")
    with pytest.raises(StorageError, match=r"set checkpoint to the file"):
        load_encodec(EncodecConfig())
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "checkpoints" / "encodec_24khz-d7cc33bc.th").write_bytes(checkpoint.read_bytes())
    assert load_encodec(EncodecConfig()).fingerprint() == codec.fingerprint()


def test_codes_out_of_range_and_unknown_bandwidths_are_refused(codec: Encodec) -> None:
    with pytest.raises(DataError, match="8 codebooks of 1024 entries"):
        codec.decode(torch.full((8, 3), 1024))
    with pytest.raises(ValidationError, match="knows the bandwidths"):
        EncodecConfig(bandwidth_kbps=5.0)
