"""Where the metrics of a training job go besides ``metrics.jsonl`` and TensorBoard, which always have them."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from retort.config import Config


class MLflowConfig(Config):
    """MLflow; needs ``pip install mlflow-skinny``. Its own variables carry name and password."""

    kind: Literal["mlflow"]
    uri: str = Field(min_length=1)
    """Of the tracking server, or a ``sqlite:///`` file."""
    experiment: str = Field(default="retort", min_length=1)

    @field_validator("uri")
    @classmethod
    def _without_secrets(cls, value: str) -> str:
        if "@" in urlsplit(value).netloc:
            # Without the value, which is written into run files and messages.
            raise ValueError("the uri names a user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        return value


class TrackioConfig(Config):
    """Trackio, in files of this machine; needs ``pip install trackio``."""

    kind: Literal["trackio"]
    project: str = Field(default="retort", min_length=1)


TrackerConfig = Annotated[MLflowConfig | TrackioConfig, Field(discriminator="kind")]
