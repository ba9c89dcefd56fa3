"""One job of a tour or of a trial: a union, told apart by ``job``."""

from typing import Annotated

from pydantic import Field

from retort.run_config.evaluate import EvaluateConfig, ReportConfig
from retort.run_config.generate import GenerateConfig
from retort.run_config.outside import ExportConfig, ImportConfig
from retort.run_config.prepare import PrepareConfig
from retort.run_config.prune import PruneConfig
from retort.run_config.training import DistillConfig, PretrainConfig

JobConfig = Annotated[
    PrepareConfig
    | PretrainConfig
    | ImportConfig
    | GenerateConfig
    | PruneConfig
    | DistillConfig
    | EvaluateConfig
    | ReportConfig
    | ExportConfig,
    Field(discriminator="job"),
]
