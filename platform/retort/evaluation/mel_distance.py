"""How far apart two systems' sounds are that were made of the same codes from the same noise: the metric mel_distance.

Where two networks solve the same diffusion from the same noise, their results can be compared frame by frame, without
any judge: what is left between them is what the smaller number of steps, or the student, got wrong.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from retort.errors import DataError
from retort.evaluation.items import ItemResult

_DB_PER_NEPER = 20.0 / math.log(10.0)


def mel_distance_db(mel_MT: Tensor, reference_MT: Tensor) -> float:
    """Mean absolute difference in dB of two log-mels, :func:`retort.audio.mel.log_mel`, over channels and frames.

    Args:
        mel_MT: natural log of mel amplitudes [M, T] of the system, without padding.
        reference_MT: of the reference, likewise; the same frames.

    Raises:
        DataError: the shapes differ, so that frames do not belong together, or there are no frames.
    """
    if mel_MT.shape != reference_MT.shape or mel_MT.numel() == 0:
        raise DataError(
            f"log-mels of shapes {list(mel_MT.shape)} and {list(reference_MT.shape)} have no frames in common; "
            "a mel distance needs the same codes and the same noise"
        )
    return _DB_PER_NEPER * float((mel_MT.double() - reference_MT.double()).abs().mean())


def with_distances(
    items: Sequence[ItemResult], mels: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> list[ItemResult]:
    """Items of one system with their distances to the reference system; what one of the two did not say has none.

    Args:
        items: of the system.
        mels: log-mels [T, M] by the ids of its utterances.
        reference: likewise of the reference.

    Raises:
        DataError: an utterance has another length than the reference's: the two did not share its codes.
    """
    return [_with_distance(item, mels.get(item.id), reference.get(item.id)) for item in items]


def _with_distance(item: ItemResult, mel_TM: Tensor | None, reference_TM: Tensor | None) -> ItemResult:
    if mel_TM is None or reference_TM is None:
        return item
    if len(mel_TM) != len(reference_TM):
        raise DataError(
            f"{item.system}: utterance {item.id!r} has {len(mel_TM)} mel frames, mel_reference has "
            f"{len(reference_TM)}; the two did not share codes; give them the same codec LM with the same decoding.lm"
        )
    distance = mel_distance_db(mel_TM.T, reference_TM.T)
    if not math.isfinite(distance):  # a network that gave no numbers gave no sound either, which its row says
        return item
    return dataclasses.replace(item, values={**item.values, "mel_distance": distance})


def mels_to_bytes(mels: Mapping[str, Tensor]) -> bytes:
    """Mels [T, M] by name as a safetensors file in fp16, which adds less than 0.02 dB to a distance."""
    from safetensors.torch import save

    data: bytes = save({name: mel_TM.to(torch.float16).contiguous() for name, mel_TM in mels.items()})
    return data


def mels_from_bytes(data: bytes) -> dict[str, Tensor]:
    """What :func:`mels_to_bytes` was given, rounded."""
    from safetensors.torch import load

    return {name: mel_TM.float() for name, mel_TM in load(data).items()}
