"""Small mel sets with a codec LM that speaks, and runs on them: everything real, nothing learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from retort.config import validate
from retort.data.mels import (
    MELS_FILE,
    ROWS,
    VOICES,
    FromRecordings,
    FromTeacher,
    MelRow,
    MelSetDescription,
    mel_record,
    mel_schema,
    voice_schema,
)
from retort.data.tokens import TokenSet
from retort.inference.synthesizer import carry_speaking_model, save_speaking_model
from retort.methods.trained_mel_diffusion import LM
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.presets import tiny
from retort.models.weights import load_codec_lm
from retort.nn.diffusion_guidance import ConstantGuidance
from retort.orchestration.generate.mel_codec import open_mel_codec
from retort.run_config import DistillMelsConfig, PretrainMelsConfig
from retort.store.artifact import describe_artifact, write_artifact
from retort.store.results import result_of
from tests.orchestration.mel_runs import write_recorded_token_set, write_recordings

FRAMES_PER_LATENT = 2
NUM_ROWS = 60
GUIDANCE = {"kind": "constant", "scale": 1.5}


def write_world(root: Path) -> None:
    """``data`` (tokens), ``lm``, ``mels`` of recordings and ``synthetic`` mels, each a job's output."""
    write_recorded_token_set(root / "data", write_recordings(root / "recordings", train=10, validation=0, test=0))
    write_lm(root / "lm", root / "data")
    write_mels(root / "mels", root, FromRecordings())
    write_mels(root / "synthetic", root, made_by("some-denoiser"))


def write_lm(folder: Path, data: Path, *, seed: int = 0) -> Path:
    """A committed codec LM with random weights that can speak; returns the result folder."""
    tokens = result_of(data)
    made = TokenSet.open(tokens).description
    torch.manual_seed(seed)
    model = CodecLM(tiny((made.text_vocabulary_size, made.num_codebooks, made.codebook_size)))
    lineage = CodecLMLineage(
        method="pretrain",
        codec_fingerprint=made.codec_fingerprint,
        text_fingerprint=made.text_fingerprint,
        trained_drops=("null",),
    )
    info = describe_artifact("model", "lm", "1", inputs={}, config={})
    return write_artifact(
        folder / "result", info, lambda target: save_speaking_model(target, model, lineage, tokens)
    ).path


def made_by(teacher_fingerprint: str) -> FromTeacher:
    return FromTeacher(
        teacher_fingerprint=teacher_fingerprint,
        guidance=ConstantGuidance(scale=1.5),
        solver={"kind": "ddim", "num_steps": 4},
        lm_guidance={"full": 1.0},
        sampler={"temperature": 1.0},
        voices_fingerprint="voices",
    )


def description_of(root: Path, source: FromRecordings | FromTeacher) -> MelSetDescription:
    """Of mels that the LM and the codec in ``root`` go with."""
    tokens, lm = result_of(root / "data"), load_codec_lm(result_of(root / "lm"))
    codec = open_mel_codec(tokens)
    return MelSetDescription(
        source=source,
        lm_fingerprint=lm.fingerprint,
        data_fingerprint="tokens",
        codec_fingerprint=lm.lineage.codec_fingerprint,
        text_fingerprint=lm.lineage.text_fingerprint,
        latent_dim=lm.model.config.dim,
        frames_per_latent=FRAMES_PER_LATENT,
        mel=codec.config.mel,
        soft_floor=codec.config.soft_floor,
        voice_max_frames=4,
        precision="float32",
        seed=0,
        code_version="x",
    )


def mel_rows(description: MelSetDescription, count: int) -> list[MelRow]:
    """Ragged rows, so that means over micro-batches differ from means over frames; every sixth is held out."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        L = 3 + (i * 7) % 9
        latents_LD = torch.randn(L, description.latent_dim, generator=generator)
        mel_TM = torch.randn(FRAMES_PER_LATENT * L, description.num_mels, generator=generator) - 3.0
        split = "validation" if i % 6 == 5 else "train"
        rows.append(MelRow(f"m{i:03d}", "one two", f"s{i % 3}", split, latents_LD, mel_TM, None))
    return rows


def write_mels(
    folder: Path,
    root: Path,
    source: FromRecordings | FromTeacher,
    *,
    rows: int = NUM_ROWS,
    has_lm: bool = True,
    has_train: bool = True,
) -> Path:
    """A committed mel set, as ``retort generate`` leaves it; returns the result folder."""
    description = description_of(root, source)
    made = [row for row in mel_rows(description, rows) if has_train or row.split != "train"]

    def fill(target: Path) -> None:
        records = [mel_record(row, i, description) for i, row in enumerate(made)]
        _write_shard(target / ROWS, records, mel_schema())
        if isinstance(source, FromTeacher):
            names = voice_schema().names
            voices = [{name: record[name] for name in names} for record in records[:9]]
            _write_shard(target / VOICES, [{**voice, "id": f"v-{voice['id']}"} for voice in voices], voice_schema())
        (target / MELS_FILE).write_text(description.model_dump_json())
        if has_lm:
            carry_speaking_model(result_of(root / "lm"), target / LM)

    info = describe_artifact("mels", folder.name, "1", inputs={}, config={})
    return write_artifact(folder / "result", info, fill).path


def _write_shard(folder: Path, records: Sequence[dict[str, Any]], schema: Any) -> None:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(list(records), schema=schema), folder / "part-00000.parquet", row_group_size=8)


def training_tree(**changes: Any) -> dict[str, Any]:
    """The loop as the methods on denoisers want it: a rate that falls to 0, no decay of the weights."""
    tree: dict[str, Any] = {
        "steps": 6,
        "batch": {"max_utterances": 6, "max_frames": 150},
        "optimizer": {
            "learning_rate": 3e-3,
            "decay": "linear",
            "final_fraction": 0.0,
            "betas": [0.9, 0.999],
            "weight_decay": 0.0,
        },
        "workers": {"num_workers": 1},
        "checkpoint_every": 4,
        "log_every": 1,
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return tree


def pretrain_mels(
    root: Path, name: str, *, dropout: float = 0.0, data: str = "mels", **training: Any
) -> PretrainMelsConfig:
    """A run on recordings."""
    shape = {"dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 32, "schedule": {"kind": "cosine"}}
    tree = {
        "family": "mel_diffusion",
        "output": root / name,
        "data": root / data,
        "model": {**shape, "dropout": dropout},
        "method": {"unconditioned_fraction": 0.2},
        "training": training_tree(**training),
    }
    return validate(tree, PretrainMelsConfig, where=name)


def distill_mels(
    root: Path, name: str, teacher: str, method: dict[str, Any], *, data: str = "synthetic", **training: Any
) -> DistillMelsConfig:
    """A run on synthetic mels, with a teacher in ``root``."""
    tree = {
        "family": "mel_diffusion",
        "output": root / name,
        "teacher": root / teacher,
        "data": root / data,
        "method": method,
        "training": training_tree(**training),
    }
    return validate(tree, DistillMelsConfig, where=name)
