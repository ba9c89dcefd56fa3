"""From a run file to what it trains: the one place that knows all methods."""

from retort.methods.cfg_distill import CFGDistillation, CFGDistillConfig
from retort.methods.codec_lm_distillation import Distillation
from retort.methods.multilevel_distill import MultilevelDistillation, MultilevelDistillConfig
from retort.methods.pretrain import Pretraining
from retort.run_config import DistillConfig, PretrainConfig
from retort.training.seam import Task

TrainJob = PretrainConfig | DistillConfig


def task_of(config: TrainJob) -> Task:
    """The method of a job, with what the run file says of it."""
    training = config.training
    if isinstance(config, PretrainConfig):
        return Pretraining(config.data, config.model, training.batch, training.seed)
    given = Distillation(
        teacher=config.teacher,
        data=config.data,
        synthetic=config.synthetic,
        sampled_fraction=config.sampled_fraction,
        student=config.student,
        init=config.init,
        batch=training.batch,
        seed=training.seed,
    )
    match config.method:
        case CFGDistillConfig():
            return CFGDistillation(config.method, given)
        case MultilevelDistillConfig():
            return MultilevelDistillation(config.method, given)
