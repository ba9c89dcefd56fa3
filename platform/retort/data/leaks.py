"""What stands in more than one split of a corpus: a test on voices or texts that were trained on is told, or refused.

Which of it is refused is decision 20.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from retort.data.digits import DigitsConfig
from retort.data.fsdd import FSDDConfig
from retort.data.readers import CorpusConfig
from retort.data.splits import SplitConfig, text_key
from retort.data.utterance import Utterance

_SHOWN = 3


@dataclass
class _Splits:
    """Of one speaker: rows by split, and whether the corpus itself gave one of them its split."""

    rows: Counter[str] = field(default_factory=Counter)
    is_given: bool = False


class Separation:
    """Follows, row by row, which splits each speaker stands in, and each text where texts are kept apart.

    Args:
        corpus: where the rows come from.
        splits: what the run file asks to be kept apart.
    """

    def __init__(self, corpus: CorpusConfig, splits: SplitConfig) -> None:
        self._corpus, self._config = corpus, splits
        self._speakers: dict[str, _Splits] = {}
        self._texts: dict[bytes, str] = {}  # hashes, for corpora of many millions of texts
        self._shared_texts: dict[str, tuple[str, str]] = {}

    def add(self, row: Utterance, *, is_given: bool) -> None:
        """Take in a row with its split; ``is_given`` where the corpus named it."""
        assert row.split is not None
        speaker = self._speakers.setdefault(row.speaker, _Splits())
        speaker.rows[row.split] += 1
        speaker.is_given |= is_given
        if self._config.by == "text":
            key = hashlib.blake2b(text_key(row).encode(), digest_size=16).digest()
            first = self._texts.setdefault(key, row.split)
            if first != row.split:
                self._shared_texts[row.text] = (first, row.split)

    @property
    def num_shared_speakers(self) -> int:
        """Speakers with rows in more than one split."""
        return len(self._shared(self._speakers))

    def leak(self) -> str | None:
        """Why the splits are refused, with the values and the cure; ``None`` if they are not."""
        return self._leak_of_speakers() or self._leak_of_texts()

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

    def _leak_of_texts(self) -> str | None:
        if not self._shared_texts:
            return None
        told = "; ".join(
            f"{text[:60]!r} in {first} and {second}"
            for text, (first, second) in list(self._shared_texts.items())[:_SHOWN]
        )
        return (
            f"splits.by is text, but {len(self._shared_texts)} texts are in more than one split by the corpus' own "
            f"word ({told}); mend the corpus' splits, or leave them out"
        )

    @staticmethod
    def _shared(speakers: Mapping[str, _Splits]) -> dict[str, _Splits]:
        return {name: splits for name, splits in speakers.items() if len(splits.rows) > 1}
