"""Votes from the listening page: read and checked, and what they say of each pair of systems."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from retort.config import Config, faults_of
from retort.errors import DataError
from retort.evaluation.bootstrap import rate_interval

Trial = tuple[str, str, str]
"""Utterance, and the systems a and b that said it."""


class Vote(Config):
    """One pair that was judged."""

    order: int = Field(ge=1)
    """Its place in the listener's order."""
    utterance: str
    first: str
    """System that was heard first."""
    second: str
    vote: Literal[0, 1, 2]
    """Which one was preferred; 0 is neither."""
    seconds: float = Field(ge=0)
    """From the pair's first sound to the vote."""
    at: str
    """Time of the vote."""


class VotesFile(Config):
    """What one listener saved."""

    kind: Literal["retort votes"]
    report: str
    """What was heard; see :func:`retort.evaluation.sounds.fingerprint_of`."""
    listener: str = Field(min_length=1)
    """Drawn by the page: who starts over is counted as another."""
    began: str
    votes: tuple[Vote, ...] = Field(min_length=1)


def read_votes(paths: Sequence[Path], *, report: str, trials: Sequence[Trial]) -> list[VotesFile]:
    """Read what listeners saved on the listening page of one report.

    Args:
        paths: the files, one a listener.
        report: the report that they must have heard.
        trials: what was on its page.

    Raises:
        DataError: a file cannot be read, is not of this report, names what was not on its page, or a vote would count
            twice. The message names the file, the entry and the cure.
    """
    on_page = {(utterance, frozenset((a, b))) for utterance, a, b in trials}
    seen: dict[tuple[str, str, frozenset[str]], str] = {}
    files = []
    for path in paths:
        file = _read(path)
        if file.report != report:
            raise DataError(
                f"{path}: report: these votes are on the report {file.report}, this one is {report}; "
                "give the votes of this report's own listening page"
            )
        for index, vote in enumerate(file.votes):
            where = f"{path}: votes.{index}"
            pair = frozenset((vote.first, vote.second))
            _check(where, vote, pair, on_page)
            earlier = seen.setdefault((file.listener, vote.utterance, pair), where)
            if earlier != where:
                raise DataError(
                    f"{where}: listener {file.listener} has judged {vote.utterance!r} with these systems already, at "
                    f"{earlier}; give each listener's last file only"
                )
        files.append(file)
    return files


def _read(path: Path) -> VotesFile:
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}; name a file that the listening page saved") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); save it again on the listening page") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: holds a {type(tree).__name__}, not votes; name a file that the listening page saved")
    faults = faults_of(tree, VotesFile)
    if faults:
        raise DataError(f"{path}: {faults[0][1]}; save it again on the listening page")
    return VotesFile.model_validate_json(json.dumps(tree))


def _check(where: str, vote: Vote, pair: frozenset[str], on_page: set[tuple[str, frozenset[str]]]) -> None:
    systems = sorted({system for _, both in on_page for system in both})
    for name in (vote.first, vote.second):
        if name not in systems:
            raise DataError(f"{where}: unknown system {name!r}; this report's page has {', '.join(systems)}")
    if (vote.utterance, pair) not in on_page:
        raise DataError(
            f"{where}: {vote.first} and {vote.second} were not compared on {vote.utterance!r} on this report's page; "
            "remove the entry, or save the votes again"
        )


def preferences(
    files: Iterable[VotesFile], pairs: Sequence[tuple[str, str]], *, num_resamples: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """What the votes say, one row for each pair (a, b) that was judged.

    ``share_b`` is the share that prefers b, where no preference counts half. Its 95 % interval resamples utterances
    with all of their votes, because votes on one sentence agree; it is None for fewer than eight. ``sign_test_p`` is
    the two-sided exact sign test over utterances: one where as many listeners prefer a as b is a tie, and ties are
    left out (Conover, Practical Nonparametric Statistics, 3.4).
    """
    judged: dict[frozenset[str], list[tuple[str, str, str | None]]] = {}
    for file in files:
        for vote in file.votes:
            preferred = {0: None, 1: vote.first, 2: vote.second}[vote.vote]
            rows = judged.setdefault(frozenset((vote.first, vote.second)), [])
            rows.append((file.listener, vote.utterance, preferred))
    return [
        _preference(a, b, judged[pair], num_resamples=num_resamples, seed=seed)
        for a, b in pairs
        if (pair := frozenset((a, b))) in judged
    ]


def _preference(
    a: str, b: str, rows: Sequence[tuple[str, str, str | None]], *, num_resamples: int, seed: int
) -> dict[str, Any]:
    values = [{a: 0.0, b: 1.0, None: 0.5}[preferred] for *_, preferred in rows]
    utterances = [utterance for _, utterance, _ in rows]
    interval = rate_interval(values, clusters=utterances, num_resamples=num_resamples, seed=seed)
    lead: dict[str, float] = {}
    for utterance, value in zip(utterances, values, strict=True):
        lead[utterance] = lead.get(utterance, 0.0) + value - 0.5
    return {
        "a": a,
        "b": b,
        "votes": len(rows),
        "listeners": len({listener for listener, *_ in rows}),
        "utterances": len(lead),
        "prefer_a": values.count(0.0),
        "no_preference": values.count(0.5),
        "prefer_b": values.count(1.0),
        "share_b": sum(values) / len(values),
        "ci95": [interval.low, interval.high] if interval.reliable else None,
        "tied_utterances": sum(not value for value in lead.values()),
        "sign_test_p": sign_test(lead),
    }


def sign_test(lead: Mapping[str, float]) -> float:
    """Two-sided exact p-value that positive and negative values are equally likely; zeros are left out."""
    above = sum(value > 0.0 for value in lead.values())
    below = sum(value < 0.0 for value in lead.values())
    count = above + below
    tail = sum(math.comb(count, k) for k in range(min(above, below) + 1)) / float(2**count)
    return min(1.0, 2.0 * tail)
