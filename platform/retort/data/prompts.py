"""Speaker prompts: which other utterance of the speaker a row imitates, and which part of it.

A prompt is never the row itself, which would leak its content and prosody (METHODS.md, trap 38). Under the law *by id*
the choice is a pure function of the row's id and of the speaker's ids, not of a seed, an order or a batch: a target
that was cached under it stays right for as long as the utterances that prompts are taken from are the same.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

PROMPT_MAX_FRAMES = 120
"""Longest prompt unless a run file says otherwise, in codec frames."""


@dataclass(frozen=True)
class Prompt:
    """The choice for one row.

    Attributes:
        id: id of the utterance that the prompt is cut from.
        index: its place among the rows that prompts are taken from.
        position: where the crop lies among all that fit, in [0, 1).
    """

    id: str
    index: int
    position: float


class PromptsById:
    """The law *by id* over the utterances that prompts may be taken from.

    Args:
        ids: their ids.
        speakers: their speakers.
    """

    def __init__(self, ids: Sequence[str], speakers: Sequence[str]) -> None:
        self._by_speaker: dict[str, tuple[list[str], list[int]]] = {}
        for index in sorted(range(len(ids)), key=ids.__getitem__):
            names, indices = self._by_speaker.setdefault(speakers[index], ([], []))
            names.append(ids[index])
            indices.append(index)

    def choose(self, row_id: str, speaker: str) -> Prompt | None:
        """The prompt of a row, which need not be one of the utterances; None where the speaker has no other."""
        names, indices = self._by_speaker.get(speaker, ([], []))
        own = bisect_left(names, row_id)
        is_listed = own < len(names) and names[own] == row_id
        count = len(names) - is_listed
        if count == 0:
            return None
        digest = hashlib.blake2b(row_id.encode(), digest_size=16, person=b"retort-prompt").digest()
        pick = int.from_bytes(digest[:8], "big") % count
        pick += is_listed and pick >= own
        # 53 bits, so that the quotient is below 1 as a float as well.
        return Prompt(names[pick], indices[pick], (int.from_bytes(digest[8:], "big") >> 11) / 2**53)


def crop_prompt(codes_KT: Tensor, position: float, max_frames: int) -> Tensor:
    """The part of an utterance that serves as prompt: all of it where it is short enough."""
    extra = max(0, codes_KT.shape[1] - max_frames)
    start = int(position * (extra + 1))
    return codes_KT[:, start : start + max_frames]
