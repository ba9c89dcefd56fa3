"""One job of a tour or of a trial: a union, told apart by ``job``."""

from typing import Annotated

from pydantic import Field

from retort.run_config.evaluate import EvaluateConfig, ReportConfig
from retort.run_config.generate import GenerateConfig
from retort.run_config.prepare import PrepareConfig
from retort.run_config.training import DistillConfig, PretrainConfig

JobConfig = Annotated[
    PrepareConfig | PretrainConfig | GenerateConfig | DistillConfig | EvaluateConfig | ReportConfig,
    Field(discriminator="job"),
]
