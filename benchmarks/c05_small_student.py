"""C5: a zero-shot student from text to sound on one thread, vocoder included, beside hibari; C6: what graphs gain.

Models of the presets with random weights, which take the time of trained ones: through torch as `retort say` has them,
and through the graphs of a bundle by ONNX Runtime ("onnx") and, where it is installed, OpenVINO. Their mels are
compared while the bundle is written. hibari is of an extra.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from benchmarks.protocol import Gate, Run, conclude, interleave, parse_arguments, prepare, print_table
from retort.audio.hibari import IN_THE_WHEEL, Voices
from retort.audio.mel import MelConfig
from retort.inference.bundle.runtimes import RUNTIMES, Runtime, is_installed
from retort.inference.bundle.speak import Bundle
from retort.inference.inversion import carry_vocoder
from retort.inference.onnx_bundle import write_bundle
from retort.inference.phone_reading import PhoneReader
from retort.inference.zero_shot_making import MelWish, ZeroShotMaker
from retort.methods.vocoder_pretrain import VocoderPreset, vocoder_of
from retort.models.presets import VocoderPresetName
from retort.models.vocoder import Vocoder
from retort.models.vocoder_lineage import VocoderLineage
from retort.models.weights import save_model
from retort.models.zero_shot.config import FeatureScales
from retort.models.zero_shot.model import ZeroShot
from retort.models.zero_shot.presets import ZeroShotPreset, ZeroShotPresetName, zero_shot_config
from retort.models.zero_shot.voices import StoredVoice, write_voices
from retort.models.zero_shot_lineage import ZeroShotLineage
from retort.text import espeak

MEL = MelConfig()
SENTENCES = (
    "The lamp in the hall was still burning when we came home.",
    "Nobody knew how long the bridge had been closed to traffic.",
    "She put the letter on the table, and went out without a word.",
    "Rain fell through the night; by morning the river was high.",
    "We could take the early train, or wait until the afternoon.",
    "A small boat lay upside down on the sand beside the pier.",
)
PROMPT_FRAMES = 160
SIZES: Mapping[str, tuple[ZeroShotPresetName, VocoderPresetName]] = {
    "small": ("zero_shot_small", "tiny"),
    "paper": ("zero_shot_paper", "base"),
}


def write_model(root: Path, size: str) -> Path:
    """A model folder with a vocoder, of random weights, which says phones of some 75 ms."""
    preset, vocoder_preset = SIZES[size]
    inventory = tuple(sorted({phone for text in espeak.phones_of_all(SENTENCES, voice="en-us") for phone in text}))
    torch.manual_seed(0)
    config = zero_shot_config(
        ZeroShotPreset(name=preset), num_phones=len(inventory), num_mels=MEL.num_mels, timbre_dim=256,
        scales=FeatureScales(),
    )  # fmt: skip
    lineage = ZeroShotLineage(
        method="zero_shot_pretrain", phones=inventory, voice="en-us", language="en", mel=MEL,
        timbre_encoder="resemblyzer-0.1", data_fingerprint="none", durations_fingerprint="none",
    )  # fmt: skip
    save_model(root / size, ZeroShot(config), lineage)
    timbre_E = torch.nn.functional.normalize(torch.rand(256), dim=0)
    write_voices(root / size, [StoredVoice("a", 2.0 * torch.randn(PROMPT_FRAMES, MEL.num_mels) - 5.0, timbre_E)])
    vocoder = Vocoder(vocoder_of(VocoderPreset(name=vocoder_preset), MEL))
    save_model(root / f"{size}_vocoder", vocoder, VocoderLineage(method="vocoder_pretrain", corpus_digest="none"))
    carry_vocoder(root / f"{size}_vocoder", root / size)
    return root / size


Part = tuple[float, float, float, float]
"""Seconds of reading, of the mel and of the vocoder, and of the sound."""


def in_torch(folder: Path) -> Callable[[str], Part]:
    """What says a sentence as `retort say` does."""
    maker = ZeroShotMaker.open(folder)
    lineage, stored = maker.loaded.lineage, maker.voices["a"]
    reader = PhoneReader(lineage.voice, lineage.language, lineage.phones)

    def say(text: str) -> Part:
        begin = time.perf_counter()
        phones = reader.spoken(text).ids
        read = time.perf_counter()
        mel_TM, _ = maker.make(MelWish(phones, stored.prompt_SM, stored.timbre_E, 0, 0.667))
        made = time.perf_counter()
        samples_N = maker.inverter.sound(mel_TM.T.contiguous())
        return read - begin, made - read, time.perf_counter() - made, len(samples_N) / MEL.sample_rate

    return say


def in_graphs(folder: Path, runtime: Runtime) -> Callable[[str], Part]:
    """What says a sentence as a bundle does."""
    bundle = Bundle(folder, runtime=runtime)

    def say(text: str) -> Part:
        begin = time.perf_counter()
        phones = bundle.reader.spoken(text).ids
        read = time.perf_counter()
        mel_TM, _ = bundle.say_phones(phones, None, seed=0, noise_scale=0.667, tempo=1.0)
        made = time.perf_counter()
        samples_N = bundle.sound(mel_TM)
        return read - begin, made - read, time.perf_counter() - made, len(samples_N) / MEL.sample_rate

    return say


def rtf(say: Callable[[str], Part]) -> dict[str, float]:
    """Seconds for each second of sound: all of it, and its parts."""
    read_s, mel_s, vocoder_s, sound_s = (sum(part) for part in zip(*map(say, SENTENCES), strict=True))
    parts = {"read": read_s, "mel": mel_s, "vocoder": vocoder_s, "all": read_s + mel_s + vocoder_s}
    return {name: seconds / sound_s for name, seconds in parts.items()}


def of_hibari() -> Callable[[], Mapping[str, float]]:
    """What says all sentences by hibari, on one thread."""
    voices = Voices()

    def say() -> Mapping[str, float]:
        begin = time.perf_counter()
        said = [voices.speak(text, IN_THE_WHEEL) for text in SENTENCES]
        seconds = time.perf_counter() - begin
        return {"all": seconds / sum(len(audio.samples_N) / audio.sample_rate for audio in said if audio is not None)}

    return say


def verdicts(run: Run) -> Iterator[str]:
    """C5 of both sizes through ONNX Runtime, and C6 of model and vocoder through every runtime."""
    yield Gate("C5 RTF of hibari / small", 0.5, 1.0, at_least=True).judge(
        *run.ratios("hibari, all", "small, onnx, all")
    )
    yield Gate("C5 RTF of small (best, median)", 0.04, 0.015).judge(
        run.best("small, onnx, all"), run.median("small, onnx, all")
    )
    print(f"RTF of paper: {run.best('paper, onnx, all'):.4f} / {run.median('paper, onnx, all'):.4f}")
    for size in SIZES:
        for part in ("mel", "vocoder"):
            for name in runtimes():
                ratios = run.ratios(f"{size}, torch, {part}", f"{size}, {name}, {part}")
                yield Gate(f"C6 torch / {name}, {part} of {size}, fp32", 1.2, 2.5, at_least=True).judge(*ratios)


def runtimes() -> dict[str, Runtime]:
    """Those that are installed, by what the table calls them."""
    return {"onnx" if name == "onnxruntime" else name: name for name in RUNTIMES if is_installed(name)}


def main() -> None:
    """Measure and print."""
    args = parse_arguments(__doc__ or "")
    prepare(args)
    with tempfile.TemporaryDirectory() as folder:
        peers: dict[str, Callable[[], Mapping[str, float]]] = {"hibari": of_hibari()}
        for size in SIZES:
            model, bundle = write_model(Path(folder), size), Path(folder) / f"{size}_bundle"
            bundle.mkdir()
            written = write_bundle(model, bundle)
            print(f"{size}: {written.parameters / 1e6:.1f}M parameters, log-mels differ by {written.difference:.1e}")
            print(f"the export chose {written.runtime} of {dict(written.rtf)}")
            graphs = {way: in_graphs(bundle, runtime) for way, runtime in runtimes().items()}
            for way, say in {"torch": in_torch(model), **graphs}.items():
                peers[f"{size}, {way}"] = lambda say=say: rtf(say)  # type: ignore[misc]
        run = interleave(peers, args)
    print_table(run, "of real time x 1000", 1000.0)
    conclude(run, args, list(verdicts(run)))


if __name__ == "__main__":
    main()
