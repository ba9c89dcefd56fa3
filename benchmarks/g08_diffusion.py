"""G8: diffusion on a GPU: 10 s of speech at batch 1, a ragged batch of 16, and what a student of 4 steps saves.

A random network of the size of F5-TTS's DiT (336M, mels of 24 kHz) in bf16. G8: 32 guided DDIM steps, against the loop
of ``diffusers`` that calls the network twice a step, and the share of the products' speed (MFU). G8b: 16 mels of very
unequal lengths, in groups of like lengths, against one padded batch and against 16 equal ones. G8c: the guided 32 steps
against 4 steps in one pass each.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.diffusion_peer import F5, SCALE, SCHEDULE, TINY, conditions, difference, network, noise, ours
from benchmarks.gpu import in_turns, parse, seconds_of
from benchmarks.protocol import Gate
from retort.models.mel_diffusion import MelConditions, MelDiffusion

SECONDS, TEACHER_STEPS, STUDENT_STEPS = 10.0, 32, 4
ROWS, GROUPS, VARIATION = 16, 4, 0.5
"""Mels of the ragged batch, groups they are put in, and the standard deviation of their lengths over the mean."""


def flops_per_second(device: torch.device) -> float:
    """How fast the device multiplies bf16: the best of ten products of square matrices, 8192 wide (256 on a CPU)."""
    size = 8192 if device.type == "cuda" else 256
    generator = torch.Generator(device=device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).bfloat16() for _ in range(2))
    return 2.0 * size**3 / min(seconds_of(lambda: a @ b, device) for _ in range(10))


def flops(model: MelDiffusion, num_frames: int) -> float:
    """Of one evaluation: two for each weight of the blocks and patch, and the attention's products."""
    patches = -(-num_frames // model.config.patch_frames)
    # What a block is told about time and voice is one position, not one a patch.
    per_patch = sum(p.numel() for name, p in model.blocks.named_parameters() if "modulation" not in name)
    per_patch += model.patch_in.weight.numel() + model.patch_out.weight.numel()
    told = sum(p.numel() for name, p in model.blocks.named_parameters() if "modulation" in name)
    attention = 4.0 * patches**2 * model.config.dim * model.config.num_layers
    return 2.0 * per_patch * patches + 2.0 * told + attention


def twice(model: MelDiffusion, given: MelConditions, z: Tensor, num_steps: int) -> Tensor:
    """The loop of ``diffusers``, with two calls of the network a step as pipelines without packing do."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scale = 1000 / SCHEDULE.num_steps
    scheduler = DDIMScheduler(
        num_train_timesteps=SCHEDULE.num_steps, beta_start=scale * 1e-4, beta_end=scale * 0.02, beta_schedule="linear",
        timestep_spacing="trailing", prediction_type="v_prediction",
    )  # fmt: skip
    scheduler.set_timesteps(num_steps, device=z.device)
    null_given = given.dropped()
    for t in scheduler.timesteps:
        u_B = ((t + 1) / SCHEDULE.num_steps).expand(len(z))
        cond, null = model(z, u_B, given).float(), model(z, u_B, null_given).float()
        z = scheduler.step(null + SCALE * (cond - null), t, z, use_clipped_model_output=True, return_dict=False)[0]
    return z


def ragged_lengths(mean: int) -> list[int]:
    """Sixteen lengths around a mean, shortest first, as unequal as VARIATION says."""
    generator = torch.Generator().manual_seed(4)
    draws = torch.rand(ROWS, generator=generator).sort().values
    spread = (draws - draws.mean()) / draws.std() * VARIATION
    return [max(8, round(mean * float(1.0 + s))) for s in spread]


def batches(
    model: MelDiffusion, groups: Sequence[Sequence[int]], device: torch.device
) -> list[tuple[MelConditions, Tensor]]:
    """What each group is told, and its start."""
    return [(conditions(model, lengths, device), noise(model, lengths, device)) for lengths in groups]


def speak(model: MelDiffusion, given: Sequence[tuple[MelConditions, Tensor]], num_steps: int, *, guided: bool) -> None:
    """One batch after the other."""
    for told, z in given:
        found = ours(model, told, z, num_steps, guided=guided)
        assert found.shape == z.shape, "the payload must be whole"


def main() -> None:
    """Measure and print."""
    args, device = parse(__doc__ or "")
    shape = TINY if args.quick else F5
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = network(shape, device=device, dtype=dtype)
    frames = int((1.0 if args.quick else SECONDS) * shape.frame_rate)
    lengths = ragged_lengths(frames)
    in_order = [lengths[i : i + ROWS // GROUPS] for i in range(0, ROWS, ROWS // GROUPS)]
    one = batches(model, [[frames]], device)
    with torch.no_grad():
        worst = difference(model, *one[0], TEACHER_STEPS)
        peers: dict[str, Callable[[], object]] = {
            "one, guided": functools.partial(speak, model, one, TEACHER_STEPS, guided=True),
            "one, guided, diffusers": functools.partial(twice, model, *one[0], TEACHER_STEPS),
            "one, student": functools.partial(speak, model, one, STUDENT_STEPS, guided=False),
        }
        for name, groups in (("groups", in_order), ("padded", [lengths]), ("equal", [[sum(lengths) // ROWS] * ROWS])):
            given = batches(model, groups, device)
            peers[f"16, {name}"] = functools.partial(speak, model, given, TEACHER_STEPS, guided=True)
        best = in_turns(peers, device, 1 if args.quick else args.rounds)
    for name, seconds in best.items():
        spoken = (frames if name.startswith("one") else sum(lengths)) / shape.frame_rate
        print(f"{name:26s}{1e3 * seconds:10.1f} ms {spoken / seconds:10.1f} audio-s/s")
    print(f"our guided DDIM differs from diffusers' by {worst:.1e} of the data's range")
    mfu = 2 * TEACHER_STEPS * flops(model, frames) / best["one, guided"] / flops_per_second(device)
    verdicts = [
        Gate("G8 diffusers / ours", 2.0, 3.0, True).judge(best["one, guided, diffusers"] / best["one, guided"]),
        Gate("G8 share of the products' speed", 0.30, 0.45, True).judge(mfu),
        Gate("G8b padded / groups", 1.4, 1.7, True).judge(best["16, padded"] / best["16, groups"]),
        Gate("G8b equal lengths / groups", 0.88, 0.95, True).judge(best["16, equal"] / best["16, groups"]),
        Gate("G8c guided teacher / student", 13.0, 15.0, True).judge(best["one, guided"] / best["one, student"]),
    ]
    for line in verdicts:
        print(line + ("  [quick check: proves nothing]" if args.quick else ""))


if __name__ == "__main__":
    main()
