"""Every field of what decides how a student learns: changing it changes what is learned, on a toy.

A field that nobody reads is a promise that is not kept; where no toy can show a field, its reason stands here.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from retort.audio.spectra import resolutions_at
from retort.config import Config
from retort.data.mel_stream import MelBatch
from retort.data.phone_mel_stream import PhoneMelBatchConfig, PhoneMelStream
from retort.data.stream import BatchConfig
from retort.losses.divergence import ForwardKL, SkewKL
from retort.methods import guided_distill, interval_distill, progressive_distill
from retort.methods.cfg_distill import CFGDistillConfig
from retort.methods.guided_distill import GuidedDistillConfig
from retort.methods.interval_distill import IntervalDistillConfig
from retort.methods.mel_pretrain import DataTeacher, MelPretrainConfig, objective_of
from retort.methods.multilevel_distill import MultilevelDistillConfig, MultilevelObjective, TracedTeacher
from retort.methods.progressive_distill import ProgressiveDistillConfig
from retort.methods.self_distill import SelfDistillConfig, stream_of
from retort.methods.self_distill import student_from as zero_shot_student
from retort.methods.vocoder_pretrain import AdversaryConfig, VocoderObjective, VocoderPretrainConfig
from retort.methods.zero_shot_learning import ContrastiveConfig, ZeroShotLosses, ZeroShotObjective, ZeroShotTeacher
from retort.methods.zero_shot_pretrain import ZeroShotPretrainConfig
from retort.models.student_shape import SameAsTeacher
from retort.models.vocoder_discriminators import VocoderDiscriminator
from retort.models.weights import LoadedZeroShot
from retort.models.zero_shot.model import ZeroShot
from retort.orchestration.train.task import task_of
from retort.run_config import DistillConfig, PretrainConfig
from retort.training.fit import PlainOptimizer, fit
from retort.training.schedule import OptimizerConfig
from retort.training.seam import NoTeacher, Place, Teacher
from tests.methods import vocoder_toys
from tests.methods.mel_toys import GUIDANCE, some_denoiser, toy_batches
from tests.methods.test_multilevel_distill import batch as codes_batch
from tests.methods.test_multilevel_distill import model as layered
from tests.methods.zero_shot_toys import BATCHES as PHONE_BATCHES
from tests.methods.zero_shot_toys import ToyTimbre, some_model, toy_stream
from tests.models.test_zero_shot import LINEAGE
from tests.orchestration.train_runs import distill, pretrain, write_teacher, write_tokens

STEPS = 4
Learned = tuple[float, ...]
"""Losses of a few steps, then of each parameter what it has become."""


def learned(
    objective: nn.Module, teacher: Teacher[Any, Any], batches: Iterator[Any], optimizer: OptimizerConfig
) -> Learned:
    """Train a few steps."""
    torch.manual_seed(0)
    plain, losses = PlainOptimizer(objective, optimizer, STEPS), list[float]()
    pairs = ((batch, None) for batch in batches)
    fit(objective, teacher, pairs, plain, lambda _, out: losses.append(out.loss.item()))
    plain.use_average()
    return (*losses, *(float(p.detach().double().abs().sum()) for p in objective.parameters()))


def ignored_by(
    kind: type[Config],
    values: Mapping[str, Any],
    reasons: Mapping[str, str],
    learn: Callable[[Config], Learned],
    **base: Any,
) -> list[str]:
    """Fields of which another value changes nothing."""
    named = set(values) | set(reasons)
    assert named == set(kind.model_fields) - {"kind"}, f"{kind.__name__}: a field without a value or a reason"
    return changing_nothing(kind(**base), values, learn)


def changing_nothing(plain: Config, values: Mapping[str, Any], result: Callable[[Config], object]) -> list[str]:
    """Names of those ``values`` with which the result is that of ``plain``."""
    first = result(plain)
    assert result(plain) == first, "the same configuration gives the same"
    ignored = []
    for name, value in values.items():
        changed = plain.replace(**{name: value})
        assert changed != plain, f"{type(plain).__name__}.{name}: {value} is what it is already"
        if result(changed) == first:
            ignored.append(name)
    return ignored


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens and a teacher."""
    root = tmp_path_factory.mktemp("fields")
    write_tokens(root / "data")
    write_teacher(root / "teacher")
    return root


