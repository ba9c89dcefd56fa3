"""The processes of an evaluation on Ray: pools of judges, and one alone for what is measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retort.orchestration.cluster import worker_environment
from retort.orchestration.demand import Demand
from retort.orchestration.evaluate.worker import EvaluationWorker
from retort.orchestration.outputs import absolute_paths
from retort.run_config import EvaluateConfig


def actors_of(config: EvaluateConfig, count: int, threads: int) -> list[Any]:
    """So many processes that judge and measure, with what the run file's pool gives each."""
    import ray

    options = {
        **Demand.of_pool(config.pool).options,
        "runtime_env": {"env_vars": worker_environment(threads, use_gpu=config.pool.gpus_per_worker > 0)},
        # Anywhere with room: inside a trial of a sweep the default would be the trial's own small placement group.
        "scheduling_strategy": "DEFAULT",
        "max_restarts": 2,
        "max_task_retries": 2,
    }
    remote = ray.remote(**options)(EvaluationWorker)
    tree = absolute_paths(config).model_dump(mode="json")
    return [remote.remote(tree, threads) for _ in range(count)]


def on_one_actor(config: EvaluateConfig, method: str, threads: int, *arguments: str) -> Any:
    """Call a method in a process of its own, which ends with the call."""
    import ray

    with _one_actor(config, threads) as actor:
        return ray.get(getattr(actor, method).remote(*arguments))


def each_on_one_actor(config: EvaluateConfig, method: str, threads: int) -> Iterator[Any]:
    """What a method yields in a process of its own, as it comes."""
    import ray

    with _one_actor(config, threads) as actor:
        for reference in getattr(actor, method).options(num_returns="streaming").remote():
            yield ray.get(reference)


@contextmanager
def _one_actor(config: EvaluateConfig, threads: int) -> Iterator[Any]:
    import ray

    actor = actors_of(config, 1, threads)[0]
    try:
        yield actor
    finally:
        ray.kill(actor)
