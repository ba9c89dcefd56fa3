"""A tiny token set with its recordings, and a tiny denoiser: everything real, nothing learned."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from retort.audio.files import wav_bytes
from retort.audio.mel_rvq import fit_mel_rvq
from retort.config import validate
from retort.data.references import plan_references
from retort.data.tokens import TokenSetDescription, write_description
from retort.models.mel_diffusion import MelDiffusion, MelDiffusionConfig
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.weights import SavedMelDiffusion, load_codec_lm
from retort.nn.noise_schedule import CosineSchedule
from retort.orchestration.prepare.worker import CODEC, REFERENCES, TEXT, TOKENS, PrepareWorker
from retort.run_config import PrepareConfig
from retort.store.artifact import describe_artifact, write_artifact
from retort.text.front_end import build_text_front_end
from tests.orchestration.tiny_runs import RATE, WORDS, tone

SHAPE = {"kind": "mel_rvq", "num_codebooks": 2, "codebook_size": 16, "kmeans_iterations": 2, "mel": {"num_mels": 20}}


def write_recordings(folder: Path, *, train=40, validation=4, test=3, speakers=2) -> Path:
    """A manifest of tones; returns it."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(train + validation + test):
        (folder / f"r{i:03d}.wav").write_bytes(wav_bytes(tone(i, 0.25 + 0.03 * (i % 7)), RATE))
        split = "train" if i < train else "validation" if i < train + validation else "test"
        lines.append(
            {"id": f"r{i:03d}", "text": f"{WORDS[i % 10]} {WORDS[i // 10 % 10]}", "speaker": f"s{i % speakers}",
             "audio": f"r{i:03d}.wav", "split": split}
        )  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "manifest.jsonl"


def write_recorded_token_set(folder: Path, manifest: Path) -> Path:
    """A committed token set, as ``retort prepare`` makes it of a manifest; returns the result folder."""
    tree = {
        "job": "prepare", "output": str(folder), "corpus": {"kind": "manifest", "path": str(manifest)}, "codec": SHAPE,
        "text": {"kind": "characters"},
    }  # fmt: skip
    config = validate(tree, PrepareConfig, where="test")
    work = folder / "work"
    plan = plan_references(config.corpus, config.splits, work / REFERENCES, fit_utterances=1)
    codec = fit_mel_rvq([tone(i, 1.0) for i in range(4)], config.codec)
    front_end = build_text_front_end(config.text)
    codec.save(work / CODEC)
    front_end.save(work / TEXT)
    worker = PrepareWorker(config.model_dump(mode="json"), work)
    tables = [worker.work(number).tables[TOKENS] for number in range(plan.num_chunks)]
    description = TokenSetDescription(
        codec_fingerprint=codec.fingerprint(), text_fingerprint=front_end.fingerprint(),
        text_vocabulary_size=front_end.vocabulary_size, num_codebooks=2, codebook_size=16, sample_rate=RATE,
        frame_rate=codec.frame_rate,
    )  # fmt: skip

    def fill(target: Path) -> None:
        pq.write_table(pa.concat_tables(tables), target / "part-00000.parquet")
        write_description(target, description)
        codec.save(target / "codec")
        front_end.save(target / "text")

    info = describe_artifact("tokens", "recorded", "1", inputs={}, config=config.model_dump(mode="json"))
    return write_artifact(folder / "result", info, fill).path


def write_denoiser(folder: Path, lm: Path, *, seed=0, **lineage) -> Path:
    """A committed denoiser with random weights that reads the latents of an LM; returns the result folder."""
    loaded = load_codec_lm(lm)
    config = MelDiffusionConfig(
        num_mels=20, latent_dim=loaded.model.config.dim, dim=16, num_layers=1, num_heads=2, ffn_dim=32,
        schedule=CosineSchedule(),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = MelDiffusion(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)  # at its start it says the same of everything
    values = {
        "method": "mel_pretrain", "lm_fingerprint": loaded.fingerprint, "trained_drops": True,
        "codec_fingerprint": loaded.lineage.codec_fingerprint, "text_fingerprint": loaded.lineage.text_fingerprint,
        **lineage,
    }  # fmt: skip
    saved = SavedMelDiffusion(model=config, lineage=MelDiffusionLineage(**values))

    def fill(target: Path) -> None:
        (target / "config.json").write_text(saved.model_dump_json())
        save_file(model.state_dict(), target / "model.safetensors")

    return write_artifact(folder / "result", describe_artifact("model", "d", "1", inputs={}, config={}), fill).path
