"""The Ray Serve application: one deployment for each model and one for the API before them, or one for everything.

``retort.serving.app:build`` is the ``import_path`` of a Serve configuration; its ``args`` are a :class:`ServeConfig`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retort.audio.files import Audio
from retort.config import validate
from retort.inference.voices import Voice
from retort.serving.api import build_api
from retort.serving.backends import Ask, Backend, Description, Numbers
from retort.serving.memory import keep_everything
from retort.serving.replica import AudioSecondsPolicy, EngineReplica, WholeReplica
from retort.serving.settings import ServeConfig, ServedModel
from retort.serving.speaking import Snippet
from retort.store.file_names import file_name

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

_PATIENCE_S = 5.0
_SURGE_PERCENT = 25
"""Of its replicas, rounded up, that a deployment may have besides while new ones replace old ones: none stops before
another has passed its warm-up, and all go on if a new version does not start."""
_QUEUE = 10_000
"""Requests that a replica may hold: admission goes by seconds of speech, not by their number."""


class RayBackend:
    """A model behind a handle."""

    def __init__(self, handle: "DeploymentHandle") -> None:
        self._handle = handle

    async def speak(self, ask: Ask) -> AsyncIterator[Snippet]:
        """See :class:`Backend`."""
        pieces = self._handle.options(stream=True).answer.remote(ask)
        try:
            async for piece in pieces:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            pieces.cancel()

    async def describe(self) -> Description:
        """See :class:`Backend`."""
        return await self._handle.describe.remote()  # type: ignore[no-any-return]

    async def voice_of(self, audio: Audio) -> Voice:
        """See :class:`Backend`."""
        return await self._handle.voice_of.remote(audio)  # type: ignore[no-any-return]

    async def numbers(self) -> list[Numbers]:
        """See :class:`Backend`."""
        answers = await self._handle.broadcast("numbers").results_async(timeout_s=_PATIENCE_S, return_exceptions=True)
        return [numbers for answer in answers if isinstance(answer, list) for numbers in answer]


class Ingress:
    """The API in front of the models."""

    def __init__(self, config: Mapping[str, Any], **models: "DeploymentHandle") -> None:
        self._config = validate(dict(config), ServeConfig, where="the application")
        names = [model.name for model in self._config.models]
        self._backends: dict[str, Backend] = {
            name: RayBackend(models[f"model_{index}"]) for index, name in enumerate(names)
        }

    def __serve_build_asgi_app__(self) -> Any:
        """Ray Serve calls this in the replica."""
        api = build_api(self._config, self._backends)
        keep_everything()
        return api


def build(args: ServeConfig) -> "Application":
    """The application of a configuration."""
    from ray import serve

    tree = args.model_dump(mode="json")
    if args.layout == "together":
        whole: Any = serve.deployment(serve.ingress()(WholeReplica)).options(
            name="Whole", **_options(args, args.models)
        )
        return whole.bind(tree)
    models = {}
    for index, model in enumerate(args.models):
        replica: Any = serve.deployment(EngineReplica).options(
            name=f"model-{file_name(model.name)}",  # which Ray puts into names of its actors and logs
            **_options(args, (model,)),
        )
        models[f"model_{index}"] = replica.bind(model.model_dump(mode="json"), tree)
    front: Any = serve.deployment(serve.ingress()(Ingress)).options(
        name="Ingress",
        max_ongoing_requests=_QUEUE,
        graceful_shutdown_timeout_s=args.drain_s,
        max_surge_percent=_SURGE_PERCENT,
    )
    return front.bind(tree, **models)


def _options(config: ServeConfig, models: Sequence[ServedModel]) -> dict[str, Any]:
    """Of a deployment whose replicas hold these models; they have one scaling."""
    model = models[0]
    autoscaling = {
        "min_replicas": model.min_replicas,
        "max_replicas": model.max_replicas,
        "upscale_delay_s": model.upscale_delay_s,
        "downscale_delay_s": model.downscale_delay_s,
        "look_back_period_s": model.load_window_s,
        "metrics_interval_s": model.load_window_s / 3,
        "policy": {
            "policy_function": f"{AudioSecondsPolicy.__module__}:{AudioSecondsPolicy.__name__}",
            "policy_kwargs": {"target_audio_seconds": model.target_audio_seconds},
        },
    }
    several = model.max_replicas > model.min_replicas
    scale: dict[str, Any] = {"autoscaling_config": autoscaling} if several else {"num_replicas": model.min_replicas}
    return {
        "max_ongoing_requests": _QUEUE,
        "graceful_shutdown_timeout_s": config.drain_s,
        "health_check_period_s": 2.0,
        "max_surge_percent": _SURGE_PERCENT,
        "ray_actor_options": {"num_cpus": sum(m.cpus for m in models), "num_gpus": sum(m.gpus for m in models)},
        **scale,
    }
