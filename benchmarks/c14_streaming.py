"""C14: decoding codes to sound in pieces, against all at once, and whether late pieces cost more than early ones.

The mel-RVQ codec on 30 s of random codes. The bad peer decodes everything again for each piece, as some servers do.
"""

import time

import torch

from benchmarks.protocol import Gate, conclude, interleave, parse_arguments, prepare, print_table, timed
from retort.audio.mel_rvq import MelRVQ, MelRVQConfig

SECONDS, PIECE = 30.0, 8


def codec() -> MelRVQ:
    """Random codebooks around quiet speech."""
    config = MelRVQConfig(num_codebooks=4, codebook_size=256, frames_per_token=4, griffin_lim_iterations=16)
    generator = torch.Generator().manual_seed(0)
    dim = config.frames_per_token * config.mel.num_mels
    centroids_KVD = torch.randn(4, 256, dim, generator=generator) / 2
    return MelRVQ(config, torch.full((dim,), -4.0), torch.ones(dim), centroids_KVD)


def main() -> None:
    """Measure and print."""
    args = parse_arguments(__doc__ or "")
    prepare(args)
    ours = codec()
    num_tokens = round((3.0 if args.quick else SECONDS) * ours.frame_rate) // PIECE * PIECE + 3
    codes_KT = torch.randint(256, (4, num_tokens), generator=torch.Generator().manual_seed(1))
    late: list[float] = []

    def in_pieces() -> float:
        """Seconds of all pieces; token by token, as an engine gives them."""
        stream, parts = ours.stream(), []
        seconds: list[float] = []
        for t in range(num_tokens):
            begin = time.perf_counter()
            part = stream.push(codes_KT[:, t : t + 1])
            spent = time.perf_counter() - begin
            if part.numel() or not seconds:
                seconds.append(spent)
            else:
                seconds[-1] += spent
            parts.append(part)
        begin = time.perf_counter()
        parts.append(stream.finish())
        total = sum(seconds) + time.perf_counter() - begin
        assert torch.equal(torch.cat(parts), whole), "streamed samples must be the offline samples"
        # The first piece is short, and what follows the last whole one is the end.
        late.append(seconds[-2] / seconds[2])
        return total

    def again_and_again() -> float:
        return timed(lambda: [ours.decode(codes_KT[:, :end]) for end in range(PIECE, num_tokens, PIECE)])

    whole = ours.decode(codes_KT)
    assert whole.shape[0] == num_tokens * ours.samples_per_token
    assert float(whole.abs().max()) > 0
    run = interleave(
        {"in pieces": in_pieces, "all at once": lambda: timed(lambda: ours.decode(codes_KT)),
         "all again for each piece": again_and_again}, args,
    )  # fmt: skip
    print_table(run)
    print(f"{whole.shape[0] / ours.sample_rate:.1f} s of audio; real-time factor {run.best('in pieces') / SECONDS:.4f}")
    verdicts = [
        Gate("C14 in pieces / all at once", 1.25, 1.10).judge(*run.ratios("in pieces", "all at once")),
        Gate("C14 last whole piece / first whole piece", 1.15, 1.05).judge(sorted(late)[len(late) // 2]),
    ]
    conclude(run, args, verdicts)


if __name__ == "__main__":
    main()