def run(job: DistillConfig | PretrainConfig) -> Learned:
    """Some steps of a run on token sets, a step of as many micro-batches as it says."""
    torch.manual_seed(0)
    problem, optimizer = task_of(job).build(Place()), job.training.optimizer
    batches = (problem.batches.batch(n) for n in range(STEPS * optimizer.accumulation))
    return learned(problem.objective, problem.teacher, batches, optimizer)


def test_cfg_distillation(world: Path) -> None:
    def learn(config: Config) -> Learned:
        return run(distill(world, "out", method=config.model_dump()))

    values = {
        "guidance": {"kind": "two_term", "scale": 3.0},
        "guidance_scales": (1.0, 3.0),
        "temperature": 2.0,
        "divergence": SkewKL(),
        "kl_weight": 0.5,
        "ce_weight": 0.5,
    }
    reasons = {"targets": "both must teach the same: test_cfg_distill_inputs.py"}
    assert ignored_by(CFGDistillConfig, values, reasons, learn, guidance={"kind": "two_term", "scale": 1.5}) == []


@pytest.mark.parametrize("kind", ["cfg_distill", "multilevel_distill"])
def test_divergences(world: Path, kind: str) -> None:
    def learn(config: Config) -> Learned:
        return run(distill(world, "out", method={"kind": kind, "divergence": config.model_dump()}))

    assert ignored_by(ForwardKL, {}, {}, learn) == []
    assert ignored_by(SkewKL, {"skew": 0.3, "direction": "reverse"}, {}, learn) == []


def test_multilevel_distillation() -> None:
    """A student of half the layers, so that it matters which of them it imitates."""

    def learn(config: Config) -> Learned:
        assert isinstance(config, MultilevelDistillConfig)
        objective = MultilevelObjective(layered(2, seed=1), (0, 3), 6, config)
        batches = (codes_batch() for _ in range(STEPS))
        return learned(objective, TracedTeacher(layered(6), config), batches, OptimizerConfig(learning_rate=1e-3))

    values = {
        "guidance": {"kind": "two_term", "scale": 3.0},
        "ce_weight": 0.5,
        "logit_weight": 0.5,
        "latent_weight": 0.5,
        "attention_weight": 0.5,
        "embedding_weight": 0.5,
        "divergence": SkewKL(skew=0.3),
        "temperature": 2.0,
        "matching": "static",
        "relative": False,
    }
    assert ignored_by(MultilevelDistillConfig, values, {}, learn) == []


BATCHES = {"max_utterances": 2, "max_frames": 40, "prompt_max_frames": 2, "prompts": "by_id"}
DROPS = ("drop_text", "drop_speaker", "drop_both")


def test_batches_of_a_pretraining(world: Path) -> None:
    def learn(config: Config) -> Learned:
        return run(pretrain(world, "out", batch=config.model_dump()))

    assert (
        ignored_by(BatchConfig, BATCHES | dict.fromkeys(DROPS, 0.5), {}, learn, max_utterances=6, max_frames=200) == []
    )


@pytest.mark.parametrize("method", [{}, {"kind": "multilevel_distill"}, {"kl_weight": 0.0, "ce_weight": 1.0}])
def test_batches_of_a_distillation(world: Path, method: dict[str, Any]) -> None:
    def learn(config: Config) -> Learned:
        return run(distill(world, "out", method=method, training={"batch": config.model_dump()}))

    refused = dict.fromkeys(DROPS, "refused: the target is conditional") if method.get("kl_weight") != 0 else {}
    values = BATCHES if refused else BATCHES | dict.fromkeys(DROPS, 0.5)
    assert ignored_by(BatchConfig, values, refused, learn, max_utterances=6, max_frames=200) == []


