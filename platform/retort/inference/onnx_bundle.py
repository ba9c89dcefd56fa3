"""A folder that speaks without torch and Ray: a zero-shot model as graphs, its voices, and what reads texts."""

import json
import math
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import retort
from retort import __version__
from retort.audio.mel import MelConfig, mel_filters, window
from retort.errors import MissingRequirementError, QualityGateError
from retort.inference.bundle.runtimes import REQUIREMENTS, RUNTIMES, Runtime
from retort.inference.bundle.sound import Floats
from retort.inference.bundle.speak import ARRAYS_FILE, BUNDLE_FILE, VOICES_FILE, Bundle
from retort.inference.inversion import BESIDE, GriffinLimInversion
from retort.inference.onnx_graphs import VocoderGraph, export_vocoder, export_zero_shot
from retort.inference.zero_shot_making import MelWish, ZeroShotMaker
from retort.models.codec_lm import count_parameters
from retort.models.vocoder import between_bins, with_silence
from retort.models.weights import LoadedVocoder, load_vocoder
from retort.models.zero_shot.model import LONGEST_PHONE
from retort.text import espeak

CARD_FILE, RUNNER_FILE, REQUIREMENTS_FILE = "card.md", "speak.py", "requirements.txt"
BOUND = 1e-3
"""Largest difference of a natural-log mel amplitude that graphs may have from the model."""
CARRIED = (
    "__init__", "errors", "text.__init__", "text.espeak", "text.markdown", "text.normalise", "text.numbers",
    "text.reading", "text.sentences", "text.written_forms", "nn.__init__", "nn.phone_numbers", "inference.__init__",
    "inference.phone_reading", "inference.bundle.__init__", "inference.bundle.runtimes", "inference.bundle.sound",
    "inference.bundle.speak",
)  # fmt: skip
"""Modules that a bundle carries, as they are here."""
_RUNNER = '''"""Say a text: python speak.py "text" --voice NAME -o out.wav"""

import sys
from pathlib import Path

from retort.inference.bundle.speak import main

sys.exit(main(Path(__file__).parent))
'''
_REQUIREMENTS = ("numpy>=2", "espeakng-loader>=0.2.4", "markdown-it-py>=3")
_LICENCES = (
    "espeak-ng, in the wheel espeakng-loader, by which texts become phones: GPL-3.0",
    "ONNX Runtime: MIT; OpenVINO: Apache-2.0",
    "the weights and the stored voices inherit what the licences of the recordings and of the teacher allow",
)
_CHECKED_PHONES = (2, 7, 24, 61)
_TIMED_PHONES, _TIMED_ROUNDS = 60, 7
_GRIFFIN_LIM = GriffinLimInversion()


@dataclass(frozen=True)
class Written:
    """What a bundle came to be.

    Attributes:
        fingerprint: of the model.
        parameters: of the model, and of its vocoder.
        difference: largest one of a natural-log mel amplitude from what torch says, or of what a vocoder's networks say
            over its largest value, on a few made-up utterances.
        size_bytes: of the graphs.
        runtime: that runs them where nothing else is said.
        rtf: seconds per second of sound on one thread, of each runtime that says what torch says.
    """

    fingerprint: str
    parameters: int
    difference: float
    size_bytes: int
    runtime: Runtime
    rtf: Mapping[Runtime, float]


def write_bundle(model: Path, target: Path, *, note: str = "", runtime: Runtime | None = None) -> Written:
    """Write the bundle of a model folder into a folder that exists, and compare the two.

    Args:
        model: of a zero-shot model, perhaps with a vocoder.
        target: where to.
        note: stands in the card, such as what the licence of the recordings allows.
        runtime: of the graphs; None takes the fastest here of those that are installed and say what torch says.

    Raises:
        ConfigError: the model is of another family, which is named.
        DataError: a part is missing or damaged.
        MissingRequirementError: ``onnx`` or ONNX Runtime is not installed.
        QualityGateError: the graphs say something else than the model.
    """
    maker = ZeroShotMaker.open(model)
    vocoder = load_vocoder(model / BESIDE) if (model / BESIDE).is_dir() else None
    export_zero_shot(maker.model, target)
    if vocoder is not None:
        export_vocoder(vocoder.model, target)
    facts = _facts(maker, vocoder, note)
    _write_arrays(maker, target)
    _carry_code(target)
    _write_facts(facts, target)
    bundles = _opened(target, runtime)
    differences = {name: _difference(maker, vocoder, bundle) for name, bundle in bundles.items()}
    equal = {name: bundle for name, bundle in bundles.items() if differences[name] <= BOUND}
    if not equal:
        raise QualityGateError(
            f"{model}: the graphs' log-mels differ from the model's by {min(differences.values()):.1e}, more than "
            f"{BOUND:g}; look for weights that are far from 0"
        )
    rtf = _rtf(equal)
    chosen = min(rtf, key=lambda name: rtf[name])
    facts |= {"runtime": chosen, "rtf": rtf}
    _write_facts(facts, target)
    (target / REQUIREMENTS_FILE).write_text("\n".join((*_REQUIREMENTS, REQUIREMENTS[chosen])) + "\n")
    size_bytes = sum(file.stat().st_size for file in target.glob("*.onnx"))
    parameters = count_parameters(maker.model) + maker.inverter.parameters
    written = Written(maker.loaded.fingerprint, parameters, differences[chosen], size_bytes, chosen, rtf)
    (target / CARD_FILE).write_text("\n".join(_card(facts, written)) + "\n")
    return written


