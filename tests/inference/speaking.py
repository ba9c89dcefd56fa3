"""A model folder that can speak, with random weights, made by the real path."""

import math
import shutil
from pathlib import Path
from typing import Any

import torch

from retort.audio.mel import MelConfig
from retort.audio.mel_rvq import MelRVQConfig, fit_mel_rvq
from retort.data.tokens import TokenRow, TokenSetDescription, write_description, write_shard
from retort.inference.synthesizer import save_speaking_model
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.mel_diffusion import MelDiffusion, MelDiffusionConfig
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.presets import tiny
from retort.models.weights import load_codec_lm, save_model
from retort.models.zero_shot.config import FeatureScales
from retort.models.zero_shot.model import ZeroShot
from retort.models.zero_shot.presets import ZeroShotShape, zero_shot_config
from retort.models.zero_shot.voices import StoredVoice, write_voices
from retort.models.zero_shot_lineage import ZeroShotLineage
from retort.nn.diffusion_guidance import RampedGuidance
from retort.nn.guidance import TwoTermGuidance
from retort.nn.noise_schedule import CosineSchedule
from retort.store.artifact import describe_artifact, write_artifact
from retort.text import espeak
from retort.text.front_end import CharactersConfig, build_text_front_end

SMALL = MelRVQConfig(codebook_size=8, num_codebooks=2, kmeans_iterations=2, griffin_lim_iterations=2)
AT_24_KHZ = SMALL.replace(mel=MelConfig(sample_rate=24_000, hop_samples=300))
"""A codec at the rate at which speech is served, so that nothing is resampled on the way."""


def speaking_model(
    root: Path,
    *,
    codec_config: MelRVQConfig = SMALL,
    weights_seed: int = 0,
    mean_frames: float | None = None,
    distilled: bool = False,
    gain: float = 1.0,
    trained_drops: tuple[str, ...] = ("null",),
    **shape: Any,
) -> Path:
    """A fitted codec, a token set of two speakers, a model with random weights; returns the model's folder.

    ``mean_frames`` is how long its utterances are on average, at random, whatever the text; None leaves that to the
    weights, and few end. ``trained_drops`` may be guided against; ``distilled`` has guidance baked in; with a ``gain``
    of its attention, text and voice say more; ``shape`` changes the configuration.
    """
    torch.manual_seed(0)
    data, model = root / "data", root / "model"
    data.mkdir()
    recordings = [0.1 * torch.randn(8000) for _ in range(4)]
    codec = fit_mel_rvq(recordings, codec_config)
    front_end = build_text_front_end(CharactersConfig(kind="characters"))
    codec.save(data / "codec")
    front_end.save(data / "text")
    rows = [
        TokenRow(f"u{i}", "one", tuple(front_end.encode("one")), f"s{i % 2}", "train", codec.encode(r), 0.5)
        for i, r in enumerate(recordings)
    ]
    write_shard(data / "part-0.parquet", rows)
    description = TokenSetDescription(
        codec_fingerprint=codec.fingerprint(), text_fingerprint=front_end.fingerprint(),
        text_vocabulary_size=front_end.vocabulary_size, num_codebooks=2, codebook_size=8, sample_rate=codec.sample_rate,
        frame_rate=codec.frame_rate,
    )  # fmt: skip
    write_description(data, description)
    lineage = CodecLMLineage(
        method="pretrain", codec_fingerprint=codec.fingerprint(), text_fingerprint=front_end.fingerprint(),
        trained_drops=trained_drops, distilled_at=TwoTermGuidance(scale=1.5) if distilled else None,
    )  # fmt: skip
    info = describe_artifact("model", "speaking", "1", inputs={}, config={})
    torch.manual_seed(weights_seed)
    random = CodecLM(tiny((front_end.vocabulary_size, 2, 8)).replace(**shape))
    with torch.no_grad():  # without training a prompt says next to nothing
        for name, parameter in random.named_parameters():
            if name.startswith("prompt_encoder"):
                parameter.mul_(30)
            if ".attention." in name:
                parameter.mul_(gain)
        if mean_frames is not None:
            _end_at_random(random, mean_frames)
    return write_artifact(model, info, lambda target: save_speaking_model(target, random, lineage, data)).path


