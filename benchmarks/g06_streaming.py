"""G6: time to the first audio of streams on a GPU: one at a time, and 64 that arrive open-loop.

A random network of 500M parameters (8 codebooks of 1,024, 75 frames a second) with EnCodec's random decoder, which runs
on the CPU as it does in service. Nothing ends by itself: every stream is three seconds long. An underrun is a stream
that would have made a player that starts with the first samples wait.
"""

import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu import parse
from benchmarks.protocol import Gate
from retort.audio.encodec_codec import Encodec, EncodecConfig
from retort.inference.speaker import Request, Wish
from retort.inference.speech import GuardConfig, SpeechEngine
from retort.inference.synthesizer import Synthesizer
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.presets import spotify_500m, tiny
from retort.models.weights import LoadedModel
from retort.text.front_end import CharactersConfig, build_text_front_end

TEXT = "the quick brown fox jumps over the lazy dog"
SECONDS = 3.0


@dataclass
class Stream:
    """One stream, in seconds since the start of the run."""

    arrived: float
    first: float = 0.0
    audio_s: float = 0.0
    stalled_s: float = 0.0

    def hear(self, now: float, seconds: float) -> None:
        """Sound has come."""
        if not self.first:
            self.first = now
        self.stalled_s += max(0.0, now - self.first - self.audio_s - self.stalled_s)
        self.audio_s += seconds


def engine(device: torch.device, *, slots: int, is_tiny: bool) -> SpeechEngine:
    """With random weights everywhere."""
    from encodec import EncodecModel

    torch.manual_seed(0)
    weights = EncodecModel.encodec_model_24khz(pretrained=False).state_dict()
    codec = Encodec(EncodecConfig(bandwidth_kbps=6.0), weights, Path("random"))
    front_end = build_text_front_end(CharactersConfig(kind="characters"))
    preset = tiny if is_tiny else spotify_500m
    model = CodecLM(preset((front_end.vocabulary_size, codec.num_codebooks, codec.codebook_size))).to(device)
    lineage = CodecLMLineage(
        method="pretrain", codec_fingerprint=codec.fingerprint(), text_fingerprint=front_end.fingerprint()
    )  # fmt: skip
    voices = {"s": torch.randint(1024, (codec.num_codebooks, 150))}
    synthesizer = Synthesizer(LoadedModel(model.eval(), lineage, "random"), codec, front_end, voices, precision="auto")
    guard = GuardConfig(seconds_per_character=1e-3, extra_seconds=SECONDS, max_repeat_seconds=100.0)
    made = SpeechEngine(synthesizer, max_slots=slots, max_conditions=1, max_seconds=SECONDS, guard=guard)
    made.warm_up()
    return made


def run(speaker: SpeechEngine, arrivals: list[float]) -> list[Stream]:
    """Streams that come at their times, whether or not there is room; late ones wait."""
    begun, waiting = time.perf_counter(), list(arrivals)
    streams: dict[int, Stream] = {}
    done: list[Stream] = []
    rate = speaker.synthesizer.codec.sample_rate
    while waiting or streams:
        now = time.perf_counter() - begun
        while waiting and waiting[0] <= now and speaker.num_free:
            seed = len(arrivals) - len(waiting)
            ticket = speaker.add(Wish(Request(TEXT, "s", seed)))
            streams[ticket] = Stream(waiting.pop(0))
        if not streams:
            time.sleep(1e-4)
            continue
        for sound in speaker.step():
            if sound.samples_N.numel():
                streams[sound.ticket].hear(time.perf_counter() - begun, sound.samples_N.numel() / rate)
            if sound.outcome is not None:
                done.append(streams.pop(sound.ticket))
    assert len(done) == len(arrivals), "every stream must come to its end"
    return done


def main() -> None:
    """Measure and print."""
    args, device = parse(__doc__ or "")
    many = 2 if args.quick else 64
    verdicts = []
    for streams, gate, stretch in ((1, 20.0, 10.0), (many, 60.0, 30.0)):
        speaker = engine(device, slots=streams, is_tiny=args.quick)
        chance = random.Random(0)
        number = 3 if args.quick else 10 if streams == 1 else 3 * streams
        arrivals, now = [], 0.0
        for _ in range(number):
            arrivals.append(now)
            now += 2 * SECONDS if streams == 1 else chance.expovariate(0.8 * streams / SECONDS)
        done = run(speaker, arrivals)
        first_ms = 1e3 * statistics.median(stream.first - stream.arrived for stream in done)
        underruns = sum(stream.stalled_s > 0 for stream in done) / len(done)
        print(f"{streams:3d} stream(s): first audio {first_ms:.1f} ms in the median, underruns {100 * underruns:.1f} %")
        verdicts.append(Gate(f"G6 {streams} stream(s), ms to the first audio", gate, stretch).judge(first_ms))
        verdicts.append(Gate(f"G6 {streams} stream(s), share of underruns", 0.01, 0.001).judge(underruns))
    for line in verdicts:
        print(line + ("  [quick check: proves nothing]" if args.quick else ""))


if __name__ == "__main__":
    main()
