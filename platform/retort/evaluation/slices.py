"""The test strings, asked for in a harder way: what a mean over clean strings hides, told beside them in pairs."""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from retort.audio.codec import Codec
from retort.data.tokens import TokenRow
from retort.evaluation.items import ItemResult
from retort.evaluation.metrics import COMPARABLE, labels_of, metrics_of
from retort.evaluation.results import BootstrapConfig, Pair, SystemInfo, summarise

SliceName = Literal["no_final_punctuation", "cut_prompt"]
"""``no_final_punctuation``: strings that end in punctuation, without it. ``cut_prompt``: the voice's recording breaks
off in the middle of a word."""


def is_in(name: SliceName, row: TokenRow, prompt_KP: Tensor | None) -> bool:
    """Whether the slice asks for this row otherwise than plainly; ``prompt_KP`` is the voice's recording [K, P]."""
    match name:
        case "no_final_punctuation":
            return without_end(row.text) not in (row.text, "")
        case "cut_prompt":
            return prompt_KP is not None and prompt_KP.shape[1] >= 2


def without_end(text: str) -> str:
    """``text`` without the punctuation and the space behind its last letter or digit."""
    end = len(text)
    while end and (text[end - 1].isspace() or unicodedata.category(text[end - 1]).startswith("P")):
        end -= 1
    return text[:end]


def cut_in_a_word(codec: Codec, codes_KP: Tensor) -> Tensor:
    """The beginning [K, Q] of a recording [K, P], up to the loudest moment of its middle half: no pause is there."""
    frames = codes_KP.shape[1]
    samples_N = codec.decode(codes_KP).float()
    loudness_P = torch.stack([part_N.square().mean() for part_N in samples_N.tensor_split(frames)])
    first, last = frames // 4, max(frames // 4 + 1, 3 * frames // 4)
    return codes_KP[:, : first + int(loudness_P[first:last].argmax()) + 1]


def sum_up(
    name: SliceName, plain: Sequence[ItemResult], hard: Sequence[ItemResult], bootstrap: BootstrapConfig
) -> list[dict[str, Any]]:
    """Of each system: its figures in a slice, and what they are more than on the same strings asked for plainly.

    Args:
        name: of the slice.
        plain: rows of all systems, of all strings.
        hard: rows of the systems that were asked in this way, of the strings of the slice.
        bootstrap: how intervals are drawn.
    """
    found = []
    for system in dict.fromkeys(row.system for row in hard):
        asked = [row for row in hard if row.system == system]
        ids = {row.id for row in asked}
        found.append(_of_system(name, [r for r in plain if r.system == system and r.id in ids], asked, bootstrap))
    return found


def _of_system(
    name: SliceName, plain: Sequence[ItemResult], hard: Sequence[ItemResult], bootstrap: BootstrapConfig
) -> dict[str, Any]:
    system = hard[0].system
    renamed = [dataclasses.replace(row, system=name) for row in hard]
    infos = [SystemInfo(system, "student"), SystemInfo(name, "student")]
    summary = summarise([*plain, *renamed], infos, [Pair(system, name)], bootstrap=bootstrap)
    figures: Mapping[str, Any] = summary.systems[1]
    wanted = metrics_of(labels_of(figures), COMPARABLE).values()
    told = {metric.field: figures[metric.field] for metric in wanted if figures[metric.field] is not None}
    differences = [{**row, "a": "plain", "b": name} for row in summary.comparisons]
    return {"slice": name, "system": system, "utterances": len(hard), **told, "differences": differences}
