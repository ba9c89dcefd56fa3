"""A toy for the methods on denoisers: mels of two modes, told by latents, and a teacher that learns them in seconds.

A row's mel is a pattern, which its latents say and its voice shifts, raised or lowered as a whole by chance, and noise.
So one step of a sampler, which gives the mean, is far from the data, and many steps are near.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from retort.data.mel_stream import MelBatch
from retort.inference.diffusion_sampling import DDIMSolver, IntervalSolver, sample
from retort.methods.mel_pretrain import DataTeacher, MelPretrainConfig, objective_of
from retort.models.mel_denoise import guided_denoise
from retort.models.mel_diffusion import MelConditions, MelDiffusion, MelDiffusionConfig
from retort.nn.diffusion_guidance import AnyDiffusionGuidance, ConstantGuidance, NoDiffusionGuidance
from retort.nn.noise_schedule import CosineSchedule
from retort.training.fit import PlainOptimizer, fit
from retort.training.schedule import OptimizerConfig

NUM_MELS, LATENT_DIM = 4, 4
TOY = MelDiffusionConfig(
    num_mels=NUM_MELS, latent_dim=LATENT_DIM, dim=32, num_layers=1, num_heads=2, ffn_dim=64, patch_frames=2,
    schedule=CosineSchedule(log_snr_min=-10.0, log_snr_max=10.0), mel_min=-1.0, mel_max=1.0,
)  # fmt: skip
GUIDANCE = ConstantGuidance(scale=1.5)
RAISED = 0.4
"""By which a row lies above or below its pattern."""


def toy_batch(num_rows: int, generator: torch.Generator) -> MelBatch:
    """Rows of 4 to 8 frames, two per latent."""
    lengths_B = torch.randint(2, 5, (num_rows,), generator=generator)
    latents_BLD = torch.randn(num_rows, 4, LATENT_DIM, generator=generator)
    voice_BPM = torch.randn(num_rows, 1, 1, generator=generator).expand(-1, 3, NUM_MELS)
    sign_B11 = torch.randint(2, (num_rows, 1, 1), generator=generator) * 2.0 - 1.0
    noise_BTM = torch.randn(num_rows, 8, NUM_MELS, generator=generator)
    conditions = MelConditions(
        latents_BLD,
        lengths_B,
        voice_BPM,
        torch.ones(num_rows, 3, dtype=torch.bool),
        torch.arange(8) < 2 * lengths_B[:, None],
    )
    return MelBatch(conditions, pattern_of(conditions) + RAISED * sign_B11 + 0.1 * noise_BTM, torch.arange(num_rows))


def pattern_of(conditions: MelConditions) -> Tensor:
    """The mean of a row's mel, [B, 8, M]."""
    heard_BLD = torch.tanh(conditions.latents_BLD + 0.5 * conditions.voice_BPM[:, :1].clamp(-1.0, 1.0))
    return 0.4 * heard_BLD.repeat_interleave(2, 1)


def unweighted(batches: Iterator[MelBatch]) -> Iterator[tuple[MelBatch, None]]:
    """As the loop takes them."""
    return ((batch, None) for batch in batches)


def toy_batches(num_batches: int, seed: int, num_rows: int = 48) -> Iterator[MelBatch]:
    """Batches that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_batches):
        yield toy_batch(num_rows, generator)


def train(objective: nn.Module, teacher: object, steps: int, *, rate: float, seed: int) -> None:
    """The one loop, with the methods' optimizer: no decay, a rate that falls to 0."""
    optimizer = PlainOptimizer(
        objective,
        OptimizerConfig(learning_rate=rate, final_fraction=0.0, betas=(0.9, 0.999), weight_decay=0.0),
        steps,
    )
    fit(objective, teacher, unweighted(toy_batches(steps, seed)), optimizer, lambda step, out: None)
    objective.eval()


def trained_teacher(steps: int = 400) -> MelDiffusion:
    """A denoiser of the toy's mels that may be guided."""
    torch.manual_seed(0)
    config = MelPretrainConfig(unconditioned_fraction=0.2)
    model = MelDiffusion(TOY)
    train(objective_of(model, config), DataTeacher(TOY, config, seed=1), steps, rate=5e-3, seed=2)
    return model


def some_denoiser(config: MelDiffusionConfig = TOY, seed: int = 0) -> MelDiffusion:
    """An untrained denoiser, away from the initial point, where the output is zero."""
    torch.manual_seed(seed)
    model = MelDiffusion(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def held_out(num_rows: int = 96, seed: int = 99) -> tuple[MelConditions, Tensor]:
    """Conditions that no training saw, and start noise."""
    generator = torch.Generator().manual_seed(seed)
    conditions = toy_batch(num_rows, generator).conditions
    return conditions, torch.randn(*conditions.mask_BT.shape, NUM_MELS, generator=generator)


def samples(
    model: MelDiffusion, num_steps: int, guidance: AnyDiffusionGuidance | None = None, *, ramp_steps: int = 80
) -> Tensor:
    """What a model makes of the held-out conditions in so many steps."""
    conditions, noise_BTM = held_out()
    solver = IntervalSolver(num_steps=num_steps) if model.config.takes_interval else DDIMSolver(num_steps=num_steps)
    denoise = guided_denoise(model, conditions, guidance or NoDiffusionGuidance(), ramp_steps)
    return sample(denoise, solver, noise_BTM, schedule=model.config.schedule)


def distance(a_BTM: Tensor, b_BTM: Tensor) -> float:
    """Mean absolute difference over the held-out rows' valid frames."""
    mask_BT = held_out()[0].mask_BT
    return float((a_BTM - b_BTM).abs()[mask_BT].mean())
