"""Whether a representation of content tells who speaks: a probe for speakers, and the likeness to source and prompt.

A zero-shot model is to take what is said from one recording and who says it from another. What leaks of the source's
speaker is read off twice: by a linear probe on the utterances' mean content representation, whose accuracy is chance
where nothing leaks; and by the voice of what is made, where source and prompt are of different speakers (METHODS.md 5,
S4).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from retort.config import Config
from retort.data.phone_mels import PhoneMelRow, PhoneMelSet, PhoneMelSetDescription
from retort.data.tokens import refuse_mismatch
from retort.errors import DataError
from retort.evaluation.bootstrap import Interval, paired_comparison
from retort.evaluation.finding import Finding
from retort.evaluation.speaker import SpeakerEncoder, embed
from retort.evaluation.speaker_probe import Likeness, Probed, hash_of, likeness, probe_speakers, refuse_few
from retort.inference.zero_shot_making import ZeroShotMaker
from retort.location import Location
from retort.models.zero_shot.model import ZeroShot
from retort.models.zero_shot_lineage import ZeroShotLineage
from retort.nn.phone_conditions import voice_prompts
from retort.nn.phone_numbers import phone_numbers


class LeakageConfig(Config):
    """What the content of zero-shot models tells of the speaker that it was heard from."""

    mels: Location
    """A phone mel set of recordings: the sources, and the prompts of other speakers."""
    split: Literal["test", "validation", "train"] = "test"
    num_utterances: int = Field(default=200, ge=2)
    """Sources that the probe is fitted to and judged by."""
    folds: int = Field(default=5, ge=2)
    """Parts of the sources; each is named by a probe that was fitted to the others."""
    num_revoiced: int = Field(default=40, ge=0)
    """Of them, how many are said again in the voice of another speaker; needs a speaker encoder."""


def sources_of(mels: PhoneMelSet, config: LeakageConfig) -> list[PhoneMelRow]:
    """The rows that a model's content is read off from, the same for every model.

    Raises:
        DataError: the split has fewer rows, fewer than two speakers, or too few rows of one of them.
    """
    rows = mels.split(config.split)
    if len(rows) < config.num_utterances:
        raise DataError(
            f"{config.mels} has {len(rows)} {config.split} rows; leakage.num_utterances asks for "
            f"{config.num_utterances}"
        )
    ids = rows.column("id")
    places = sorted(range(len(ids)), key=lambda place: hash_of(ids[place]))[: config.num_utterances]
    found: list[PhoneMelRow] = [rows[place] for place in places]
    refuse_few([row.speaker for row in found], config.folds)
    return found


def check_set(system: str, lineage: ZeroShotLineage, description: PhoneMelSetDescription) -> None:
    """Refuse a phone mel set that a model cannot hear, or whose voices it does not understand.

    Raises:
        DataError: mels, phones or timbre encoder differ; both are named.
    """
    cure = "name the set that the model was trained on, or one that was made alike"
    theirs, who = "leakage.mels", f"system {system}"
    refuse_mismatch("mel", who, str(lineage.mel), theirs, str(description.mel), cure)
    refuse_mismatch("timbre encoder", who, lineage.timbre_encoder, theirs, description.timbre_encoder, cure)
    unknown = sorted(set(description.phones) - set(lineage.phones))
    if unknown:
        raise DataError(f"{theirs}: {who} does not know its phones {' '.join(unknown)}; {cure}")


@torch.inference_mode()
def mean_content(model: ZeroShot, inventory: Sequence[str], rows: Sequence[PhoneMelRow]) -> Tensor:
    """The content representation of source mels, its mean over phones, [U, D] in fp32 on the CPU.

    Args:
        model: whose posterior hears the mels; its means are taken, without noise.
        inventory: of its lineage.
        rows: the sources.
    """
    device = next(model.parameters()).device
    return torch.stack([model.hear(*_heard(row, inventory, device))[0].mean(1).float().cpu() for row in rows])


def _heard(row: PhoneMelRow, inventory: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Phones, mel and durations of a row as a batch of one."""
    phones_1P = torch.tensor([phone_numbers(row.phones, inventory)], device=device)
    return phones_1P, row.mel_TM[None].to(device), row.frames_P[None].to(device)


@dataclass(frozen=True)
class Leak:
    """What leaks of the source's speaker into a model's content.

    Attributes:
        system: its name.
        probed: what the probe found.
        likeness: of what was said again in other voices: those of the model's training, ``seen``, and ``unseen`` ones;
            a kind without utterances is left out.
    """

    system: str
    probed: Probed
    likeness: Mapping[str, Likeness]

    def tree(self) -> dict[str, Any]:
        """A row of ``summary.json``."""
        probed = self.probed
        return {
            "system": self.system,
            "probe_accuracy": probed.accuracy,
            "probe_accuracy_ci95": _ends(probed.interval),
            "chance": probed.chance,
            "speakers": probed.speakers,
            "utterances": len(probed.right),
            "revoiced": [
                {
                    "voices": voices,
                    "to_prompt": like.to_prompt,
                    "to_source": like.to_source,
                    "gain": like.to_prompt - like.to_source,
                    "gain_ci95": _ends(like.gain),
                    "share_nearer_prompt": like.share_nearer_prompt,
                    "utterances": like.utterances,
                }
                for voices, like in self.likeness.items()
            ],
        }


