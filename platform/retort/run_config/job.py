"""One job of a tour or of a trial: a union, told apart by ``job``."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from retort.config_faults import UNKNOWN_BRANCH
from retort.run_config.align import AlignConfig
from retort.run_config.evaluate import EvaluateConfig, ReportConfig
from retort.run_config.generate import GenerateConfig
from retort.run_config.generate_mels import GenerateMelsConfig
from retort.run_config.generate_phone_mels import GeneratePhoneMelsConfig
from retort.run_config.generate_speech import GenerateSpeechConfig
from retort.run_config.outside import ExportJob, ImportConfig
from retort.run_config.prepare import PrepareConfig
from retort.run_config.prune import PruneConfig
from retort.run_config.training import DistillJob, PretrainJob

_MADE = ("tokens", "mels", "phone_mels", "speech")


def _makes(given: Any) -> str | None:
    """The tag of a generation; files from before there were mels say nothing of it."""
    made = given.get("makes", "tokens") if isinstance(given, dict) else given.makes
    return made if made in _MADE else None


GenerateJob = Annotated[
    Annotated[GenerateConfig, Tag("tokens")]
    | Annotated[GenerateMelsConfig, Tag("mels")]
    | Annotated[GeneratePhoneMelsConfig, Tag("phone_mels")]
    | Annotated[GenerateSpeechConfig, Tag("speech")],
    Discriminator(
        _makes, custom_error_type=UNKNOWN_BRANCH, custom_error_message=f"makes: it is one of {', '.join(_MADE)}"
    ),
]
"""Any kind of generation, told apart by ``makes``."""

JobConfig = Annotated[
    PrepareConfig
    | AlignConfig
    | PretrainJob
    | ImportConfig
    | GenerateJob
    | PruneConfig
    | DistillJob
    | EvaluateConfig
    | ReportConfig
    | ExportJob,
    Field(discriminator="job"),
]