def speaking_denoiser(
    root: Path, *, mean_frames: float | None = None, takes: tuple[str, ...] = (), **lineage: Any
) -> Path:
    """A denoiser with random weights and the whole folder of its codec LM, :func:`speaking_model`, as a model folder.

    ``mean_frames`` is the codec LM's. ``takes`` are inputs of a student, ``guidance`` or ``interval``; ``lineage`` is
    what it claims to be.
    """
    lm = speaking_model(root, gain=30.0, mean_frames=mean_frames)
    loaded = load_codec_lm(lm)
    config = MelDiffusionConfig(
        num_mels=MelConfig().num_mels, latent_dim=loaded.model.config.dim, dim=16, num_layers=1, num_heads=2,
        ffn_dim=32, schedule=CosineSchedule(), **{f"takes_{name}": True for name in takes},
    )  # fmt: skip
    torch.manual_seed(5)
    random = MelDiffusion(config)
    with torch.no_grad():  # at its start it says the same of everything
        for parameter in random.parameters():
            parameter.normal_(std=0.2)
    values: dict[str, Any] = {
        "method": "mel_pretrain", "lm_fingerprint": loaded.fingerprint, "trained_drops": True,
        "codec_fingerprint": loaded.lineage.codec_fingerprint, "text_fingerprint": loaded.lineage.text_fingerprint,
    }  # fmt: skip
    claimed = MelDiffusionLineage(**{**values, **lineage})

    def fill(target: Path) -> None:
        save_model(target, random, claimed)
        shutil.copytree(lm, target / "lm", ignore=shutil.ignore_patterns("artifact.json"))

    info = describe_artifact("model", "denoiser", "1", inputs={}, config={})
    return write_artifact(root / "denoiser", info, fill).path


def speaking_zero_shot(root: Path, *, timbre_dim: int = 256, **lineage: Any) -> Path:
    """A zero-shot model with random weights that knows the phones of digits, and two voices, as a model folder."""
    words = ["zero one two three four five six seven eight nine a"]
    known = sorted({phone for text in espeak.phones_of_all(words, voice="en-us") for phone in text})
    phones = lineage.get("phones", tuple(known))
    mel = MelConfig()
    shape = ZeroShotShape(
        dim=16, num_layers=1, num_heads=2, ffn_dim=16, mel_channels=(2,), latent_dim=4, flow_dim=8, num_couplings=2,
        style_layers=1, predictor_dim=8, decoder_dim=16, decoder_dilations=(1,), dropout=0.0,
    )  # fmt: skip
    scales = FeatureScales(log_frames_mean=1.8, log_frames_std=0.3)
    config = zero_shot_config(
        shape, num_phones=len(phones), num_mels=mel.num_mels, timbre_dim=timbre_dim, scales=scales
    )
    torch.manual_seed(5)
    random = ZeroShot(config)
    with torch.no_grad():  # at its start it says the same of everything
        for parameter in random.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    claimed = ZeroShotLineage(**{
        "method": "zero_shot_pretrain", "phones": phones, "voice": "en-us", "language": "en", "mel": mel,
        "timbre_encoder": "resemblyzer-0.1", "data_fingerprint": "p-0", "durations_fingerprint": "d-0", **lineage,
    })  # fmt: skip
    timbres = torch.nn.functional.normalize(torch.rand(2, timbre_dim), dim=1)
    voices = [StoredVoice(f"s{n}", 2.0 * torch.randn(40 + n, mel.num_mels) - 5.0, timbres[n]) for n in range(2)]

    def fill(target: Path) -> None:
        save_model(target, random, claimed)
        write_voices(target, voices)

    info = describe_artifact("model", "zero_shot", "1", inputs={}, config={})
    return write_artifact(root / "zero_shot", info, fill).path


STUDENT: dict[str, Any] = {
    "method": "progressive_distill", "teacher_fingerprint": "mel_diffusion-0", "num_steps": 4, "solver": "ddim",
    "distilled_at": RampedGuidance(), "trained_drops": False,
}  # fmt: skip
"""Lineage of a student of four steps."""


def _end_at_random(model: CodecLM, mean_frames: float) -> None:
    """One dimension of the stream drowns the others: all codes are equally likely, and the end of speech by itself."""
    config = model.config
    model.audio_embedding.weight[:, 0] = 10.0
    heads_KVD = model.heads.weight.view(config.num_codebooks, config.output_size, -1)
    heads_KVD[:, :, 0] = 0.0
    heads_KVD[:, config.eos, 0] = math.log(config.codebook_size / (mean_frames - 1)) / math.sqrt(config.dim)
