"""How far apart two systems' sounds are that were made of the same codes from the same noise: the metric mel_distance.

Where two networks solve the same diffusion from the same noise, their results can be compared frame by frame, without
any judge: what is left between them is what the smaller number of steps, or the student, got wrong.
"""

import math

from torch import Tensor

from retort.errors import DataError

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
