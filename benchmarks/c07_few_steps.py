"""C7: what a few-step student of a diffusion teacher saves, as a share of the evaluations that it saves.

The teacher takes 80 guided steps, paper 2's preset (160 evaluations of the network); the student 31 steps in one pass
each, and 4. The same random network plays both. The loops of ``diffusers`` take turns with ours: DDIM for teacher and
students, and DPM-Solver++ with 15 guided steps (30 evaluations), what one gets without any training.
"""

import functools

import torch

from benchmarks.diffusion_peer import SMALL, TINY, conditions, difference, network, noise, ours, theirs
from benchmarks.protocol import Gate, conclude, interleave, parse_arguments, prepare, print_table, timed

TEACHER_STEPS, STUDENT_STEPS, FEWEST_STEPS, TRAINING_FREE_STEPS = 80, 31, 4, 15
CHECKED_STEPS = 20
SECONDS = 5.0
"""Shorter mels make the second row of the guidance cheap: it reads the same weights and waits for the same calls."""


def main() -> None:
    """Measure and print."""
    args = parse_arguments(__doc__ or "")
    prepare(args)
    shape = TINY if args.quick else SMALL
    model = network(shape)
    lengths = [int(SECONDS * shape.frame_rate)]
    given, z = conditions(model, lengths), noise(model, lengths)
    with torch.no_grad():
        worst = difference(model, given, z, CHECKED_STEPS)
        cases = (("teacher", TEACHER_STEPS, True), ("student", STUDENT_STEPS, False))
        peers = {
            f"{side}, {name}": functools.partial(sampled, model, given, z, steps, guided=guided)
            for side, sampled in (("ours", ours), ("diffusers", theirs))
            for name, steps, guided in (*cases, ("student, 4 steps", FEWEST_STEPS, False))
        }
        peers["diffusers, DPM++ 15 guided"] = functools.partial(
            theirs, model, given, z, TRAINING_FREE_STEPS, guided=True, solver="dpm"
        )
        run = interleave({name: functools.partial(timed, work) for name, work in peers.items()}, args)
    print_table(run)
    print(f"our guided DDIM differs from diffusers' by {worst:.1e} of the data's range")
    verdicts = [Gate("C7 difference from diffusers", 1e-3, 1e-4).judge(worst)]
    for side in ("ours", "diffusers"):
        for name, steps in (("student", STUDENT_STEPS), ("student, 4 steps", FEWEST_STEPS)):
            saved = 2 * TEACHER_STEPS / steps
            ratios = [ratio / saved for ratio in run.ratios(f"{side}, teacher", f"{side}, {name}")]
            cpu = run.cpu_ratio(f"{side}, teacher", f"{side}, {name}") / saved
            print(
                f"{side}, {name}: {ratios[0] * saved:.2f}x faster, in CPU seconds {cpu * saved:.2f}x, of {saved:.2f}x"
            )
            if side == "ours":
                gate = Gate(f"C7 {name}: speed-up / ratio of evaluations (best, median)", 0.90, 0.97, at_least=True)
                verdicts.append(gate.judge(*ratios))
    best, median = run.ratios("diffusers, DPM++ 15 guided", "ours, student, 4 steps")
    print(f"DPM++ with 15 guided steps / ours with 4: {best:.2f} / {median:.2f}")
    conclude(run, args, verdicts)


if __name__ == "__main__":
    main()
