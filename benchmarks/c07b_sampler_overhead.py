"""C7b: what the sampler adds to the evaluations of the network, and the same for the DDIM loop of ``diffusers``.

One unguided pass a step, 31 steps, as a student of paper 2 is run. The bare peer calls the network 31 times and does
nothing with what it says.
"""

import functools

import torch
from torch import Tensor

from benchmarks.diffusion_peer import SMALL, TINY, conditions, difference, network, noise, ours, theirs
from benchmarks.protocol import Gate, conclude, interleave, parse_arguments, prepare, print_table, timed
from retort.models.mel_diffusion import MelConditions, MelDiffusion

STEPS = 31
CHECKED_STEPS = 20
SECONDS = 2.5


def bare(model: MelDiffusion, given: MelConditions, z: Tensor) -> Tensor:
    """The network alone; the sum of what it says."""
    total = torch.zeros_like(z)
    for step in range(STEPS, 0, -1):
        total = model(z, torch.full((len(z),), step / STEPS, dtype=torch.float64), given)
    return total


def main() -> None:
    """Measure and print."""
    args = parse_arguments(__doc__ or "", rounds=7)
    prepare(args)
    shape = TINY if args.quick else SMALL
    model = network(shape)
    lengths = [int(SECONDS * shape.frame_rate)]
    given, z = conditions(model, lengths), noise(model, lengths)
    peers = {
        "ours": functools.partial(ours, model, given, z, STEPS, guided=False),
        "the network alone": functools.partial(bare, model, given, z),
        "diffusers": functools.partial(theirs, model, given, z, STEPS, guided=False),
    }
    with torch.no_grad():
        worst = difference(model, given, z, CHECKED_STEPS)
        run = interleave({name: functools.partial(timed, work) for name, work in peers.items()}, args)
    print_table(run, "ms", 1e3)
    verdicts = [
        Gate("C7b sampler / the network alone (best, median)", 1.03, 1.01).judge(
            *run.ratios("ours", "the network alone")
        ),
        Gate("C7b sampler / diffusers (best, median)", 1.0, 0.99).judge(*run.ratios("ours", "diffusers")),
        Gate("C7b difference from diffusers", 1e-3, 1e-4).judge(worst),
    ]
    for peer in ("the network alone", "diffusers"):
        print(f"ours / {peer} in CPU seconds: {run.cpu_ratio('ours', peer):.3f}")
    conclude(run, args, verdicts)


if __name__ == "__main__":
    main()