def _opened(target: Path, runtime: Runtime | None) -> dict[Runtime, Bundle]:
    """The bundle by the runtime that is asked for, or by each that is installed and runs here.

    Raises:
        MissingRequirementError: it does not run here, or none does.
    """
    found: dict[Runtime, Bundle] = {}
    wanted = (runtime,) if runtime else RUNTIMES
    faults: list[str] = []
    for name in wanted:
        try:
            found[name] = Bundle(target, runtime=name)
        except MissingRequirementError as error:
            faults.append(str(error))
        except (ImportError, AttributeError, RuntimeError) as error:
            faults.append(f"{name} does not run here ({str(error)[:200]}); run: pip install '{REQUIREMENTS[name]}'")
    if not found:
        raise MissingRequirementError("; ".join(faults))
    return found


def _facts(maker: ZeroShotMaker, vocoder: LoadedVocoder | None, note: str) -> dict[str, Any]:
    lineage, config = maker.loaded.lineage, maker.loaded.model.config
    return {
        "format": 1,
        "retort": __version__,
        "fingerprint": maker.loaded.fingerprint,
        "method": lineage.method,
        "teacher_fingerprint": lineage.teacher_fingerprint,
        "data_fingerprint": lineage.data_fingerprint,
        "timbre_encoder": lineage.timbre_encoder,
        "language": lineage.language,
        "voice": lineage.voice,
        "espeak": espeak.version(),
        "phones": list(lineage.phones),
        "voices": sorted(maker.voices),
        "latent_dim": config.latent_dim,
        "longest_phone": LONGEST_PHONE,
        "mel": lineage.mel.model_dump(mode="json"),
        "sound": _sound(vocoder),
        "licences": list(_LICENCES),
        "note": note,
    }


def _write_facts(facts: Mapping[str, Any], target: Path) -> None:
    (target / BUNDLE_FILE).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def _sound(vocoder: LoadedVocoder | None) -> dict[str, Any]:
    if vocoder is None:
        return _GRIFFIN_LIM.model_dump(mode="json")
    config = vocoder.model.config
    return {
        "kind": "vocoder", "fingerprint": vocoder.fingerprint, "source": config.source, "reach": vocoder.model.reach,
        "overhang": config.overhang,
    }  # fmt: skip


def _write_arrays(maker: ZeroShotMaker, target: Path) -> None:
    mel = maker.mel
    np.savez(target / ARRAYS_FILE, **sound_arrays(mel))
    voices = [maker.voices[name] for name in sorted(maker.voices)]
    arrays: dict[str, Any] = {f"mel.{n}": voice.prompt_SM.float().numpy() for n, voice in enumerate(voices)}
    arrays |= {f"timbre.{n}": voice.timbre_E.float().numpy() for n, voice in enumerate(voices)}
    np.savez(target / VOICES_FILE, **arrays)


def sound_arrays(mel: MelConfig) -> dict[str, Any]:
    """What :class:`retort.inference.bundle.sound.Shape` is made of."""
    found = {"window": window(mel), "filters": mel_filters(mel), "between": between_bins(mel)}
    return {name: tensor.numpy() for name, tensor in found.items()}


def _carry_code(target: Path) -> None:
    package = Path(retort.__file__).parent
    for module in CARRIED:
        path = Path(*module.split(".")).with_suffix(".py")
        (target / "retort" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / path, target / "retort" / path)
    (target / RUNNER_FILE).write_text(_RUNNER)


