"""What it takes a codec language model to say a batch: tokens are drawn plainly, and no utterance ends by itself."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from retort.inference.decoding import CodecLMDecoding
from retort.inference.sampling import SamplerConfig
from retort.inference.speaker import Request, Timing
from retort.inference.synthesizer import Synthesizer

_TIMED_UTTERANCES = 2
"""The codec takes one utterance after the other, so a few stand for all."""


def time_decoding(
    synthesizer: Synthesizer, requests: Sequence[Request], decoding: CodecLMDecoding, *, num_frames: int
) -> Timing:
    """Decode ``num_frames`` frames of every request.

    Its figures: ``tokens_per_second`` are codec tokens (frames times codebooks) of the batch without the codec, ``nfe``
    the network evaluations of a step, counted in rows of an utterance.
    """
    guidance = decoding.guidance.build()
    compute_s, codes = time_codes(synthesizer, requests, decoding, num_frames=num_frames)
    start = time.perf_counter()
    few = codes[:_TIMED_UTTERANCES]
    samples = sum(synthesizer.codec.decode(item).numel() for item in few)
    share = len(codes) / len(few)
    tokens = len(codes) * num_frames * synthesizer.codec.num_codebooks
    return Timing(
        compute_s=compute_s,
        sound_s=(time.perf_counter() - start) * share,
        audio_s=samples * share / synthesizer.codec.sample_rate,
        figures={"tokens_per_second": tokens / compute_s, "nfe": len(guidance.conditions)},
    )


def time_codes(
    synthesizer: Synthesizer, requests: Sequence[Request], decoding: CodecLMDecoding, *, num_frames: int
) -> tuple[float, list[Tensor]]:
    """Seconds for ``num_frames`` frames of every request, drawn plainly, and the codes [K, num_frames] of each."""
    conditions = synthesizer.conditions(requests, decoding)
    wait_for(synthesizer.device)
    start = time.perf_counter()
    decoded = synthesizer.decoder.decode(
        conditions,
        guidance=decoding.guidance.build(),
        sampler=SamplerConfig(),
        seeds=[request.seed for request in requests],
        max_frames=num_frames,
        stop_at_eos=False,
    )
    wait_for(synthesizer.device)
    return time.perf_counter() - start, [item.codes_KT for item in decoded]


def wait_for(device: torch.device) -> None:
    """Until it has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
