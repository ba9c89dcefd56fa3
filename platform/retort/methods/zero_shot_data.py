"""What both stages read: a phone mel set of recordings, and what it decides of a model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from retort.data.phone_mel_stream import check_prompts
from retort.data.phone_mels import FromRecordings, PhoneMelRow, PhoneMelSet, PhoneMelSetDescription
from retort.data.tokens import refuse_mismatch
from retort.errors import ConfigError
from retort.inference.inversion import VocoderInversion, open_inversion
from retort.models.zero_shot.config import FeatureScales
from retort.models.zero_shot.timbre import (
    TimbreEncoder,
    TimbreEncoderConfig,
    open_timbre_encoder,
    timbre_encoder_name,
)
from retort.models.zero_shot_lineage import SelfDistilled, ZeroShotLineage
from retort.store.artifact import read_artifact
from retort.store.results import result_of

_MEASURED_ROWS = 256


def check_phone_mels(data: Path, timbre: TimbreEncoderConfig) -> tuple[PhoneMelSet, str]:
    """Verify a phone mel set of recordings; returns its training rows, and its artifact's fingerprint.

    Raises:
        ConfigError: a teacher spoke it.
        DataError: it is missing, its timbres are of another encoder, or a speaker has no prompt.
        StorageError: it is damaged.
    """
    artifact = read_artifact(result_of(data))
    mels = PhoneMelSet.open(artifact.path)
    if not isinstance(mels.description.source, FromRecordings):
        raise ConfigError(
            f"{data} was spoken by a teacher; give recordings as data (`retort generate` with makes: phone_mels)"
        )
    refuse_mismatch(
        "timbre encoder",
        str(data),
        mels.description.timbre_encoder,
        "the contrast of voices",
        timbre_encoder_name(timbre),
        "name the same encoder in `timbre`, or make the phone mels again with it",
    )
    rows = mels.split("train")
    check_prompts(rows)
    return rows, artifact.fingerprint


def check_vocoder(vocoder: Path | None, made: PhoneMelSetDescription) -> dict[str, str]:
    """Verify the vocoder that goes along with a model; returns its fingerprint by its name, if there is one.

    Raises:
        ConfigError: it is a model of another family.
        DataError: it is missing, or reads other mels.
    """
    return {} if vocoder is None else {"vocoder": open_inversion(VocoderInversion(path=vocoder), made.mel).name}


def training_rows(data: Path) -> PhoneMelSet:
    """What :func:`check_phone_mels` verified, opened again by a worker."""
    return PhoneMelSet.open(result_of(data)).split("train")


def timbre_for(
    config: TimbreEncoderConfig, made: PhoneMelSetDescription, device: torch.device, *, weight: float
) -> TimbreEncoder | None:
    """The frozen speaker encoder, where the contrast of voices has a weight."""
    return open_timbre_encoder(config, made.mel, device=device) if weight > 0 else None


def lineage_of(
    method: str, made: PhoneMelSetDescription, data_fingerprint: str, self_distilled: SelfDistilled | None = None
) -> ZeroShotLineage:
    """What weights stand for that are trained on a set."""
    return ZeroShotLineage(
        method=method,
        phones=made.phones,
        voice=made.voice,
        language=made.language,
        mel=made.mel,
        timbre_encoder=made.timbre_encoder,
        data_fingerprint=data_fingerprint,
        durations_fingerprint=made.durations_fingerprint,
        target_lufs=made.target_lufs,
        self_distilled=self_distilled,
    )


def scales_of(rows: PhoneMelSet) -> FeatureScales:
    """Means and deviations over at most 256 rows, spread evenly over the set."""
    count = min(len(rows), _MEASURED_ROWS)
    taken: list[PhoneMelRow] = [rows[index * len(rows) // count] for index in range(count)]
    mel = _mean_std([row.mel_TM for row in taken])
    log_f0 = _mean_std([row.log_f0_P[row.voiced_P] for row in taken])
    energy = _mean_std([row.energy_P for row in taken])
    log_frames = _mean_std([torch.log1p(row.frames_P.float()) for row in taken])
    return FeatureScales(
        mel_mean=mel[0],
        mel_std=mel[1],
        log_f0_mean=log_f0[0],
        log_f0_std=log_f0[1],
        energy_mean=energy[0],
        energy_std=energy[1],
        log_frames_mean=log_frames[0],
        log_frames_std=log_frames[1],
    )


def _mean_std(parts: Sequence[Tensor]) -> tuple[float, float]:
    """Rounded, and no deviation below .01: whispered or constant features are not blown up."""
    values = torch.cat([part.flatten() for part in parts]).double()
    if values.numel() < 2:
        return 0.0, 1.0
    return round(float(values.mean()), 4), round(max(float(values.std()), 0.01), 4)
