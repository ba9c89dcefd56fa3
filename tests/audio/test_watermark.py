"""Marks in sound: a stream is marked like the whole, the mark is found again, and its key's only."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from retort.audio.audioseal import AudioSeal
from retort.audio.files import resample
from retort.audio.watermark import SAMPLE_RATE, Samples, SpreadSpectrum, Watermark, fold
from retort.errors import DataError

KEY = b"a secret of the tests"


def babble(seconds: float, seed: int = 0) -> Samples:
    """Noise with the spectrum and the rhythm of speech, more or less."""
    draw = np.random.default_rng(seed)
    count = int(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(draw.normal(size=count))
    hz = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    shaped = np.fft.irfft(spectrum / (1 + (hz / 500) ** 1.5), count)
    rhythm = 0.05 + np.abs(np.sin(2 * np.pi * 3 * np.arange(count) / SAMPLE_RATE))
    sound = shaped * rhythm
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


def marked(watermark: Watermark, sound: Samples, *cuts: int) -> Samples:
    stream = watermark.stream()
    parts = [stream.push(part) for part in np.split(sound, sorted(cuts))]
    return np.concatenate([*parts, stream.finish()])


@pytest.fixture(scope="module")
def weak() -> SpreadSpectrum:
    return SpreadSpectrum(KEY, level_db=-22.0)


def seanet() -> dict[str, Any]:
    """The layers of AudioSeal's card, much narrower."""
    return {
        "channels": 1, "dimension": 16, "n_filters": 4, "n_residual_layers": 1, "ratios": [8, 5, 4, 2],
        "activation": "ELU", "activation_params": {"alpha": 1.0}, "norm": "weight_norm", "norm_params": {},
        "kernel_size": 7, "last_kernel_size": 7, "residual_kernel_size": 3, "dilation_base": 2, "causal": False,
        "pad_mode": "constant", "true_skip": True, "compress": 2, "lstm": 2, "disable_norm_outer_blocks": 0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def seal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("audioseal", reason="AudioSeal is an extra: pip install 'retort[watermark]'")
    from audioseal.builder import AudioSealWMConfig, DecoderConfig, SEANetConfig, create_detector, create_generator

    folder = tmp_path_factory.mktemp("audioseal")
    (folder / "config.json").write_text(json.dumps({"nbits": 16, "seanet": seanet()}))
    config = AudioSealWMConfig(16, SEANetConfig(**{**seanet(), "norm": "none"}), DecoderConfig(None, None, 1.0))
    torch.manual_seed(0)
    for name, network in (("generator", create_generator(config)), ("detector", create_detector(config))):
        weights = {key.replace(".inner_conv.", "."): tensor for key, tensor in network.state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors")  # the names of the published files
    return folder


@pytest.fixture(scope="module")
def seal(seal_folder: Path) -> AudioSeal:
    return AudioSeal(seal_folder, message=0b1010)


SOUND = babble(2.5)


@pytest.mark.parametrize("kind", ["weak", "seal"])
@settings(deadline=None, max_examples=12)
@given(cuts=st.lists(st.integers(0, len(SOUND)), max_size=12))
def test_a_stream_is_marked_like_the_whole(kind: str, cuts: list[int], request: pytest.FixtureRequest) -> None:
    watermark: Watermark = request.getfixturevalue(kind)
    whole = marked(watermark, SOUND)
    assert len(whole) == len(SOUND)
    assert not np.array_equal(whole, SOUND)
    assert np.array_equal(marked(watermark, SOUND, *cuts), whole)


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 511, 512, 513, 5000])
@pytest.mark.parametrize("kind", ["weak", "seal"])
def test_as_many_samples_come_out_as_went_in(kind: str, length: int, request: pytest.FixtureRequest) -> None:
    watermark: Watermark = request.getfixturevalue(kind)
    assert len(marked(watermark, SOUND[:length], length // 3)) == length


def test_the_weak_mark_is_a_function_of_the_position(weak: SpreadSpectrum) -> None:
    # What comes later changes nothing before it, but for the frame that is under way.
    longer = marked(weak, SOUND)
    shorter = marked(weak, SOUND[:30_000])
    assert np.array_equal(longer[: 30_000 - 512], shorter[: 30_000 - 512])
    assert not np.array_equal(marked(weak, SOUND[1:])[:-1], longer[1:-1])


def test_the_mark_lies_below_the_sound_and_silence_stays_silent(weak: SpreadSpectrum) -> None:
    mark = marked(weak, SOUND) - SOUND
    level_db = 10 * np.log10(np.square(mark).mean() / np.square(SOUND).mean())
    assert -26 < level_db < -20
    assert np.abs(marked(weak, np.zeros(5000, np.float32))).max() == 0


@pytest.mark.parametrize(
    "hurt",
    [
        pytest.param(lambda x: x, id="as it is"),
        pytest.param(lambda x: x[7_777:], id="cut from the middle"),
        pytest.param(lambda x: 0.1 * x, id="quieter"),
        pytest.param(lambda x: np.rint(x * 32767).astype(np.float32) / 32767, id="16 bits"),
        pytest.param(
            lambda x: resample(resample(torch.from_numpy(x), 24_000, 16_000), 16_000, 24_000).numpy(), id="16 kHz"
        ),
    ],
)
def test_the_weak_mark_is_found(weak: SpreadSpectrum, hurt: Any) -> None:
    sound = babble(4.0, seed=1)
    assert weak.detect(hurt(marked(weak, sound))).is_marked
    assert not weak.detect(hurt(sound)).is_marked


def test_other_keys_find_nothing() -> None:
    # The law: the largest of 32,768 normal numbers lies below 6 but for 3 in 100,000.
    folded = [fold(marked(SpreadSpectrum(KEY, level_db=-22.0), babble(3.0, seed))) for seed in range(4)]
    others = [SpreadSpectrum(b"another key %4d" % number, level_db=-22.0) for number in range(60)]
    scores = [other.score(sound) for other in others for sound in folded]
    assert max(scores) < SpreadSpectrum.threshold
    assert 3.5 < float(np.median(scores)) < 4.7, "the detector's scale is standard deviations"


@pytest.mark.parametrize("sound", [np.zeros(0, np.float32), np.zeros(9999, np.float32), babble(0.02)], ids=len)
def test_next_to_nothing_is_not_marked(weak: SpreadSpectrum, sound: Samples) -> None:
    assert not weak.detect(sound).is_marked


def test_audioseal_finds_its_own_message_only(seal: AudioSeal, seal_folder: Path) -> None:
    # Random weights find nothing by themselves, so the detector is told by hand what it hears.
    sound = babble(1.0)
    other = AudioSeal(seal_folder, message=0b0101)

    class Hears(torch.nn.Module):
        def forward(self, sound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = torch.zeros(1, 2, sound.shape[-1])
            found[:, 1, ::4] = found[:, 1, 1::4] = found[:, 1, 2::4] = 0.9
            return found, torch.tensor([[float(0b1010 >> bit & 1) for bit in range(16)]])

    seal._detector = other._detector = Hears()
    assert seal.detect(sound).score == pytest.approx(0.75, abs=0.01)
    assert seal.detect(sound).is_marked
    assert not other.detect(sound).is_marked


def test_the_weights_that_are_loaded_are_those_of_the_file(seal: AudioSeal, seal_folder: Path, tmp_path: Path) -> None:
    for file in seal_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(
        {key: tensor.contiguous() for key, tensor in seal._generator.state_dict().items()},
        tmp_path / "generator.safetensors",
    )
    same = AudioSeal(tmp_path, message=0b1010)
    assert np.array_equal(marked(same, SOUND), marked(seal, SOUND))
    assert not np.array_equal(marked(AudioSeal(tmp_path, message=0b1011), SOUND), marked(seal, SOUND))


def test_nothing_is_compiled_while_somebody_waits(seal: AudioSeal, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("torch.compile was called")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", refuse)
        quick = marked(seal, SOUND[:1000])
        found = seal.detect(quick)
    assert len(quick) == 1000
    assert not np.array_equal(quick, SOUND[:1000])
    assert np.array_equal(quick, marked(seal, SOUND[:1000]))
    assert found == seal.detect(quick)


def test_audioseal_with_random_weights_runs_its_detector(seal_folder: Path) -> None:
    found = AudioSeal(seal_folder, message=3).detect(babble(0.5))
    assert 0.0 <= found.score <= 1.0


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "generator.safetensors").unlink(), "no such file"),
        (lambda folder: (folder / "config.json").write_text("{}"), "not an AudioSeal card"),
        (lambda folder: (folder / "config.json").write_text('{"nbits": 16, "seanet": {"a": 1}}'), "does not fit"),
        (lambda folder: save_file({"a": torch.zeros(1)}, folder / "detector.safetensors"), "detector"),
        (lambda folder: (folder / "detector.safetensors").write_bytes(b"\x80\x04."), "detector"),
    ],
    ids=["gone", "no card", "another card", "other weights", "a pickle"],
)
def test_a_folder_that_is_not_audioseals_is_refused(seal_folder: Path, tmp_path: Path, spoil: Any, told: str) -> None:
    for file in seal_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spoil(tmp_path)
    with pytest.raises(DataError, match=told):
        AudioSeal(tmp_path, message=0)
