"""VCTK 0.92: ``wav48_silence_trimmed/p225/p225_001_mic1.flac`` and ``txt/p225/p225_001.txt``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retort.config import Config
from retort.data.rows import Row, read_transcript, require_folder
from retort.data.utterance import Reject

_AUDIO, _TEXT = "wav48_silence_trimmed", "txt"


class VCTKConfig(Config):
    """A folder in the VCTK 0.92 layout."""

    kind: Literal["vctk"]
    path: Path
    microphone: Literal["mic1", "mic2"] = "mic1"


def open_vctk(config: VCTKConfig) -> Iterator[Row | Reject]:
    """Check the layout and return the rows.

    The published corpus has no text for p315 and no second microphone for p280 and p315: those rows are rejected.

    Raises:
        DataError: the folder is missing or is not in this layout.
    """
    require_folder(
        config.path, _AUDIO, _TEXT, layout=f"VCTK 0.92: {_AUDIO}/p225/p225_001_mic1.flac and {_TEXT}/p225/p225_001.txt"
    )
    return _rows(config)


def _rows(config: VCTKConfig) -> Iterator[Row | Reject]:
    audio_root, text_root = config.path / _AUDIO, config.path / _TEXT
    speakers = {path.name for root in (audio_root, text_root) for path in root.iterdir() if path.is_dir()}
    for speaker in sorted(speakers):
        audio_folder, text_folder = audio_root / speaker, text_root / speaker
        recorded = {path.stem.rpartition("_mic")[0] for path in audio_folder.glob("*_mic?.flac")}
        written = {path.stem for path in text_folder.glob("*.txt")}
        for name in sorted(recorded | written):
            transcript = text_folder / f"{name}.txt"
            text = read_transcript(transcript, name)
            if isinstance(text, Reject):
                yield text
                continue
            audio = audio_folder / f"{name}_{config.microphone}.flac"
            yield Row(name, text, speaker, "en", audio, f"{transcript}:1")
