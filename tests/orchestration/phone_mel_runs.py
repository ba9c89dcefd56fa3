"""Digit strings of several espeak-ng voices, aligned by espeak-ng's own times: everything real, nothing learned."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from retort.audio.files import resample, wav_bytes
from retort.audio.mel import MelConfig
from retort.config import validate
from retort.data.digits import DigitsConfig, digit_strings, speak_string
from retort.data.durations import (
    DURATIONS_FILE,
    ROWS,
    DurationRow,
    DurationsDescription,
    duration_record,
    duration_schema,
)
from retort.run_config import AlignConfig
from retort.store.artifact import describe_artifact, write_artifact
from retort.text import espeak

MEL = MelConfig()
VOICES = ("en-us+klatt4", "en-us+edward", "en-us+Andrea")
QUIET = {"target_lufs": None}


def write_aligned(folder: Path, *, strings: int = 18, test_strings: int = 3) -> tuple[Path, Path]:
    """A manifest with recordings, and the committed durations of all its rows; returns both folders."""
    corpus = validate(
        {"kind": "digits", "num_strings": strings, "test_strings": test_strings, "voices": list(VOICES),
         "min_digits": 2, "max_digits": 3},
        DigitsConfig, where="test",
    )  # fmt: skip
    recordings = folder / "recordings"
    recordings.mkdir(parents=True)
    lines, records = [], []
    for string in digit_strings(corpus):
        speech = speak_string(string)
        samples_N = resample(torch.from_numpy(speech.samples_N), speech.sample_rate, MEL.sample_rate)
        (recordings / f"{string.id}.wav").write_bytes(wav_bytes(samples_N, MEL.sample_rate))
        lines.append(
            {"id": string.id, "text": string.text, "speaker": string.voice, "audio": f"{string.id}.wav",
             "split": string.split}
        )  # fmt: skip
        phones, frames = _frames(speech.phones, 1 + samples_N.numel() // MEL.hop_samples)
        records.append(duration_record(DurationRow(string.id, string.split, phones, frames, -0.1)))
    manifest = recordings / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest, _write_durations(folder / "durations", manifest, records)


def _frames(spans, total: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Phones that last a frame at least, and fill all of them."""
    labels = [span.label for span in spans]
    ends = [min(round(span.end_s * MEL.frame_rate), total) for span in spans]
    ends[-1] = total
    kept_labels, kept_frames, last = [], [], 0
    for label, end in zip(labels, ends, strict=True):
        if end > last:
            kept_labels.append(label)
            kept_frames.append(end - last)
            last = end
    return tuple(kept_labels), tuple(kept_frames)


def _write_durations(folder: Path, manifest: Path, records) -> Path:
    config = validate(
        {"job": "align", "output": str(folder), "corpus": {"kind": "manifest", "path": str(manifest)}, "audio": QUIET},
        AlignConfig, where="test",
    )  # fmt: skip
    description = DurationsDescription(
        voice="en-us", phonemizer=espeak.version(), aligner_fingerprint="aligner-0", mel=MEL, code_version="x"
    )

    def fill(target: Path) -> None:
        (target / ROWS).mkdir(parents=True)
        table = pa.Table.from_pylist(records, schema=duration_schema())
        pq.write_table(table, target / ROWS / "part-00000.parquet", row_group_size=5)
        (target / DURATIONS_FILE).write_text(description.model_dump_json())

    info = describe_artifact("durations", "aligned", "1", inputs={}, config=config.model_dump(mode="json"))
    return write_artifact(folder / "result", info, fill).path.parent
