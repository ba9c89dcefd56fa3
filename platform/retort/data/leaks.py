"""What stands in more than one split of a corpus: a test on voices or texts that were trained on is told, or refused.

Which of it is refused is decision 20.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from retort.data.digits import DigitsConfig
from retort.data.fsdd import FSDDConfig
from retort.data.readers import CorpusConfig
from retort.data.splits import SplitConfig, recording_key, text_key
from retort.data.utterance import Utterance

_SHOWN = 3


@dataclass
class _Splits:
    """Of one speaker: rows by split, and whether the corpus itself gave one of them its split."""

    rows: Counter[str] = field(default_factory=Counter)
    is_given: bool = False


@dataclass
class _Shared:
    """Of texts or recordings: the split in which each stood first, by its hash, and those that stand in two."""

    first: dict[bytes, str] = field(default_factory=dict)  # hashes, for corpora of many millions
    shared: dict[bytes, tuple[str, str, str]] = field(default_factory=dict)

    def add(self, key: str, shown: str, split: str) -> None:
        digest = hashlib.blake2b(key.encode(errors="replace"), digest_size=16).digest()
        first = self.first.setdefault(digest, split)
        if first != split:
            self.shared.setdefault(digest, (shown, first, split))

    def told(self) -> str:
        return "; ".join(
            f"{shown[:60]!r} in {first} and {split}" for shown, first, split in list(self.shared.values())[:_SHOWN]
        )


class Separation:
    """Follows, row by row, which splits each speaker, each text and each recording stands in.

    Args:
        corpus: where the rows come from.
        splits: what the run file asks to be kept apart.
    """

    def __init__(self, corpus: CorpusConfig, splits: SplitConfig) -> None:
        self._corpus, self._config = corpus, splits
        self._speakers: dict[str, _Splits] = {}
        self._texts, self._recordings = _Shared(), _Shared()

    def add(self, row: Utterance, *, is_given: bool) -> None:
        """Take in a row with its split; ``is_given`` where the corpus named it."""
        assert row.split is not None
        speaker = self._speakers.setdefault(row.speaker, _Splits())
        speaker.rows[row.split] += 1
        speaker.is_given |= is_given
        self._texts.add(text_key(row), row.text, row.split)
        shown = row.audio.name if isinstance(row.audio, Path) else row.id
        self._recordings.add(recording_key(row), shown, row.split)

    @property
    def num_speakers(self) -> int:
        """Different speakers."""
        return len(self._speakers)

    @property
    def num_shared_texts(self) -> int:
        """Texts in more than one split."""
        return len(self._texts.shared)

    @property
    def num_shared_recordings(self) -> int:
        """Recordings with rows in more than one split."""
        return len(self._recordings.shared)

    @property
    def num_shared_speakers(self) -> int:
        """Speakers with rows in more than one split."""
        return len(self._shared(self._speakers))

    def leak(self) -> str | None:
        """Why the splits are refused, with the values and the cure; ``None`` if they are not."""
        return (
            self._leak_of_speakers()
            or self._leak_of("text", self._texts)
            or self._leak_of("recording", self._recordings)
        )

    def _leak_of_speakers(self) -> str | None:
        allowed = self._config.allow_speaker_overlap
        if allowed is None:
            leaking = {name: splits for name, splits in self._speakers.items() if self._keeps_apart(splits)}
        else:
            leaking = {} if allowed else self._speakers
        shared = self._shared(leaking)
        if not shared:
            return None
        told = "; ".join(
            f"{name}: {', '.join(f'{split} {count}' for split, count in sorted(splits.rows.items()))}"
            for name, splits in list(shared.items())[:_SHOWN]
        )
        return (
            f"{len(shared)} of {len(self._speakers)} speakers are in more than one split (rows of {told}), so a test "
            "would be of voices that were trained on; mend the corpus' splits, leave them out and set splits.by: "
            "speaker, or set splits.allow_speaker_overlap: true if known voices are what is to be measured"
        )

    def _keeps_apart(self, splits: _Splits) -> bool:
        """Whether a speaker of several splits is a fault where the run file does not say."""
        if isinstance(self._corpus, DigitsConfig | FSDDConfig):  # every speaker is in every split by design
            return False
        # Rows that the run file deals out one by one share their speakers because it says so.
        return self._config.by == "speaker" or (splits.is_given and len(self._speakers) > 1)

    def _leak_of(self, kind: Literal["text", "recording"], seen: _Shared) -> str | None:
        if self._config.by != kind or not seen.shared:
            return None
        return (
            f"splits.by is {kind}, but {len(seen.shared)} {kind}s are in more than one split by the corpus' own "
            f"word ({seen.told()}); mend the corpus' splits, or leave them out"
        )

    @staticmethod
    def _shared(speakers: Mapping[str, _Splits]) -> dict[str, _Splits]:
        return {name: splits for name, splits in speakers.items() if len(splits.rows) > 1}
