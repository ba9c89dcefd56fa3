"""C16: the first request after the warm-up, against the ones that follow.

Each round opens the model in a process of its own, warms it up as a server does, and times one request again and again:
from the text to the last sample.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.protocol import Gate, conclude, interleave, parse_arguments, prepare, print_table
from retort.audio.mel_rvq import MelRVQConfig, fit_mel_rvq
from retort.data.tokens import TokenRow, TokenSetDescription, write_description, write_shard
from retort.inference.speaker import Request, Wish
from retort.inference.speech import GuardConfig, SpeechEngine
from retort.inference.synthesizer import Synthesizer, save_speaking_model
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.presets import demo
from retort.text.front_end import CharactersConfig, build_text_front_end

SECONDS, REQUESTS = 2.0, 8


def write_model(root: Path) -> Path:
    """A model of the demo's size with random weights, that can speak."""
    torch.manual_seed(0)
    data, model = root / "data", root / "model"
    data.mkdir()
    codec = fit_mel_rvq(
        [0.1 * torch.randn(80_000) for _ in range(8)],
        MelRVQConfig(num_codebooks=4, codebook_size=256, frames_per_token=4),
    )
    front_end = build_text_front_end(CharactersConfig(kind="characters"))
    codec.save(data / "codec")
    front_end.save(data / "text")
    codes_KT = codec.encode(0.1 * torch.randn(32_000))
    write_shard(
        data / "part-0.parquet", [TokenRow("u", "one", tuple(front_end.encode("one")), "s", "train", codes_KT, 2.0)]
    )
    sizes = (front_end.vocabulary_size, codec.num_codebooks, codec.codebook_size)
    write_description(
        data,
        TokenSetDescription(
            codec_fingerprint=codec.fingerprint(), text_fingerprint=front_end.fingerprint(),
            text_vocabulary_size=sizes[0], num_codebooks=sizes[1], codebook_size=sizes[2],
            sample_rate=codec.sample_rate, frame_rate=codec.frame_rate,
        ),
    )  # fmt: skip
    lineage = CodecLMLineage(
        method="pretrain", codec_fingerprint=codec.fingerprint(), text_fingerprint=front_end.fingerprint()
    )  # fmt: skip
    save_speaking_model(model, CodecLM(demo(sizes)), lineage, data)
    return model


def requests(model: Path) -> dict[str, float]:
    """Seconds a second of audio of the first request and of later ones, the same each time, and of the warm-up."""
    guard = GuardConfig(extra_seconds=SECONDS, seconds_per_character=0.001, retries=0)
    synthesizer = Synthesizer.open(model, precision="fastest")
    engine = SpeechEngine(synthesizer, max_slots=4, max_conditions=1, guard=guard)
    begin = time.perf_counter()
    engine.warm_up()
    warm_up_s = time.perf_counter() - begin
    seconds = []
    for _ in range(REQUESTS):
        begin = time.perf_counter()
        engine.add(Wish(Request("one two three four", "s", 1)))
        samples = 0
        while engine.num_active:
            samples += sum(sound.samples_N.numel() for sound in engine.step())
        assert samples > 0, "the payload must be sound"
        seconds.append((time.perf_counter() - begin) / samples * synthesizer.codec.sample_rate)
    return {"first request": seconds[0], "later requests": statistics.median(seconds[1:]), "warm-up": warm_up_s}


def in_a_new_process(model: Path) -> dict[str, float]:
    """The same where nothing has been computed before."""
    command = [sys.executable, "-m", "benchmarks.c16_warm_up", "--model", str(model)]
    told: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return told


def main() -> None:
    """Measure and print."""
    if "--model" in sys.argv:
        torch.set_num_threads(2)
        print(json.dumps(requests(Path(sys.argv[-1]))))
        return
    args = parse_arguments(__doc__ or "", threads=2)
    prepare(args)
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder))
        run = interleave({"ours": lambda: in_a_new_process(model)}, args)
    print_table(run, "ms of work a second of audio (warm-up: ms)", 1e3)
    ratios = run.ratios("ours, first request", "ours, later requests")
    conclude(run, args, [Gate("C16 first request after the warm-up / later ones", 1.2, 1.05).judge(*ratios)])


if __name__ == "__main__":
    main()
