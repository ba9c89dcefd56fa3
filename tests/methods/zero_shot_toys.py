"""A toy for the zero-shot methods: phones with patterns, speakers with a tilt and a pitch, and a speaker encoder."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from retort.audio.mel import MelConfig
from retort.data.phone_mel_stream import (
    Lesson,
    PhoneMelBatch,
    PhoneMelBatchConfig,
    PhoneMelStream,
    Swaps,
    phone_mel_batch,
)
from retort.data.phone_mels import (
    PHONE_MELS_FILE,
    ROWS,
    FromRecordings,
    FromSwaps,
    PhoneMelRow,
    PhoneMelSet,
    PhoneMelSetDescription,
    phone_mel_record,
    phone_mel_schema,
)
from retort.models.zero_shot.config import FeatureScales, ZeroShotConfig
from retort.models.zero_shot.model import ZeroShot

NUM_MELS, TIMBRE_DIM = 8, 6
INVENTORY = ("a", "b", "i", "s")
SPEAKERS = ("ada", "bob", "cy", "dot")
MEL = MelConfig(num_mels=NUM_MELS)
TOY = ZeroShotConfig(
    num_phones=len(INVENTORY), num_mels=NUM_MELS, timbre_dim=TIMBRE_DIM,
    scales=FeatureScales(mel_mean=0.0, mel_std=1.0, log_f0_mean=5.0, log_f0_std=0.3, log_frames_mean=1.2),
    dim=16, num_layers=1, num_heads=2, ffn_dim=24, mel_channels=(2, 3), latent_dim=4, flow_dim=8, num_couplings=2,
    style_layers=1, style_stride=2, predictor_dim=12, decoder_dim=16, decoder_dilations=(1, 2), decoder_kernel=3,
)  # fmt: skip
BATCHES = PhoneMelBatchConfig(max_utterances=6, max_frames=200, prompt_max_frames=9)


class ToyTimbre:
    """A speaker encoder that hears the mean spectrum, and how it changes."""

    name, dim = "toy", TIMBRE_DIM

    def __init__(self) -> None:
        self.weight_ME = torch.randn(2 * NUM_MELS, TIMBRE_DIM, generator=torch.Generator().manual_seed(1))

    def embed(self, samples_N: Tensor, sample_rate: int) -> Tensor:
        """Nobody gives the toy a sound."""
        raise AssertionError("a toy of mels hears no sound")

    def of_mels(self, log_mel_BTM: Tensor, mask_BT: Tensor) -> Tensor:
        """Of mean and mean square."""
        mask_BT1 = mask_BT[..., None].float()
        both = torch.cat([log_mel_BTM, log_mel_BTM.square()], dim=-1) * mask_BT1
        return functional.normalize((both.sum(1) / mask_BT1.sum(1)) @ self.weight_ME, dim=-1)


def toy_row(number: int, speaker: str, generator: torch.Generator, *, num_phones: int | None = None) -> PhoneMelRow:
    """Some phones and pauses of 1 to 5 frames."""
    count = int(torch.randint(3, 8, (), generator=generator)) if num_phones is None else num_phones
    said = torch.randint(len(INVENTORY) + 1, (count,), generator=generator).tolist()
    phones = tuple("" if n == len(INVENTORY) else INVENTORY[n] for n in said)
    frames_P = torch.randint(1, 6, (count,), generator=generator)
    return said_by(f"row{number:02d}", phones, frames_P, speaker, generator)


def said_by(
    name: str, phones: Sequence[str], frames_P: Tensor, speaker: str, generator: torch.Generator
) -> PhoneMelRow:
    """Phones as a speaker says them: a phone's pattern, a speaker's tilt, and noise."""
    place_M = torch.linspace(-1, 1, NUM_MELS)
    number = SPEAKERS.index(speaker)
    patterns_PM = torch.stack([torch.cos(3 * place_M * (1 + ("", *INVENTORY).index(phone))) for phone in phones])
    mel_TM = (patterns_PM + (number - 1.5) * place_M).repeat_interleave(frames_P, 0)
    mel_TM = mel_TM + 0.05 * torch.randn(mel_TM.shape, generator=generator)
    voiced_P = torch.tensor([phone in ("a", "b", "i") for phone in phones])
    log_f0_P = (4.7 + 0.2 * number + 0.05 * torch.randn(len(phones), generator=generator)) * voiced_P
    energy_P = mel_TM.exp().norm(dim=1).log().mean() + 0.1 * torch.randn(len(phones), generator=generator)
    timbre_E = ToyTimbre().of_mels(mel_TM[None], torch.ones(1, len(mel_TM), dtype=torch.bool))[0]
    return PhoneMelRow(
        name, " ".join(phones), speaker, "train", tuple(phones), frames_P, mel_TM, log_f0_P, voiced_P, energy_P,
        timbre_E,
    )  # fmt: skip


def toy_rows(per_speaker: int = 4, seed: int = 0) -> list[PhoneMelRow]:
    """Rows of all speakers."""
    generator = torch.Generator().manual_seed(seed)
    return [toy_row(n, SPEAKERS[n % len(SPEAKERS)], generator) for n in range(per_speaker * len(SPEAKERS))]


def swapped_rows(rows: Sequence[PhoneMelRow], seed: int = 1) -> list[PhoneMelRow]:
    """Each row as the next speaker would say it."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for row in rows:
        other = SPEAKERS[(SPEAKERS.index(row.speaker) + 1) % len(SPEAKERS)]
        made = said_by(f"{row.id}~{other}", row.phones, row.frames_P, other, generator)
        found.append(PhoneMelRow(**{**vars(made), "source_id": row.id, "prompt_speaker": other}))
    return found


