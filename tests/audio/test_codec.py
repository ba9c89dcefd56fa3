import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from retort.audio.codec import CodecConfig, EncodecConfig, MelRVQConfig, new_codec, open_codec
from retort.audio.mel_rvq import MelRVQ, fit_mel_rvq
from retort.errors import DataError


@pytest.fixture(scope="module")
def codec() -> MelRVQ:
    generator = torch.Generator().manual_seed(0)
    recordings = [torch.randn(16000, generator=generator) * 0.1 for _ in range(2)]
    return fit_mel_rvq(recordings, MelRVQConfig(num_codebooks=2, codebook_size=16))


def test_kind_chooses_the_config() -> None:
    adapter: TypeAdapter[MelRVQConfig | EncodecConfig] = TypeAdapter(CodecConfig)
    assert adapter.validate_json('{"kind": "encodec", "bandwidth_kbps": 3}') == EncodecConfig(bandwidth_kbps=3.0)
    assert adapter.validate_json('{"kind": "mel_rvq", "num_codebooks": 2}') == MelRVQConfig(num_codebooks=2)
    with pytest.raises(ValidationError, match="mp3"):
        adapter.validate_json('{"kind": "mp3"}')
    with pytest.raises(ValidationError, match="bandwidth_kbps"):
        adapter.validate_json('{"kind": "mel_rvq", "bandwidth_kbps": 3.0}')


def test_recordings_are_asked_for_at_the_rate_of_the_codec_that_is_fitted(codec: MelRVQ, tmp_path: Path) -> None:
    asked: list[int] = []

    def recordings(sample_rate: int) -> list[torch.Tensor]:
        asked.append(sample_rate)
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(16000, generator=generator) * 0.1 for _ in range(2)]

    assert new_codec(codec.config, recordings).fingerprint() == codec.fingerprint()
    with pytest.raises(DataError, match="nowhere"):
        new_codec(EncodecConfig(checkpoint=tmp_path / "nowhere"), recordings)
    assert asked == [codec.sample_rate], "published weights need no recordings"


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def flip_last_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "not a saved codec"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "not a whole codec"),
    "config is not JSON": (lambda folder: (folder / "config.json").write_text("{"), "not valid"),
    "unknown kind": (edit_config(kind="mp3"), "mp3"),
    "unknown key": (edit_config(codebook_sise=3), "did you mean 'codebook_size'"),
    "another shape": (
        edit_config(num_codebooks=3),
        r"centroids_KVD has shape \(2, 16, 160\) instead of \(3, 16, 160\)",
    ),
    "another kind's weights": (
        lambda folder: (folder / "config.json").write_text('{"kind": "encodec"}'),
        "is missing; .* more",
    ),
    "another setting": (edit_config(fit_seed=7), "changed or damaged"),
    "one flipped bit": (flip_last_byte, "changed or damaged"),
    "cut weights": (cut_weights, "damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_refused_with_the_cure(codec: MelRVQ, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    codec.save(tmp_path)
    assert open_codec(tmp_path).fingerprint() == codec.fingerprint()
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        open_codec(tmp_path)
    assert "copy its folder again" in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a saved codec"):
        open_codec(tmp_path / "none")
