"""What runs in a process of Ray Serve, a model or all with their API, and how many of them there are."""

import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

from retort.config import validate
from retort.errors import ConfigError, DataError
from retort.serving.api import build_api
from retort.serving.backends import Ask, LocalBackend
from retort.serving.memory import keep_everything
from retort.serving.settings import ServeConfig, ServedModel
from retort.serving.speaking import OverloadedError, Snippet

IN_FLIGHT = "audio_seconds_in_flight"
"""What replicas report to the autoscaler."""


class EngineReplica(LocalBackend):
    """What Ray Serve runs: a :class:`Backend` of its own process, its health, and the number for the autoscaler."""

    def __init__(self, model: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        super().__init__(
            validate(dict(model), ServedModel, where="the model"),
            validate(dict(config), ServeConfig, where="the application"),
        )
        keep_everything()

    async def answer(self, ask: Ask) -> AsyncIterator[Snippet | Exception]:
        """:meth:`speak` for a handle: a request that is refused gets the error as its only answer.

        Ray Serve would log what is raised with its traceback: here, in the speaker's process, in the middle of a flood.
        """
        try:
            async for piece in self.speak(ask):
                yield piece
        except (OverloadedError, ConfigError, DataError) as error:
            yield error

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve calls this, and gives it to :class:`AudioSecondsPolicy`."""
        return {IN_FLIGHT: self.speaking.admission.in_flight_s}

    async def check_health(self) -> None:
        """Ray Serve replaces a replica whose speaker is gone."""
        if not self.speaking.is_alive:
            raise RuntimeError("the speaking thread has ended")

    def __del__(self) -> None:
        if hasattr(self, "speaking"):
            self.speaking.stop()


class WholeReplica:
    """The API and its models in one process of Ray Serve: no hop between them, and they scale as one."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = validate(dict(config), ServeConfig, where="the application")
        self._models = {
            model.name: EngineReplica(model.model_dump(mode="json"), config) for model in self._config.models
        }

    def __serve_build_asgi_app__(self) -> Any:
        """Ray Serve calls this in the replica."""
        api = build_api(self._config, self._models)
        keep_everything()
        return api

    def record_autoscaling_stats(self) -> dict[str, float]:
        """See :class:`EngineReplica`."""
        return {IN_FLIGHT: sum(model.speaking.admission.in_flight_s for model in self._models.values())}

    async def check_health(self) -> None:
        """See :class:`EngineReplica`."""
        for model in self._models.values():
            await model.check_health()


class AudioSecondsPolicy:
    """As many replicas as the predicted seconds of speech in flight need.

    Args:
        target_audio_seconds: in flight for which one replica is enough.
    """

    def __init__(self, target_audio_seconds: float) -> None:
        self._target = target_audio_seconds

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas, within the deployment's bounds."""
        by_replica = (context.aggregated_metrics or {}).get(IN_FLIGHT, {})
        in_flight_s = sum(by_replica.values())
        wanted = math.ceil(in_flight_s / self._target)
        low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(low, min(high, max(1, wanted))), {}
