"""A phone mel set for :func:`tests.inference.speaking.speaking_zero_shot`: noise, with a tilt of each speaker."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional

from retort.audio.mel import MelConfig
from retort.data.phone_mels import FromRecordings, PhoneMelRow, PhoneMelSet
from retort.models.weights import load_zero_shot
from retort.store.artifact import describe_artifact, write_artifact
from tests.methods.zero_shot_toys import describe, write_set


def tilted_rows(
    phones: Sequence[str], speakers: Sequence[str], *, each: int, split: str = "train", seed: int = 0
) -> list[PhoneMelRow]:
    """Rows of five phones and 40 frames."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for n in range(each * len(speakers)):
        number = n % len(speakers)
        said = torch.randint(len(phones), (5,), generator=draw).tolist()
        tilt_M = torch.linspace(-1.0, 1.0, MelConfig().num_mels) * (2.0 * number - 1.0)
        mel_TM = torch.randn(40, MelConfig().num_mels, generator=draw) + tilt_M - 4.0
        none_P = torch.zeros(5)
        rows.append(
            PhoneMelRow(
                f"{split}-{n:03d}", "one", speakers[number], split, tuple(phones[p] for p in said),
                torch.full((5,), 8), mel_TM, none_P, none_P.bool(), none_P,
                functional.normalize(torch.rand(256, generator=draw), dim=0),
            )
        )  # fmt: skip
    return rows


def write_tilted(folder: Path, model: Path, rows: Sequence[PhoneMelRow]) -> Path:
    """The rows as a committed set that fits the model; returns the result folder."""
    lineage = load_zero_shot(model).lineage
    told = describe(
        FromRecordings(), mel=lineage.mel, phones=lineage.phones, timbre_dim=256, timbre_encoder=lineage.timbre_encoder
    )
    info = describe_artifact("phone_mels", folder.name, "1", inputs={}, config={})

    def fill(target: Path) -> None:
        assert isinstance(write_set(target, rows, told), PhoneMelSet)

    return write_artifact(folder, info, fill).path
