"""An evaluation's systems at other temperatures: who says what to choose, and who is judged at what was chosen."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from retort.evaluation.items import ItemResult
from retort.evaluation.judge import TestStrings
from retort.evaluation.results import BootstrapConfig, Pair, SystemInfo
from retort.evaluation.temperatures import Choice, at_best, candidates_of, choose
from retort.orchestration.evaluate.listeners import with_part
from retort.orchestration.evaluate.tasks import BestTask, ChoosingTask, PlainTask, Task, pieces_of
from retort.run_config import EvaluateConfig


def choosing_tasks(config: EvaluateConfig, infos: Sequence[SystemInfo]) -> list[ChoosingTask]:
    """What must be said before anything can be chosen; nothing where no system has a temperature to be chosen.

    Raises:
        DataError: there are fewer strings to choose by than are asked for.
    """
    asked = config.temperatures
    candidates = _candidates(config, infos)
    if asked is None or not candidates:
        return []
    ids = TestStrings(config.data, split=asked.split, count=asked.num_strings).by_length
    return [
        ChoosingTask(name, asked, temperature, number, piece)
        for name, temperatures in candidates.items()
        for temperature in temperatures
        for number, piece in enumerate(pieces_of(ids, config.batch_size))
    ]


def chosen(
    config: EvaluateConfig, infos: Sequence[SystemInfo], folder: Path, tasks: Sequence[ChoosingTask]
) -> Choice | None:
    """The choice, from the pieces of all of :func:`choosing_tasks`; None where nothing was to be chosen."""
    if config.temperatures is None or not tasks:
        return None
    items = [item for task in tasks for item in task.piece(folder).read(None)]
    return choose(config.temperatures, _candidates(config, infos), items, bootstrap_of(config))


def best_tasks(choice: Choice | None, infos: Sequence[SystemInfo], tasks: Sequence[Task]) -> list[BestTask]:
    """The plain tasks of every system again at its best temperature, where that is not its own."""
    if choice is None:
        return []
    own = {info.name: info.facts.get("temperature") for info in infos}
    return [
        BestTask(task.system, choice.best[task.system], task.number, task.ids)
        for task in tasks
        if isinstance(task, PlainTask) and task.slice_name is None
        if task.system in choice.best and choice.best[task.system] != own[task.system]
    ]


def with_best_items(choice: Choice | None, items: Sequence[ItemResult]) -> list[ItemResult]:
    """``items``, and those of the systems whose best temperature is their own, under their other name."""
    if choice is None:
        return list(items)
    judged = {item.system for item in items}
    same = {name for name in choice.best if at_best(name) not in judged}
    return [*items, *(dataclasses.replace(i, system=at_best(i.system)) for i in items if i.system in same)]


def with_best_infos(choice: Choice | None, infos: Sequence[SystemInfo]) -> list[SystemInfo]:
    """Every system, and behind them all the same at their best: nothing else of them differs, nor do their costs."""
    best = {} if choice is None else choice.best
    judge = None if choice is None else choice.recogniser
    return [
        *infos,
        *(
            dataclasses.replace(
                info,
                name=at_best(info.name),
                facts={**info.facts, "temperature": best[info.name]},
                listeners=with_part(info.listeners, judge, "chose the temperature") if judge else info.listeners,
            )
            for info in infos
            if info.name in best
        ),
    ]


def with_best_pairs(choice: Choice | None, pairs: Sequence[Pair]) -> list[Pair]:
    """What is to be compared, and the same at each one's best where one of the two has one."""
    best = {} if choice is None else {name: at_best(name) for name in choice.best}
    return [
        *pairs,
        *(
            dataclasses.replace(pair, a=best.get(pair.a, pair.a), b=best.get(pair.b, pair.b), told_as="at_best")
            for pair in pairs
            if {pair.a, pair.b} & set(best)
        ),
    ]


def bootstrap_of(config: EvaluateConfig) -> BootstrapConfig:
    """How its intervals are drawn."""
    return BootstrapConfig(config.cluster_by_speaker, config.num_resamples, config.seed)


def _candidates(config: EvaluateConfig, infos: Sequence[SystemInfo]) -> dict[str, tuple[float, ...]]:
    """What there is to choose from for each system that has a temperature; nothing where none is chosen."""
    own = {info.name: info.facts.get("temperature") for info in infos}
    asked = config.temperatures
    return {} if asked is None else {name: candidates_of(asked, t) for name, t in own.items() if t is not None}
