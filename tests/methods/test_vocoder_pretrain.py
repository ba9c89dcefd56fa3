"""A vocoder and its adversary: that it learns, that each has its own optimizer, and that a run goes on exactly."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retort.audio.mel import MelConfig
from retort.audio.spectra import resolutions_at
from retort.data.sound_stream import SoundBatch
from retort.errors import ConfigError
from retort.methods.vocoder_pretrain import (
    AdversaryConfig,
    DiscriminatorObjective,
    Made,
    VocoderObjective,
    VocoderPreset,
    VocoderPretrainConfig,
    vocoder_of,
)
from retort.models.vocoder import VocoderConfig
from retort.models.vocoder_discriminators import (
    VocoderDiscriminator,
    deception_loss,
    discriminator_loss,
    feature_distance,
)
from retort.training.fit import Adversary, BadLossError, PlainOptimizer, fit
from retort.training.schedule import OptimizerConfig
from retort.training.seam import NoTeacher, StepOutput
from tests.methods.vocoder_toys import MEL, TOY, toy_stream, toy_vocoder

OPTIMIZER = OptimizerConfig(learning_rate=3e-3, betas=(0.8, 0.99), weight_decay=0.01)
FROM_STEP = 2


class Run:
    """A vocoder and its discriminator with their optimizers."""

    def __init__(self, *, steps: int = 8, accumulation: int = 1, judged: bool = True) -> None:
        adversary = AdversaryConfig(from_step=FROM_STEP, channels=4) if judged else None
        config = VocoderPretrainConfig(adversary=adversary)
        student = toy_vocoder(TOY).train()
        torch.manual_seed(1)
        self.discriminator = VocoderDiscriminator(resolutions_at(MEL.sample_rate), 4)
        given = self.discriminator if judged else None
        self.objective = VocoderObjective(student, config, given, from_batch=FROM_STEP * accumulation)
        self.judge = DiscriminatorObjective(self.discriminator)
        settings = OPTIMIZER.replace(accumulation=accumulation)
        self.optimizers = [PlainOptimizer(module, settings, steps) for module in (self.objective, self.judge)]
        self.adversary = Adversary(self.judge, self.optimizers[1]) if judged else None
        self.stream = toy_stream(student)
        self.outputs: list[StepOutput] = []

    def train(self, start: int, stop: int) -> "Run":
        batches = ((self.stream.batch(n), None) for n in range(start, stop))
        fit(
            self.objective,
            NoTeacher(),
            batches,
            self.optimizers[0],
            lambda _, out: self.outputs.append(out),
            self.adversary,
        )
        return self

    def state(self) -> dict[str, Any]:
        modules: list[nn.Module] = [self.objective, self.judge]
        pairs = zip(modules, self.optimizers, strict=True)
        return copy.deepcopy({i: (m.state_dict(), o.adam.state_dict(), o.micro_step) for i, (m, o) in enumerate(pairs)})

    def restore(self, state: dict[str, Any]) -> "Run":
        modules: list[nn.Module] = [self.objective, self.judge]
        for i, (module, optimizer) in enumerate(zip(modules, self.optimizers, strict=True)):
            weights, adam, optimizer.micro_step = copy.deepcopy(state[i])
            module.load_state_dict(weights)
            optimizer.adam.load_state_dict(adam)
        return self


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def test_the_mels_come_nearer() -> None:
    torch.manual_seed(0)
    run = Run(steps=60, judged=False).train(0, 60)
    first, last = (
        float(torch.stack([o.metrics["mel"] for o in part]).mean()) for part in (run.outputs[:5], run.outputs[-5:])
    )
    assert last < 0.7 * first
    pitch = [float(o.metrics["pitch"]) for o in run.outputs]
    assert sum(pitch[-5:]) < 0.8 * sum(pitch[:5])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_goes_on_exactly_with_both_optimizers(accumulation: int) -> None:
    """Before the adversary has begun, and after."""
    stop = 6 * accumulation
    whole = Run(accumulation=accumulation).train(0, stop)
    for done in (1, 4):
        at = done * accumulation
        first = Run(accumulation=accumulation).train(0, at)
        second = Run(accumulation=accumulation).restore(first.state()).train(at, stop)
        expected, found = list(tensors(whole.state())), list(tensors(second.state()))
        assert len(expected) == len(found)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_the_adversary_begins_at_its_step_and_counts_the_ones_before() -> None:
    run = Run()
    before = [p.clone() for p in run.judge.parameters()]
    run.train(0, FROM_STEP)
    assert all(torch.equal(a, b) for a, b in zip(before, run.judge.parameters(), strict=True))
    assert [optimizer.step for optimizer in run.optimizers] == [FROM_STEP, FROM_STEP]
    run.train(FROM_STEP, FROM_STEP + 2)
    changed = {name: not torch.equal(a, b) for a, (name, b) in zip(before, run.judge.named_parameters(), strict=True)}
    # Recordings pull the last bias up as hard as what is made pulls it down, as long as nobody is sure.
    assert {name for name, value in changed.items() if not value} <= {
        f"discriminator.parts.{i}.leave.bias" for i in range(3)
    }
    assert [optimizer.step for optimizer in run.optimizers] == [FROM_STEP + 2, FROM_STEP + 2]
    names = [set(output.metrics) for output in run.outputs]
    judged = {"deception", "features", "discriminator"}
    assert [judged <= own for own in names] == [False, False, True, True]
    assert names[0] == names[2] - judged == {"mel", "convergence", "log_magnitude", "pitch", "voicing"}


def test_neither_gives_the_other_gradients() -> None:
    run = Run()
    batch = run.stream.batch(FROM_STEP)
    out: StepOutput = run.objective(batch, None)
    out.loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in run.discriminator.parameters())
    given = [p.grad.clone() for p in run.objective.parameters() if p.grad is not None]
    assert not out.for_adversary.samples_BN.requires_grad
    judged: StepOutput = run.judge(batch, out.for_adversary)
    judged.loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in run.discriminator.parameters())
    now = [p.grad for p in run.objective.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(given, now, strict=True))
    assert not any(name.startswith("discriminator") for name, _ in run.objective.named_parameters())


def test_the_adversary_teaches_the_vocoder() -> None:
    batch = Run().stream.batch(FROM_STEP)
    grads = []
    for judged in (True, False):
        run = Run(judged=judged)
        run.objective(batch, None).loss.backward()
        grads.append(run.objective.student.head.weight.grad)
    assert not torch.equal(*grads)


def test_a_bad_loss_of_the_adversary_is_found_before_anything_changes() -> None:
    run = Run()
    before = [p.clone() for p in run.objective.parameters()]
    with torch.no_grad():
        run.discriminator.parts[0].leave.weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
    run.objective.from_batch = 100
    run.train(0, 1)
    run.objective.from_batch = 0
    after = [p.clone() for p in run.objective.parameters()]
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(BadLossError, match="the loss is nan at batch 0"):
        run.train(1, 2)
    assert all(torch.equal(a, b) for a, b in zip(after, run.objective.parameters(), strict=True))


def test_the_discriminators_losses_by_hand() -> None:
    seen = [torch.tensor([1.0, 2.0])]
    true = [(torch.tensor([2.0, 0.5]), seen)]
    made = [(torch.tensor([-3.0, 0.5]), [torch.tensor([1.0, 4.0])])]
    assert float(discriminator_loss(true, made)) == pytest.approx(0.25 + 0.75)
    assert float(deception_loss(made)) == pytest.approx(1.25)
    assert float(feature_distance(true, made)) == pytest.approx(1.0)


def test_a_discriminator_learns_to_tell_sounds_apart() -> None:
    torch.manual_seed(0)
    judge = DiscriminatorObjective(VocoderDiscriminator(resolutions_at(MEL.sample_rate), 4))
    adam = torch.optim.Adam(judge.parameters(), lr=1e-2)
    batch = Run().stream.batch(0)
    losses = []
    for _ in range(20):
        out: StepOutput = judge(batch, Made(0.05 * torch.randn_like(batch.samples_BN)))
        adam.zero_grad()
        out.loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_batches_are_functions_of_seed_and_number_and_ranks_share_them_out() -> None:
    model = toy_vocoder()

    def same(a: SoundBatch, b: SoundBatch) -> bool:
        return all(
            torch.equal(x, y)
            for x, y in zip(tensors(list(vars(a).values())), tensors(list(vars(b).values())), strict=True)
        )

    one, again, other = (toy_stream(model, seed=seed) for seed in (0, 0, 1))
    again.batch(0)
    assert same(one.batch(3), again.batch(3))
    assert not same(one.batch(3), other.batch(3))
    for rank in (0, 1):
        half = toy_stream(model, rank=rank, world_size=2)
        assert same(half.batch(2), one.batch(4 + rank))
        assert half.ids(2) == one.ids(4 + rank)
        assert half.num_valid(2) == one.num_valid(4) == 4 * 4 * 24
    batch = one.batch(0)
    assert batch.samples_BN.shape == (4, 24 * MEL.hop_samples)
    assert batch.mel_BMT.shape == (4, MEL.num_mels, 24 + 2 * model.reach)
    assert batch.pitch_BT.shape == (4, 24 + 2 * model.reach)
    assert int(batch.num_valid) == 4 * 24


def test_a_segment_longer_than_its_recording_goes_on_in_silence() -> None:
    model = toy_vocoder(VocoderConfig(**{**dict(TOY), "dim": 8, "hidden": 8}))
    batch = toy_stream(model, frames=200).batch(0)
    assert not bool(batch.samples_BN[:, 180 * MEL.hop_samples :].any())
    assert bool((batch.mel_BMT[..., -10:] < -11.5).all())


def test_a_preset_that_does_not_fit_the_mels_is_refused_in_words() -> None:
    long = MelConfig(hop_samples=128, window_samples=2048, fft_size=2048)
    with pytest.raises(ConfigError, match="the model's size does not work"):
        vocoder_of(VocoderPreset(kind="preset", name="tiny"), long)
