"""From a run file to what it trains: the one place that knows all methods."""

from retort.methods.cfg_distill import CFGDistillation, CFGDistillConfig
from retort.methods.codec_lm_distillation import Distillation
from retort.methods.guided_distill import GuidedDistillation, GuidedDistillConfig
from retort.methods.interval_distill import IntervalDistillation, IntervalDistillConfig
from retort.methods.mel_data import MelDistillation
from retort.methods.mel_pretrain import MelPretraining
from retort.methods.multilevel_distill import MultilevelDistillation, MultilevelDistillConfig
from retort.methods.pretrain import Pretraining
from retort.methods.progressive_distill import ProgressiveDistillation, ProgressiveDistillConfig
from retort.methods.self_distill import SelfDistillation
from retort.methods.vocoder_pretrain import VocoderPretraining, VocoderSound
from retort.methods.zero_shot_pretrain import ZeroShotPretraining
from retort.run_config import (
    DistillConfig,
    DistillMelsConfig,
    DistillZeroShotConfig,
    PretrainConfig,
    PretrainMelsConfig,
    PretrainVocoderConfig,
    PretrainZeroShotConfig,
)
from retort.training.seam import Task

TrainJob = (
    PretrainConfig
    | PretrainMelsConfig
    | PretrainZeroShotConfig
    | PretrainVocoderConfig
    | DistillConfig
    | DistillMelsConfig
    | DistillZeroShotConfig
)


def task_of(config: TrainJob) -> Task:
    """The method of a job, with what the run file says of it."""
    match config:
        case PretrainConfig(training=training):
            return Pretraining(config.data, config.model, training.batch, training.seed)
        case PretrainMelsConfig(training=training):
            return MelPretraining(config.data, config.model, config.method, training.batch, training.seed)
        case PretrainZeroShotConfig(training=training):
            return ZeroShotPretraining(
                config.data,
                config.model,
                config.timbre,
                config.method,
                training.batch,
                training.seed,
                config.vocoder,
            )
        case PretrainVocoderConfig(training=training):
            sound = VocoderSound(config.corpus, config.audio, config.splits, config.mel)
            per_step = training.micro_batches_per_step
            return VocoderPretraining(sound, config.model, config.method, training.batch, per_step, training.seed)
        case DistillConfig():
            return _of_codec_lm(config)
        case DistillMelsConfig():
            return _of_denoiser(config)
        case DistillZeroShotConfig(training=training):
            return SelfDistillation(
                config.teacher,
                config.data,
                config.swapped,
                config.student,
                config.timbre,
                config.method,
                training.batch,
                training.seed,
                config.vocoder,
            )


def _of_codec_lm(config: DistillConfig) -> Task:
    given = Distillation(
        teacher=config.teacher,
        data=config.data,
        synthetic=config.synthetic,
        sampled_fraction=config.sampled_fraction,
        student=config.student,
        init=config.init,
        batch=config.training.batch,
        seed=config.training.seed,
    )
    match config.method:
        case CFGDistillConfig():
            return CFGDistillation(config.method, given)
        case MultilevelDistillConfig():
            return MultilevelDistillation(config.method, given)


def _of_denoiser(config: DistillMelsConfig) -> Task:
    given = MelDistillation(config.teacher, config.data, config.training.batch, config.training.seed)
    match config.method:
        case GuidedDistillConfig():
            return GuidedDistillation(config.method, given)
        case ProgressiveDistillConfig():
            return ProgressiveDistillation(config.method, given)
        case IntervalDistillConfig():
            return IntervalDistillation(config.method, given)
