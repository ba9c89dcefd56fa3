"""How well an aligner that is trained on sound and texts alone agrees with espeak-ng's own times.

``python -m benchmarks.alignment`` takes sentences of the embedded English texts, said by espeak-ng. It prints a line of
Markdown: errors of the beginnings of phones on sentences that were not trained on, and how many alignments are rejected
with their own text and with another sentence's.
"""

import argparse
import time

import torch

from retort.audio.files import resample
from retort.audio.mel import MelConfig, log_mel
from retort.data.english import EnglishTexts, english_texts
from retort.inference.aligning import Misaligned, PhoneAligner, PlausibilityConfig
from retort.methods.phone_alignment import SpokenPhones, TrainAlignerConfig, train_aligner
from retort.text.espeak import Speech, phones_of_all, speak

MEL = MelConfig()


def samples(speech: Speech) -> torch.Tensor:
    """At the mels' rate."""
    return resample(torch.from_numpy(speech.samples_N), speech.sample_rate, MEL.sample_rate)


def errors(speech: Speech, phones: tuple[str, ...], aligner: PhoneAligner) -> list[float]:
    """In frames, of the beginning of each phone; nothing where espeak-ng names its phones otherwise."""
    events = [span for span in speech.phones if span.label]
    if tuple(span.label for span in events) != phones:
        return []
    found = aligner.align(samples(speech), phones)
    starts = [start for label, start in zip(found.labels, found.starts_s(), strict=True) if label]
    return [abs(start - span.start_s) * MEL.frame_rate for start, span in zip(starts, events, strict=True)]


def rejected(speech: Speech, phones: tuple[str, ...], aligner: PhoneAligner) -> bool:
    """Whether an alignment is not believed."""
    try:
        aligner.align(samples(speech), phones)
    except Misaligned:
        return True
    return False


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=600)
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--voice", default="en-us")
    given = parser.parse_args()
    config = EnglishTexts(train=given.sentences + given.held_out, validation=0, test=0)
    texts = [text.text for text in english_texts(config)]
    phones = phones_of_all(texts, voice=given.voice)
    said = [speak(text, voice=given.voice, words_per_minute=170) for text in texts]
    rows = [SpokenPhones(log_mel(samples(one), MEL).T, names) for one, names in zip(said, phones, strict=True)]
    training = TrainAlignerConfig(dim=given.dim, ctc_steps=given.steps, batch_size=given.batch)
    wall, cpu = time.monotonic(), time.process_time()
    model = train_aligner(rows[given.held_out :], training, voice=given.voice, mel=MEL)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    aligner = PhoneAligner(model, PlausibilityConfig())
    tried, names = said[: given.held_out], phones[: given.held_out]
    found = torch.tensor([e for one, own in zip(tried, names, strict=True) for e in errors(one, own, aligner)])
    own = sum(rejected(one, name, aligner) for one, name in zip(tried, names, strict=True))
    swapped = sum(rejected(one, name, aligner) for one, name in zip(tried, names[1:] + names[:1], strict=True))
    cells = (
        f"{given.sentences} sentences, width {given.dim}, {given.steps} steps of {given.batch}",
        f"{cpu:.0f} s of CPU in {wall:.0f} s",
        len(found),
        f"{float(found.median()):.2f}",
        f"{float(found.quantile(0.9)):.2f}",
        f"{float((found > 4).float().mean()):.1%}",
        f"{own} of {given.held_out}",
        f"{swapped} of {given.held_out}",
    )
    print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