def test_optimizers(world: Path) -> None:
    def learn(config: Config) -> Learned:
        job = distill(world, "out")
        return run(job.replace(training=job.training.replace(optimizer=config)))

    values = {
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "final_fraction": 0.5,
        "decay": "linear",
        "betas": (0.5, 0.9),
        "weight_decay": 0.5,
        "gradient_clip": 0.01,
        "accumulation": 2,
        "ema_decay": 0.5,
    }
    assert ignored_by(OptimizerConfig, values, {}, learn, learning_rate=1e-2) == []


def small(objective: nn.Module, teacher: Teacher[MelBatch, Any]) -> Learned:
    return learned(objective, teacher, toy_batches(STEPS, 5, num_rows=8), OptimizerConfig(learning_rate=1e-3))


def test_pretraining_of_denoisers() -> None:
    def learn(config: Config) -> Learned:
        assert isinstance(config, MelPretrainConfig)
        model = some_denoiser()
        return small(objective_of(model, config), DataTeacher(model.config, config, seed=1))

    assert ignored_by(MelPretrainConfig, {"unconditioned_fraction": 0.6, "weighting": "snr_trunc"}, {}, learn) == []


def test_guided_distillation() -> None:
    def learn(config: Config) -> Learned:
        assert isinstance(config, GuidedDistillConfig)
        teacher, objective = guided_distill.build(some_denoiser(), config, seed=3)
        return small(objective, teacher)

    values = {
        "guidance": GUIDANCE.replace(scale=3.0),
        "num_steps": 4,
        "times": "grid",
        "prediction": "x",
        "weighting": "snr_capped",
    }
    reasons = {"largest_distance": "a gate after the training: test_guided_distill.py"}
    assert ignored_by(GuidedDistillConfig, values, reasons, learn, num_steps=8) == []


def test_progressive_distillation() -> None:
    def learn(config: Config) -> Learned:
        assert isinstance(config, ProgressiveDistillConfig)
        teacher, objective = progressive_distill.build(some_denoiser(), config, seed=3)
        return small(objective, teacher)

    values = {"num_steps": 4, "guidance": GUIDANCE, "weighting": "snr_capped"}
    assert ignored_by(ProgressiveDistillConfig, values, {}, learn, num_steps=8) == []


def test_distillation_of_intervals() -> None:
    def learn(config: Config) -> Learned:
        assert isinstance(config, IntervalDistillConfig)
        teacher, objective = interval_distill.build(some_denoiser(), config, seed=3)
        return small(objective, teacher)

    values = {
        "guidance": GUIDANCE,
        "guidance_steps": 20,
        "teacher_steps": 2,
        "start_fraction": 0.9,
        "final_fraction": 0.9,
        "min_interval": 0.4,
        "weighting": "snr_capped",
    }
    assert ignored_by(IntervalDistillConfig, values, {}, learn) == []


def test_pretraining_of_vocoders() -> None:
    def learn(config: Config) -> Learned:
        assert isinstance(config, VocoderPretrainConfig)
        torch.manual_seed(0)
        judge = (
            None if config.adversary is None else VocoderDiscriminator(resolutions_at(vocoder_toys.MEL.sample_rate), 4)
        )
        student = vocoder_toys.toy_vocoder()
        stream = vocoder_toys.toy_stream(student)
        objective = VocoderObjective(student, config, judge)
        batches = (stream.batch(n) for n in range(2))
        return learned(objective, NoTeacher(), batches, OptimizerConfig(learning_rate=1e-2))

    values = {"stft_weight": 0.5, "mel_weight": 0.5, "pitch_weight": 0.5, "adversary": AdversaryConfig()}
    assert ignored_by(VocoderPretrainConfig, values, {}, learn) == []


def test_adversaries_of_vocoders() -> None:
    def learn(config: Config) -> Learned:
        assert isinstance(config, AdversaryConfig)
        torch.manual_seed(0)
        judge = VocoderDiscriminator(resolutions_at(vocoder_toys.MEL.sample_rate), config.channels)
        student = vocoder_toys.toy_vocoder()
        stream = vocoder_toys.toy_stream(student)
        method = VocoderPretrainConfig(adversary=config)
        objective = VocoderObjective(student, method, judge, from_batch=config.from_step)
        batches = (stream.batch(n) for n in range(2))
        return learned(objective, NoTeacher(), batches, OptimizerConfig(learning_rate=1e-2))

    values = {"from_step": 1, "channels": 6, "weight": 0.9, "feature_weight": 0.9}
    assert ignored_by(AdversaryConfig, values, {}, learn, channels=4) == []