def _difference(maker: ZeroShotMaker, vocoder: LoadedVocoder | None, bundle: Bundle) -> float:
    """The largest, on utterances of random phones in the stored voices; infinite if the durations are others.

    Of a vocoder's outputs it is the largest difference over the largest value of each.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for number, count in enumerate(_CHECKED_PHONES):
        name = bundle.voices[number % len(bundle.voices)]
        phones = torch.randint(1, len(maker.loaded.lineage.phones) + 2, (count,), generator=generator).tolist()
        voice = maker.voices[name]
        mel_TM, frames_P = maker.make(MelWish(phones, voice.prompt_SM, voice.timbre_E, number, noise_scale=0.667))
        ours_TM, ours_P = bundle.say_phones(phones, name, seed=number, noise_scale=0.667, tempo=1.0)
        if frames_P.tolist() != ours_P.tolist():
            return float("inf")
        found = [float(np.abs(ours_TM - mel_TM.numpy()).max())]
        said = bundle.vocoder_says(mel_TM.numpy())
        if vocoder is not None and said is not None:
            found += _vocoder_differences(vocoder, mel_TM, said)
        worst = max(worst, *(value if math.isfinite(value) else math.inf for value in found))
    return worst


@torch.no_grad()
def _vocoder_differences(vocoder: LoadedVocoder, mel_TM: Tensor, said: Sequence[Floats]) -> list[float]:
    reach = vocoder.model.reach
    expected = VocoderGraph(vocoder.model)(with_silence(mel_TM.T, reach, reach)[None])
    return [
        float(np.abs(ours - theirs[0].numpy()).max() / max(1e-6, float(theirs.abs().max())))
        for ours, theirs in zip(said, expected, strict=True)
    ]


def _rtf(bundles: Mapping[Runtime, Bundle]) -> dict[Runtime, float]:
    """Seconds per second of sound on random phones, the median of rounds that the runtimes take in turns."""
    rng = np.random.default_rng(0)
    seconds: dict[Runtime, list[float]] = {name: [] for name in bundles}
    for number in range(1 + _TIMED_ROUNDS):
        phones = rng.integers(1, 2 + len(next(iter(bundles.values())).facts["phones"]), _TIMED_PHONES).tolist()
        for name, bundle in bundles.items():
            begin = time.perf_counter()
            mel_TM, _ = bundle.say_phones(phones, None, seed=number, noise_scale=0.667, tempo=1.0)
            samples_N = bundle.sound(mel_TM)
            took_s = time.perf_counter() - begin
            if number:  # the first round warms up
                seconds[name].append(took_s * bundle.mel["sample_rate"] / len(samples_N))
    return {name: statistics.median(rounds) for name, rounds in seconds.items()}


def _card(facts: dict[str, Any], written: Written) -> Iterator[str]:
    sound = facts["sound"]
    by = f"vocoder {sound['fingerprint']}" if sound["kind"] == "vocoder" else "Griffin-Lim"
    yield from (f"# {facts['fingerprint']}", "")
    if facts["note"]:
        yield from (f"> {' '.join(facts['note'].split())}", "")
    yield "A zero-shot text-to-speech model as ONNX graphs. It needs what `requirements.txt` names, and no torch."
    yield from ("", "```", f'python {RUNNER_FILE} "text" --voice {facts["voices"][0]} -o out.wav', "```", "")
    yield from ("| | |", "|---|---|")
    rows = {
        "method": facts["method"],
        "teacher": facts["teacher_fingerprint"],
        "data": facts["data_fingerprint"],
        "parameters, vocoder included": f"{written.parameters:,}",
        "graphs": f"{written.size_bytes / 1e6:.1f} MB, fp32",
        "largest difference of a log-mel from torch": f"{written.difference:.1e}, at most {BOUND:g} is allowed",
        "runtime": written.runtime,
        "seconds per second of sound, one thread, where it was made": ", ".join(
            f"{name} {rtf:.4f}" for name, rtf in written.rtf.items()
        ),
        "sound": f"{by}, {facts['mel']['sample_rate']} Hz",
        "language": f"{facts['language']}, read by {facts['espeak']} as {facts['voice']}",
        "voices": ", ".join(facts["voices"]),
    }
    yield from (f"| {name} | {value} |" for name, value in rows.items() if value is not None)
    yield from ("", "## Licences", "", *(f"- {line}" for line in facts["licences"]), "")
    yield "The voices are those of people: have their consent. What it says carries no watermark."
    yield from ("", f"Made with retort {facts['retort']}.")