def describe(source: FromRecordings | FromSwaps, **changes: object) -> PhoneMelSetDescription:
    """Of a toy set."""
    made = PhoneMelSetDescription(
        source=source, mel=MEL, phones=INVENTORY, voice="en-us", language="en", phonemizer="espeak-ng 1",
        timbre_encoder="toy", timbre_dim=TIMBRE_DIM, durations_fingerprint="d", seed=0, code_version="v",
    )  # fmt: skip
    return made.replace(**changes)


def write_set(folder: Path, rows: Sequence[PhoneMelRow], description: PhoneMelSetDescription) -> PhoneMelSet:
    """A set in a folder."""
    (folder / ROWS).mkdir(parents=True)
    records = [phone_mel_record(row, 0, description) for row in rows]
    pq.write_table(pa.Table.from_pylist(records, phone_mel_schema()), folder / ROWS / "part-0.parquet")
    (folder / PHONE_MELS_FILE).write_text(description.model_dump_json())
    return PhoneMelSet.open(folder)


def swaps_of(
    folder: Path, rows: Sequence[PhoneMelRow], share: float, direction: str = "synth_source", **source: object
) -> Swaps:
    """What a toy teacher said, in a folder."""
    made = FromSwaps(teacher_fingerprint="t", mels_fingerprint="m", pairs_per_row=1, noise_scale=0.5, filters={})
    opened = write_set(folder, swapped_rows(rows), describe(made.replace(**source)))
    return Swaps(opened, share, direction)  # type: ignore[arg-type]


def lessons_of(targets: Sequence[PhoneMelRow], sources: Sequence[PhoneMelRow]) -> PhoneMelBatch:
    """All rows as one batch; the prompt of each is the speaker's next row."""
    lessons = []
    for n, (target, source) in enumerate(zip(targets, sources, strict=True)):
        prompt = targets[(n + len(SPEAKERS)) % len(targets)]
        lessons.append(Lesson(source, target, prompt.mel_TM[: BATCHES.prompt_max_frames], prompt.timbre_E))
    speakers = [SPEAKERS.index(row.speaker) for row in targets]
    return phone_mel_batch(lessons, INVENTORY, speakers, range(len(targets)))


def toy_stream(folder: Path, *, share: float | None = None, direction: str = "synth_source") -> PhoneMelStream:
    """Batches of toy rows, with swapped ones if a share is given."""
    rows = toy_rows()
    opened = write_set(folder / "real", rows, describe(FromRecordings()))
    swaps = None if share is None else swaps_of(folder / "swapped", rows, share, direction)
    return PhoneMelStream(opened, BATCHES, seed=3, swaps=swaps)


def some_model(config: ZeroShotConfig = TOY, seed: int = 0) -> ZeroShot:
    """An untrained model, away from the initial point, where the flow is the identity."""
    torch.manual_seed(seed)
    model = ZeroShot(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def forwarded(model: ZeroShot, batch: PhoneMelBatch, seed: int = 0) -> object:
    """A training pass with noise of a seed."""
    B, P = batch.spoken.phones_BP.shape
    noise = torch.randn(B, P, model.config.latent_dim, generator=torch.Generator().manual_seed(seed))
    return model(batch.spoken, batch.voice, batch.source_BTM, batch.mask_BT, noise, predictor_grad=0.1)
