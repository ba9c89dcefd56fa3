"""Token sets with random codes and teachers with random weights: the right shapes and sizes, and nothing learned."""

import json
from pathlib import Path

import torch

from retort.data.tokens import TokenRow, TokenSetDescription, write_description, write_shard
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.presets import PresetName, preset
from retort.models.weights import save_model
from retort.store.artifact import describe_artifact, write_artifact
from retort.text.front_end import CharactersConfig, build_text_front_end

NUM_CODEBOOKS, CODEBOOK_SIZE, FRAME_RATE = 4, 256, 50.0
EOS_SCALE = 15.0
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def made_up_rows(number: int, mean_frames: int) -> list[TokenRow]:
    """Rows of random codes whose lengths spread by 40 % around the mean; two speakers, two or three words each."""
    front_end = build_text_front_end(CharactersConfig(kind="characters"))
    generator = torch.Generator().manual_seed(0)
    spread = int(0.4 * mean_frames)
    rows = []
    for i in range(number):
        T = int(torch.randint(mean_frames - spread, mean_frames + spread + 1, (1,), generator=generator))
        codes = torch.randint(CODEBOOK_SIZE, (NUM_CODEBOOKS, T), generator=generator)
        text = " ".join(WORDS[(i // 10**place) % 10] for place in range(2 + i % 2))
        ids = tuple(front_end.encode(text))
        rows.append(TokenRow(f"u{i:05d}", text, ids, f"s{i % 2}", "train", codes, T / FRAME_RATE))
    return rows


def write_token_set(folder: Path, *, rows: int, mean_frames: int) -> Path:
    """A committed token set; its codec is an empty folder, which training copies. Returns the result folder."""
    front_end = build_text_front_end(CharactersConfig(kind="characters"))
    description = TokenSetDescription(
        codec_fingerprint="made-up",
        text_fingerprint=front_end.fingerprint(),
        text_vocabulary_size=front_end.vocabulary_size,
        num_codebooks=NUM_CODEBOOKS,
        codebook_size=CODEBOOK_SIZE,
        sample_rate=16_000,
        frame_rate=FRAME_RATE,
    )

    def fill(target: Path) -> None:
        write_shard(target / "part-00000.parquet", made_up_rows(rows, mean_frames))
        write_description(target, description)
        front_end.save(target / "text")
        (target / "codec").mkdir()
        (target / "codec" / "config.json").write_text(json.dumps({}))

    return write_artifact(folder / "result", describe_artifact("tokens", "t", "1", inputs={}, config={}), fill).path


def write_teacher(folder: Path, size: PresetName) -> Path:
    """A committed teacher for such a token set; returns the result folder."""
    front_end = build_text_front_end(CharactersConfig(kind="characters"))
    torch.manual_seed(0)
    model = CodecLM(preset(size)((front_end.vocabulary_size, NUM_CODEBOOKS, CODEBOOK_SIZE))).eval()
    with torch.no_grad():  # at chance, an utterance of this length would rarely end by itself
        model.heads.weight[model.config.eos].mul_(EOS_SCALE)
    lineage = CodecLMLineage(
        method="pretrain",
        codec_fingerprint="made-up",
        text_fingerprint=front_end.fingerprint(),
        trained_drops=("null",),
    )
    info = describe_artifact("model", "teacher", "1", inputs={}, config={})
    return write_artifact(folder / "result", info, lambda target: save_model(target, model, lineage)).path