QUIET = ZeroShotLosses(contrastive=ContrastiveConfig(weight=0.0))
HEARD = ZeroShotLosses(contrastive=ContrastiveConfig(weight=0.3, batches=0.5, fraction=0.3, frames=16))


@pytest.fixture(scope="module")
def phone_mels(tmp_path_factory: pytest.TempPathFactory) -> PhoneMelStream:
    """Toy rows, and what a teacher said of them."""
    return toy_stream(tmp_path_factory.mktemp("phone_mels"), share=0.5)


def spoken(losses: ZeroShotLosses, model: ZeroShot, stream: PhoneMelStream) -> Learned:
    """Some steps of a zero-shot model."""
    objective, draws = ZeroShotObjective(model, losses, ToyTimbre()), ZeroShotTeacher(model.config, losses, seed=1)
    return learned(objective, draws, (stream.batch(n) for n in range(STEPS)), OptimizerConfig(learning_rate=1e-3))


def test_batches_of_phone_mels(phone_mels: PhoneMelStream) -> None:
    def learn(config: Config) -> Learned:
        assert isinstance(config, PhoneMelBatchConfig)
        return spoken(QUIET, some_model(), PhoneMelStream(phone_mels.rows, config, seed=3))

    values = {"max_utterances": 3, "max_frames": 40, "prompt_max_frames": 3}
    assert ignored_by(PhoneMelBatchConfig, values, {}, learn, **dict(PHONE_BATCHES)) == []


def test_losses_of_zero_shot_models(phone_mels: PhoneMelStream) -> None:
    def learn(config: Config) -> Learned:
        assert isinstance(config, ZeroShotLosses)
        return spoken(config, some_model(), phone_mels)

    weights = dict.fromkeys(("mel_l1", "mel_ssim", "kl", "duration", "pitch", "voicing", "energy"), 0.5)
    values = {**weights, "kl_free_nats": 50.0, "predictor_grad": 0.5, "contrastive": HEARD.contrastive}
    assert ignored_by(ZeroShotLosses, values, {}, learn, contrastive=QUIET.contrastive) == []


def test_the_contrast_of_voices(phone_mels: PhoneMelStream) -> None:
    def learn(config: Config) -> Learned:
        assert isinstance(config, ContrastiveConfig)
        return spoken(ZeroShotLosses(contrastive=config), some_model(), phone_mels)

    values = {"weight": 0.6, "temperature": 0.4, "batches": 1.0, "fraction": 0.9, "frames": 24}
    assert ignored_by(ContrastiveConfig, values, {}, learn, **dict(HEARD.contrastive)) == []


def test_pretraining_of_zero_shot_models(phone_mels: PhoneMelStream) -> None:
    def learn(config: Config) -> Learned:
        assert isinstance(config, ZeroShotPretrainConfig)
        return spoken(config.losses, some_model(), phone_mels)

    assert ignored_by(ZeroShotPretrainConfig, {"losses": HEARD}, {}, learn) == []


def test_self_distillation(phone_mels: PhoneMelStream) -> None:
    def learn(config: Config) -> Learned:
        assert isinstance(config, SelfDistillConfig)
        assert phone_mels.swaps is not None
        torch.manual_seed(0)
        student = zero_shot_student(LoadedZeroShot(some_model(), LINEAGE, "t"), SameAsTeacher(), config.init)
        stream = stream_of(phone_mels.rows, phone_mels.swaps.rows, config, PHONE_BATCHES, 3, Place())
        return spoken(config.losses, student, stream)

    values = {"sigma": 0.3, "direction": "synth_target", "init": "random", "losses": HEARD}
    assert ignored_by(SelfDistillConfig, values, {}, learn, losses=QUIET) == []
