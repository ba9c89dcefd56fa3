"""One model in one process of Ray Serve, and how many of them there are."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import torch

from retort.config import validate
from retort.inference.speech import SpeechEngine
from retort.inference.synthesizer import Synthesizer
from retort.orchestration.outputs import result_of
from retort.serving.backends import Ask, Description, LocalBackend, Numbers
from retort.serving.settings import ServeConfig, ServedModel
from retort.serving.speaking import Piece

IN_FLIGHT = "audio_seconds_in_flight"
"""What replicas report to the autoscaler."""


def open_backend(model: ServedModel, config: ServeConfig) -> LocalBackend:
    """A model that is ready: loaded, its number format chosen, and warm.

    Raises:
        ConfigError: the guidance is not valid for the model.
        DataError: the folder holds no model that can speak.
    """
    torch.set_num_threads(model.threads)
    folder = result_of(model.path)
    synthesizer = Synthesizer.open(folder, precision=model.precision, device="cuda" if model.gpus else "cpu")
    guidance = model.guidance.build()
    synthesizer.loaded.check_guidance(guidance)
    engine = SpeechEngine(
        synthesizer,
        max_slots=model.slots,
        max_conditions=len(guidance.conditions),
        max_seconds=config.limits.max_seconds,
        max_text_tokens=config.limits.max_text_tokens,
        guard=config.guard,
    )
    engine.warm_up()
    return LocalBackend(model, engine, config.limits, created=int(folder.stat().st_mtime))


class EngineReplica:
    """What Ray Serve runs: the methods of :class:`Backend`, health, and the number for the autoscaler."""

    def __init__(self, model: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        settings = validate(dict(config), ServeConfig, where="the application")
        self._backend = open_backend(validate(dict(model), ServedModel, where="the model"), settings)

    async def speak(self, ask: Ask) -> AsyncIterator[Piece]:
        """See :class:`Backend`."""
        pieces = self._backend.speak(ask)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    async def describe(self) -> Description:
        """See :class:`Backend`."""
        return await self._backend.describe()

    async def numbers(self) -> list[Numbers]:
        """See :class:`Backend`."""
        return await self._backend.numbers()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve calls this, and gives it to :class:`AudioSecondsPolicy`."""
        return {IN_FLIGHT: self._backend.speaking.admission.in_flight_s}

    async def check_health(self) -> None:
        """Ray Serve replaces a replica whose engine is gone."""
        if not self._backend.speaking.is_alive:
            raise RuntimeError("the speaking thread has ended")

    def __del__(self) -> None:
        if hasattr(self, "_backend"):
            self._backend.speaking.stop()


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
        wanted = -int(-in_flight_s // self._target)
        low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(low, min(high, max(1, wanted))), {}
