"""Probes for speakers: a linear one on content representations, and the likeness of voices to prompt and source.

See :mod:`retort.evaluation.leakage` for what they are asked about (METHODS.md 5, S4).
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from retort.errors import DataError
from retort.evaluation.bootstrap import Interval, confidence_interval, rate_interval

_STEPS = 200
_SPREAD = 1e-6


@dataclass(frozen=True)
class Probed:
    """What a probe for speakers found.

    Attributes:
        accuracy: share of held-out utterances whose speaker it names.
        interval: of the accuracy, over utterances.
        chance: share that the most frequent speaker has.
        speakers: how many there are to choose from.
        right: of each utterance whether its speaker was named; all were held out in their turn.
    """

    accuracy: float
    interval: Interval
    chance: float
    speakers: int
    right: tuple[bool, ...]


def probe_speakers(
    content_UD: Tensor,
    speakers: Sequence[str],
    ids: Sequence[str],
    *,
    folds: int = 5,
    weight_decay: float = 1e-2,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Probed:
    """How often a multinomial logistic regression names the speaker of an utterance that it has not seen.

    Each fold is held out once; utterances go to folds by the hashes of their ids, within each speaker in turn, so that
    all speakers are in all folds. Numbers are standardised by those of the training folds.

    Args:
        content_UD: mean content representation of each utterance.
        speakers: of each.
        ids: of each; they must differ.
        folds: parts of the utterances.
        weight_decay: squared weights of the probe, beside its mean loss in nats.
        num_resamples: of the interval.
        seed: of the interval.

    Raises:
        DataError: fewer than two speakers, or one of them has fewer utterances than folds; it is named.
    """
    counts = refuse_few(speakers, folds)
    names = sorted(counts)
    labels_U = torch.tensor([names.index(speaker) for speaker in speakers])
    fold_U = _folds(speakers, ids, folds)
    is_right_U = torch.zeros(len(ids))
    for fold in range(folds):
        held_U = fold_U == fold
        predicted = _predict(content_UD[~held_U], labels_U[~held_U], content_UD[held_U], len(names), weight_decay)
        is_right_U[held_U] = (predicted == labels_U[held_U]).float()
    interval = rate_interval(is_right_U.tolist(), num_resamples=num_resamples, seed=seed)
    right = tuple(value == 1.0 for value in is_right_U.tolist())
    return Probed(float(is_right_U.mean()), interval, max(counts.values()) / len(ids), len(names), right)


def refuse_few(speakers: Sequence[str], folds: int) -> Counter[str]:
    """How many utterances each speaker has.

    Raises:
        DataError: fewer than two speakers, or one of them has fewer utterances than folds; it is named.
    """
    counts = Counter(speakers)
    if len(counts) < 2:
        raise DataError(f"a probe for speakers needs two of them, got {sorted(counts)}; give utterances of more")
    fewest = min(sorted(counts), key=counts.__getitem__)
    if counts[fewest] < folds:
        raise DataError(
            f"{fewest} has {counts[fewest]} utterances, fewer than {folds} folds; give more, or leave it out"
        )
    return counts


def hash_of(name: str) -> bytes:
    """Orders ids without regard to what they mean."""
    return hashlib.blake2b(name.encode()).digest()


def _folds(speakers: Sequence[str], ids: Sequence[str], folds: int) -> Tensor:
    order = sorted(range(len(ids)), key=lambda u: hash_of(ids[u]))
    turn: dict[str, int] = {}
    fold_U = torch.zeros(len(ids), dtype=torch.int64)
    for u in order:
        fold_U[u] = turn.get(speakers[u], 0) % folds
        turn[speakers[u]] = turn.get(speakers[u], 0) + 1
    return fold_U


def _predict(train_UD: Tensor, labels_U: Tensor, held_VD: Tensor, num_classes: int, weight_decay: float) -> Tensor:
    """Classes [V] by a probe that was fitted on other utterances, in fp64: its loss has one minimum."""
    mean_D, spread_D = train_UD.double().mean(0), train_UD.double().std(0, correction=0).clamp(min=_SPREAD)
    x_UD, x_VD = ((values.double() - mean_D) / spread_D for values in (train_UD, held_VD))
    weights_DC = torch.zeros(x_UD.shape[1], num_classes, dtype=torch.float64, requires_grad=True)
    bias_C = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_DC, bias_C], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(x_UD @ weights_DC + bias_C, labels_U)
        value = value + weight_decay * weights_DC.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return (x_VD @ weights_DC + bias_C).argmax(1).detach()


@dataclass(frozen=True)
class Likeness:
    """How near what was made is to the speaker asked for, and to the one whose content it says; mean cosines.

    Attributes:
        to_prompt: of the voice asked for.
        to_source: of the source's voice.
        gain: of their differences, in pairs, over utterances: above 0 where the voice asked for is heard.
        share_nearer_prompt: of the utterances.
        utterances: how many.
    """

    to_prompt: float
    to_source: float
    gain: Interval
    share_nearer_prompt: float
    utterances: int


def likeness(
    made_UE: Tensor, prompt_UE: Tensor, source_UE: Tensor, *, num_resamples: int = 10_000, seed: int = 0
) -> Likeness:
    """Of utterances whose source and prompt are of different speakers.

    Args:
        made_UE: voices of what was made, by an encoder that no model was trained with (METHODS.md, trap 37).
        prompt_UE: of the prompts.
        source_UE: of the recordings whose content it says.
        num_resamples: of the interval.
        seed: of the interval.

    Raises:
        DataError: there are none.
    """
    if not len(made_UE):
        raise DataError("no utterances to compare; give some whose source and prompt are of different speakers")
    to_prompt_U, to_source_U = (functional.cosine_similarity(made_UE, other) for other in (prompt_UE, source_UE))
    gain_U = (to_prompt_U - to_source_U).double()
    return Likeness(
        float(to_prompt_U.mean()),
        float(to_source_U.mean()),
        confidence_interval(gain_U.tolist(), num_resamples=num_resamples, seed=seed),
        float((gain_U > 0).double().mean()),
        len(made_UE),
    )