def measure_leakage(
    system: str,
    maker: ZeroShotMaker,
    mels: PhoneMelSet,
    encoder: SpeakerEncoder | None,
    config: LeakageConfig,
    *,
    num_resamples: int,
    seed: int,
) -> Leak:
    """Probe a model's content, and say some sources again in the voices of other speakers.

    Sources and prompts are heard as the model's own way to sound has them, so that it favours neither.

    Args:
        system: name of the model.
        maker: the model.
        mels: the phone mel set that ``config`` names.
        encoder: judges voices; None leaves them out.
        config: which rows, and how many.
        num_resamples: of the intervals.
        seed: of the intervals.

    Raises:
        DataError: the set has too few rows.
    """
    lineage = maker.loaded.lineage
    rows = sources_of(mels, config)
    speakers, ids = [row.speaker for row in rows], [row.id for row in rows]
    content_UD = mean_content(maker.model, lineage.phones, rows)
    draws = {"num_resamples": num_resamples, "seed": seed}
    probed = probe_speakers(content_UD, speakers, ids, folds=config.folds, **draws)
    voices: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"seen": [], "unseen": []}
    for place in range(config.num_revoiced if encoder is not None else 0):
        source = rows[place]
        prompt = next(row for row in (*rows[place:], *rows) if row.speaker != source.speaker)
        mel_TM = _revoiced(maker, source, prompt)
        try:
            heard = [_voice(encoder, maker, mel) for mel in (mel_TM, prompt.mel_TM, source.mel_TM)]
        except DataError:  # silence has no voice
            continue
        voices["seen" if prompt.speaker in maker.voices else "unseen"].append((heard[0], heard[1], heard[2]))
    found: dict[str, Likeness] = {}
    for kind, trios in voices.items():
        if trios:
            made_UE, prompt_UE, source_UE = (torch.stack(column) for column in zip(*trios, strict=True))
            found[kind] = likeness(made_UE, prompt_UE, source_UE, **draws)
    return Leak(system, probed, found)


@torch.inference_mode()
def _revoiced(maker: ZeroShotMaker, source: PhoneMelRow, prompt: PhoneMelRow) -> Tensor:
    """Natural-log mel [T, M] of a source in another's voice."""
    voice = voice_prompts([prompt.mel_TM[: maker.prompt_max_frames]], [prompt.timbre_E]).to(maker.device)
    heard = _heard(source, maker.loaded.lineage.phones, maker.device)
    return maker.model.revoice(*heard, voice)[0].float().cpu()


def _voice(encoder: SpeakerEncoder | None, maker: ZeroShotMaker, mel_TM: Tensor) -> Tensor:
    assert encoder is not None
    return embed(encoder, maker.inverter.sound(mel_TM.T), maker.mel.sample_rate)


def leakage_tree(
    leaks: Sequence[Leak], pairs: Iterable[tuple[str, str]], *, num_resamples: int = 10_000, seed: int = 0
) -> dict[str, Any] | None:
    """``leakage`` of ``summary.json``: a row for each model, and how much less the second of each pair leaks.

    Returns None where there are no models.
    """
    if not leaks:
        return None
    by_name = {leak.system: leak for leak in leaks}
    differences = []
    for a, b in dict.fromkeys(pair for pair in pairs if set(pair) <= set(by_name)):
        right_a, right_b = by_name[a].probed.right, by_name[b].probed.right
        found = paired_comparison(right_a, right_b, num_resamples=num_resamples, seed=seed)
        span = [found.low, found.high] if found.reliable else None
        differences.append({"a": a, "b": b, "difference": found.difference, "ci95": span, "utterances": len(right_a)})
    return {"systems": [leak.tree() for leak in leaks], "differences": differences}


def leakage_findings(tree: Mapping[str, Any] | None) -> tuple[Finding, ...]:
    """What the probe says of each pair."""
    if tree is None:
        return ()
    accuracy = {row["system"]: row["probe_accuracy"] for row in tree["systems"]}
    return tuple(_finding(row, accuracy) for row in tree["differences"])


def _finding(row: Mapping[str, Any], accuracy: Mapping[str, float]) -> Finding:
    a, b, span = row["a"], row["b"], row["ci95"]
    told = (
        f"from {b}'s content a probe names the speaker of {100 * accuracy[b]:.1f} % of {row['utterances']} recordings, "
        f"from {a}'s of {100 * accuracy[a]:.1f} %"
    )
    if span is None:
        return Finding("neutral", f"Leakage: {told}; n too small to judge.")
    ends = f"difference {100 * span[0]:+.1f} to {100 * span[1]:+.1f} points"
    if span[1] < 0.0:
        return Finding("good", f"{b} lets less of the speaker into its content than {a}: {told} ({ends}).")
    if span[0] > 0.0:
        return Finding("bad", f"{b} lets more of the speaker into its content than {a}: {told} ({ends}).")
    return Finding("neutral", f"Leakage: {told}, which may be chance ({ends}).")


def _ends(interval: Interval) -> list[float] | None:
    return [interval.low, interval.high] if interval.reliable else None
